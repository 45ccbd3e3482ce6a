"""The station's pictures on disk: durable before they are named, gone when nothing names them."""

from __future__ import annotations

import contextlib
import io
import os
import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from continuad.durable import sync_folder
from continuad.errors import StationError
from continuad.files import SUFFIXES
from continuad.images import load_image
from continuad.station.database import as_text, now
from continuad.station.faults import GoneError

JPEG_QUALITY = 85

_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_SUFFIX = "|".join(re.escape(suffix) for suffix in SUFFIXES)
_NAME = re.compile(rf"{_DAY.pattern}/[0-9a-f]{{32}}({_SUFFIX})")


class Pictures:
    """Encoded pictures in one folder per day (UTC), under names that tell nothing: 2026-11-22/<32 hex>.png.

    Safe to use from several threads. A picture never changes.

    Args:
        folder: created if it is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mark = secrets.token_hex(4)  # begins the names of what this object saves; clocks can jump
        self._days: set[str] = set()  # whose folders are durable themselves
        if not folder.is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            sync_folder(folder.parent)

    def save(self, data: bytes, suffix: str, *, time: int | None = None) -> str:
        """Save one picture as `save_all` does; returns its name."""
        return self.save_all([(data, suffix)], time=time)[0]

    def save_all(self, batch: Sequence[tuple[bytes, str]], *, time: int | None = None) -> list[str]:
        """Save pictures, all or none; when this returns, they survive a power cut.

        Args:
            batch: of each picture, the encoded bytes and the suffix, such as ".png".
            time: whose day they belong to (microseconds); the present by default.

        Raises:
            OSError: the disk is full or broken.
        """
        day = as_text(now() if time is None else time)[:10]
        names = [f"{day}/{self._mark}{secrets.token_hex(12)}{suffix}" for _, suffix in batch]
        paths = [self._path(name) for name in names]
        try:
            (self.folder / day).mkdir(exist_ok=True)
            with ExitStack() as stack:
                streams = [stack.enter_context(path.open("wb")) for path in paths]
                for stream, (data, _) in zip(streams, batch, strict=True):
                    stream.write(data)
                for stream in streams:  # after all of them were written: the disk may take them together
                    _sync(stream)
            sync_folder(self.folder / day)
            if day not in self._days:
                sync_folder(self.folder)
                self._days.add(day)
        except BaseException:
            with contextlib.suppress(OSError):
                self.remove(names)
            raise
        return names

    def read(self, name: str) -> bytes:
        """The bytes as they were saved.

        Raises:
            GoneError: the picture is gone; or this is no picture's name.
        """
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError as error:
            raise GoneError(
                "The picture is no longer there.", "Its verdict stays in the history; the picture does not."
            ) from error

    def remove(self, names: Iterable[str]) -> None:
        """Remove pictures; those that are gone already do not matter."""
        for name in names:
            self._path(name).unlink(missing_ok=True)

    def thumbnail(self, name: str, width: int | None = None) -> bytes:
        """The picture as a browser shows it: JPEG, upright, at most `width` wide, never enlarged.

        Raises:
            GoneError: the picture is gone.
            ImageError: it is damaged.
        """
        image = Image.fromarray(load_image(self.read(name)))
        if width is not None and width < image.width:
            height = max(1, round(image.height * width / image.width))
            image = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2)
        stream = io.BytesIO()
        image.save(stream, "JPEG", quality=JPEG_QUALITY)
        return stream.getvalue()

    def sweep(self, known: Callable[[str], AbstractSet[str]]) -> int:
        """Remove the pictures that nothing names, as a crash leaves them; returns how many there were.

        What this very object has saved is left alone: its row may not be committed yet.

        Args:
            known: the names in use of a day, such as "2026-11-22".
        """
        swept = 0
        for folder in sorted(self.folder.iterdir()):
            if not _DAY.fullmatch(folder.name):
                continue
            found = {f"{folder.name}/{path.name}" for path in folder.iterdir()}  # before asking who is known
            ours = f"{folder.name}/{self._mark}"
            orphans = [
                name
                for name in found - known(folder.name)
                if _NAME.fullmatch(name) and not name.startswith(ours)
            ]
            self.remove(orphans)
            swept += len(orphans)
        return swept

    def _path(self, name: str) -> Path:
        """Where a picture lies; whatever is not a picture's name never reaches the file system."""
        if not _NAME.fullmatch(name):
            raise StationError(f"{name!r} is not the name of a picture.", "Ask for one of the history's.")
        return self.folder / name


def _sync(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())
