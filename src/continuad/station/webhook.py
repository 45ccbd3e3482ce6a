"""Deliveries to a web hook: each message is a POST of JSON."""

from __future__ import annotations

import hashlib
import hmac
import logging
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from continuad.errors import SettingsError
from continuad.needs import needed
from continuad.retry_after import retry_after
from continuad.station.target import RefusedError, SendError

SIGNATURE = "X-Continuad-Signature"
"""sha256= and the hexadecimal HMAC-SHA256 of the body, keyed with the secret."""

WAITS = frozenset({401, 403, 404, 407, 408, 425, 429})
"""Of the answers 4xx, those that are about the receiver, not about the message; it is sent again."""

MAX_ANSWER = 65536
"""Bytes of an answer that are read so that its connection can be used again."""


class WebhookTarget:
    """Posts each text and takes any answer 2xx for a confirmation; follows no redirects.

    Certificates are checked against the system's, so that a factory's own authority is known here, too.

    Args:
        url: http:// or https://, perhaps with user and password; what is shown of it is the host.
        secret: signs what is sent.
        timeout: seconds for the connection, and for every sign of life after it.

    Raises:
        SettingsError: this is no such address; the message holds nothing of it.
        MissingError: httpx is not installed.
    """

    def __init__(self, url: str, *, secret: str | None = None, timeout: float = 10) -> None:
        self._httpx = needed("httpx")
        self._url = self._parsed(url)
        if secret == "":
            raise SettingsError("The secret of the web hook is empty.", "Give one, or leave it out.")
        self._secret = None if secret is None else secret.encode()
        self._timeout = timeout
        self._context = ssl.create_default_context()
        self._closing = threading.Event()
        logging.getLogger("httpx").setLevel(logging.WARNING)  # below it, whole addresses are logged

    @property
    def name(self) -> str:
        """The web hook's scheme and host; its path may be a secret."""
        return f"the web hook {self._url.scheme}://{self._url.netloc.decode()}"

    def send(self, payloads: Sequence[str]) -> None:
        """Post texts in order, over one connection if the server lets it.

        Raises:
            RefusedError: the server will never take one of them.
            SendError: the server is away, or wants nothing now.
        """
        with self._httpx.Client(verify=self._context, timeout=self._timeout) as client:
            for sent, payload in enumerate(payloads):
                if self._closing.is_set():
                    raise SendError("is not used any more", sent=sent)
                self._post(client, payload.encode(), sent=sent)

    def close(self) -> None:
        """Send nothing more; what is on its way has its timeout."""
        self._closing.set()

    def _post(self, client: Any, body: bytes, *, sent: int) -> None:
        try:
            with client.stream("POST", self._url, content=body, headers=self._headers(body)) as response:
                self._read(response)
        except self._httpx.TransportError as error:  # its request, and so the address, goes no further
            raise SendError(self._explained(error), sent=sent) from None
        if response.is_success:
            return
        problem = f"answers HTTP {response.status_code}"
        if response.has_redirect_location:
            problem += " and names another address"
        if response.is_client_error and response.status_code not in WAITS:
            raise RefusedError(problem, sent=sent)
        raise SendError(problem, sent=sent, wait=retry_after(response.headers.get("Retry-After")))

    def _headers(self, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": "continuad"}
        if self._secret is not None:
            headers[SIGNATURE] = f"sha256={hmac.new(self._secret, body, hashlib.sha256).hexdigest()}"
        return headers

    def _read(self, response: Any) -> None:
        """Read an answer to its end, but not for ever; its status says all there is to know."""
        size, end = 0, time.monotonic() + self._timeout
        with suppress(self._httpx.TransportError):
            for part in response.iter_raw():
                size += len(part)
                if size > MAX_ANSWER or time.monotonic() > end:
                    return

    def _explained(self, error: Exception) -> str:
        if isinstance(error, self._httpx.TimeoutException):
            return f"has not answered within {self._timeout:g} s"
        if isinstance(error, self._httpx.ConnectError):
            return f"cannot be reached ({error})"
        return f"breaks off ({type(error).__name__})"

    def _parsed(self, url: str) -> Any:
        """The address as httpx has it."""
        try:
            parts = urlsplit(url)
            (parts.hostname or "").encode("idna")
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
            if is_good and url.isprintable() and " " not in url:
                return self._httpx.URL(url)
        except (ValueError, self._httpx.InvalidURL):
            pass  # what they say may be a part of the password
        raise SettingsError(
            "The address of the web hook is not of the form http://host/path.",
            "Give one like https://host/path or https://user:password@host:8443/path.",
        )
