"""What methods have in common that are fitted in one pass over the images, without gradients."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.base import Detector
from continuad.progress import Progress

BATCH = 8


class FittedDetector(Detector):
    """The base of methods that keep statistics or vectors of normal features, in buffers.

    How large a buffer is may depend on what was learnt.

    Attributes:
        tap_means: of the images last learnt from, the mean over positions (N, C) at each tap: for the router,
            which need not run the backbone again. Not part of the state.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.tap_means: dict[str, Tensor] = {}

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Take buffers over in the size that they have."""
        for name, buffer in self._buffers.items():
            saved = state_dict.get(prefix + name)
            if buffer is not None and saved is not None and saved.dtype == buffer.dtype:
                self._buffers[name] = torch.empty_like(saved, device=buffer.device)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @abstractmethod
    def reserve(self, images: int, image_size: int) -> None:
        """Become as large as after learning so many images of that size, with arbitrary contents."""

    def grid(self, image_size: int) -> int:
        """How many positions the first tap has for an image of that size."""
        side = -(-image_size // self.backbone.block(self.taps[0]).stride)
        return side * side

    @torch.no_grad()
    def batches(self, images: Tensor, progress: Progress) -> Iterator[Mapping[str, Tensor]]:
        """Yield the backbone's outputs at the taps for one batch of images (N, 3, S, S) after another."""
        means: dict[str, list[Tensor]] = {tap: [] for tap in self.taps}
        for first in range(0, len(images), BATCH):
            progress(first, len(images), "looking at normal images")
            features = self.backbone.features(images[first : first + BATCH], self.taps)
            for tap in self.taps:
                means[tap].append(features[tap].mean((2, 3)))
            yield features
        self.tap_means = {tap: torch.cat(found) for tap, found in means.items()}
