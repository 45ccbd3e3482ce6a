"""A folder that a camera writes to."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from continuad.errors import ContinuadError, ImageError
from continuad.files import is_image, natural_key
from continuad.images import load_image
from continuad.watching.sighting import Note, Pixels, Sighting

Signature: TypeAlias = tuple[int, int]
"""Modification time in nanoseconds and size in bytes: another one means another content."""


@dataclass(frozen=True)
class FolderSettings:
    """How patiently a folder is watched.

    Attributes:
        poll: seconds between two looks at it; longer where a look itself takes longer.
        patience: seconds for which a file that cannot be decoded may still be incomplete, although it does
            not change.
        remembered: files that have gone and are remembered, in case they come back with the folder.
    """

    poll: float = 0.5
    patience: float = 5.0
    remembered: int = 100_000


class FolderSource:
    """The images in a folder and its sub-folders: those that are there, then those that come.

    A file is read when two looks in a row found it unchanged, and handed over if it was still so afterwards
    and could be decoded: whoever writes slowly is waited for. Files that are complete at the same look come
    in the order of their modification times, then of their names. One that is replaced is handed over again.

    Args:
        path: the folder; hidden files and folders in it, and other kinds of files, are left alone.
        once: end when each file that is there now was handed over.
        done: paths and modification times of files that need not be handed over any more.
        note: told when the folder goes and comes back.
        stop: ends the iteration.
        settings: how patiently.

    Raises:
        ContinuadError: the folder cannot be listed now; later on it is waited for.
    """

    def __init__(
        self,
        path: Path,
        *,
        once: bool,
        note: Note,
        stop: threading.Event,
        done: Iterable[tuple[str, int]] = (),
        settings: FolderSettings | None = None,
    ) -> None:
        self.path = path.absolute()
        self._settings = settings or FolderSettings()
        self._note, self._stop = note, stop
        self._pause = self._settings.poll
        self._is_gone = False
        self._unlisted: set[str] = set()
        try:
            present = self._scan()
        except OSError as error:
            raise ContinuadError(
                f"The folder {path} cannot be listed ({error.strerror}).",
                "Check the path and its permissions.",
            ) from error
        self._wanted = set(present) if once else None
        self._seen = {name: present[name] for name, at in done if name in present and present[name][0] == at}
        self._changing: dict[str, tuple[Signature, float]] = {}
        self._complete(present)

    def __iter__(self) -> Iterator[Sighting]:
        while not self._stop.wait(self._pause):
            present = self._look()
            if present is None:
                continue
            for name in self._complete(present):
                if self._stop.is_set():
                    return
                if sighting := self._read(name):
                    yield sighting
            if self._wanted is not None and not self._changing:
                return

    def _look(self) -> Mapping[str, Signature] | None:
        """List the folder; None while it is away."""
        try:
            present = self._scan()
        except OSError as error:
            if not self._is_gone:
                self._note(f"The folder {self.path} is gone ({error.strerror}); waiting for it.")
            self._is_gone = True
            self._changing.clear()  # what was incomplete gets all its time again
            return None
        if self._is_gone:
            self._note(f"The folder {self.path} is back.")
        self._is_gone = False
        if self._wanted is not None:
            present = {name: signature for name, signature in present.items() if name in self._wanted}
        return present

    def _scan(self) -> dict[str, Signature]:
        """The image files by path; raises OSError only where the folder itself cannot be listed."""
        started = time.monotonic()
        found: dict[str, Signature] = {}
        unlisted: dict[str, str] = {}
        waiting = [str(self.path)]
        while waiting:
            folder = waiting.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.name.startswith("."):
                            continue
                        if entry.is_dir(follow_symlinks=False):
                            waiting.append(entry.path)
                        elif is_image(Path(entry.name)) and (signature := _signature(entry.path)):
                            found[entry.path] = signature
            except FileNotFoundError:
                if folder == str(self.path):
                    raise
            except OSError as error:
                if folder == str(self.path):
                    raise
                unlisted[folder] = str(error.strerror)
        for folder in unlisted.keys() - self._unlisted:
            self._note(f"The folder {folder} cannot be listed ({unlisted[folder]}); the others are watched.")
        for folder in self._unlisted - unlisted.keys():
            self._note(f"The folder {folder} can be listed again, or has gone.")
        self._unlisted = set(unlisted)
        self._pause = max(self._settings.poll, time.monotonic() - started)
        return found

    def _complete(self, present: Mapping[str, Signature]) -> list[str]:
        """Take note of what there is, and list what has not changed since the last look and is not done."""
        now = time.monotonic()
        ready: list[str] = []
        changing: dict[str, tuple[Signature, float]] = {}
        for name, signature in present.items():
            if self._seen.get(name) == signature:
                continue
            before, since = self._changing.get(name, (None, now))
            if before == signature:
                ready.append(name)
            changing[name] = (signature, since if before == signature else now)
        self._changing = changing
        self._forget(present)
        return sorted(ready, key=lambda name: (present[name][0], natural_key(Path(name))))

    def _forget(self, present: Mapping[str, Signature]) -> None:
        """Drop the files that went first, when too many have gone."""
        remembered = self._settings.remembered
        if len(self._seen) > len(present) + remembered:
            gone = [name for name in self._seen if name not in present]
            for name in gone[: len(gone) - remembered // 2]:  # half, so that this is rarely done
                del self._seen[name]

    def _read(self, name: str) -> Sighting | None:
        """Read a file; None if it changes, has gone, or may still be incomplete."""
        signature, since = self._changing[name]
        try:
            image = load_image(name)
        except ImageError as error:
            if time.monotonic() - since < self._settings.patience or _signature(name) != signature:
                return None
            return self._sighting(name, signature, error)
        if _signature(name) != signature:
            return None
        return self._sighting(name, signature, image)

    def _sighting(self, name: str, signature: Signature, image: Pixels | ImageError) -> Sighting:
        del self._changing[name]
        self._seen.pop(name, None)  # so that the order of the dictionary is that of reading
        self._seen[name] = signature
        stem = "-".join(Path(name).relative_to(self.path).with_suffix("").parts)
        return Sighting({"image": name, "mtime_ns": signature[0]}, stem, image)


def _signature(path: str) -> Signature | None:
    """None if there is no regular file; `DirEntry.stat` would be out of date on Windows."""
    with suppress(OSError):
        status = Path(path).stat()
        if stat.S_ISREG(status.st_mode):
            return status.st_mtime_ns, status.st_size
    return None
