"""PaDiM: a Gaussian of normal features at every position.

Defard et al., "PaDiM: A Patch Distribution Modeling Framework for Anomaly Detection and Localization",
ICPR workshops 2020.
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
from continuad.detectors.embedding import as_maps, patch_features
from continuad.detectors.fitted import FittedDetector
from continuad.detectors.matching import smooth
from continuad.errors import SettingsError
from continuad.progress import Progress, silent


@dataclass(frozen=True)
class PaDiMSettings:
    """How PaDiM describes positions; the defaults are the paper's for ResNet-18.

    Attributes:
        strides: positions are described by the last blocks of these strides.
        taps: blocks by name, instead of `strides`.
        channels: of all channels, so many are drawn at random and used.
        regularisation: is added to each variance.
        smoothing: standard deviation in pixels of a Gaussian over the map.
    """

    strides: tuple[int, ...] = (4, 8, 16)
    taps: tuple[str, ...] = ()
    channels: int = 100
    regularisation: float = 0.01
    smoothing: float = 4.0

    def __post_init__(self) -> None:
        if not (self.strides or self.taps):
            raise SettingsError("PaDiM has no block to look at.", "Give strides or taps.")
        if self.channels < 1:
            raise SettingsError(f"channels is {self.channels}.", "Set channels to 1 or more.")
        if not self.regularisation > 0:
            raise SettingsError(f"regularisation is {self.regularisation}.", "Set regularisation above 0.")
        if not self.smoothing >= 0:
            raise SettingsError(f"smoothing is {self.smoothing}.", "Set smoothing to 0 or more.")


class PaDiM(FittedDetector):
    """A mean and a full covariance at each of P positions.

    Attributes:
        chosen: numbers of the channels that are used, (D,) int64.
        means: (P, D) float32.
        whiteners: inverses of the covariances' lower Cholesky factors, (P, D, D) float32.
    """

    chosen: Tensor
    means: Tensor
    whiteners: Tensor

    def __init__(self, backbone: Backbone, settings: PaDiMSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(settings.taps or [backbone.stage(stride) for stride in settings.strides])
        channels = sum(backbone.block(tap).channels for tap in self.taps)
        count = min(settings.channels, channels)
        self.register_buffer("chosen", torch.arange(count))
        self.register_buffer("means", torch.zeros(1, count))
        self.register_buffer("whiteners", torch.eye(count)[None])
        self._channels = channels

    def fit(
        self,
        images: Tensor,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoints: Path | None = None,  # noqa: ARG002 - a pass is short
    ) -> None:
        """Estimate mean and covariance at each position from normal images (N, 3, S, S) uint8.

        Images are looked at batch by batch: what is held does not grow with their number.
        """
        drawn = np.random.default_rng(seed).permutation(self._channels)[: len(self.chosen)]
        chosen = torch.from_numpy(np.sort(drawn)).to(images.device)
        count = 0
        mean = scatter = torch.zeros(())
        for features in self.batches(images, progress):
            x = self._positions(features, chosen)  # (B, P, D)
            if not count:
                mean = torch.zeros_like(x[0])
                scatter = mean.new_zeros(*mean.shape, mean.shape[1])
            # Chan et al. 1979: scatter about the joint mean from those about the means of the parts
            own_mean = x.mean(0)
            centred = x - own_mean
            scatter += torch.einsum("bpd,bpe->pde", centred, centred)
            shift, total = own_mean - mean, count + len(x)
            scatter += torch.einsum("pd,pe->pde", shift, shift) * (count * len(x) / total)
            mean = mean + shift * (len(x) / total)
            count = total
        covariance = scatter / max(count - 1, 1)
        covariance.diagonal(dim1=1, dim2=2).add_(self.settings.regularisation)
        identity = torch.eye(covariance.shape[1], device=images.device)
        factors = torch.linalg.cholesky(covariance)
        whiteners = torch.linalg.solve_triangular(factors, identity, upper=False)
        progress(len(images), len(images), "estimated")
        self.chosen, self.means = chosen, mean
        self.whiteners = whiteners.contiguous()  # as it will be loaded

    def reserve(self, images: int, image_size: int) -> None:  # noqa: ARG002 - their number does not matter
        """Hold a Gaussian at each position."""
        positions, count = self.grid(image_size), len(self.chosen)
        self.means = self.means.new_zeros(positions, count)
        self.whiteners = self.whiteners[:1].repeat(positions, 1, 1)

    @torch.no_grad()
    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Mahalanobis distances as maps (B, S, S)."""
        embedding = patch_features(self.teacher_features(images, features), self.taps, pool=1)
        centred = embedding[:, self.chosen].flatten(2).permute(2, 1, 0) - self.means[:, :, None]  # (P, D, B)
        distances = torch.linalg.vector_norm(self.whiteners @ centred, dim=1).T  # (B, P)
        maps = as_maps(distances.flatten(), embedding, images.shape[-2:])
        return smooth(maps, self.settings.smoothing)

    def _positions(self, features: Mapping[str, Tensor], chosen: Tensor) -> Tensor:
        """Features of the chosen channels at each position, (B, P, D)."""
        return patch_features(features, self.taps, pool=1)[:, chosen].flatten(2).transpose(1, 2)


METHODS.register("padim")(
    Method("PaDiM: a Gaussian of normal features at every position.", PaDiM, PaDiMSettings())
)
