from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("httpx")

from conftest import photos
from continuad.client import ClientSettings, Event, Inspection, Job, Station
from continuad.errors import ImageError, SettingsError, StationError
from continuad.images import load_image
from web_servers import Answer, Request, WebServer

QUICK = ClientSettings(patience=10, waits=(0.01, 0.05), poll=0.01)
HASTY = ClientSettings(patience=0.1, waits=(0.01, 0.05))
KEY = "Idempotency-Key"
ROOT = "/api/v1"

INSPECTION: dict[str, Any] = {
    "id": 7,
    "time": "2026-11-22T16:35:00.125+00:00",
    "label": "anomalous",
    "product": "bolt",
    "score": 1.5,
    "threshold": 1.25,
    "nearest": "bolt",
    "distance": 0.25,
    "source": "api",
    "reference": "part 1",
    "width": 48,
    "height": 32,
    "has_picture": True,
    "has_map": True,
    "map_peak": 2.0,
    "truth": None,
    "corrected": None,
    "settled": False,
    "timings_ms": {"route": 1.5},
}
PRODUCT: dict[str, Any] = {
    "id": "bolt",
    "name": "Bolt",
    "state": "active",
    "method": "compact",
    "reason": "",
    "images": 50,
    "bytes": 1000,
    "learnt": "2026-11-22T16:35:00Z",
    "seconds": 1.5,
    "false_alarm_rate": 0.01,
    "threshold": 1.25,
    "samples": 3,
    "counts": {"normal": 1, "anomalous": 2, "good": 3, "bad": 4},
    "last_inspected": None,
}
JOB: dict[str, Any] = {
    "id": "ab" * 16,
    "kind": "teach",
    "state": "queued",
    "product": "bolt",
    "step": "",
    "done": 0,
    "total": 0,
    "created": "2026-11-22T16:35:00.125+00:00",
    "started": None,
    "finished": None,
    "attempts": 0,
    "problem": None,
    "remedy": None,
}
JOB_PATH = f"{ROOT}/jobs/{JOB['id']}"


def said(data: object, status: int = 200, **headers: str) -> Answer:
    return Answer(status, json.dumps(data).encode(), headers)


def trouble(status: int, **headers: str) -> Answer:
    return said({"problem": "It is bad.", "remedy": "Do good."}, status, **headers)


def in_turn(*answers: Answer) -> Callable[[Request], Answer]:
    waiting = list(answers)
    return lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]


@contextmanager
def linked(
    answer: Callable[[Request], Answer], settings: ClientSettings = QUICK
) -> Iterator[tuple[WebServer, Station]]:
    with WebServer(answer) as server, Station(server.url, settings=settings) as station:
        yield server, station


def paths(server: WebServer) -> list[str]:
    return [f"{request.method} {request.path.removeprefix(ROOT)}" for request in server.requests]


# --- requests that are repeated


@pytest.mark.parametrize("status", [429, 502, 503, 504, 0])
def test_an_inspection_that_is_repeated_keeps_its_key(status: int) -> None:
    busy = trouble(status, **{"Retry-After": "0"})
    with linked(in_turn(busy, busy, busy, said(INSPECTION, 201))) as (server, station):
        found = station.inspect(b"picture")
        station.inspect(b"picture")
    assert found.id == 7
    assert server.texts == ["picture"] * 5
    keys = [request.headers[KEY] for request in server.requests]
    assert len(set(keys[:4])) == 1
    assert len(set(keys)) == 2
    assert all(len(key) >= 32 for key in keys)


def test_an_answer_that_is_lost_does_not_make_a_second_inspection() -> None:
    made: dict[str, int] = {}

    def answer(request: Request) -> Answer:
        is_new = request.headers[KEY] not in made
        number = made.setdefault(request.headers[KEY], len(made) + 1)
        return Answer(0) if is_new else said({**INSPECTION, "id": number}, 201)

    with linked(answer) as (server, station):
        assert [station.inspect(b"picture").id for _ in range(3)] == [1, 2, 3]
    assert len(server.requests) == 6


