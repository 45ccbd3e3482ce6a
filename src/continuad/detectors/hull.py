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
    weights = _solve_for_ones(gram)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights[..., None] * offsets).sum(1)


def _solve_for_ones(matrices: Tensor) -> Tensor:
    """The solutions (N, K) of M x = (1, .., 1) for positive definite matrices (N, K, K).

    By Cholesky's method, written out: for thousands of tiny matrices that is faster than a call for each.
    """
    size = matrices.shape[1]
    lower: list[list[Tensor]] = []
    below: list[Tensor] = []
    for i in range(size):
        row: list[Tensor] = []
        rest = torch.ones_like(matrices[:, 0, 0])
        for j in range(i):
            dot = matrices[:, i, j]
            for k in range(j):
                dot = dot - row[k] * lower[j][k]
            row.append(dot / lower[j][j])
            rest = rest - row[j] * below[j]
        pivot = matrices[:, i, i]
        for entry in row:
            pivot = pivot - entry.square()
        row.append(pivot.sqrt())
        lower.append(row)
        below.append(rest / row[i])
    solution = below[:]
    for i in reversed(range(size)):
        for j in range(i + 1, size):
            solution[i] = solution[i] - lower[j][i] * solution[j]
        solution[i] = solution[i] / lower[i][i]
    return torch.stack(solution, 1)
