from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
pytest.importorskip("httpx")

import sqlalchemy as sql

from brokers import RECEIVED, Broker, wait_for
from conftest import end_child, start_child
from continuad.errors import SettingsError
from continuad.retry_after import retry_after
from continuad.station.database import Database, deliveries, now
from continuad.station.deliveries import (
    Deliveries,
    DeliverySettings,
    RefusedError,
    SendError,
    Target,
    TargetStatus,
)
from continuad.station.mqtt_target import MqttTarget
from continuad.station.webhook import WebhookTarget
from web_servers import Answer, Request, WebServer

pytest_plugins = ["databases"]

QUICK = DeliverySettings(waits=(0.02, 0.05), longest=0.05, linger=5)


def put(database: Database, texts: Sequence[object], *, target: str = "webhook") -> None:
    with database.write() as connection:
        for text in texts:
            connection.execute(deliveries.insert().values(target=target, payload=str(text), created=now()))


def left(database: Database) -> list[str]:
    with database.read() as connection:
        return list(connection.execute(sql.select(deliveries.c.payload).order_by(deliveries.c.id)).scalars())


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last)]


def firsts(texts: Sequence[str]) -> list[str]:
    """Without the repeats."""
    return list(dict.fromkeys(texts))


def received() -> list[str]:
    return [text for _, text in RECEIVED]


@contextlib.contextmanager
def running(
    database: Database,
    targets: Mapping[str, Target],
    *,
    notes: list[str] | None = None,
    settings: DeliverySettings = QUICK,
    **options: Any,
) -> Iterator[Deliveries]:
    heard: list[str] = [] if notes is None else notes
    made = Deliveries(database, targets, note=heard.append, settings=settings, **options)
    made.start()
    try:
        yield made
    finally:
        made.stop()
    names = {f"deliveries to {key}" for key in targets}
    assert not [thread for thread in threading.enumerate() if thread.name in names]


def hook(server: WebServer, path: str = "/in", **options: Any) -> WebhookTarget:
    return WebhookTarget(server.url + path, **options)


def only(made: Deliveries) -> TargetStatus:
    [status] = made.status()
    return status


class Ear:
    """A target that does what it is told."""

    name = "the ear"

    def __init__(self, *troubles: Exception) -> None:
        self.heard: list[str] = []
        self.batches: list[int] = []
        self.is_closed = False
        self._troubles = list(troubles)

    def send(self, payloads: Sequence[str]) -> None:
        self.batches.append(len(payloads))
        if self._troubles:
            trouble = self._troubles.pop(0)
            self.heard += payloads[: getattr(trouble, "sent", 0)]
            raise trouble
        self.heard += payloads

    def close(self) -> None:
        self.is_closed = True


