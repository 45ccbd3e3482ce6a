"""Training images with synthetic anomalies, and how the frozen backbone sees them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.datasets.synthetic import PerlinAnomalies
from continuad.detectors.frozen import BUDGET, FrozenFeatures
from continuad.detectors.segmentation import resize_masks


class CorruptedImages:
    """Corrupted copies of the training images, and their masks.

    Args:
        images: (N, 3, S, S) uint8.
        anomalies: how a copy is corrupted.
        variants: copies per image, taken in turn by the epochs; 0 draws a new copy in each epoch.
        mask_size: height and width that masks are shrunk to.
        seed: a copy depends on this, its image's index and its variant alone.
        budget: bytes of copies to keep at most; further ones are drawn anew each time.
    """

    def __init__(
        self,
        images: Tensor,
        anomalies: PerlinAnomalies,
        *,
        variants: int,
        mask_size: Sequence[int],
        seed: int,
        budget: int = BUDGET,
    ) -> None:
        self.images = images
        self.anomalies = anomalies
        self.variants = variants
        self.mask_size = mask_size
        self.seed = seed
        self.budget = budget if variants else 0
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, indices: Sequence[int], epoch: int) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, S, S) uint8, and masks (B, *mask_size) of zeros and ones, float32."""
        images, masks = zip(*map(self.copy, self.numbers(indices, epoch)), strict=True)
        return torch.stack(images), torch.stack(masks)

    def numbers(self, indices: Sequence[int], epoch: int) -> list[int]:
        """The numbers of the copies of these images that an epoch sees."""
        variant = epoch % self.variants if self.variants else epoch
        return [variant * len(self.images) + index for index in indices]

    def copy(self, number: int) -> tuple[Tensor, Tensor]:
        """Return the copy of this number, (3, S, S) uint8, and its mask (*mask_size) float32."""
        if number in self._kept:
            return self._kept[number]
        variant, index = divmod(number, len(self.images))
        rng = np.random.default_rng([self.seed, variant, index])
        corrupted, anomalous = self.anomalies(self.images[index].cpu().numpy(), rng)
        image = torch.from_numpy(corrupted).to(self.images.device)
        mask = resize_masks(torch.from_numpy(anomalous)[None], self.mask_size)[0].to(image.device)
        size = image.nbytes + mask.nbytes
        if size <= self.budget:
            self.budget -= size
            self._kept[number] = image, mask
        return image, mask


class CorruptedFeatures:
    """Features and masks of corrupted copies, the same copies that `CorruptedImages` makes.

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
        self.copies = CorruptedImages(
            images, anomalies, variants=variants, mask_size=mask_size, seed=seed, budget=0
        )
        self._masks: dict[int, Tensor] = {}
        self._features = FrozenFeatures(backbone, taps, self._corrupt, budget=BUDGET if variants else 0)

    def __call__(self, indices: Sequence[int], epoch: int) -> tuple[dict[str, Tensor], Tensor]:
        """Return tap name to features (B, C, H, W), and masks (B, *mask_size) of zeros and ones, float32."""
        numbers = self.copies.numbers(indices, epoch)
        features = self._features(numbers)
        masks = torch.stack([self._masks[number] for number in numbers])
        if not self.copies.variants:
            self._masks.clear()
        return features, masks

    def _corrupt(self, number: int) -> tuple[Tensor, None]:
        image, self._masks[number] = self.copies.copy(number)
        return image, None
