"""A station and its clients, each in a process of its own, for station.py."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fresh import resident_mib

START_SECONDS = 60
TICKS = os.sysconf("SC_CLK_TCK")


class Server:
    """`continuad serve` on a bank, as any user starts it.

    Attributes:
        port: where it listens; the same after a restart.
    """

    def __init__(self, bank: Path) -> None:
        self._bank = bank
        self.port = 0
        self._process = self._started()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def rss_mib(self) -> float:
        return resident_mib(peak=False, process=self._process.pid)

    @property
    def cpu_seconds(self) -> float:
        """Of all its threads, but not of the process that teaches."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def kill(self) -> None:
        """Let nothing of it run on, not even to tidy up."""
        self._process.kill()
        self._process.wait()

    def restart(self) -> None:
        self._process = self._started()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait()

    def _started(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "continuad", "serve", str(self._bank), "--port", str(self.port)]
        usual = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
        log = self._bank.with_name("station.log")
        with log.open("w") as stream:
            process = subprocess.Popen(command, stderr=stream, text=True, env=usual)
        deadline = time.monotonic() + START_SECONDS
        while not (found := re.search(r"http://[\d.]+:(\d+)", log.read_text())):
            if process.poll() is not None or time.monotonic() > deadline:
                process.kill()
                sys.exit(f"the station does not start:\n{log.read_text()}")
            time.sleep(0.05)
        self.port = int(found[1])
        return process


@contextmanager
def running(bank: Path) -> Iterator[Server]:
    server = Server(bank)
    try:
        yield server
    finally:
        server.stop()


def load(server: Server, photos: Path, *, clients: int, warm_up: float, wait: Callable[[], Any]) -> Any:
    """Let clients work while `wait` does not return, and return what they have seen; see station_clients.py.

    Beside it `server_cpu`: how many cores the station has used.
    """
    process = _clients(server, photos, clients=clients, warm_up=warm_up)
    time.sleep(warm_up)
    begin, used = time.perf_counter(), server.cpu_seconds
    try:
        wait()
        cpu = (server.cpu_seconds - used) / (time.perf_counter() - begin)
    finally:
        said, _ = process.communicate()
    if process.returncode:
        sys.exit("a client has failed")
    return {**json.loads(said), "server_cpu": cpu}


def deliver(server: Server, photos: Path, *, clients: int, count: int) -> Iterator[dict[str, Any]]:
    """Let clients post so many images once; what is acknowledged, as it comes."""
    process = _clients(server, photos, clients=clients, count=count)
    assert process.stdout
    yield from map(json.loads, process.stdout)
    if process.wait():
        sys.exit("a client has failed")


def _clients(server: Server, photos: Path, **options: float) -> subprocess.Popen[str]:
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    script = str(Path(__file__).with_name("station_clients.py"))
    command = [sys.executable, script, "--port", str(server.port), "--photos", str(photos), *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
