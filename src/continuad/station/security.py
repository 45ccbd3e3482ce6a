"""Who may come in, how much and how fast: the doors that every request passes before anything else.

The threats: another page in the engineer's browser (cross-site requests, DNS rebinding), another machine in
the network (no token, a guessed token), a client that floods or dawdles, and images that are no images.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http.cookies import CookieError, SimpleCookie
from math import ceil
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuad.errors import StationError
from continuad.station.settings import Limits, StationSettings

COOKIE = "continuad"
OPEN = ("/", "/healthz", "/readyz", "/favicon.ico", "/api/v1/session")
"""What needs no token, beside the files of the page: nothing in it is worth hiding."""

SAFE = ("GET", "HEAD", "OPTIONS")

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; media-src 'self' blob:; manifest-src 'self'; form-action 'none'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
}

CLIENTS = 10_000
"""Clients whose recent requests are remembered; those heard last stay."""


class RefusedRequestError(StationError):
    """A request that is answered without being looked at.

    Args:
        status: of the answer.
        problem: what is wrong.
        remedy: what to do.
        seconds: after which it is worth trying again.
    """

    def __init__(self, status: int, problem: str, remedy: str, *, seconds: int | None = None) -> None:
        super().__init__(problem, remedy)
        self.status = status
        self.seconds = seconds


class Rate:
    """A bucket of requests per client: full at first, filled again at a steady rate."""

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second, self._burst, self._clock = per_second, burst, clock
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait(self, client: str) -> float:
        """Seconds that a client has to wait until it may make a request; 0: now."""
        left, _ = self._level(client)
        return max(0.0, (1 - left) / self._per_second)

    def count(self, client: str) -> None:
        """Book a request."""
        left, now = self._level(client)
        self._clients[client] = left - 1, now
        self._clients.move_to_end(client)
        if len(self._clients) > CLIENTS:
            self._clients.popitem(last=False)

    def _level(self, client: str) -> tuple[float, float]:
        now = self._clock()
        left, then = self._clients.get(client, (float(self._burst), now))
        return min(self._burst, left + (now - then) * self._per_second), now


class Guard:
    """Lets in whom the settings let in; adds what browsers should know to each answer.

    Args:
        app: what is guarded.
        settings: of the station.
    """

    def __init__(self, app: ASGIApp, settings: StationSettings) -> None:
        limits = settings.limits
        self._app, self._settings = app, settings
        self._rate = Rate(per_second=limits.requests, burst=limits.burst)
        self._attempts = Rate(per_second=limits.attempts / 60, burst=limits.attempts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            self._check(scope)
        except RefusedRequestError as refusal:
            await _answer(refusal, send_guarded)
        else:
            await self._app(scope, receive, send_guarded)

    def _check(self, scope: Scope) -> None:
        """Raise the `RefusedRequestError` of a request that must not pass."""
        headers, path = Headers(scope=scope), scope["path"]
        client = scope["client"][0] if scope["client"] else ""
        if wait := self._rate.wait(client):
            raise RefusedRequestError(429, "Too many requests.", "Ask less often.", seconds=ceil(wait))
        self._rate.count(client)
        host = headers.get("host", "")
        if self._settings.token is None and not _is_loopback(host):
            raise RefusedRequestError(
                421, "This address is not the station's.", f"Use http://127.0.0.1:{self._settings.port}/."
            )
        origin = headers.get("origin")
        if scope["method"] not in SAFE and origin is not None and origin.partition("://")[2] != host:
            raise RefusedRequestError(403, "Another web page has sent this.", "Use the station's own page.")
        if path in OPEN or path.startswith("/page/") or self._has_cookie(headers):
            return
        self.check_token(_bearer(headers), client)

    def check_token(self, given: str | None, client: str) -> None:
        """Raise the `RefusedRequestError` of who does not know the token."""
        token = self._settings.token
        if token is None or (given is not None and hmac.compare_digest(given.encode(), token.encode())):
            return
        if given is None:
            raise RefusedRequestError(401, "A token is needed.", "Ask whoever runs the station for it.")
        if wait := self._attempts.wait(client):
            raise RefusedRequestError(429, "Too many wrong tokens.", "Wait a little.", seconds=ceil(wait))
        self._attempts.count(client)
        raise RefusedRequestError(401, "The token is wrong.", "Ask whoever runs the station for it.")

    def _has_cookie(self, headers: Headers) -> bool:
        token, cookie = self._settings.token, _cookie(headers)
        return token is not None and cookie is not None and hmac.compare_digest(cookie, cookie_for(token))


class Inflow:
    """Receives uploads: none too large or too slow, and not too much at once."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def receive(
        self, headers: Headers, pieces: AsyncIterator[bytes], *, most: int | None = None
    ) -> AsyncIterator[bytes]:
        """Give a body that is received piece by piece; it counts as held until the block ends.

        Args:
            headers: of the request.
            pieces: of its body.
            most: bytes that it may have; by default those of an upload.

        Raises:
            RefusedRequestError: it is too large or too slow, or too much is held already.
        """
        most = self._limits.bytes if most is None else most
        told = headers.get("content-length", "")
        size = int(told) if told.isdecimal() else most
        if size > most:
            raise _too_large(most)
        if self._held + size > self._limits.bytes_at_once:
            raise RefusedRequestError(503, "Too many uploads at once.", "Try again in a moment.", seconds=1)
        self._held += size
        try:
            yield await self._gathered(pieces, size)
        finally:
            self._held -= size

    async def _gathered(self, pieces: AsyncIterator[bytes], most: int) -> bytes:
        """All pieces as one."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._limits.upload_seconds):
                async for piece in pieces:
                    body += piece
                    if len(body) > most:
                        raise _too_large(most)
        except TimeoutError:
            raise RefusedRequestError(
                408, "The upload took too long.", "Check the network, and try again."
            ) from None
        return bytes(body)


def _too_large(most: int) -> RefusedRequestError:
    return RefusedRequestError(
        413, "The upload is too large.", f"Give at most {most / 2**20:.3g} MiB, or let the station take more."
    )


def actor(headers: Headers, client: str | None) -> str:
    """Whom the audit log names: the address of the client, and what it calls itself."""
    name = headers.get("x-continuad-user", "").strip()
    shown = "".join(sign for sign in name if sign.isprintable())[:40]
    return f"{shown} ({client})" if shown else str(client)


def fingerprint(*parts: bytes | str) -> str:
    """What tells a repeated request from another one with the same key."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()


def cookie_for(token: str) -> str:
    """What the page keeps once it has given the token: the token cannot be found from it."""
    return hmac.new(token.encode(), b"continuad page", hashlib.sha256).hexdigest()


def _bearer(headers: Headers) -> str | None:
    kind, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


def _cookie(headers: Headers) -> str | None:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return None
    return morsel.value if morsel and morsel.value.isascii() else None


def _is_loopback(host: str) -> bool:
    """Whether a Host header names this machine, and not a name that an attacker lets point to it."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return False
    return name in ("localhost", "127.0.0.1", "::1")


async def _answer(refusal: RefusedRequestError, send: Send) -> None:
    body = json.dumps({"problem": refusal.problem, "remedy": refusal.remedy}).encode()
    headers = [(b"content-type", b"application/json")]
    if refusal.seconds is not None:
        headers.append((b"retry-after", str(refusal.seconds).encode()))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
