"""Cameras and network streams: always the newest frame, and again after a loss."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from numpy.typing import NDArray

from continuad.errors import ContinuadError
from continuad.watching.sighting import Note, Sighting
from continuad.watching.video import Capture, rgb


@dataclass(frozen=True)
class CameraSettings:
    """How a camera is kept.

    Attributes:
        waits: seconds before the first, second, ... attempt to open it again; the last one repeats.
        tolerance: frames in a row that cannot be decoded before it is opened anew.
        tick: seconds within which the iteration notices that it should stop.
        farewell: seconds that the thread at the camera has to end.
    """

    waits: tuple[float, ...] = (1, 2, 4, 8, 16, 30)
    tolerance: int = 100
    tick: float = 0.2
    farewell: float = 2


class CameraSource:
    """The newest frames of a live source, numbered from 0 as they arrive.

    A thread takes every frame from the camera, and decodes the next one whenever one is asked for: what is
    handed over was never waiting, however long the inspection before took.

    Args:
        open_capture: opens the camera; `grab` of what it returns fails if that did not work.
        name: of the source, without credentials.
        every: at most one frame per so many seconds; None takes as many as can be inspected.
        once: end after one frame.
        note: told, also from the thread, when the source is lost and back.
        stop: ends the iteration.
        settings: waits.

    Attributes:
        skipped: frames that were wanted and could not be decoded.

    Raises:
        ContinuadError: the camera gives no frame now; later on it is waited for.
    """

    def __init__(
        self,
        open_capture: Callable[[], Capture],
        *,
        name: str,
        every: float | None,
        once: bool,
        note: Note,
        stop: threading.Event,
        settings: CameraSettings | None = None,
    ) -> None:
        self.name = name
        self.skipped = 0
        self._settings = settings or CameraSettings()
        self._open, self._every, self._once = open_capture, every or 0.0, once
        self._note, self._stop = note, stop
        self._ended = threading.Event()
        self._asked = threading.Event()
        self._frames: queue.SimpleQueue[tuple[int, NDArray[Any]] | Exception] = queue.SimpleQueue()
        self._number = 0
        self._failed = 0  # in a row
        self._capture = open_capture()
        if not self._capture.grab():
            self._capture.release()
            raise ContinuadError(
                f"The source {name} gives no picture.", "Check the address, the password and the connection."
            )

    def __iter__(self) -> Iterator[Sighting]:
        thread = threading.Thread(target=self._run, name="camera", daemon=True)
        thread.start()
        try:
            while (taken := self._next()) is not None:
                number, frame = taken
                arrived = time.monotonic()
                if (image := rgb(True, frame)) is None:
                    self.skipped += 1
                    continue
                name = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{number:06d}"
                yield Sighting({"source": self.name, "frame": number}, name, image)
                if self._once or self._stop.wait(arrived + self._every - time.monotonic()):
                    return
        finally:
            self._ended.set()
            thread.join(self._settings.farewell)

    def _next(self) -> tuple[int, NDArray[Any]] | None:
        """Ask for a frame and wait for it; None at the end."""
        self._asked.set()
        while not self._stop.is_set():
            try:
                taken = self._frames.get(timeout=self._settings.tick)
            except queue.Empty:
                continue
            if isinstance(taken, Exception):
                raise taken
            return taken
        return None

    def _run(self) -> None:
        """What the thread does."""
        try:
            self._keep_grabbing()
        except Exception as error:  # is raised where it is seen
            self._frames.put(error)

    def _keep_grabbing(self) -> None:
        capture, attempts = self._capture, 0
        waits = self._settings.waits
        while not self._ended.is_set():
            if self._grab(capture):
                if attempts:
                    self._note(f"The source {self.name} is back.")
                attempts = 0
                continue
            capture.release()
            if not attempts:
                self._note(f"The source {self.name} is lost; trying to reach it again.")
            self._ended.wait(waits[min(attempts, len(waits) - 1)])
            attempts += 1
            if not self._ended.is_set():
                capture = self._open()
        capture.release()

    def _grab(self, capture: Capture) -> bool:
        """Take a frame from the camera, and decode it if it is asked for; False if the camera is lost."""
        if not capture.grab():
            return False
        number, self._number = self._number, self._number + 1
        if not self._asked.is_set():
            return True
        is_decoded, frame = capture.retrieve()
        if is_decoded and frame is not None:
            self._failed = 0
            self._asked.clear()
            self._frames.put((number, frame))
            return True
        self.skipped += 1
        self._failed += 1
        return self._failed % self._settings.tolerance != 0
