"""Routed heads: one head per product on one backbone; the router picks it, and nothing is overwritten."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.backbones import Backbone
from continuad.continual.routing import RoutingSettings, embed
from continuad.detectors import Detector
from continuad.errors import ProductError
from continuad.router import PrototypeRouter, Route, Vectors
from continuad.stopwatch import Stopwatch

HEAD_MEMORY = 64 * 2**20
"""Bytes of heads that stay loaded: more than a hundred of the largest that fit into 512 KiB."""


@dataclass(frozen=True)
class Inspection:
    """What the routed heads say about one image.

    Attributes:
        product: whose head looked at the image; None if the image is of no known product.
        route: the nearest product; None where the caller named the product.
        anomaly_map: (S, S) float32 at the network's input size; None if the product is.
        score: the image score; NaN if the product is None.
    """

    product: str | None
    route: Route | None
    anomaly_map: NDArray[np.float32] | None
    score: float


@dataclass(frozen=True)
class _Head:
    taps: tuple[str, ...]
    load: Callable[[], Detector]


class _RecentHeads:
    """The detectors that were used last: as many as fit into a number of bytes, but always the last one."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._heads: OrderedDict[str, tuple[Detector, int]] = OrderedDict()

    def get(self, name: str, load: Callable[[], Detector]) -> Detector:
        if name in self._heads:
            self._heads.move_to_end(name)
            return self._heads[name][0]
        detector = load()
        size = sum(tensor.nbytes for tensor in (*detector.parameters(), *detector.buffers()))
        self._heads[name] = detector, size
        self._bytes += size
        while self._bytes > self._limit and len(self._heads) > 1:
            self.drop(next(iter(self._heads)))
        return detector

    def drop(self, name: str) -> None:
        if name in self._heads:
            self._bytes -= self._heads.pop(name)[1]


class RoutedHeads:
    """Products on one backbone.

    Args:
        backbone: shared by all heads.
        routing: where prototypes are taken from.
        head_memory: bytes of parameters and buffers of heads that stay loaded, those used last; the others
            are loaded again when they are needed.
    """

    def __init__(
        self, backbone: Backbone, routing: RoutingSettings, *, head_memory: int = HEAD_MEMORY
    ) -> None:
        self.backbone = backbone
        self.routing = routing
        self.router = PrototypeRouter()
        self._heads: dict[str, _Head] = {}
        self._recent = _RecentHeads(head_memory)
        self._shared_taps: tuple[str, ...] | None = None  # None until they are asked for

    def add(
        self,
        name: str,
        *,
        taps: tuple[str, ...],
        load: Callable[[], Detector],
        prototype: Vectors,
        limit: float,
    ) -> None:
        """Add or replace a product; `load` is called when its head is needed, `taps` are the head's."""
        self._recent.drop(name)
        self._shared_taps = None
        self._heads[name] = _Head(taps, load)
        self.router.add(name, prototype, limit)

    def remove(self, name: str) -> None:
        """Remove a product."""
        del self._heads[name]
        self._recent.drop(name)
        self._shared_taps = None
        self.router.remove(name)

    def head(self, name: str) -> Detector:
        """Return a product's head, loading it if need be."""
        if name not in self._heads:
            raise ProductError(f"No product is called {name!r}.", "Learn it first, or list the products.")
        return self._recent.get(name, self._heads[name].load)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Vectors:
        """Embeddings (B, D) of images (B, 3, S, S) uint8 in the router's space."""
        tap = self.routing.tap
        return embed(self.backbone.features(images, [tap])[tap], self.routing.statistic)

    @torch.no_grad()
    def inspect(
        self, images: Tensor, *, product: str | None, reject_unknown: bool, stopwatch: Stopwatch
    ) -> list[Inspection]:
        """Inspect a batch (B, 3, S, S) uint8; its images may be of different products.

        Args:
            images: the batch.
            product: inspect all as this product, without routing.
            reject_unknown: give images that lie too far from every prototype no verdict; otherwise they go to
                the nearest product.
            stopwatch: books the stages "backbone", "routing" and "head".
        """
        routes: list[Route | None] = [None] * len(images)
        products = [product] * len(images)
        features: dict[str, Tensor] = {}
        if product is None:
            features = self._shared_features(images)
            stopwatch.lap("backbone")
            tap = self.routing.tap
            known = self.router.route(embed(features[tap], self.routing.statistic))
            products = [r.nearest if r.is_known or not reject_unknown else None for r in known]
            routes = [*known]
            stopwatch.lap("routing")
        results = [Inspection(None, route, None, float("nan")) for route in routes]
        for name in dict.fromkeys(name for name in products if name is not None):
            rows = [row for row, each in enumerate(products) if each == name]
            head = self.head(name)
            batch = images[rows]
            shared = self._complete({tap: f[rows] for tap, f in features.items()}, batch, head.taps)
            stopwatch.lap("backbone")
            maps = head.anomaly_maps(batch, shared)
            scores = head.image_scores(maps).tolist()
            for row, anomaly_map, score in zip(rows, maps.cpu().numpy(), scores, strict=True):
                results[row] = Inspection(name, routes[row], anomaly_map, score)
            stopwatch.lap("head")
        return results

    def _shared_features(self, images: Tensor) -> dict[str, Tensor]:
        """Run the backbone up to the router's tap, keeping what any head will want on the way."""
        if self._shared_taps is None:
            wanted = {self.routing.tap, *(tap for head in self._heads.values() for tap in head.taps)}
            order = self.backbone.order(wanted)
            self._shared_taps = order[: order.index(self.routing.tap) + 1]
        return self.backbone.features(images, self._shared_taps)

    def _complete(
        self, features: Mapping[str, Tensor], images: Tensor, taps: Collection[str]
    ) -> Mapping[str, Tensor]:
        """Add the taps that lie behind the features at hand, continuing from the last of these."""
        absent = [tap for tap in taps if tap not in features]
        if not absent:
            return features
        if not features:
            return self.backbone.features(images, absent)
        start = self.backbone.order(features)[-1]
        return {**features, **self.backbone.features(features[start], absent, start=start)}
