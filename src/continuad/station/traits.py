"""The traits of a photo: what the check of a photo set has to know of it, in a few kilobytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from continuad.errors import StationError
from continuad.router import Vectors

SIDE = 512
"""Sharpness is measured at this length of the longer side, if the photo is larger: finer detail is mostly
noise, and the network does not see it either."""

FINGERPRINT = 32
"""Side of the small picture."""

_ROUNDING = 1 / 12  # the variance that 8 bits bring; keeps a blank photo's sharpness finite
_HEADER = struct.Struct("<4sddI")
_MAGIC = b"CPT1"


@dataclass(frozen=True, eq=False)
class Traits:
    """What was measured on one photo.

    Attributes:
        sharpness: octaves between its finest detail and its edges; blur lowers it, contrast hardly matters.
        brightness: the mean grey level, 0 to 1.
        fingerprint: float16 (32, 32), its grey levels in small, 0 to 255.
        embedding: float32 (D,), in the router's space.
    """

    sharpness: float
    brightness: float
    fingerprint: NDArray[np.float16]
    embedding: Vectors

    def to_bytes(self) -> bytes:
        """Encode, little endian; `from_bytes` returns every bit of it."""
        header = _HEADER.pack(_MAGIC, self.sharpness, self.brightness, len(self.embedding))
        return header + self.fingerprint.astype("<f2").tobytes() + self.embedding.astype("<f4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Traits:
        """Decode what `to_bytes` made.

        Raises:
            StationError: the data are something else.
        """
        middle = _HEADER.size + 2 * FINGERPRINT**2
        if len(data) < middle or not data.startswith(_MAGIC):
            raise _foreign()
        _, sharpness, brightness, size = _HEADER.unpack_from(data)
        if len(data) != middle + 4 * size:
            raise _foreign()
        fingerprint = np.frombuffer(data[_HEADER.size : middle], "<f2").astype(np.float16)
        embedding = np.frombuffer(data[middle:], "<f4").astype(np.float32)
        return cls(sharpness, brightness, fingerprint.reshape(FINGERPRINT, FINGERPRINT), embedding)


def examine(image: NDArray[np.uint8], embedding: Vectors) -> Traits:
    """Measure a photo in its own size, uint8 (H, W, 3), whose embedding (D,) is known."""
    grey = Image.fromarray(image).convert("L")
    shrink = SIDE / max(grey.size)
    if shrink < 1:
        width, height = (max(1, round(side * shrink)) for side in grey.size)
        grey = grey.resize((width, height), Image.Resampling.BOX)
    small = grey.convert("F").resize((FINGERPRINT, FINGERPRINT), Image.Resampling.BOX)
    levels = np.asarray(grey, np.float32)
    return Traits(
        sharpness=_sharpness(levels),
        brightness=float(levels.mean()) / 255,
        fingerprint=np.asarray(small).astype(np.float16),
        embedding=embedding,
    )


def _sharpness(levels: NDArray[np.float32]) -> float:
    """Half an octave per octave of energy: the Laplacian's over that of the smoothed picture's gradient.

    Both grow with the contrast alike; blur takes away from the Laplacian first.
    """
    detail = np.square(ndimage.laplace(levels)).mean()
    edges = np.square(ndimage.gaussian_gradient_magnitude(levels, 1.0)).mean()
    return float(np.log2((detail + _ROUNDING) / (edges + _ROUNDING))) / 2


def _foreign() -> StationError:
    return StationError("What is stored about a photo cannot be read.", "Remove the photo and add it again.")
