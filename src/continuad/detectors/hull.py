"""What is left of a vector when its nearest neighbours have explained what they can."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 0.1
"""Share of the neighbours' mean squared distance that is added to the Gram matrix."""


def hull_residuals(vectors: Tensor, neighbours: Tensor) -> Tensor:
    """Subtract from each vector the nearest point of the affine hull of its neighbours.

    The weights of the neighbours sum to one and minimise the remainder's length, with a little ridge towards
    equal weights: locally linear embedding (Saul and Roweis 2003, sec. 2.2 and 5.1).

    Args:
        vectors: (N, D) float32.
        neighbours: (N, K, D) float32; with one the remainder is the difference to it.

    Returns:
        The remainders (N, D).
    """
    offsets = vectors[:, None] - neighbours
    gram = offsets @ offsets.transpose(1, 2)
    ridge = RIDGE * gram.diagonal(dim1=1, dim2=2).mean(1) + torch.finfo(gram.dtype).tiny
    gram = gram + ridge[:, None, None] * torch.eye(gram.shape[1], device=gram.device)
    weights = torch.cholesky_solve(gram.new_ones(len(gram), gram.shape[1], 1), torch.linalg.cholesky(gram))
    weights = weights / weights.sum(1, keepdim=True)
    return (weights * offsets).sum(1)
