"""PCA feature importance: which channels of a frozen backbone vary over the images of a product, and where.

Chapter 4 of the thesis, Algorithm 4.1: at every position of a layer a principal component analysis over the
images of a task; a channel is as important there as it is present in the first components, weighted by the
variance that they explain.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.backbones import Backbone
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent

BATCH = 8

MEMORY = 2**29
"""Bytes of covariance matrices that are held at a time; if they take more, the images are looked at again."""

ROUNDING = 1e-6


@dataclass(frozen=True)
class ImportanceSettings:
    """How importance is found; the defaults are the thesis's.

    Attributes:
        variance: share of the variance that the components are to explain.
        share: of a layer's positions at which the number of components is estimated.
        percentile: of the numbers of components there, which is the layer's number.
    """

    variance: float = 0.8
    share: float = 0.1
    percentile: float = 99.0

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise SettingsError(f"variance is {self.variance}.", "Set variance above 0, up to 1.")
        if not 0 < self.share <= 1:
            raise SettingsError(f"share is {self.share}.", "Set share above 0, up to 1.")
        if not 0 <= self.percentile <= 100:
            raise SettingsError(f"percentile is {self.percentile}.", "Set percentile to 0 to 100.")


@dataclass(frozen=True)
class LayerImportance:
    """What a layer's features are for, at each position of its grid H x W.

    Attributes:
        explained: (H, W, C) float32, share of the variance that the first 1 .. C components explain.
        components: how many make up the importance: as counted at a sample of the positions.
        exact: the same, counted at all of them.
        importance: (C, H, W) float32; the channels of a position sum to 1, and are equal where none varies.
        mean: (C, H, W) float32 over the images.
        std: (C, H, W) float32 over the images (population).
    """

    explained: NDArray[np.float32]
    components: int
    exact: int
    importance: NDArray[np.float32]
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    def counts(self, variance: float) -> NDArray[np.int64]:
        """The number of components (H, W) that explain this share of the variance."""
        return component_counts(self.explained, variance)


class Moments:
    """Means and covariances of vectors, from batch after batch (Chan, Golub and LeVeque 1979).

    Attributes:
        count: vectors of each kind so far.
        mean: (P, C) float64, of each of P kinds of vectors.
        scatter: (P, C, C) float64, the sum of the outer products of what deviates from the mean.
    """

    def __init__(self, kinds: int, channels: int) -> None:
        self.count = 0
        self.mean = torch.zeros(kinds, channels, dtype=torch.float64)
        self.scatter = torch.zeros(kinds, channels, channels, dtype=torch.float64)

    def update(self, vectors: Tensor) -> None:
        """Take a batch (P, B, C) into account."""
        vectors = vectors.double()
        size = vectors.shape[1]
        mean = vectors.mean(1)
        centred = vectors - mean[:, None]
        gap = mean - self.mean
        total = self.count + size
        self.scatter.baddbmm_(centred.transpose(1, 2), centred)
        weight = self.count * size / total
        self.scatter.baddbmm_(gap[:, :, None], gap[:, None], alpha=weight)
        self.mean += gap * (size / total)
        self.count = total


def feature_importance(
    backbone: Backbone,
    images: Tensor,
    layers: Sequence[str],
    settings: ImportanceSettings | None = None,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, LayerImportance]:
    """Find what the backbone's features are for on the normal images of a product.

    Args:
        backbone: the teacher.
        images: (N, 3, S, S) uint8, two or more.
        layers: blocks by name.
        settings: the thesis's, unless given.
        seed: of the choice of positions at which components are counted.
        progress: told about the images and positions.

    Returns:
        By layer.

    Raises:
        SettingsError: there are too few images, or no such block.
    """
    if len(images) < 2:
        raise SettingsError("One image does not vary.", "Give two images or more.")
    settings = settings or ImportanceSettings()

    def batches(report: Progress) -> Iterator[Mapping[str, Tensor]]:
        for first in range(0, len(images), BATCH):
            report(first, len(images), "looking at normal images")
            yield backbone.features(images[first : first + BATCH], layers)

    with torch.no_grad():
        shapes = {name: each.shape[1:] for name, each in backbone.features(images[:1], layers).items()}
        rng = np.random.default_rng(seed)
        found = {name: _Layer(*shape, settings=settings, rng=rng) for name, shape in shapes.items()}
        passes = _passes(found)
        for number, pieces in enumerate(passes):
            report = part(progress, 100 * number, 100 * (number + 1), 100 * len(passes))
            moments = [Moments(len(piece.positions), found[piece.layer].channels) for piece in pieces]
            for features in batches(part(report, 0, 80, 100)):
                for piece, each in zip(pieces, moments, strict=True):
                    each.update(features[piece.layer].flatten(2)[:, :, piece.positions].permute(2, 0, 1))
            for done, (piece, each) in enumerate(zip(pieces, moments, strict=True)):
                part(report, 80, 100, 100)(done, len(pieces), "taking principal components")
                found[piece.layer].take(piece.positions, each)
    progress(1, 1, "taking principal components")
    return {name: layer.result() for name, layer in found.items()}


@dataclass(frozen=True)
class _Piece:
    """Positions of a layer, numbered row by row, whose covariances are held together."""

    layer: str
    positions: NDArray[np.int64]


class _Layer:
    """A layer's importance while it is being found.

    The sample of its positions comes first: the number of components must be known before any importance.
    """

    def __init__(
        self,
        channels: int,
        height: int,
        width: int,
        *,
        settings: ImportanceSettings,
        rng: np.random.Generator,
    ) -> None:
        self.channels, self.grid, self.settings = channels, (height, width), settings
        order = rng.permutation(height * width)
        size = max(1, int(settings.share * height * width))
        self.sample, self.others = np.sort(order[:size]), np.sort(order[size:])
        self.components = 0  # not known yet
        self._explained, self._importance, self._mean, self._std = np.empty(
            (4, height * width, channels), np.float32
        )

    def take(self, positions: NDArray[np.int64], moments: Moments) -> None:
        """Take over what was found at some positions; the moments are used up."""
        covariances = moments.scatter.numpy()
        covariances /= moments.count
        mean = moments.mean.numpy()
        std = np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
        std = np.where(std > ROUNDING * np.abs(mean), std, 0)  # float32 features tell no less apart
        covariances[~std.any(1)] = 0
        self._mean[positions], self._std[positions] = mean, std
        shares, directions = _principal_components(covariances)
        self._explained[positions] = np.cumsum(shares, 1)
        if not self.components:
            self.components = self._count(self._explained[positions])
        kept = slice(self.components)
        self._importance[positions] = 1 / self.channels
        for place in np.flatnonzero(self._std[positions].any(1)):
            weights = np.abs(directions[place, :, kept]) @ shares[place, kept]
            self._importance[positions[place]] = weights / weights.sum()

    def _count(self, explained: NDArray[np.float32]) -> int:
        counts = component_counts(explained, self.settings.variance)
        return int(np.percentile(counts, self.settings.percentile))

    def result(self) -> LayerImportance:
        def as_maps(values: NDArray[np.float32]) -> NDArray[np.float32]:
            return np.ascontiguousarray(values.T.reshape(self.channels, *self.grid))

        return LayerImportance(
            explained=self._explained.reshape(*self.grid, self.channels),
            components=self.components,
            exact=self._count(self._explained),
            importance=as_maps(self._importance),
            mean=as_maps(self._mean),
            std=as_maps(self._std),
        )


def _principal_components(
    covariances: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components of covariances (P, C, C), the first first; of what does not vary, any one is all.

    Returns:
        Their shares of the variance (P, C), and directions in columns (P, C, C) in the covariances' place.
    """
    shares = np.empty(covariances.shape[:2])
    for covariance, share in zip(covariances, shares, strict=True):
        variances, directions = np.linalg.eigh(covariance)  # ascending
        variances = np.maximum(variances[::-1], 0)
        total = variances.sum()
        share[:] = variances / total if total else np.eye(1, len(share))[0]
        covariance[:] = directions[:, ::-1]
    return shares, covariances


def _passes(layers: Mapping[str, _Layer]) -> list[list[_Piece]]:
    """Share the positions of all layers out among passes over the images; the samples are in the first."""
    passes: list[list[_Piece]] = [[_Piece(name, layer.sample) for name, layer in layers.items()]]
    free = MEMORY - sum(8 * layer.channels**2 * len(layer.sample) for layer in layers.values())
    for name, layer in layers.items():
        each = 8 * layer.channels**2
        rest = layer.others
        while len(rest):
            if free < each:
                passes.append([])
                free = max(MEMORY, each)
            count = free // each
            passes[-1].append(_Piece(name, rest[:count]))
            free -= each * len(rest[:count])
            rest = rest[count:]
    return passes


def component_counts(explained: NDArray[np.float32], variance: float) -> NDArray[np.int64]:
    """How many components, of those that explain (..., C) of the variance, it takes for a share of it."""
    counts: NDArray[np.int64] = 1 + (explained < variance - ROUNDING).sum(-1)
    return np.minimum(counts, explained.shape[-1])
