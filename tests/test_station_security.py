"""The doors of the station: who comes in, how much and how fast."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("fastapi")

from starlette.datastructures import Headers

from continuad.errors import SettingsError
from continuad.station.security import (
    COOKIE,
    HEADERS,
    Guard,
    Inflow,
    Rate,
    RefusedRequestError,
    actor,
    cookie_for,
    fingerprint,
)
from continuad.station.settings import Limits, StationSettings

TOKEN = "a-token-that-is-long-enough"


def settings_of(**changes: Any) -> StationSettings:
    return StationSettings(**{"bank": Path("parts.bank"), **changes})


def ask(
    guard: Guard, path: str = "/api/v1/status", *, method: str = "GET", **headers: str
) -> tuple[int, Any]:
    """Status and headers of the answer to a request from this machine."""
    headers = {"host": "127.0.0.1:8765", **headers}
    raw = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("10.0.0.9", 4)}
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("the doors read no body")

    asyncio.run(guard(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


async def inside(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.8.8.8"])
def test_on_this_machine_nobody_needs_a_token(host: str) -> None:
    assert settings_of(host=host).is_loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "station.example", "localhost.example"])
def test_everywhere_else_a_token_is_required(host: str) -> None:
    with pytest.raises(SettingsError, match="token"):
        settings_of(host=host)
    assert not settings_of(host=host, token=TOKEN).is_loopback


def test_secrets_are_not_printed() -> None:
    secret = {"token": TOKEN, "database": "postgresql://u:topsecret@h/d", "mqtt": "mqtt://u:topsecret@h/t"}
    shown = repr(settings_of(**secret, webhook="https://u:topsecret@h/", webhook_secret="topsecret"))
    assert "topsecret" not in shown
    assert TOKEN not in shown


def test_without_a_token_only_this_machine_s_names_are_answered() -> None:
    guard = Guard(inside, settings_of())
    for host in ("127.0.0.1:8765", "localhost", "[::1]:80"):
        assert ask(guard, host=host)[0] == 200
    for host in ("evil.example", "127.0.0.1.evil.example:8765", "", "a:b:c", "[::1"):
        assert ask(guard, host=host)[0] == 421  # a name that somebody lets point here


def test_with_a_token_it_is_asked_for() -> None:
    guard = Guard(inside, settings_of(token=TOKEN))
    assert ask(guard)[0] == 401
    assert ask(guard)[1]["www-authenticate"] == "Bearer"
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(guard, authorization=f"bearer  {TOKEN} ")[0] == 200
    assert ask(guard, authorization=f"Basic {TOKEN}")[0] == 401
    assert ask(guard, cookie=f"{COOKIE}={cookie_for(TOKEN)}")[0] == 200
    assert ask(guard, cookie=f"{COOKIE}={TOKEN}")[0] == 401
    assert ask(guard, cookie="\xe9=;;,")[0] == 401
    assert ask(guard, authorization=f"Bearer {TOKEN}", host="anything.example")[0] == 200


@pytest.mark.parametrize("path", ["/", "/healthz", "/page/app.js", "/api/v1/session"])
def test_what_needs_no_token(path: str) -> None:
    assert ask(Guard(inside, settings_of(token=TOKEN)), path)[0] == 200


@pytest.mark.parametrize("path", ["/metrics", "/api/openapi.json", "/api/v1/events", "/pages", "//", "/page"])
def test_everything_else_needs_it(path: str) -> None:
    assert ask(Guard(inside, settings_of(token=TOKEN)), path)[0] == 401


def test_a_token_cannot_be_guessed_for_long() -> None:
    guard = Guard(inside, settings_of(token=TOKEN, limits=Limits(attempts=3)))
    wrong = [ask(guard, authorization=f"Bearer wrong {n}")[0] for n in range(5)]
    assert wrong == [401, 401, 401, 429, 429]
    assert ask(guard, authorization=f"Bearer {TOKEN}")[0] == 200  # who knows it is let in


def test_other_pages_cannot_change_anything() -> None:
    guard = Guard(inside, settings_of())
    assert ask(guard, method="POST", origin="http://127.0.0.1:8765")[0] == 200
    assert ask(guard, method="POST")[0] == 200  # no browser
    for origin in ("http://evil.example", "http://127.0.0.1:9", "null", ""):
        for method in ("POST", "PUT", "PATCH", "DELETE"):
            assert ask(guard, method=method, origin=origin)[0] == 403
        assert ask(guard, origin=origin)[0] == 200  # which it cannot read


def test_every_answer_carries_what_browsers_must_know() -> None:
    guard = Guard(inside, settings_of(token=TOKEN))
    for path in ("/", "/api/v1/status"):
        assert HEADERS.items() <= ask(guard, path)[1].items()
    policy = HEADERS["content-security-policy"]
    assert "unsafe" not in policy
    assert policy.startswith("default-src 'none'")


def test_who_asks_too_often_has_to_wait() -> None:
    guard = Guard(inside, settings_of(limits=Limits(requests=0.5, burst=3)))
    assert [ask(guard)[0] for _ in range(4)] == [200, 200, 200, 429]
    assert ask(guard)[1]["retry-after"] == "2"


@given(st.lists(st.floats(0, 3), max_size=60), st.integers(1, 5), st.sampled_from([0.5, 1.0, 4.0]))
def test_a_bucket_lets_through_its_rate_and_its_burst(pauses: list[float], burst: int, rate: float) -> None:
    now, let_through = [0.0], 0
    bucket = Rate(per_second=rate, burst=burst, clock=lambda: now[0])
    for pause in pauses:
        now[0] += pause
        if not bucket.wait("a"):
            bucket.count("a")
            let_through += 1
        else:
            now[0] += bucket.wait("a") + 1e-6
            assert not bucket.wait("a")  # it says how long
    assert let_through <= burst + rate * now[0] + 1e-6
    assert not bucket.wait("another")


async def pieces_of(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def receive(inflow: Inflow, headers: dict[str, str], *pieces: bytes) -> bytes:
    async def go() -> bytes:
        async with inflow.receive(Headers(headers), pieces_of(*pieces)) as data:
            return data

    return asyncio.run(go())


def test_uploads_are_bounded_whatever_they_say_of_themselves() -> None:
    inflow = Inflow(Limits(bytes=10))
    assert receive(inflow, {"content-length": "10"}, b"12345", b"67890") == b"1234567890"
    assert receive(inflow, {}, b"123") == b"123"
    for headers, body in (
        ({"content-length": "11"}, b""),
        ({"content-length": "2"}, b"123"),
        ({"content-length": "-1"}, b"x" * 11),
        ({}, b"x" * 11),
    ):
        with pytest.raises(RefusedRequestError) as refused:
            receive(inflow, headers, body)
        assert refused.value.status == 413
    assert receive(inflow, {"content-length": "10"}, b"1234567890")  # nothing is held any more


def test_all_uploads_together_are_bounded_until_they_are_dealt_with() -> None:
    async def go() -> None:
        inflow = Inflow(Limits(bytes=10, bytes_at_once=15))
        ten = Headers({"content-length": "10"})
        async with inflow.receive(ten, pieces_of(b"x" * 10)):
            with pytest.raises(RefusedRequestError) as refused:
                async with inflow.receive(ten, pieces_of(b"x" * 10)):
                    pass
            assert (refused.value.status, refused.value.seconds) == (503, 1)
        async with inflow.receive(ten, pieces_of(b"x" * 10)) as data:
            assert len(data) == 10

    asyncio.run(go())


def test_a_dawdling_upload_is_ended_and_work_on_one_is_not() -> None:
    async def slow() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(60)
        yield b"y"

    async def go() -> None:
        inflow = Inflow(Limits(upload_seconds=0.05))
        with pytest.raises(RefusedRequestError) as refused:
            async with inflow.receive(Headers({}), slow()):
                pass
        assert refused.value.status == 408
        async with inflow.receive(Headers({}), pieces_of(b"x")) as data:
            await asyncio.sleep(0.2)  # inspecting it may take longer
            assert data == b"x"

    asyncio.run(go())


@given(st.lists(st.binary(max_size=4), max_size=4), st.lists(st.binary(max_size=4), max_size=4))
def test_a_fingerprint_tells_requests_apart(one: list[bytes], other: list[bytes]) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) == (one == other)


def test_the_audit_log_names_who_it_can() -> None:
    assert actor(Headers({}), "10.0.0.9") == "10.0.0.9"
    named = actor(Headers({"x-continuad-user": "Ida\t" + "x" * 100}), "10.0.0.9")
    assert named == f"{('Ida' + 'x' * 100)[:40]} (10.0.0.9)"


def test_a_refusal_is_json() -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "client": None}
    asyncio.run(Guard(inside, settings_of())(scope, None, send))  # type: ignore[arg-type]
    assert json.loads(sent[1]["body"]).keys() == {"problem", "remedy"}
