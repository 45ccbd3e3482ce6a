"""A source that the station inspects all the time, such as the folder that a camera writes to."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from continuad.errors import ContinuadError, ImageError
from continuad.images import resize
from continuad.station.history import History
from continuad.station.inspecting import Inspecting, Order, QueueFullError
from continuad.station.preparing import Prepared
from continuad.watching import Sighting, open_source, without_credentials
from continuad.watching.sighting import Pixels

BUSY_SECONDS = 0.2
"""How long a picture waits before it asks again for a place in the queue."""

FAILED_SECONDS = 2.0
"""How long a picture waits that could not be stored; it is lost only if the station ends."""


class Live:
    """Inspects what a source brings; what was inspected before a restart is not inspected again.

    Args:
        text: a folder, video, camera index or address, as for `open_source`.
        every: of a video or camera, at most one frame in so many seconds.
        inspecting: takes the pictures.
        history: knows what was inspected.
        size: pixels to which pictures are resized.
        report: told when the state has changed.

    Attributes:
        name: of the source, without credentials.
        note: how the source is.
        inspected: pictures since the start.

    Raises:
        ContinuadError: there is no such source.
    """

    def __init__(
        self,
        text: str,
        *,
        every: float | None,
        inspecting: Inspecting,
        history: History,
        size: int,
        report: Callable[[], None],
    ) -> None:
        self.name = without_credentials(text)
        self.note = ""
        self.inspected = 0
        self._inspecting, self._size, self._report = inspecting, size, report
        self._stop = threading.Event()
        seen = ((path, time_ns) for path, time_ns in history.seen("watch") if time_ns is not None)
        self._source = open_source(text, every=every, once=False, done=seen, note=self._say, stop=self._stop)
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join()

    def _work(self) -> None:
        try:
            for sighting in self._source:
                self._see(sighting)
            if not self._stop.is_set():
                self._say("The source has ended.")
        except Exception as error:
            self._say(f"The source cannot be read any more: {error}")

    def _see(self, sighting: Sighting) -> None:
        if isinstance(sighting.image, ImageError):
            self._say(str(sighting.image))
            return
        order = self._order(sighting, sighting.image)
        while not self._stop.is_set():
            try:
                self._inspecting.submit(order).result()
            except QueueFullError:
                time.sleep(BUSY_SECONDS)
            except Exception as error:  # a full disk, an empty bank, a database that is away: all may end
                self._say(str(error) if isinstance(error, ContinuadError) else f"Not stored: {error}")
                self._stop.wait(FAILED_SECONDS)
            else:
                self.inspected += 1
                self._say("")
                return

    def _order(self, sighting: Sighting, image: Pixels) -> Order:
        height, width = image.shape[:2]
        picture = Prepared(_encoded(sighting, image), resize(image, self._size), width, height)
        path, time_ns = sighting.origin.get("image"), sighting.origin.get("mtime_ns")
        return Order(
            picture,
            source="watch",
            reference=_storable(sighting.name)[:200],
            origin=None if path is None else _storable(str(path)),
            origin_mtime_ns=None if time_ns is None else int(time_ns),
        )

    def _say(self, text: str) -> None:
        if text != self.note:
            self.note = text
            self._report()


def _storable(name: str) -> str:
    """A file's name, which may be no text, as one; such a file is inspected again after a restart."""
    return name.encode("utf-8", "backslashreplace").decode()


def _encoded(sighting: Sighting, image: Pixels) -> bytes:
    """The picture as it lies in the folder; a frame as JPEG."""
    path = sighting.origin.get("image")
    if path is not None:
        try:
            file = Path(str(path))
            data = file.read_bytes()
            if file.stat().st_mtime_ns == sighting.origin.get("mtime_ns"):
                return data
        except OSError:
            pass  # it has gone meanwhile; its pixels are here
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=95, subsampling=0)
    return stream.getvalue()