def test_a_station_that_starts_again_is_waited_for() -> None:
    server = WebServer(in_turn(said(INSPECTION, 201)))
    with Station(server.url, settings=QUICK) as station:
        threading.Timer(0.2, server.start).start()
        assert station.inspect(b"a").id == 7
        server.stop()
        threading.Timer(0.1, server.start).start()
        assert station.inspect(b"b").id == 7
        server.stop()
    assert server.texts == ["a", "b"]


def test_as_long_as_the_station_asks_is_waited() -> None:
    times: list[datetime] = []

    def answer(_: Request) -> Answer:
        times.append(datetime.now(UTC))
        return trouble(503, **{"Retry-After": "1"}) if len(times) == 1 else said(INSPECTION, 201)

    with linked(answer) as (_server, station):
        station.inspect(b"a")
    assert times[1] - times[0] > timedelta(seconds=0.95)


@pytest.mark.parametrize("headers", [{}, {"Retry-After": "3600"}])
def test_patience_ends(headers: dict[str, str]) -> None:
    with (
        linked(in_turn(trouble(503, **headers)), settings=HASTY) as (server, station),
        pytest.raises(StationError, match="It is bad"),
    ):
        station.inspect(b"a")
    assert (len(server.requests) > 1) == (not headers)
    cause = rf"{server.url} cannot be reached \(.+\)"
    with Station(server.url, settings=HASTY) as station, pytest.raises(StationError, match=cause):
        station.products()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413, 422, 500, 507])
def test_what_the_station_refuses_is_not_repeated_and_says_why(status: int) -> None:
    with linked(in_turn(trouble(status))) as (server, station), pytest.raises(StationError) as error:
        station.inspect(b"a")
    assert (error.value.problem, error.value.remedy) == ("It is bad.", "Do good.")
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("answer", "match"),
    [
        (Answer(404, b"<html>"), "answers HTTP 404"),
        (Answer(301, headers={"Location": "/x"}), "answers HTTP 301"),
        (said(["problem"], 400), "answers HTTP 400"),
        (Answer(200, b"<html>"), "is no station"),
        (said({"id": 1}), "cannot be understood"),
        (said({**INSPECTION, "time": "soon"}), "cannot be understood"),
    ],
)
def test_what_is_no_station_is_said(answer: Answer, match: str) -> None:
    with linked(in_turn(answer)) as (_server, station), pytest.raises(StationError, match=match):
        station.inspect(b"a")


# --- addresses and tokens


def test_the_token_goes_along_and_is_not_shown() -> None:
    server = WebServer(in_turn(said({"items": []})))
    with server, Station(f"{server.url}/below/", "secret") as station:
        assert station.products() == []
        assert repr(station) == f"Station('{server.url}/below')"
    [request] = server.requests
    assert request.path == "/below/api/v1/products"
    assert request.headers["Authorization"] == "Bearer secret"


@pytest.mark.parametrize("token", ["", "secret\n", " secret", "sécret", "se\rcret"])
def test_tokens_that_are_none_are_refused_without_being_shown(token: str) -> None:
    with pytest.raises(SettingsError) as error:
        Station("http://host", token)
    assert "cret" not in str(error.value)


@pytest.mark.parametrize(
    "url",
    [
        "host:8000",
        "ftp://host",
        "http://",
        "http://user:secret@host",
        "http://secret@host",
        "http://host:port",
        "http://[::1",
        "http://a..b",
        "http://host/?token=secret",
        "http://host/#secret",
        "http://host/\n",
    ],
)
def test_addresses_that_are_none_are_refused_without_being_shown(url: str) -> None:
    with pytest.raises(SettingsError) as error:
        Station(url)
    assert "secret" not in str(error.value)


# --- inspections


def test_inspections_have_all_that_the_station_says() -> None:
    newer = {**INSPECTION, "something": "new", "truth": "bad", "corrected": "2026-11-22T17:00:00.000+00:00"}
    with linked(in_turn(said(newer, 201))) as (server, station):
        found = station.inspect(b"a", product="Tür & Tor", nearest=True, reference="part 1")
    values = {name: value for name, value in newer.items() if name != "something"}
    values["time"] = datetime(2026, 11, 22, 16, 35, 0, 125000, UTC)
    values["corrected"] = datetime(2026, 11, 22, 17, tzinfo=UTC)
    assert vars(found) == values
    query = parse_qs(urlsplit(server.requests[0].path).query)
    assert query == {"product": ["Tür & Tor"], "nearest": ["true"], "reference": ["part 1"]}
    assert server.requests[0].headers["Content-Type"] == "application/octet-stream"


