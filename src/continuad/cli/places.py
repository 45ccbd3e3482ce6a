"""Images as people name them on a command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from continuad.errors import ImageError
from continuad.files import find_images

STDIN = "-"


def all_images(places: Sequence[str]) -> list[Path]:
    """List the images of files, folders and glob patterns, each once.

    Raises:
        ImageError: one of the places holds none.
    """
    return list(dict.fromkeys(path for place in places for path in find_images(place)))


def each_image(places: Iterable[str]) -> Iterator[tuple[Path, ImageError | None]]:
    """Yield the images one by one, or why a place holds none; "-" stands for a list of files on stdin."""
    for place in places:
        if place == STDIN:
            yield from ((path, None) for path in _listed())
            continue
        try:
            found = find_images(place)
        except ImageError as error:
            yield Path(place), error
        else:
            yield from ((path, None) for path in found)


def _listed() -> Iterator[Path]:
    """Yield the paths on stdin, one a line, each as soon as it is there."""
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield Path(os.fsdecode(name))
