"""Patch features: what a backbone says about each position, from several of its blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def patch_features(features: Mapping[str, Tensor], taps: Sequence[str], *, pool: int) -> Tensor:
    """Average each tap over neighbourhoods, bring all to the grid of the finest, and stack the channels.

    PatchCore sec. 3.1, with bilinear resizing of the coarser taps, which leaves every channel a meaning of
    its own.

    Args:
        features: tap name to (B, C, H, W).
        taps: which ones; the first is the finest.
        pool: side of the neighbourhood, odd; 1 for none.

    Returns:
        (B, D, H, W) float32.
    """
    size = features[taps[0]].shape[-2:]
    stacked = []
    for tap in taps:
        x = features[tap].float()
        if pool > 1:
            x = F.avg_pool2d(x, pool, stride=1, padding=pool // 2, count_include_pad=False)
        if x.shape[-2:] != size:
            x = F.interpolate(x, list(size), mode="bilinear", align_corners=False)
        stacked.append(x)
    return torch.cat(stacked, 1)


def as_vectors(embedding: Tensor) -> Tensor:
    """Turn (B, D, H, W) into one vector for each position, (B H W, D)."""
    return embedding.permute(0, 2, 3, 1).flatten(0, 2)


def from_vectors(vectors: Tensor, shape: Sequence[int]) -> Tensor:
    """Turn vectors (B H W, D) into (B, D, H, W) of this shape: the reverse of `as_vectors`."""
    batch, dimensions, height, width = shape
    return vectors.view(batch, height, width, dimensions).permute(0, 3, 1, 2)


def draw(vectors: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """So many of the vectors (N, D) at random, in their order; all if there are no more."""
    if len(vectors) <= count:
        return vectors
    return vectors[torch.from_numpy(np.sort(rng.permutation(len(vectors))[:count]))]


def as_maps(scores: Tensor, embedding: Tensor, size: Sequence[int]) -> Tensor:
    """Turn scores (B H W,) of an embedding's positions into maps (B, *size), resized bilinearly."""
    batch, _, height, width = embedding.shape
    return resize_maps(scores.view(batch, height, width), size)


def resize_maps(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Resize maps (B, H, W) bilinearly to (B, *size)."""
    return F.interpolate(maps[:, None], list(size), mode="bilinear", align_corners=False).squeeze(1)