def test_files_and_bytes_are_sent_as_they_are_and_arrays_as_png(tmp_path: Path) -> None:
    photo = photos("bolt", 1)[0]
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "JPEG")
    (tmp_path / "a.jpg").write_bytes(stream.getvalue())
    grey = np.linspace(0, 1, 20 * 30, dtype=np.float32).reshape(20, 30)
    with linked(in_turn(said(INSPECTION, 201))) as (server, station):
        for image in (tmp_path / "a.jpg", str(tmp_path / "a.jpg"), stream.getvalue(), photo, grey):
            station.inspect(image)
        station.inspect(Image.fromarray(photo))
    sent = [request.body for request in server.requests]
    assert sent[:3] == [stream.getvalue()] * 3
    for data, image in zip(sent[3:], (photo, grey, photo), strict=True):
        assert data.startswith(b"\x89PNG")
        assert np.array_equal(load_image(data), load_image(image))
    assert {request.path for request in server.requests} == {f"{ROOT}/inspections"}


def test_images_that_cannot_be_read_are_not_sent(tmp_path: Path) -> None:
    with linked(in_turn(Answer())) as (server, station):
        for image in (tmp_path / "none.png", tmp_path, "a\0b", np.zeros((3, 3))):
            with pytest.raises(ImageError):
                station.inspect(image)
    assert server.requests == []


def test_the_history_is_fetched_page_by_page_as_it_is_asked_for() -> None:
    def answer(request: Request) -> Answer:
        before = int(parse_qs(urlsplit(request.path).query).get("before", ["7"])[0])
        items = [{**INSPECTION, "id": number} for number in (before - 1, before - 2)]
        return said({"items": items, "next": before - 2 if before > 3 else None})

    since = datetime(2026, 11, 22, 12, tzinfo=timezone(timedelta(hours=2)))
    with linked(answer) as (server, station):
        found = station.history(product="bolt", label="anomalous", truth="none", since=since)
        assert next(found).id == 6
        assert len(server.requests) == 1
        assert [inspection.id for inspection in found] == [5, 4, 3, 2, 1]
    queries = [parse_qs(urlsplit(request.path).query) for request in server.requests]
    assert [query.pop("before", None) for query in queries] == [None, ["5"], ["3"]]
    wanted = {"product": ["bolt"], "label": ["anomalous"], "truth": ["none"], "limit": ["200"]}
    assert queries == [{**wanted, "since": ["2026-11-22T10:00:00+00:00"]}] * 3


def test_a_correction() -> None:
    with linked(in_turn(said({**INSPECTION, "truth": "good"}))) as (server, station):
        assert station.correct(7, "good").truth == "good"
        station.correct(8, None)
    assert paths(server) == ["PUT /inspections/7/truth", "PUT /inspections/8/truth"]
    assert [json.loads(text) for text in server.texts] == [{"truth": "good"}, {"truth": None}]


def test_products() -> None:
    with linked(in_turn(said({"items": [PRODUCT]}))) as (_server, station):
        [product] = station.products()
    assert vars(product) == {**PRODUCT, "learnt": datetime(2026, 11, 22, 16, 35, tzinfo=UTC)}


# --- teaching


def classroom(*jobs: dict[str, Any]) -> Callable[[Request], Answer]:
    """Answers as a station does: everything else but a look at the job is the same each time."""
    looks = in_turn(*(said({**JOB, **job}) for job in jobs))

    def answer(request: Request) -> Answer:
        path = urlsplit(request.path).path
        if request.method == "DELETE":
            return Answer(204)
        if path == JOB_PATH:
            return looks(request)
        if path.endswith("/photo-sets"):
            return said({"id": "5e"}, 201)
        return said({"id": 1} if path.endswith("/photos") else JOB, 201)

    return answer


