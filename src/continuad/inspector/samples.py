"""A few normal photos of a product, side by side in one JPEG: to calibrate an export on, and to look at."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
from PIL import Image

from continuad.errors import ImageError
from continuad.images import load_image

Photos = npt.NDArray[np.uint8]

SAMPLES = 8
"""Photos, at most; of a bank's largest size they are 16,384 pixels wide, and JPEG goes up to 65,535."""

QUALITY = 90


def encode(images: Photos) -> bytes:
    """Encode at most `SAMPLES` of the images, spread evenly over them; uint8 (N, S, S, 3), at least one."""
    count = min(SAMPLES, len(images))
    strip = np.concatenate(list(images[np.arange(count) * len(images) // count]), axis=1)
    stream = io.BytesIO()
    Image.fromarray(strip).save(stream, "JPEG", quality=QUALITY, subsampling="4:4:4")
    return stream.getvalue()


def decode(data: bytes, size: int) -> Photos:
    """The photos (N, size, size, 3) that `encode` took, in order.

    Raises:
        ImageError: the data are no row of images of that size.
    """
    strip = load_image(data)
    height, width, _ = strip.shape
    if height != size or width % size:
        raise ImageError(
            f"{width} x {height} pixels are no row of images of {size} x {size}.", "Learn the product again."
        )
    return np.stack(np.split(strip, width // size, axis=1))
