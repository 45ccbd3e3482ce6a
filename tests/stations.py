"""Real stations, each a process of its own, that tests can end, kill and start again."""

from __future__ import annotations

import io
import itertools
import json
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
import numpy.typing as npt
import sqlalchemy as sql
from PIL import Image

from conftest import photos

ROOT = "/api/v1"
KEY = "Idempotency-Key"
START_SECONDS = 60
MACHINE = {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
RUNNER = """
import json, sys
from pathlib import Path
from continuad.station.serving import serve
from continuad.station.settings import Limits, StationSettings
given = json.loads(sys.argv[1])
limits = Limits(**given["limits"])
settings = StationSettings(Path(given["bank"]), folder=Path(given["folder"]), port=0, limits=limits)
serve(settings, note=lambda text: print(text, file=sys.stderr, flush=True))
"""

T = TypeVar("T")
_numbers = itertools.count()


class Running:
    """`continuad serve` on a bank and a free port, while it is entered.

    Args:
        bank: its folder.
        options: further words of the command line.
        environment: variables that the process has beside ours.
        folder: of the station; beside the bank by default.
        limits: of what clients may ask for, those that the command line does not know.

    Attributes:
        said: what it has said, line by line.
    """

    def __init__(
        self,
        bank: Path,
        *options: str | Path,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
        limits: Mapping[str, float] | None = None,
    ) -> None:
        self.folder = folder or bank.with_name(f"{bank.name}.station")
        if limits is None:
            serve = ["-m", "continuad", "serve", bank, "--port", 0, "--folder", self.folder, *options]
            words = [str(word) for word in serve]
        else:
            assert not options, "the command line has no such limits"
            given = {"bank": str(bank), "folder": str(self.folder), "limits": limits}
            words = ["-c", RUNNER, json.dumps(given)]
        self._command = [sys.executable, *words]
        self._environment = {**os.environ, **MACHINE, **(environment or {})}
        self.said: list[str] = []

    def start(self) -> Self:
        self.said = []
        self.process = subprocess.Popen(
            self._command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=self._environment
        )
        lines: queue.Queue[str | None] = queue.Queue()
        self._listening = threading.Thread(target=self._listen, args=(lines,), daemon=True)
        self._listening.start()
        while (line := lines.get(timeout=START_SECONDS)) is not None:
            if found := re.search(r"The station runs at (\S+)/", line):
                self.url = found[1]
                self.client = self.visitor()
                return self
        raise AssertionError("\n".join(self.said))

    def _listen(self, lines: queue.Queue[str | None]) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip())
            lines.put(line)
        lines.put(None)

    def visitor(self, **options: Any) -> httpx.Client:
        """A client of its own."""
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False, **options)

    def end(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and wait; the exit status."""
        self.client.close()
        self.process.send_signal(sign)
        status = self.process.wait(timeout=60)
        self._listening.join(timeout=10)
        return status

    def kill(self) -> None:
        """As a power cut would end it, but for what the operating system has in memory."""
        assert self.end(signal.SIGKILL) == -signal.SIGKILL

    @property
    def children(self) -> list[int]:
        """The processes that it has begun."""
        tasks = Path(f"/proc/{self.process.pid}/task")
        return [int(child) for task in tasks.iterdir() for child in (task / "children").read_text().split()]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        if error is not None:
            print("The station said:", *self.said, sep="\n")


@contextmanager
def schema(server: str) -> Iterator[str]:
    """The address of an empty PostgreSQL database."""
    name = f"station_{next(_numbers)}"
    engine = sql.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    try:
        yield f"{server}?options=-csearch_path%3D{name}"
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
        engine.dispose()


def png(image: npt.NDArray[np.uint8]) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def shots(name: str, count: int, *, seed: int = 5, **size: int) -> list[bytes]:
    """Photos of a product as files."""
    return [png(photo) for photo in photos(name, count, seed=seed, **size)]


def inspect(
    client: httpx.Client, image: bytes, *, key: str | None = None, status: int = 201, **query: Any
) -> Any:
    """Inspect an image; the answer's JSON, or all of it where it is no success."""
    headers = {"Content-Type": "image/png"} if key is None else {"Content-Type": "image/png", KEY: key}
    answer = client.post(f"{ROOT}/inspections", content=image, params=query, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()


def history(client: httpx.Client, **wanted: Any) -> list[dict[str, Any]]:
    """The whole history, page by page, newest first."""
    found, before = list[dict[str, Any]](), None
    while True:
        query = {**wanted, "limit": 200} if before is None else {**wanted, "limit": 200, "before": before}
        answer = client.get(f"{ROOT}/inspections", params=query)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        found += page["items"]
        before = page["next"]
        if before is None:
            return found


def photo_set(client: httpx.Client, images: list[bytes]) -> str:
    """A new photo set; its id."""
    made: str = client.post(f"{ROOT}/photo-sets").json()["id"]
    for number, image in enumerate(images):
        answer = client.post(f"{ROOT}/photo-sets/{made}/photos", params={"name": f"{number}"}, content=image)
        assert answer.status_code == 201, answer.text
    return made


def teach(client: httpx.Client, **wish: Any) -> dict[str, Any]:
    """Ask for a lesson; the job."""
    answer = client.post(f"{ROOT}/teachings", json=wish)
    assert answer.status_code == 202, answer.text
    job: dict[str, Any] = answer.json()
    return job


def job_after(client: httpx.Client, job: str, *, seconds: float = 240) -> dict[str, Any]:
    """A job once it is over."""
    return wait_for(lambda: _over(client.get(f"{ROOT}/jobs/{job}").json()), seconds=seconds)


def _over(job: dict[str, Any]) -> dict[str, Any] | None:
    return job if job["state"] in ("succeeded", "failed", "cancelled") else None


def wait_for(condition: Callable[[], T | None], *, seconds: float = 120) -> T:
    """What the condition gives once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)
    return found


@contextmanager
def listening(client: httpx.Client) -> Iterator[list[tuple[str, Any]]]:
    """The events of a station, as they come."""
    heard: list[tuple[str, Any]] = []
    with client.stream("GET", f"{ROOT}/events") as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        thread = threading.Thread(target=_hear, args=(stream, heard), daemon=True)
        thread.start()
        wait_for(lambda: heard)
        assert heard[0] == ("hello", {})
        yield heard


def _hear(stream: httpx.Response, heard: list[tuple[str, Any]]) -> None:
    kind = ""
    try:
        for line in stream.iter_lines():
            name, _, value = line.partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                heard.append((kind, json.loads(value)))
    except (httpx.HTTPError, httpx.StreamError, OSError):
        return  # the station or the listener has gone