def test_teaching_sends_the_photos_and_waits_for_the_job(tmp_path: Path) -> None:
    for name in ("img10.png", "img2.png"):
        Image.fromarray(photos("bolt", 1)[0]).save(tmp_path / name)
    steps: list[tuple[int, int, str]] = []
    running = {"state": "running", "step": "learning", "done": 3, "total": 9}
    with linked(classroom(running, {"state": "succeeded"})) as (server, station):
        job = station.teach("bolt", tmp_path, replace=True, progress=lambda *step: steps.append(step))
    assert job.state == "succeeded"
    assert paths(server) == [
        "POST /photo-sets",
        "POST /photo-sets/5e/photos?name=img2.png",
        "POST /photo-sets/5e/photos?name=img10.png",
        "POST /teachings",
        *[f"GET /jobs/{JOB['id']}"] * 2,
    ]
    wish = {"name": "bolt", "photo_set": "5e", "false_alarm_rate": 0.01, "replace": True}
    assert json.loads(server.requests[3].body) == wish
    assert server.requests[3].headers[KEY]
    assert steps == [(0, 2, "sending photos"), (1, 2, "sending photos"), (0, 0, ""), (3, 9, "learning")]


def test_teaching_without_waiting() -> None:
    with linked(classroom({"state": "running", "done": 4})) as (server, station):
        job = station.teach("bolt", photos("bolt", 2), wait=False)
        assert station.job(job.id).done == 4
    assert isinstance(job, Job)
    assert job.state == "queued"
    assert "name=photo+2" in paths(server)[2] or "name=photo%202" in paths(server)[2]


@pytest.mark.parametrize(
    ("job", "text"),
    [
        ({"state": "failed", "problem": "It is bad.", "remedy": "Do good."}, "It is bad. Do good."),
        ({"state": "cancelled"}, "The teaching of 'bolt' was cancelled. Teach it again."),
    ],
)
def test_a_teaching_that_fails_is_an_error(job: dict[str, Any], text: str) -> None:
    with linked(classroom(job)) as (_server, station), pytest.raises(StationError) as error:
        station.teach("bolt", photos("bolt", 1))
    assert str(error.value) == text


def test_progress_that_raises_cancels_the_teaching() -> None:
    def stop(done: int, total: int, what: str) -> None:
        if what == "learning":
            raise KeyboardInterrupt

    with (
        linked(classroom({"state": "running", "step": "learning"})) as (server, station),
        pytest.raises(KeyboardInterrupt),
    ):
        station.teach("bolt", photos("bolt", 1), progress=stop)
    assert paths(server)[-1] == f"POST /jobs/{JOB['id']}/cancel"


def test_photos_are_discarded_when_one_of_them_cannot_be_sent(tmp_path: Path) -> None:
    with linked(classroom()) as (server, station), pytest.raises(ImageError):
        station.teach("bolt", [photos("bolt", 1)[0], tmp_path / "none.png"])
    assert paths(server)[-1] == "DELETE /photo-sets/5e"
    assert "POST /teachings" not in paths(server)


# --- news


def events(*news: tuple[str, Any]) -> Answer:
    texts = [f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in news]
    body = "retry: 2000\n" + ": still here\n\n".join(texts)
    return Answer(200, body.encode(), {"Content-Type": "text/event-stream"})


def test_news_come_as_they_are_and_go_on_after_an_interruption() -> None:
    answers = in_turn(
        events(("hello", {}), ("inspection", INSPECTION)),
        Answer(0),
        trouble(503),
        events(("hello", {}), ("job", {**JOB, "step": "läuft"}), ("products", {}), ("status", {})),
        trouble(401),
    )
    found: list[Event] = []
    with linked(answers) as (server, station), pytest.raises(StationError, match="It is bad"):
        found.extend(station.events())
    kinds = ["hello", "inspection", "hello", "job", "products", "status"]
    assert [event.kind for event in found] == kinds
    assert isinstance(found[1].data, Inspection)
    assert found[1].data.id == 7
    assert isinstance(found[3].data, Job)
    assert found[3].data.step == "läuft"
    assert found[4] == Event("products", {})
    assert paths(server) == ["GET /events"] * 5


def test_a_silent_station_is_asked_anew() -> None:
    settings = replace(HASTY, silence=0.02)
    with socket.create_server(("127.0.0.1", 0)) as deaf, pytest.raises(StationError, match="be reached"):
        next(Station(f"http://127.0.0.1:{deaf.getsockname()[1]}", settings=settings).events())