class Hole(Ear):
    """A target that says nothing until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def send(self, payloads: Sequence[str]) -> None:
        self.heard += payloads
        self.closed.wait()
        raise SendError("is closed", sent=len(payloads))

    def close(self) -> None:
        self.closed.set()


class Wire:
    """Leads to a port of this machine until it is cut; swallows the answers while it is deaf."""

    def __init__(self, port: int) -> None:
        self._far = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._ends: list[socket.socket] = []
        self.is_deaf = threading.Event()
        self.has_swallowed = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """End all connections; new ones may come."""
        self.is_deaf.clear()
        self.has_swallowed.clear()
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._far))
                self._ends += near, far
                threading.Thread(target=self._lead, args=[near, far, False], daemon=True).start()
                threading.Thread(target=self._lead, args=[far, near, True], daemon=True).start()

    def _lead(self, source: socket.socket, sink: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(300 if is_answer else 1 << 16):
                if is_answer and self.is_deaf.is_set():
                    self.has_swallowed.set()
                else:
                    sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


# --- in order, at least once, on every database


def test_what_waits_is_sent_in_order_and_deleted(database: Database) -> None:
    put(database, numbers(0, 120))
    put(database, ["other"], target="mqtt")
    ear = Ear()
    with running(database, {"webhook": ear}) as made:
        wait_for(lambda: len(ear.heard) == 120)
        put(database, ["new"])
        made.wake()
        wait_for(lambda: only(made).delivered == 121)
        assert only(made) == TargetStatus("webhook", 0, 121, 0, None)
    assert ear.heard == [*numbers(0, 120), "new"]
    assert ear.batches == [50, 50, 20, 1]
    assert ear.is_closed
    assert left(database) == ["other"]  # for a target that is not there


def test_only_what_was_confirmed_is_deleted(database: Database) -> None:
    put(database, numbers(0, 10))
    notes: list[str] = []
    ear = Ear(SendError("is gone", sent=3), SendError("is gone", sent=0), SendError("is gone", sent=2))
    with running(database, {"webhook": ear}, notes=notes) as made:
        wait_for(lambda: only(made).delivered == 10)
    assert ear.batches == [10, 7, 7, 5]
    assert ear.heard == numbers(0, 10)
    assert notes == ["The ear is gone; messages wait for it.", "The ear takes messages again."]


def test_a_refused_message_does_not_stand_in_the_way(database: Database) -> None:
    put(database, numbers(0, 10))
    notes: list[str] = []
    ear = Ear(RefusedError("answers HTTP 400", sent=4), RefusedError("answers HTTP 400", sent=0))
    with running(database, {"webhook": ear}, notes=notes) as made:
        wait_for(lambda: only(made) == TargetStatus("webhook", 0, 8, 2, None))
    assert ear.heard == ["0", "1", "2", "3", "6", "7", "8", "9"]
    assert notes == ["The ear answers HTTP 400 to a message; such messages are dropped."]


def test_beyond_the_limit_the_oldest_are_dropped_counted_and_said_once(database: Database) -> None:
    put(database, numbers(0, 30), target="mqtt")
    put(database, numbers(0, 30))
    notes: list[str] = []
    ear, is_away = Ear(), threading.Event()

    class Away(Ear):
        def send(self, payloads: Sequence[str]) -> None:
            if is_away.is_set():
                raise SendError("is away")
            ear.send(payloads)

    is_away.set()
    with running(database, {"webhook": Away()}, notes=notes, limit=10) as made:
        wait_for(lambda: only(made).dropped == 20)
        put(database, numbers(30, 35))
        wait_for(lambda: only(made).dropped == 25)
        assert only(made).waiting == 10
        assert only(made).problem == "The ear is away."
        is_away.clear()
        wait_for(lambda: only(made).delivered == 10)
        wait_for(lambda: len(notes) == 4)
        assert only(made) == TargetStatus("webhook", 0, 10, 25, None)
    assert ear.heard == numbers(25, 35)
    assert left(database) == numbers(0, 30)  # another target's
    assert notes == [
        "More than 10 messages wait for the ear; the oldest are dropped.",
        "The ear is away; messages wait for it.",
        "The ear takes messages again.",
        "No message waits for the ear any more; 25 were dropped.",
    ]


def test_a_limit_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError):
        Deliveries(Database(tmp_path / "station.db"), {}, note=print, limit=0)


def test_one_target_does_not_wait_for_another(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"], target="mqtt")
    put(database, ["a", "b"])
    hole, ear = Hole(), Ear()
    settings = DeliverySettings(linger=0)
    with running(database, {"mqtt": hole}, settings=settings) as stuck:
        with running(database, {"webhook": ear}) as made:
            wait_for(lambda: only(made).delivered == 2)
        assert stuck.status()[0].waiting == 1
        stuck.stop()  # although the hole has not answered
        wait_for(lambda: "deliveries to mqtt" not in {thread.name for thread in threading.enumerate()})
    assert left(database) == ["a"]  # confirmed after the end: it is sent again, rather than lost


def test_whatever_befalls_a_target_it_is_tried_again(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"])
    notes: list[str] = []
    ear = Ear(ValueError("secret"), sql.exc.OperationalError("secret", {}, ValueError("secret")))
    with running(database, {"webhook": ear}, notes=notes) as made:
        wait_for(lambda: only(made).delivered == 1)
    assert notes == ["The ear fails (ValueError); messages wait for it.", "The ear takes messages again."]


def test_waits_grow_and_the_target_may_ask_for_others() -> None:
    settings = DeliverySettings(waits=(1, 60), longest=300)
    database: Any = None
    [courier] = Deliveries(database, {"webhook": Ear()}, note=print, settings=settings)._couriers
    found = []
    for _ in range(9):
        courier._fail("is away")
        found.append(courier._pause(None))
    assert found == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert [courier._pause(wait) for wait in (0, 0.5, 7, 300, 1e9)] == [1, 1, 7, 300, 300]


def test_waking_does_not_disturb_a_wait_and_the_end_does(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"])
    ear = Ear(*[SendError("is away") for _ in range(100)])
    with running(database, {"webhook": ear}, settings=DeliverySettings(waits=(3600, 3600))) as made:
        wait_for(lambda: ear.batches)
        for _ in range(50):
            made.wake()
    assert ear.batches == [1]


def test_an_end_without_a_start(tmp_path: Path) -> None:
    ear = Ear()
    Deliveries(Database(tmp_path / "station.db"), {"webhook": ear}, note=print).stop()
    assert ear.is_closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("confirmed", [0, 2, 5])
def test_a_kill_between_sending_and_deleting_repeats_and_loses_nothing(
    tmp_path: Path, confirmed: int
) -> None:
    path = tmp_path / "station.db"
    database = Database(path)
    put(database, numbers(0, 8))
    database.close()

    def work() -> None:
        class Dying(WebhookTarget):
            def send(self, payloads: Sequence[str]) -> None:
                super().send(payloads[:confirmed])
                os.kill(os.getpid(), signal.SIGKILL)

        Deliveries(Database(path), {"webhook": Dying(server.url)}, note=print, settings=QUICK).start()
        threading.Event().wait()

    with WebServer() as server:
        assert end_child(start_child(work)) == -signal.SIGKILL
        assert server.texts == numbers(0, confirmed)
        with running(database, {"webhook": hook(server)}) as made:
            wait_for(lambda: only(made).delivered == 8)
    assert server.texts == [*numbers(0, confirmed), *numbers(0, 8)]
    assert left(database) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "station.db"
    database = Database(path)
    put(database, numbers(0, 200))
    database.close()
    settings = DeliverySettings(batch=7)

    def work() -> None:
        Deliveries(Database(path), {"webhook": hook(server)}, note=print, settings=settings).start()
        threading.Event().wait()

    with WebServer() as server:
        for count in (17, 61, 64, 130):
            child = start_child(work)
            wait_for(lambda count=count: len(server.requests) >= count)  # type: ignore[misc]
            os.kill(child, signal.SIGKILL)
            assert end_child(child) == -signal.SIGKILL
        with running(database, {"webhook": hook(server)}) as made:
            wait_for(lambda: not only(made).waiting)
    assert firsts(server.texts) == numbers(0, 200)
    assert len(server.texts) <= 200 + 4 * 7
    assert left(database) == []


# --- web hooks


def test_a_web_hook_that_comes_and_goes_gets_everything_in_order(database: Database) -> None:
    notes: list[str] = []
    server = WebServer()
    put(database, numbers(0, 10))
    with running(database, {"webhook": hook(server)}, notes=notes) as made:
        wait_for(lambda: notes)
        with server:
            wait_for(lambda: only(made).delivered == 10)
        put(database, numbers(10, 80))
        made.wake()
        wait_for(lambda: len(notes) == 3)
        assert only(made).waiting == 70
        assert "cannot be reached (" in str(only(made).problem)
        with server:
            wait_for(lambda: len(server.requests) > 30)  # and away in the middle of a batch
        put(database, numbers(80, 90))
        made.wake()
        with server:
            wait_for(lambda: not only(made).waiting and only(made).problem is None)
    assert firsts(server.texts) == numbers(0, 90)
    here = f"The web hook {server.url} "
    assert all(note.startswith(here) for note in notes)
    assert [note.endswith("takes messages again.") for note in notes[:4]] == [False, True, False, True]


def test_a_new_object_on_the_same_database_goes_on(database: Database) -> None:
    server = WebServer()
    put(database, numbers(0, 60))
    with running(database, {"webhook": hook(server)}) as made:
        wait_for(lambda: only(made).problem)
    assert len(left(database)) == 60
    with server:
        for first in (60, 70):
            put(database, numbers(first, first + 10))
            with running(database, {"webhook": hook(server)}) as made:
                wait_for(lambda: not only(made).waiting)
    assert server.texts == numbers(0, 80)


def test_messages_are_signed_json_over_one_connection(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    texts = ['{"label": "normal"}', '{"product": "Tür"}', "{}"]
    put(database, texts)
    answers = [Answer(204), Answer(200, b"{}" * 100), Answer(201)]
    with WebServer(lambda _: answers.pop(0)) as server:
        target = hook(server, "/hooks?line=1", secret="schlüssel")
        with running(database, {"webhook": target}) as made:
            wait_for(lambda: only(made).delivered == 3)
    assert server.texts == texts
    assert len({request.client for request in server.requests}) == 1
    for request in server.requests:
        assert (request.method, request.path) == ("POST", "/hooks?line=1")
        assert request.headers["Content-Type"] == "application/json"
        digest = hmac.new("schlüssel".encode(), request.body, hashlib.sha256).hexdigest()
        assert request.headers["X-Continuad-Signature"] == f"sha256={digest}"


def test_what_is_not_signed_has_no_signature() -> None:
    with WebServer() as server:
        hook(server).send(["{}"])
    assert "X-Continuad-Signature" not in server.requests[0].headers


@pytest.mark.parametrize("status", [400, 409, 410, 413, 422])
def test_messages_that_a_web_hook_refuses_are_dropped(tmp_path: Path, status: int) -> None:
    database = Database(tmp_path / "station.db")
    put(database, numbers(0, 6))
    server = WebServer(lambda request: Answer(status if request.text in "13" else 200))
    with server, running(database, {"webhook": hook(server)}) as made:
        wait_for(lambda: not only(made).waiting)
        wait_for(lambda: only(made).delivered == 4)
        assert only(made).dropped == 2
    assert server.texts == numbers(0, 6)


@pytest.mark.parametrize("status", [301, 307, 401, 403, 404, 408, 425, 429, 500, 502, 503, 0])
def test_messages_wait_for_a_web_hook_that_wants_nothing_now(tmp_path: Path, status: int) -> None:
    database = Database(tmp_path / "station.db")
    put(database, numbers(0, 6))
    elsewhere = {"Location": "/elsewhere", "Retry-After": "3600"}  # QUICK does not wait for so long
    busy = [Answer(status, b"not now", elsewhere) for _ in range(4)]

    def answer(request: Request) -> Answer:
        return busy.pop() if request.text == "2" and busy else Answer()

    server = WebServer(answer)
    with server, running(database, {"webhook": hook(server)}) as made:
        wait_for(lambda: only(made).delivered == 6)
        assert only(made).dropped == 0
    assert server.texts == ["0", "1", "2", "2", "2", "2", "2", "3", "4", "5"]
    assert {request.path for request in server.requests} == {"/in"}


@pytest.mark.parametrize("status", [429, 503])
def test_a_web_hook_that_asks_to_wait_is_left_alone(tmp_path: Path, status: int) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"])
    with WebServer(lambda _: Answer(status, headers={"Retry-After": "3600"})) as server:
        settings = DeliverySettings(waits=(0.01, 0.01), longest=3600)
        with running(database, {"webhook": hook(server)}, settings=settings) as made:
            wait_for(lambda: only(made).problem)
            made.wake()
            threading.Event().wait(0.2)  # twenty of its own waits
            assert only(made).problem == f"The web hook {server.url} answers HTTP {status}."
    assert server.texts == ["a"]
    assert left(database) == ["a"]


def test_how_long_to_wait_is_read_as_seconds_or_a_date() -> None:
    assert retry_after("7") == 7
    assert retry_after("0") == 0
    later = datetime.now(UTC) + timedelta(seconds=1000)
    wait = retry_after(format_datetime(later, usegmt=True))
    assert wait is not None
    assert 900 < wait <= 1000
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert retry_after("Wed, 21 Oct 2015 07:28:00 -0000") == 0
    for text in (None, "", "soon", "-1", "1.5", "٣", "9" * 5000, "Wed, 99 Oct 2015 07:28:00 GMT"):
        assert retry_after(text) is None


def test_a_web_hook_that_does_not_answer_in_time_is_tried_again(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"])
    answered = threading.Event()
    server = WebServer(lambda _: Answer() if answered.wait(10) else Answer(500))
    with server, running(database, {"webhook": hook(server, timeout=0.05)}) as made:
        wait_for(lambda: only(made).problem)
        assert only(made).problem == f"The web hook {server.url} has not answered within 0.05 s."
        answered.set()
        wait_for(lambda: only(made).delivered == 1)


def test_an_answer_without_end_holds_nothing_up(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a", "b"])
    endless = Answer(200, b"x" * 1_000_000, {"Content-Length": str(10**12)})
    with WebServer(lambda _: endless) as server, running(database, {"webhook": hook(server)}) as made:
        wait_for(lambda: only(made).delivered == 2)
    assert server.texts == ["a", "b"]


def test_the_end_comes_after_the_message_that_is_on_its_way(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, numbers(0, 40))
    go_on = threading.Event()
    with WebServer(lambda _: Answer() if go_on.wait(10) else Answer(500)) as server:
        target = hook(server)
        made = Deliveries(database, {"webhook": target}, note=print, settings=DeliverySettings(linger=0))
        made.start()
        wait_for(lambda: server.requests)
        made.stop()
        go_on.set()
        wait_for(lambda: "deliveries to webhook" not in {thread.name for thread in threading.enumerate()})
        assert server.texts == ["0"]
        with pytest.raises(SendError):
            target.send(["a"])
    assert left(database) == numbers(0, 40)


@pytest.mark.parametrize(
    "url",
    [
        "host/secret",
        "ftp://user:secret@host/secret",
        "http://",
        "http:///secret",
        "https://user:secret@/secret",
        "https://user:secret@host:port/secret",
        "https://user:secret@host:99999/secret",
        "https://user:secret@[::1/secret",
        "https://host/secret with blanks",
        "https://host/secret\r\nX: y",
        "https://ho\0st/secret",
        "https://user:secret@a..b/secret",
        "",
    ],
)
def test_addresses_of_web_hooks_that_are_none_are_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as error:
        WebhookTarget(url)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__


def test_an_empty_secret_is_refused() -> None:
    with pytest.raises(SettingsError):
        WebhookTarget("https://host/", secret="")


def test_secrets_of_a_web_hook_are_sent_and_never_shown(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    database = Database(tmp_path / "station.db")
    put(database, ["a"])
    notes: list[str] = []
    answers = [Answer(503), Answer(0), Answer(204), Answer(400)]
    with WebServer(lambda _: answers.pop(0)) as server:
        url = server.url.replace("://", "://line:p%40ss-secret@") + "/T0/path-secret?token=query-secret"
        target = WebhookTarget(url, secret="hmac-secret")
        with running(database, {"webhook": target}, notes=notes) as made:
            wait_for(lambda: only(made).delivered == 1)
            shown = [repr(target), target.name, repr(only(made))]
            put(database, ["b"])
            made.wake()
            wait_for(lambda: only(made).problem)
            shown.append(repr(only(made)))
    with pytest.raises(SendError) as error:
        WebhookTarget(url, secret="hmac-secret").send(["a"])
    shown += [repr(error.value), repr(error.value.__cause__), *notes, *caplog.messages]
    assert len(notes) == 3
    assert "secret" not in "".join(shown)
    assert {request.headers["Authorization"] for request in server.requests} == {
        "Basic bGluZTpwQHNzLXNlY3JldA=="
    }
    assert server.requests[0].path == "/T0/path-secret?token=query-secret"


# --- brokers


def test_a_broker_that_comes_and_goes_gets_everything_in_order(database: Database) -> None:
    notes: list[str] = []
    broker = Broker()
    put(database, numbers(0, 10), target="mqtt")
    target = MqttTarget(f"{broker.url}/line/1")
    with running(database, {"mqtt": target}, notes=notes) as made:
        wait_for(lambda: notes)
        with broker:
            wait_for(lambda: only(made).delivered == 10)
        put(database, [*numbers(10, 150), "Tür"], target="mqtt")
        made.wake()
        wait_for(lambda: only(made).problem)
        with broker:
            wait_for(lambda: not only(made).waiting)
            assert only(made).dropped == 0
    assert firsts(received()) == [*numbers(0, 150), "Tür"]
    assert {topic for topic, _ in RECEIVED} == {"line/1"}
    assert all(note.startswith(f"The broker 127.0.0.1:{broker.port} ") for note in notes)
    assert "cannot be reached (" in notes[0]
    assert notes[1].endswith("takes messages again.")
    assert not [thread for thread in threading.enumerate() if "paho" in thread.name]


def test_connections_that_break_amid_messages_lose_none(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    notes: list[str] = []
    with Broker() as broker:
        wire = Wire(broker.port)
        target = MqttTarget(f"{broker.url}/line/1".replace(str(broker.port), str(wire.port)))
        put(database, numbers(0, 300), target="mqtt")
        with running(database, {"mqtt": target}, notes=notes) as made:
            for first in (300, 360, 420):
                wait_for(lambda first=first: len(RECEIVED) > first - 280)  # type: ignore[misc]
                wire.is_deaf.set()
                put(database, numbers(first, first + 60), target="mqtt")
                made.wake()
                wait_for(wire.has_swallowed.is_set)
                wire.cut()
            wait_for(lambda: not only(made).waiting and only(made).problem is None)
        wire.close()
    assert firsts(received()) == numbers(0, 480)
    assert len(RECEIVED) > 480
    assert {note.split(" ", 3)[3] for note in notes} == {
        "is gone; messages wait for it.",
        "takes messages again.",
    }


def test_a_connection_without_confirmations_is_given_up() -> None:
    with Broker() as broker:
        wire = Wire(broker.port)
        url = f"{broker.url}/line/1".replace(str(broker.port), str(wire.port))
        target = MqttTarget(url, timeout=0.3)
        target.send(["a"])
        wire.is_deaf.set()
        with pytest.raises(SendError, match="confirms nothing") as error:
            target.send(["b", "c"])
        assert error.value.sent == 0
        assert not [thread for thread in threading.enumerate() if "paho" in thread.name]
        wire.cut()
        MqttTarget(url).send(["d"])
        target.send(["b", "c"])
        target.close()
        wire.close()
    assert firsts(received()) == ["a", "b", "c", "d"]


def test_a_broker_keeps_its_connection_while_nothing_fails(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    with Broker() as broker:
        target = MqttTarget(f"{broker.url}/line/1")
        with running(database, {"mqtt": target}) as made:
            connections = set()
            for number in range(5):
                put(database, [number], target="mqtt")
                made.wake()
                wait_for(lambda number=number: only(made).delivered == number + 1)  # type: ignore[misc]
                connections.add(target._connection)
    assert received() == numbers(0, 5)
    assert len(connections) == 1


def test_a_broker_that_refuses_the_password_is_said_once_without_it(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"], target="mqtt")
    notes: list[str] = []
    with Broker() as broker:
        target = MqttTarget(f"mqtt://camera:secret@127.0.0.1:{broker.port}/line")
        with running(database, {"mqtt": target}, notes=notes) as made:
            wait_for(lambda: made._couriers[0]._failures > 2)
            shown = [repr(target), target.name, repr(only(made))]
    assert ["refuses the connection (Not authorized)" in note for note in notes] == [True]
    assert "secret" not in "".join([*shown, *notes])
    assert RECEIVED == []
    assert left(database) == ["a"]


def test_a_broker_that_does_not_answer_is_left_at_the_end(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    put(database, ["a"], target="mqtt")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        with pytest.raises(SendError, match="does not answer"):
            MqttTarget(f"mqtt://127.0.0.1:{port}/line", timeout=0.05).send(["a"])
        target = MqttTarget(f"mqtt://127.0.0.1:{port}/line", timeout=3600)
        made = Deliveries(database, {"mqtt": target}, note=print, settings=DeliverySettings(linger=0))
        made.start()
        wait_for(lambda: target._connection is not None)
        made.stop()
        wait_for(lambda: "deliveries to mqtt" not in {thread.name for thread in threading.enumerate()})
        with pytest.raises(SendError, match="not used"):
            target.send(["a"])
    assert left(database) == ["a"]


@pytest.mark.parametrize(
    "url", ["http://host/topic", "mqtt://user:secret@host", "mqtt://user:secret@host:p/t"]
)
def test_addresses_of_brokers_that_are_none_are_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as error:
        MqttTarget(url)
    assert "secret" not in str(error.value)
