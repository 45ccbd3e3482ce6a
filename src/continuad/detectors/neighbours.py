"""Exact search for nearest neighbours among many vectors, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**23
"""Distances that are held at a time."""


def nearest(queries: Tensor, bank: Tensor, *, count: int = 1) -> tuple[Tensor, Tensor]:
    """Find the nearest vectors of a bank by Euclidean distance.

    Args:
        queries: (Q, D) float.
        bank: (M, D) float, M at least `count`.
        count: how many neighbours of each query.

    Returns:
        Squared distances (Q, count), ascending, and positions in the bank (Q, count) int64.
    """
    # |q - b|^2 = |q|^2 - 2 q.b + |b|^2 loses digits where |q| is large against the distance
    centre = bank.mean(0)
    bank, queries = bank - centre, queries - centre
    norms = bank.square().sum(1)
    found = []
    for part in torch.split(queries, max(1, CHUNK // len(bank))):
        partial = torch.addmm(norms, part, bank.T, alpha=-2)
        values, places = partial.min(1, keepdim=True) if count == 1 else partial.topk(count, largest=False)
        found.append(((values + part.square().sum(1, keepdim=True)).clamp_(min=0), places))
    distances, indices = zip(*found, strict=True)
    return torch.cat(distances), torch.cat(indices)
