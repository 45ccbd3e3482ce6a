"""A folder of overlays, one for each inspected image."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from continuad.errors import ContinuadError

if TYPE_CHECKING:
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
        self._taken: Counter[str] = Counter()
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
        from PIL import Image

        from continuad.drawing import annotated
        from continuad.images import load_image

        picture = io.BytesIO()
        Image.fromarray(annotated(load_image(image), verdict, caption=str(image))).save(picture, "PNG")
        folders = [part for part in image.parent.parts if part not in (image.anchor, "..")]
        try:
            return self._create("-".join([*folders[-3:], image.stem])[-LONGEST_NAME:], picture.getvalue())
        except OSError as error:
            raise self._refusal(error) from error

    def _create(self, stem: str, data: bytes) -> Path:
        """Write a file that does not exist yet, not even as a link or for another process."""
        while True:
            self._taken[stem] += 1
            count = self._taken[stem]
            file = self.path / f"{stem}{f'-{count}' if count > 1 else ''}.png"
            try:
                with file.open("xb") as stream:
                    stream.write(data)
            except FileExistsError:
                continue
            return file

    def _refusal(self, error: OSError) -> ContinuadError:
        return ContinuadError(
            f"The folder for heatmaps {self.path} cannot be written ({error.strerror}).",
            "Check the path, its permissions and the free space.",
        )
