"""The file of verdicts, one JSON object a line, which also says after a restart what is done."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from continuad.durable import sync_folder
from continuad.errors import ContinuadError


class Journal:
    """Appends lines, each on the disk when the call returns; a line is there whole or not at all.

    Lines that a full disk refuses are kept and written before the next one.

    Args:
        path: a new file, or a journal to continue. A last line that a power cut has torn is cut off.
        backlog: lines that are kept at most; the oldest are lost first.

    Attributes:
        lost: lines that the backlog had no room for.

    Raises:
        ContinuadError: the file cannot be written, or holds something else.
    """

    def __init__(self, path: Path, *, backlog: int = 10_000) -> None:
        self.path = path
        self.lost = 0
        self._waiting: deque[bytes] = deque()
        self._limit = backlog
        if path.exists() and not path.is_file():
            raise ContinuadError(f"{path} is not a regular file.", "Give another name.")
        try:
            is_new = not path.exists()
            with path.open("ab"):  # writable?
                pass
            if is_new:
                sync_folder(path.absolute().parent)
            self._mend()
        except OSError as error:
            raise ContinuadError(
                f"{path} cannot be written ({error.strerror}).", "Check the path and its permissions."
            ) from error

    @property
    def waiting(self) -> int:
        """Lines that are not on the disk yet."""
        return len(self._waiting)

    def images(self) -> Iterator[tuple[str, int]]:
        """Yield path and modification time of each file that has a line."""
        with self.path.open("rb") as stream:
            for line in stream:
                values = json.loads(line)
                if "image" in values and "mtime_ns" in values:
                    yield values["image"], values["mtime_ns"]

    def append(self, line: str) -> None:
        """Write a line behind those that wait.

        Raises:
            OSError: it waits now, too.
        """
        self._waiting.append(line.encode() + b"\n")
        if len(self._waiting) > self._limit:
            self._waiting.popleft()
            self.lost += 1
        self.flush()

    def flush(self) -> None:
        """Write the lines that wait.

        Raises:
            OSError: some still do.
        """
        while self._waiting:
            # opened anew for each line: the file may have been moved away, or its disk been replaced
            with self.path.open("a+b", buffering=0) as stream:
                _append(stream, self._waiting[0])
            self._waiting.popleft()

    def _mend(self) -> None:
        """Cut off a torn last line; raise a `ContinuadError` if any other line is not a JSON object."""
        whole = 0
        with self.path.open("r+b") as stream:
            for number, line in enumerate(stream, start=1):
                if line.endswith(b"\n") and _is_object(line):
                    whole += len(line)
                elif stream.read(1) or line[:1] not in (b"{", b"\0"):
                    raise ContinuadError(
                        f"Line {number} of {self.path} is not a verdict.", "Give a file of its own for them."
                    )
            stream.truncate(whole)
            os.fsync(stream.fileno())


def _append(stream: BinaryIO, line: bytes) -> None:
    """Write a line whole or not at all; what an earlier attempt may have left is cut off."""
    end = _end_of_lines(stream)
    stream.truncate(end)
    try:
        rest = memoryview(line)
        while rest:
            rest = rest[stream.write(rest) :]
        os.fsync(stream.fileno())
    except BaseException:
        with suppress(OSError):
            stream.truncate(end)
        raise


def _end_of_lines(stream: BinaryIO) -> int:
    """Where the last whole line ends."""
    end = stream.seek(0, os.SEEK_END)
    size = 1
    while end:
        start = max(0, end - size)
        stream.seek(start)
        block = stream.read(end - start)
        if (place := block.rfind(b"\n")) >= 0:
            return start + place + 1
        end, size = start, 1 << 16
    return 0


def _is_object(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False
