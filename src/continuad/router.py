"""Which product an image belongs to: the one with the nearest prototype (AdapTS sec. 3.4)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]

CLEARLY_NEARER = 0.5
"""An image is clearly nearer to one prototype than to another at less than this share of the distance."""

OF_THE_SAME_KIND = 0.25
"""Share of a prototype's length within which no other kind of part lies: on eight real products and two
backbones the nearest stranger lies at 0.27 to 0.52, and most parts that a defect has spoilt below 0.25."""

TINY = 1e-300
"""What a distance of zero counts as where it divides."""


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


@dataclass(frozen=True)
class _Table:
    """The products of a router, ready to be compared with: names, prototypes (P, D) float64 and limits."""

    names: tuple[str, ...]
    prototypes: NDArray[np.float64]
    limits: tuple[float, ...]

    def route(self, vector: NDArray[np.float64]) -> Route:
        """Route one embedding (D,).

        Each distance is summed along its own row, so that no bit of it depends on the other products; a
        matrix product would promise no such thing.
        """
        distances = np.sqrt(((self.prototypes - vector) ** 2).sum(1))
        nearest = int(distances.argmin())
        first = float(distances[nearest])
        excess = first / max(self.limits[nearest], TINY)
        if len(distances) > 1:
            second = float(np.partition(distances, 1)[1])
            excess = min(excess, first / max(CLEARLY_NEARER * second, TINY))
        return Route(self.names[nearest], excess)


class PrototypeRouter:
    """The prototypes (mean embeddings) of all products, and how far from each an image of it may lie."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[Vectors, float]] = {}
        self._table: _Table | None = None  # None until it is asked for

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, name: str, prototype: Vectors, limit: float) -> None:
        """Add or replace a product: its prototype (D,) and its limit."""
        self.remove(name)
        self._entries[name] = prototype, limit

    def remove(self, name: str) -> None:
        """Remove a product, if it is there."""
        self._entries.pop(name, None)
        self._table = None

    def route(self, vectors: Vectors) -> list[Route]:
        """Route embeddings (B, D); there must be a product.

        The smallest Euclidean distance wins; a tie goes to the product that was added first. An image is
        too far from the nearest prototype if it exceeds that product's limit, and is not clearly nearer to it
        than to the second nearest either: a broken part lies beyond the limits of its product, but nowhere
        near another. `Route.distance` is the lesser of the two excesses.
        """
        if self._table is None:
            prototypes, limits = zip(*self._entries.values(), strict=True)
            self._table = _Table(tuple(self._entries), np.stack(prototypes).astype(np.float64), limits)
        return [self._table.route(vector) for vector in vectors.astype(np.float64)]


def distance_limit(prototype: Vectors, held_out: Vectors, *, margin: float) -> float:
    """How far an image may lie from a product's prototype (D,), from held-out normal images (N, D).

    A multiple of the largest distance of a normal image, but never less than a share of the prototype's
    length: photos of a part that is always placed alike lie so close together that any broken one would look
    like another kind of part.
    """
    distances = np.linalg.norm(held_out.astype(np.float64) - prototype, axis=1)
    return float(max(margin * distances.max(), OF_THE_SAME_KIND * np.linalg.norm(prototype)))
