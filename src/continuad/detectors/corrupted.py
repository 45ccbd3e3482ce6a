"""Training images with synthetic anomalies, as the frozen backbone sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.datasets.synthetic import PerlinAnomalies
from continuad.detectors.frozen import BUDGET, FrozenFeatures
from continuad.detectors.segmentation import resize_masks


class CorruptedFeatures:
    """Features and masks of corrupted copies of the training images.

    Args:
        backbone: the frozen network.
        taps: blocks whose outputs are wanted.
        images: (N, 3, S, S) uint8.
        anomalies: how a copy is corrupted.
        variants: copies per image, reused in turn by the epochs; 0 draws a new copy in each epoch.
        mask_size: height and width that masks are shrunk to.
        seed: a copy depends on this, its image's index and its variant alone.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[str],
        images: Tensor,
        anomalies: PerlinAnomalies,
        *,
        variants: int,
        mask_size: Sequence[int],
        seed: int,
    ) -> None:
        self.images = images
        self.anomalies = anomalies
        self.variants = variants
        self.mask_size = mask_size
        self.seed = seed
        self._masks: dict[int, Tensor] = {}
        self._features = FrozenFeatures(backbone, taps, self._corrupt, budget=BUDGET if variants else 0)

    def __call__(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return tap name to features (B, C, H, W), and masks (B, *mask_size) of zeros and ones, float32."""
        variant = epoch % self.variants if self.variants else epoch
        numbers = [variant * len(self.images) + index for index in indices]
        features = self._features(numbers)
        masks = torch.stack([self._masks[number] for number in numbers])
        if not self.variants:
            self._masks.clear()
        return features, masks

    def _corrupt(self, number: int) -> Tensor:
        variant, index = divmod(number, len(self.images))
        rng = np.random.default_rng([self.seed, variant, index])
        image, mask = self.anomalies(self.images[index].cpu().numpy(), rng)
        device = self.images.device
        self._masks[number] = resize_masks(torch.from_numpy(mask)[None], self.mask_size)[0].to(device)
        return torch.from_numpy(image).to(device)
