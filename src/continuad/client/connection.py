"""How a client reaches its station: requests are repeated until they are answered, and take effect once."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from continuad.client.answers import Event, made_event
from continuad.errors import SettingsError, StationError
from continuad.needs import needed
from continuad.retry_after import retry_after

NOT_NOW = frozenset({429, 502, 503, 504})
"""Answers after which a request is repeated: the station, or what stands before it, is busy or away."""


@dataclass(frozen=True)
class ClientSettings:
    """How patient a client is.

    Attributes:
        timeout: seconds for a connection, and for every sign of life after it.
        patience: seconds for which a request is repeated while the station is busy or away.
        waits: seconds between attempts, unless the station names others: at first, and at most.
        poll: seconds between looks at a job.
        silence: seconds without an event after which events are asked for anew; the station sends a sign of
            life every 15 s.
    """

    timeout: float = 60
    patience: float = 60
    waits: tuple[float, float] = (0.2, 5)
    poll: float = 0.5
    silence: float = 45


class Connection:
    """Connections to one station. Safe to use from several threads.

    Args:
        url: of the station.
        token: None for a station that needs none.
        settings: timeouts and waits.

    Attributes:
        url: of the station, without a slash at its end.

    Raises:
        SettingsError: address or token cannot be used; the message holds nothing of them.
        MissingError: httpx is not installed.
    """

    def __init__(self, url: str, token: str | None, *, settings: ClientSettings) -> None:
        self._settings = settings
        self.url = _checked_url(url)
        headers = {"User-Agent": "continuad"}
        if token is not None:
            if not token or not token.isascii() or not token.isprintable() or token != token.strip():
                raise SettingsError("The token has characters that none has.", "Copy it again.")
            headers["Authorization"] = f"Bearer {token}"
        self._httpx = needed("httpx")
        self._http = self._httpx.Client(headers=headers, timeout=settings.timeout)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def send(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        body: Mapping[str, Any] | None = None,
        is_keyed: bool = False,
    ) -> Any:
        """Send a request until the station has answered, and return its JSON; None if there is none.

        Args:
            method: of HTTP.
            path: below the API's.
            params: of the query; those that are None are left out.
            content: an encoded image; or
            body: plain values for JSON.
            is_keyed: whether the request has no effect of itself when it comes twice.

        Raises:
            StationError: the station refuses, or stays away.
        """
        headers = {} if content is None else {"Content-Type": "application/octet-stream"}
        if is_keyed:
            headers["Idempotency-Key"] = secrets.token_hex(16)
        given = {name: value for name, value in (params or {}).items() if value is not None}
        patience = _Patience(self._settings)
        while True:
            try:
                response = self._http.request(
                    method, self._address(path), params=given, content=content, json=body, headers=headers
                )
            except self._httpx.TransportError as error:
                patience.wait(self._away(str(error) or type(error).__name__), None)
                continue
            if response.status_code in NOT_NOW:
                patience.wait(self._failure(response), retry_after(response.headers.get("Retry-After")))
            elif response.is_success:
                return self._json(response) if response.content else None
            else:
                raise self._failure(response)

    def try_to_delete(self, path: str) -> None:
        """Delete something, if that can be done at once."""
        with suppress(self._httpx.TransportError):
            self._http.delete(self._address(path))

    def events(self) -> Iterator[Event]:
        """News as they come, without end.

        Raises:
            StationError: the station refuses, or stays away.
        """
        timeout = self._httpx.Timeout(self._settings.timeout, read=self._settings.silence)
        patience = _Patience(self._settings)
        while True:
            try:
                with self._http.stream("GET", self._address("events"), timeout=timeout) as response:
                    if response.status_code != 200:
                        response.read()
                        failure, wait = self._failure(response), response.headers.get("Retry-After")
                        if response.status_code not in NOT_NOW:
                            raise failure
                    else:
                        for event in _events(response.iter_lines()):
                            patience = _Patience(self._settings)
                            yield event
                        failure, wait = self._away("it has ended the connection"), None
            except self._httpx.TransportError as error:
                failure, wait = self._away(str(error) or type(error).__name__), None
            patience.wait(failure, retry_after(wait))

    def _address(self, path: str) -> str:
        return f"{self.url}/api/v1/{path}"

    def _json(self, response: Any) -> Any:
        try:
            return response.json()
        except ValueError:
            raise StationError(
                f"What answers at {self.url} is no station.", "Check the address and its port."
            ) from None

    def _failure(self, response: Any) -> StationError:
        """What the station says about a request that it has not fulfilled."""
        try:
            said = response.json()
            return StationError(str(said["problem"]), str(said["remedy"]))
        except (ValueError, KeyError, TypeError):
            return StationError(
                f"{self.url} answers HTTP {response.status_code}.", "Check that a station runs there."
            )

    def _away(self, cause: str) -> StationError:
        return StationError(
            f"The station {self.url} cannot be reached ({cause}).", "Check its address, and that it runs."
        )


class _Patience:
    """Waits between attempts, longer and longer, up to a limit."""

    def __init__(self, settings: ClientSettings) -> None:
        self._end = time.monotonic() + settings.patience
        self._next, self._most = settings.waits

    def wait(self, failure: StationError, asked: float | None) -> None:
        """Wait as long as the station asks, or raise the failure if that is too long."""
        pause = self._next if asked is None else max(asked, self._next)
        if time.monotonic() + pause > self._end:
            raise failure
        time.sleep(pause)
        self._next = min(2 * self._next, self._most)


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        (parts.hostname or "").encode("idna")
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_good = False
    if not is_good or parts.username is not None or parts.query or parts.fragment or not url.isprintable():
        raise SettingsError(
            "The address of the station is not of the form http://host:port.",
            "Give one like http://127.0.0.1:8765, and the token by itself.",
        )
    return url.rstrip("/")


def _events(lines: Iterator[str]) -> Iterator[Event]:
    """Server-sent events; comments are left out."""
    kind, data = "", ""
    for line in lines:
        name, _, value = line.partition(": ")
        if name == "event":
            kind = value
        elif name == "data":
            data = value
        elif not line and kind:
            yield made_event(kind, json.loads(data))
            kind, data = "", ""
