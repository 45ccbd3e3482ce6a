"""What every source hands over: one picture at a time, or why there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from continuad.errors import ImageError

Pixels: TypeAlias = NDArray[np.uint8]

Note: TypeAlias = Callable[[str], None]
"""Tells a human something; may be called from any thread."""


@dataclass(frozen=True, eq=False)
class Sighting:
    """One picture that a source has seen.

    Attributes:
        origin: where it is from, as plain values for JSON.
        name: what to call a picture made of it; not unique, and not a path.
        image: uint8 (H, W, 3), or why it cannot be read.
    """

    origin: dict[str, str | int]
    name: str
    image: Pixels | ImageError
