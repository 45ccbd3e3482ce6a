"""A folder of overlays, one for each inspected image."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

from continuad.errors import ContinuadError

if TYPE_CHECKING:
    from continuad.drawing import Pixels
    from continuad.verdict import Verdict

LONGEST_NAME = 60  # characters; file systems allow 255 bytes


class HeatmapFolder:
    """Writes overlays as PNG files; never overwrites anything.

    Args:
        path: the folder; it is created.

    Raises:
        ContinuadError: it cannot be created.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._taken: dict[str, int] = {}
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._refusal(error) from error

    def write(self, image: Path, verdict: Verdict) -> Path:
        """Draw the verdict over the image and return the new file.

        It is named after the image and up to three folders above it, `bottle-test-good-001.png` for
        `data/bottle/test/good/001.png`, with a number behind where that exists already.

        Raises:
            ImageError: the image cannot be read any more.
            ContinuadError: the folder cannot be written.
        """
        from continuad.images import load_image

        folders = [part for part in image.parent.parts if part not in (image.anchor, "..")]
        pixels = load_image(image)
        try:
            return self.draw(pixels, verdict, stem="-".join([*folders[-3:], image.stem]), caption=str(image))
        except OSError as error:
            raise self._refusal(error) from error

    def draw(self, pixels: Pixels, verdict: Verdict, *, stem: str, caption: str) -> Path:
        """Draw the verdict over pixels and return the new file, named `stem`, or `stem-2` and so on.

        Raises:
            OSError: the folder cannot be written.
        """
        from PIL import Image

        from continuad.drawing import annotated

        picture = io.BytesIO()
        Image.fromarray(annotated(pixels, verdict, caption=caption)).save(picture, "PNG")
        return self._create(stem[-LONGEST_NAME:], picture.getvalue())

    def _create(self, stem: str, data: bytes) -> Path:
        """Write a file that does not exist yet, not even as a link or for another process."""
        count = self._taken.get(stem, 0)
        while True:
            count += 1
            file = self.path / f"{stem}{f'-{count}' if count > 1 else ''}.png"
            try:
                stream = file.open("xb")
            except FileExistsError:
                continue
            break
        try:
            with stream:
                stream.write(data)
        except BaseException:  # a full disk
            file.unlink(missing_ok=True)
            raise
        if count > 1:  # most names are met once, and there may be millions
            self._taken[stem] = count
        return file

    def _refusal(self, error: OSError) -> ContinuadError:
        return ContinuadError(
            f"The folder for heatmaps {self.path} cannot be written ({error.strerror}).",
            "Check the path, its permissions and the free space.",
        )
