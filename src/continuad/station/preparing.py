"""From the bytes of an upload to an order: decoding, in a few threads beside the worker."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from continuad.images import load_image, resize
from continuad.station.settings import Limits

THREADS = 2


@dataclass(frozen=True, eq=False)
class Prepared:
    """A decoded upload.

    Attributes:
        data: as it came.
        small: uint8 (S, S, 3) at the bank's image size.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
    """

    data: bytes = field(repr=False)
    small: NDArray[np.uint8] = field(repr=False)
    width: int
    height: int


class Preparing:
    """Decodes uploads.

    Args:
        size: S, pixels to which images are resized.
        limits: the most that an image may have.
    """

    def __init__(self, size: int, limits: Limits) -> None:
        self._size, self._limits = size, limits
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="preparing")

    async def prepare(self, data: bytes) -> Prepared:
        """Decode a picture.

        Raises:
            ImageError: it is damaged, of an unknown kind, or has too many pixels.
        """
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._decode, data)

    def close(self) -> None:
        """Finish what was begun."""
        self._pool.shutdown()

    def _decode(self, data: bytes) -> Prepared:
        full = load_image(data, max_pixels=self._limits.pixels)
        height, width = full.shape[:2]
        return Prepared(data, resize(full, self._size), width, height)
