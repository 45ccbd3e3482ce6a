"""Exact search for nearest neighbours among many vectors, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 2**22
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
    distances = queries.new_empty(len(queries), count)
    indices = torch.empty(len(queries), count, dtype=torch.int64, device=queries.device)
    rows = max(1, CHUNK // len(bank))
    block = queries.new_empty(min(rows, len(queries)), len(bank))  # one for all: the heap stays in one piece
    for first in range(0, len(queries), rows):
        part = queries[first : first + rows]
        partial = torch.addmm(norms, part, bank.T, alpha=-2, out=block[: len(part)])
        values, places = partial.min(1, keepdim=True) if count == 1 else partial.topk(count, largest=False)
        distances[first : first + rows] = values + part.square().sum(1, keepdim=True)
        indices[first : first + rows] = places
    return distances.clamp_(min=0), indices
