"""Which files are images, and in which order."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from continuad.errors import ImageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
KINDS = ", ".join(suffix[1:] for suffix in SUFFIXES)

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)


def find_images(place: str | os.PathLike[str]) -> list[Path]:
    """List the images of a file, a folder (with all its sub-folders) or a glob pattern (`parts/**/*.png`).

    Sorted naturally, img2 before img10. Hidden files and folders are skipped, and so is every file whose
    suffix is not in `SUFFIXES` (upper or lower case), unless it is named outright.

    Raises:
        ImageError: there is nothing to list.
    """
    path = as_path(place)
    try:
        found = _matches(path)
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte
        raise ImageError(
            f"{path} cannot be listed ({error}).", "Check the spelling and permissions."
        ) from error
    if not found:
        raise ImageError(
            f"No image was found in {path}.", f"Put images there ({KINDS}), or name another place."
        )
    return found


def images_in(folder: Path) -> list[Path]:
    """List the images in a folder and its sub-folders as `find_images` does; there may be none.

    Raises:
        ImageError: a folder cannot be listed.
    """
    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [path for name in files if is_image(path := Path(place, name))]
    return sorted(found, key=natural_key)


def is_image(path: Path) -> bool:
    """Whether the name is that of an image; the file is not looked at."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def natural_key(path: Path) -> tuple[list[list[str | int]], str]:
    """Sort key that compares runs of digits as numbers and letters without case."""
    parts = [re.split(r"([0-9]+)", part.casefold()) for part in path.parts]
    return [[int(run) if run.isdecimal() else run for run in part] for part in parts], str(path)


def as_path(place: str | os.PathLike[str]) -> Path:
    """Return the path, or say that it is none.

    Raises:
        ImageError: it is a web address.
    """
    if _URL.match(os.fspath(place)):
        raise ImageError(
            f"{place} is a web address, not a file.", "Download it and give the file's path or its bytes."
        )
    return Path(place)


def _matches(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if path.is_dir():
        return images_in(path)
    if not glob.has_magic(str(path)):
        raise ImageError(f"There is no file or folder {path}.", "Check the spelling.")
    matches = map(Path, glob.glob(str(path), recursive=True))  # noqa: PTH207 (Path.glob is relative only)
    return sorted((match for match in matches if is_image(match)), key=natural_key)


def _refuse(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise ImageError(
            f"The folder {error.filename} cannot be listed ({error.strerror}).", "Check its permissions."
        ) from error
