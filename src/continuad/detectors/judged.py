"""Distances of patches from normal ones, judged by what is usual where they lie."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.embedding import patch_features, resize_maps
from continuad.detectors.fitted import FittedDetector
from continuad.detectors.matching import smooth
from continuad.errors import SettingsError
from continuad.progress import Progress

LEAST_SPREAD = 1e-3


@dataclass(frozen=True, kw_only=True)
class JudgedSettings:
    """How patches are described, and distances judged.

    Attributes:
        strides: patches are described by the last blocks of these strides.
        taps: blocks by name, instead of `strides`.
        pool: side of the neighbourhood that features are averaged over, odd.
        coherence: weight of the remainders' average over 3x3 positions beside the remainder itself.
        by_position: whether positions are judged by what is normal there.
        worst: share of the map, from its highest values down, whose mean is the image's score.
    """

    strides: tuple[int, ...] = (8, 16)
    taps: tuple[str, ...] = ()
    pool: int = 3
    coherence: float = 3.0
    by_position: bool = True
    worst: float = 0.015

    def __post_init__(self) -> None:
        if not (self.strides or self.taps):
            raise SettingsError("There is no block to look at.", "Give strides or taps.")
        if self.pool < 1 or self.pool % 2 == 0:
            raise SettingsError(f"pool is {self.pool}.", "Set pool to an odd number.")
        if not self.coherence >= 0:
            raise SettingsError(f"coherence is {self.coherence}.", "Set coherence to 0 or more.")
        if not 0 <= self.worst <= 1:
            raise SettingsError(f"worst is {self.worst}.", "Set worst to 0 (the maximum alone) to 1.")


class JudgedPatches(FittedDetector):
    """The base of methods that explain patches, and measure what remains of them.

    Attributes:
        dimensions: channels of a patch, D.
        usual: (2, H, W) float16, mean and spread of a normal image's distances at each position.
    """

    settings: JudgedSettings
    usual: Tensor

    def __init__(self, backbone: Backbone, settings: JudgedSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(settings.taps or [backbone.stage(stride) for stride in settings.strides])
        self.dimensions = sum(backbone.block(tap).channels for tap in self.taps)
        self.register_buffer("usual", torch.tensor([0.0, 1.0], dtype=torch.float16).view(2, 1, 1))

    @abstractmethod
    def remainders(self, embedding: Tensor) -> Tensor:
        """What is left of the patches of an embedding (B, D, H, W): (B, D, H, W)."""

    def describe(self, features: Mapping[str, Tensor]) -> Tensor:
        """The embedding (B, D, H, W) of images, from the backbone's outputs at the taps."""
        return patch_features(features, self.taps, pool=self.settings.pool)

    def embeddings(self, images: Tensor, progress: Progress) -> Iterator[Tensor]:
        """Yield the embedding (D, H, W) of one image (N, 3, S, S) uint8 after another."""
        for features in self.batches(images, progress):
            yield from self.describe(features)

    @torch.no_grad()
    def distances(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """How far each position of images (B, 3, S, S) is from normal: (B, H, W)."""
        return self.lengths(self.remainders(self.describe(self.teacher_features(images, features))))

    def lengths(self, remainders: Tensor) -> Tensor:
        """How long remainders (B, D, H, W) are, more so where neighbours agree: (B, H, W)."""
        squares = remainders.square().sum(1)
        if self.settings.coherence:
            around = F.avg_pool2d(remainders, 3, stride=1, padding=1, count_include_pad=False)
            squares = squares + self.settings.coherence * around.square().sum(1)
        return squares.sqrt()

    def watch(self, distances: Tensor) -> None:
        """Note distances (N, H, W) in normal images as what is usual."""
        mean, spread = distances.mean(0, keepdim=True), distances.std(0, correction=0, keepdim=True)
        self.usual = torch.cat([smooth(mean, 1.0), smooth(spread, 1.0)]).half()

    def reserve(self, images: int, image_size: int) -> None:  # noqa: ARG002 - for what subclasses add
        """Hold what is usual at each position of such images."""
        side = -(-image_size // self.backbone.block(self.taps[0]).stride)
        self.usual = self.usual.new_ones(2, side, side)

    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Standardised distances as maps (B, S, S): about 0 where an image is as usual."""
        return self.standardised(self.distances(images, features), images.shape[-2:])

    def standardised(self, distances: Tensor, size: Sequence[int]) -> Tensor:
        """Turn distances (B, H, W) into maps (B, *size)."""
        mean, spread = self._usual(distances.shape[-2:])
        return resize_maps((distances - mean) / spread, size)

    def _usual(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and spread of a normal image's distances: for each position (H, W), or for all ()."""
        mean, spread = self.usual.float()
        if not self.settings.by_position:
            overall = (spread.square().mean() + mean.var(correction=0)).sqrt()
            return mean.mean(), overall.clamp(min=LEAST_SPREAD)
        # of few images, the spread at one position is vague: the mean one keeps it from being too small
        usual = torch.stack([mean, (spread + spread.mean()).clamp(min=LEAST_SPREAD)])
        if mean.shape != tuple(size):
            usual = F.interpolate(usual[None], list(size), mode="bilinear", align_corners=False)[0]
        return usual[0], usual[1]

    def scored_pixels(self, pixels: int) -> int:
        """The `worst` share of them."""
        return max(1, round(self.settings.worst * pixels))
