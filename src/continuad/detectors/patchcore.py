"""PatchCore: the distance of each patch to the nearest of a coreset of normal ones.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.base import METHODS, Method
from continuad.detectors.coreset import greedy_coreset
from continuad.detectors.embedding import as_maps, as_vectors, draw, patch_features
from continuad.detectors.fitted import FittedDetector
from continuad.detectors.matching import smooth
from continuad.detectors.neighbours import nearest
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent


@dataclass(frozen=True)
class PatchCoreSettings:
    """How PatchCore describes patches and which of them it keeps; the defaults are the paper's.

    Attributes:
        strides: patches are described by the last blocks of these strides.
        taps: blocks by name, instead of `strides`.
        pool: side of the neighbourhood that is averaged, odd.
        share: of the patches that is kept.
        patches: to choose from, at most; of more, some are drawn at random, equally many of each image.
        smoothing: standard deviation in pixels of a Gaussian over the map.
    """

    strides: tuple[int, ...] = (8, 16)
    taps: tuple[str, ...] = ()
    pool: int = 3
    share: float = 0.1
    patches: int = 2**18
    smoothing: float = 4.0

    def __post_init__(self) -> None:
        if not (self.strides or self.taps):
            raise SettingsError("PatchCore has no block to look at.", "Give strides or taps.")
        if self.pool < 1 or self.pool % 2 == 0:
            raise SettingsError(f"pool is {self.pool}.", "Set pool to an odd number.")
        if not 0 < self.share <= 1:
            raise SettingsError(f"share is {self.share}.", "Set share above 0, up to 1.")
        if self.patches < 1:
            raise SettingsError(f"patches is {self.patches}.", "Set patches to 1 or more.")
        if not self.smoothing >= 0:
            raise SettingsError(f"smoothing is {self.smoothing}.", "Set smoothing to 0 or more.")


class PatchCore(FittedDetector):
    """A memory bank of normal patch features.

    The score of an image is its map's maximum: the published code does without the weight of the paper's
    Eq. 7.

    Attributes:
        bank: (M, D) float32.
    """

    bank: Tensor

    def __init__(self, backbone: Backbone, settings: PatchCoreSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(settings.taps or [backbone.stage(stride) for stride in settings.strides])
        dimensions = sum(backbone.block(tap).channels for tap in self.taps)
        self.register_buffer("bank", torch.zeros(1, dimensions))

    def fit(
        self,
        images: Tensor,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoints: Path | None = None,  # noqa: ARG002 - a pass is short
    ) -> None:
        """Collect patches of normal images (N, 3, S, S) uint8, and keep a coreset of them."""
        rng = np.random.default_rng(seed)
        quota = max(1, self.settings.patches // len(images))
        found = []
        for features in self.batches(images, part(progress, 0, 1000, 2000)):
            embedding = patch_features(features, self.taps, pool=self.settings.pool)
            found += [draw(as_vectors(each[None]), quota, rng) for each in embedding]
        vectors = torch.cat(found)
        chosen = greedy_coreset(
            vectors, self._count(len(vectors)), seed=seed, progress=part(progress, 1000, 2000, 2000)
        )
        self.bank = vectors[chosen]

    def _count(self, patches: int) -> int:
        count: int = max(1, round(self.settings.share * patches))
        return count

    def reserve(self, images: int, image_size: int) -> None:
        """Hold as many vectors as so many images give."""
        patches = images * min(self.grid(image_size), max(1, self.settings.patches // images))
        self.bank = self.bank.new_zeros(self._count(patches), self.bank.shape[1])

    @torch.no_grad()
    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Distances to the nearest vectors of the bank as maps (B, S, S)."""
        embedding = patch_features(
            self.teacher_features(images, features), self.taps, pool=self.settings.pool
        )
        distances, _ = nearest(as_vectors(embedding), self.bank)
        maps = as_maps(distances.squeeze(1).sqrt(), embedding, images.shape[-2:])
        return smooth(maps, self.settings.smoothing)


METHODS.register("patchcore")(
    Method("PatchCore: distance to a coreset of normal patches.", PatchCore, PatchCoreSettings())
)
