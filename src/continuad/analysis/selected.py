"""The features that products select, and images seen through them alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from continuad.backbones import Backbone
from continuad.detectors.importance import LayerImportance
from continuad.detectors.selection import Mask, most_important, shared
from continuad.errors import DatasetError
from continuad.images import ImageSource, load_stack
from continuad.progress import Progress, silent

BATCH = 16


@dataclass(frozen=True)
class LayerUse:
    """How a product uses a layer.

    Attributes:
        components: that explain the variance, as estimated at a sample of the positions.
        exact: the same, counted at all of them.
        varies: (H, W), the positions where any feature varies.
        mask: (C, H, W), the features that are selected: none where none varies.
        values: float32, their importances.
    """

    components: int
    exact: int
    varies: NDArray[np.bool_]
    mask: Mask
    values: NDArray[np.float32]

    @property
    def usage(self) -> NDArray[np.int64]:
        """At how many positions each channel (C,) is selected."""
        counts: NDArray[np.int64] = self.mask.sum((1, 2))
        return counts


Uses: TypeAlias = Mapping[str, Mapping[str, LayerUse]]
"""By product and layer; all products have the same layers."""

Columns: TypeAlias = Mapping[str, NDArray[np.int64]]
"""By layer, the selected ones of its C * H * W features, numbered as they lie in memory."""


def layer_use(found: LayerImportance, percent: float) -> LayerUse:
    """Select the `percent` most important channels at each position of a layer.

    Where nothing varies, such as on an overexposed background, there are no principal components, and which
    channel would be called important is an accident.
    """
    varies: NDArray[np.bool_] = np.any(found.std, axis=0)
    mask = most_important(found.importance, percent) & varies
    return LayerUse(found.components, found.exact, varies, mask, found.importance[mask])


def columns(uses: Uses) -> Columns:
    """Return the features that at least one product selects.

    Raises:
        DatasetError: no product selects any.
    """
    found = {
        layer: np.flatnonzero(np.any([each.mask for each in products.values()], axis=0))
        for layer, products in by_layer(uses).items()
    }
    if not any(len(each) for each in found.values()):
        raise DatasetError("No feature varies over the images of any product.", "Give images that differ.")
    return found


def shared_share(uses: Uses) -> float:
    """The share of the `columns` that two or more products select."""
    masks = [{name: use.mask for name, use in products.items()} for products in by_layer(uses).values()]
    total = sum(len(each) for each in columns(uses).values())
    return float(sum(shared(each).sum() for each in masks)) / total


def by_layer(uses: Uses) -> dict[str, dict[str, LayerUse]]:
    """The same by layer and product."""
    layers = next(iter(uses.values()))
    return {layer: {product: uses[product][layer] for product in uses} for layer in layers}


def selected_features(
    backbone: Backbone,
    images: Sequence[ImageSource],
    wanted: Columns,
    image_size: int,
    *,
    progress: Progress = silent,
) -> NDArray[np.float32]:
    """Return what the wanted features say of images: (N, K) float32, in the order of the columns.

    A few images are in memory at a time, and of their features what is wanted: 4 N K bytes in all, such as
    100 MB for a thousand images and 25,000 features.

    Raises:
        ImageError: an image cannot be read.
    """
    matrix = np.empty((len(images), sum(len(each) for each in wanted.values())), np.float32)
    indices = {layer: torch.from_numpy(each) for layer, each in wanted.items()}
    for first in range(0, len(images), BATCH):
        progress(first, len(images), "looking at what is selected")
        stack = torch.from_numpy(load_stack(images[first : first + BATCH], image_size))
        with torch.no_grad():
            features = backbone.features(stack, indices)
        row = [features[layer].flatten(1)[:, index] for layer, index in indices.items()]
        matrix[first : first + BATCH] = torch.cat(row, 1).numpy()
    progress(len(images), len(images), "looking at what is selected")
    return matrix
