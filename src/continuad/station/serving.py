"""Running the station: from its settings to a process that answers until it is told to end."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from continuad.errors import StationError
from continuad.station.app import create_app
from continuad.station.settings import StationSettings
from continuad.station.station import Station

CONNECTIONS = 1000
"""At once; further ones are told to come back."""

GRACE_SECONDS = 20
"""For answers that are under way when the station is told to end."""


@dataclass(frozen=True)
class Tls:
    """What makes the connection private.

    Attributes:
        certificate: PEM file.
        key: PEM file.
    """

    certificate: Path
    key: Path


def serve(settings: StationSettings, *, tls: Tls | None = None, note: Callable[[str], None]) -> list[int]:
    """Run a station until SIGINT or SIGTERM; returns the signals that came.

    Args:
        settings: of the station.
        tls: None for plain HTTP.
        note: told where the station is, and what whoever runs it should know.

    Raises:
        ContinuadError: it cannot run.
    """
    listening = _listen(settings.host, settings.port)
    with listening:
        station = Station(settings, note=note)
        config = uvicorn.Config(
            create_app(station),
            log_level="error",
            access_log=False,
            server_header=False,
            lifespan="on",
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=30,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        name = listening.getsockname()
        place = f"[{name[0]}]" if ":" in name[0] else name[0]
        address = f"http{'s' if tls else ''}://{place}:{name[1]}/"
        server = _Server(config, station, lambda: note(f"The station runs at {address} Ctrl-C ends it."))
        server.run(sockets=[listening])
    if not server.started:
        raise StationError("The station cannot start.", "What it lacks is said above.")
    return server.received


class _Server(uvicorn.Server):
    """Says when it runs, and lets go of those who listen for news when it has to end."""

    def __init__(self, config: uvicorn.Config, station: Station, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._station, self._started = station, started
        self.received: list[int] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._started()

    def handle_exit(self, sig: int, _frame: FrameType | None) -> None:
        """End as asked; unlike uvicorn, do not raise the signal again after that: this is a proper end."""
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self.received.append(sig)
        self._station.events.close()


def _listen(host: str, port: int) -> socket.socket:
    """Take the address, before anything long is begun."""
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.create_server(place[:2], family=family, backlog=512)
        # connections inherit it; otherwise an answer's body waits until its head is acknowledged: 40 ms
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except OSError as error:
        raise StationError(
            f"The station cannot listen on {host}:{port} ({error.strerror}).",
            "Choose another --port, or end what uses it.",
        ) from error
