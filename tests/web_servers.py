"""A real HTTP server in this process, which can be stopped and started again."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: Message
    body: bytes
    client: tuple[str, int]  # tells connections apart

    @property
    def text(self) -> str:
        return self.body.decode()


@dataclass(frozen=True)
class Answer:
    """Status 0: none, the connection is closed."""

    status: int = 204
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class WebServer:
    """Listens on a free port of this machine while it is entered or started; writes down what it is sent.

    Attributes:
        answer: says what a request gets.
        requests: in the order in which they came.
    """

    def __init__(self, answer: Callable[[Request], Answer] = lambda _: Answer()) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def texts(self) -> list[str]:
        return [request.text for request in self.requests]

    def start(self) -> Self:
        self._server = _Server(self.port, self._take)
        self._thread = threading.Thread(target=self._server.serve_forever, args=[0.01])
        self._thread.start()
        return self

    def stop(self) -> None:
        """Close every connection, too."""
        self._server.shutdown()
        self._server.server_close()
        self._server.cut()
        self._thread.join()

    def _take(self, request: Request) -> Answer:
        self.requests.append(request)
        return self.answer(request)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, take: Callable[[Request], Answer]) -> None:
        self.take = take
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: Any) -> None:
        """A client that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length)
        if len(body) < length:  # the client has died
            self.close_connection = True
            return
        answer = self.server.take(Request(self.command, self.path, self.headers, body, self.client_address))
        if not answer.status:
            self.close_connection = True
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.status != 204 and "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def do_GET(self) -> None:
        self.do_POST()

    def do_PUT(self) -> None:
        self.do_POST()

    def do_DELETE(self) -> None:
        self.do_POST()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""
