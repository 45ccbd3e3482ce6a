"""Task identification: an image belongs to the product with the nearest prototype (AdapTS sec. 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.backbones import Backbone
from continuad.errors import SettingsError

Vectors = NDArray[np.float32]

CLEARLY_NEARER = 0.5
"""An image is clearly nearer to one prototype than to another at less than this share of the distance."""


@dataclass(frozen=True)
class RoutingSettings:
    """Where prototypes are taken from.

    Attributes:
        tap: the block whose output is pooled; "avgpool" is the paper's.
        statistic: "mean" over positions (paper), or "mean_std" to append the standard deviation, which tells
            textures apart when the block is an early one.
    """

    tap: str
    statistic: Literal["mean", "mean_std"] = "mean"

    def __post_init__(self) -> None:
        if self.statistic not in ("mean", "mean_std"):
            raise SettingsError(f"The statistic is {self.statistic!r}.", "Use 'mean' or 'mean_std'.")


def embed(features: Tensor, statistic: str) -> Vectors:
    """Pool a feature map (B, C, H, W) over positions to vectors (B, C), or (B, 2 C) for "mean_std"."""
    mean = features.mean((2, 3))
    if statistic == "mean_std":
        mean = torch.cat([mean, features.std((2, 3), correction=0)], 1)
    vectors: Vectors = mean.float().cpu().numpy()
    return vectors


def routing_cost(backbone: Backbone, settings: RoutingSettings) -> int:
    """Bytes of one float32 prototype."""
    return 4 * backbone.block(settings.tap).channels * (2 if settings.statistic == "mean_std" else 1)


@dataclass(frozen=True)
class Route:
    """Where an image belongs.

    Attributes:
        nearest: the product with the nearest prototype.
        distance: how far the image is from it; above 1 it is of no product (see `PrototypeRouter.route`).
    """

    nearest: str
    distance: float

    @property
    def is_known(self) -> bool:
        """Whether the image is near enough to be of that product."""
        return self.distance <= 1


class PrototypeRouter:
    """The prototypes (mean embeddings) of all products, and how far from each an image of it may lie."""

    def __init__(self) -> None:
        self._names: list[str] = []
        self._prototypes: list[Vectors] = []
        self._limits: list[float] = []

    def __len__(self) -> int:
        return len(self._names)

    def add(self, name: str, prototype: Vectors, limit: float) -> None:
        """Add or replace a product: its prototype (D,) and its limit."""
        self.remove(name)
        self._names.append(name)
        self._prototypes.append(prototype)
        self._limits.append(limit)

    def remove(self, name: str) -> None:
        """Remove a product, if it is there."""
        if name in self._names:
            index = self._names.index(name)
            del self._names[index], self._prototypes[index], self._limits[index]

    def route(self, vectors: Vectors) -> list[Route]:
        """Route embeddings (B, D); there must be a product.

        The smallest Euclidean distance wins; a tie goes to the product that was added first. An image is
        too far from the nearest prototype if it exceeds that product's limit, and is not clearly nearer to it
        than to the second nearest either: a broken part lies beyond the limits of its product, but nowhere
        near another. `Route.distance` is the lesser of the two excesses.
        """
        differences = vectors[:, None, :].astype(np.float64) - np.stack(self._prototypes)[None]
        distances = np.sqrt((differences**2).sum(2))
        nearest = distances.argmin(1)
        first = distances.min(1)
        excess = first / np.asarray(self._limits)[nearest]
        if len(self) > 1:
            second = np.partition(distances, 1, axis=1)[:, 1]
            excess = np.minimum(excess, first / np.maximum(CLEARLY_NEARER * second, 1e-300))
        return [Route(self._names[index], float(value)) for index, value in zip(nearest, excess, strict=True)]


def distance_limit(prototype: Vectors, held_out: Vectors, *, margin: float) -> float:
    """How far an image may lie from a product's prototype (D,), from held-out normal images (N, D).

    Never less than a thousandth of the prototype's length, so that equal images may differ by rounding.
    """
    distances = np.linalg.norm(held_out.astype(np.float64) - prototype, axis=1)
    return float(max(margin * distances.max(), 1e-3 * np.linalg.norm(prototype)))
