"""From what a user calls a source to the source."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TypeAlias

from continuad.errors import ContinuadError, SettingsError
from continuad.files import is_image
from continuad.watching.address import without_credentials
from continuad.watching.camera import CameraSource
from continuad.watching.folder import FolderSource
from continuad.watching.sighting import Note
from continuad.watching.video import VideoSource, open_file, open_live

Source: TypeAlias = FolderSource | VideoSource | CameraSource

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def open_source(
    text: str,
    *,
    every: float | None,
    once: bool,
    done: Iterable[tuple[str, int]],
    note: Note,
    stop: threading.Event,
) -> Source:
    """Open a folder, a video file, a camera's index or device file, or the address of a stream.

    Args:
        text: as the user named it.
        every: at most one frame per so many seconds.
        once: end when what is there was seen.
        done: files in the folder that need not be seen again, see `FolderSource`.
        note: told what becomes of the source.
        stop: ends it.

    Raises:
        ContinuadError: there is no such thing, or it cannot be opened.
    """
    if every is not None and not every > 0:
        raise SettingsError(f"A frame every {every:g} seconds is not possible.", "Give more than 0.")
    path = Path(text)
    is_live = bool(text.isdecimal() or _URL.match(text) or path.is_char_device())
    if is_live:
        address = int(text) if text.isdecimal() else text
        return CameraSource(
            partial(open_live, address),
            name=without_credentials(text),
            every=every,
            once=once,
            note=note,
            stop=stop,
        )
    if path.is_dir():
        if every is not None:
            raise SettingsError(
                "A folder has no frames, each image in it is inspected.",
                "Leave out --every, or name a video.",
            )
        return FolderSource(path, once=once, done=done, note=note, stop=stop)
    if not path.is_file():
        raise ContinuadError(
            f"There is no folder or video {without_credentials(text)}.",
            "Check the spelling, or create the folder.",
        )
    if is_image(path):
        raise ContinuadError(
            f"{path} is an image, there is nothing to watch.", "Use 'continuad inspect', or name its folder."
        )
    return VideoSource(path, every=every, note=note, stop=stop, capture=open_file(path))
