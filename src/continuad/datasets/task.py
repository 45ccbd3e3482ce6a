"""What a detector learns and is judged on: one product's images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from continuad.errors import SettingsError
from continuad.images import ImageSource

T = TypeVar("T")


@dataclass(frozen=True)
class Sample:
    """One test image.

    Attributes:
        image: anything `load_image` takes.
        is_anomalous: whether the part is defective.
        defect: the kind of defect, "good" for a normal part.
        mask: anything `load_mask` takes; None for a normal part, or where the dataset has no mask.
    """

    image: ImageSource
    is_anomalous: bool
    defect: str = "good"
    mask: ImageSource | None = None


@dataclass(frozen=True)
class Task:
    """One step of a continual stream: a product with normal images to learn and images to test on."""

    name: str
    train: Sequence[ImageSource]
    test: Sequence[Sample] = field(default=())


def hold_out(items: Sequence[T], fraction: float, *, seed: int) -> tuple[list[T], list[T]]:
    """Split into (kept, held out), both in the given order; the same seed gives the same split.

    The held-out part is `fraction`, rounded; of two items or more at least one goes to either side.

    Raises:
        SettingsError: the fraction does not lie between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise SettingsError(f"A fraction of {fraction} cannot be held out.", "Give one between 0 and 1.")
    count = min(max(round(len(items) * fraction), 1), len(items) - 1) if len(items) > 1 else 0
    chosen = set(np.random.default_rng(seed).permutation(len(items))[:count].tolist())
    kept = [item for index, item in enumerate(items) if index not in chosen]
    return kept, [item for index, item in enumerate(items) if index in chosen]
