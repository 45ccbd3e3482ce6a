"""A metric in which it counts little how normal patches of one kind differ from each other."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from continuad.detectors.neighbours import nearest

QUERIES, OTHERS = 8_000, 20_000
"""Patches that are compared with patches of other images."""

LEAST_VARIANCE = 1e-8
"""Of images that are all alike: the metric stays within what float16 holds."""


def within_class_metric(vectors: Tensor, owners: Tensor, *, shrinkage: float, seed: int = 0) -> Tensor:
    """Whiten the differences between patches and the most similar patches of other images.

    These differences are what varies between good parts: light, grain, pose. Their covariance S = U L U^T
    plays the part of the within-class covariance in linear discriminant analysis, with no classes given.
    Distances in the metric are |W^T (a - b)| with W = U (L + shrinkage mean(L))^-1/2.

    Args:
        vectors: (N, D) float32 patches of normal images.
        owners: (N,) the image that each is of; with one image alone, halves of its patches are compared.
        shrinkage: share of the mean variance that is added to each direction's, above 0.
        seed: of the sampling.

    Returns:
        W, (D, D) float32.
    """
    rng = np.random.default_rng(seed)
    images = rng.permutation(torch.unique(owners).numpy())
    if len(images) > 1:
        first = torch.isin(owners, torch.from_numpy(images[: len(images) // 2]))
    else:
        first = torch.arange(len(vectors), device=owners.device) % 2 == 0
    queries, others = _some(vectors[first], QUERIES, rng), _some(vectors[~first], OTHERS, rng)
    _, found = nearest(queries, others)
    differences = (queries - others[found.squeeze(1)]).double().cpu().numpy()
    variances, directions = np.linalg.eigh(differences.T @ differences / len(differences))
    floor = max(shrinkage * float(variances.mean()), LEAST_VARIANCE)
    metric = directions / np.sqrt(np.maximum(variances, 0) + floor)
    return torch.from_numpy(metric.astype(np.float32)).to(vectors.device)


def _some(vectors: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    if len(vectors) <= count:
        return vectors
    return vectors[torch.from_numpy(rng.choice(len(vectors), count, replace=False))]
