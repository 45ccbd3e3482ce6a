"""What a detector is trained on: numbered images and, behind them, features that stand for images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Selection = Callable[[Sequence[int]], Mapping[str, Tensor]]
"""Called with numbers of samples, says by layer which of their features count: (B, C, H, W) bool."""


@dataclass(frozen=True)
class Samples:
    """Images by number, then features of further images, as a replay buffer keeps them.

    Attributes:
        images: (N, 3, S, S) uint8; numbers 0 to N - 1.
        features: (M, C, H, W) float32, what `block` gives for images that are not at hand; numbers from N.
        block: of the frozen backbone.
        selected: the features that a student is to match, where these are not all; for methods that know it.
    """

    images: Tensor
    features: Tensor | None = None
    block: str | None = None
    selected: Selection | None = None

    @property
    def device(self) -> torch.device:
        """Where the images lie."""
        return self.images.device

    def __call__(self, number: int) -> tuple[Tensor, str | None]:
        """Return an image and None, or features and the block that they come from."""
        if number < len(self.images):
            return self.images[number], None
        assert self.features is not None  # noqa: S101 - numbers are those of the samples
        return self.features[number - len(self.images)], self.block
