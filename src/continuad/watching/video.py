"""Video files, and how OpenCV is asked for pictures."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from continuad.errors import ContinuadError, ImageError
from continuad.images import load_image
from continuad.needs import needed
from continuad.watching.sighting import Note, Pixels, Sighting

FRAME_RATE, FRAME_COUNT = 5, 7  # cv2.CAP_PROP_FPS, cv2.CAP_PROP_FRAME_COUNT
LIVE_TIMEOUT = 10_000  # milliseconds without a sign of life


class Capture(Protocol):
    """What is used of a `cv2.VideoCapture`."""

    def grab(self) -> bool:
        """Go to the next frame; False if there is none."""

    def retrieve(self) -> tuple[bool, NDArray[Any] | None]:
        """Decode the frame: whether that worked, and uint8 (H, W, 3) in blue, green, red."""

    def get(self, what: int, /) -> float:
        """Return a property, 0 if it is not known."""

    def release(self) -> None:
        """Close it."""


class VideoSource:
    """The frames of a video file, numbered from 0.

    Args:
        path: the file.
        every: at most one frame per so many seconds of the video; None takes all.
        note: told if the video ends before its time.
        stop: ends the iteration.
        capture: the opened file; `open_file` gives one.

    Attributes:
        skipped: frames that could not be decoded.

    Raises:
        ContinuadError: seconds are asked for and the file does not say how many frames one has.
    """

    def __init__(
        self, path: Path, *, every: float | None, note: Note, stop: threading.Event, capture: Capture
    ) -> None:
        self.skipped = 0
        self._path, self._every = path, every
        self._note, self._stop = note, stop
        self._capture = capture
        self._rate = capture.get(FRAME_RATE)
        if every is not None and not self._rate > 0:
            raise ContinuadError(
                f"The video {path} does not say how many frames a second has.", "Leave out --every."
            )

    def __iter__(self) -> Iterator[Sighting]:
        count, due = 0, 0.0
        try:
            while not self._stop.is_set():
                if not self._capture.grab():
                    self._check_end(count)
                    return
                number, count = count, count + 1
                seconds = number / self._rate if self._every else 0.0
                if seconds < due - 1e-9:
                    continue
                image = rgb(*self._capture.retrieve())
                if image is None:
                    self.skipped += 1
                    continue
                if self._every:
                    due = ((seconds + 1e-9) // self._every + 1) * self._every
                name = f"{self._path.stem}-{number:06d}"
                yield Sighting({"source": str(self._path), "frame": number}, name, image)
        finally:
            self._capture.release()

    def _check_end(self, count: int) -> None:
        """Containers count their frames roughly, so a few may be missing."""
        promised = self._capture.get(FRAME_COUNT)
        if count < 0.95 * promised - 2:
            self._note(
                f"The video {self._path} ends after {count} of {promised:.0f} frames: it is damaged there."
            )


def rgb(is_decoded: bool, frame: NDArray[Any] | None) -> Pixels | None:
    """Turn what OpenCV decoded (blue, green, red; or grey) into uint8 (H, W, 3); None if it did not."""
    if not is_decoded or frame is None:
        return None
    try:
        return load_image(frame[..., ::-1] if frame.ndim == 3 and frame.shape[2] == 3 else frame)
    except ImageError:
        return None


def open_file(path: Path) -> Capture:
    """Open a video file.

    Raises:
        MissingError: OpenCV is not installed.
        ContinuadError: it cannot read the file.
    """
    capture = _cv2().VideoCapture(str(path))
    if not capture.isOpened():
        raise ContinuadError(
            f"The video {path} cannot be opened.", "It is damaged, or of a kind that OpenCV does not know."
        )
    opened: Capture = capture
    return opened


def open_live(address: int | str) -> Capture:
    """Open a camera by its index or device file, or a stream by its URL.

    If that fails, so does `grab`.

    Raises:
        MissingError: OpenCV is not installed.
    """
    cv2 = _cv2()
    capture: Capture
    if isinstance(address, str) and "://" in address:
        limits = (cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, LIVE_TIMEOUT, cv2.CAP_PROP_READ_TIMEOUT_MSEC, LIVE_TIMEOUT)
        capture = cv2.VideoCapture(address, cv2.CAP_FFMPEG, limits)
    else:
        capture = cv2.VideoCapture(address)
    return capture


def _cv2() -> Any:
    """OpenCV, silenced: its messages hold addresses, with the passwords in them."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    return needed("cv2")
