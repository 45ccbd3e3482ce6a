"""A few vectors that stand for many: none of the many is far from all of the few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from continuad.progress import Progress, silent

DIMENSIONS = 64
"""Vectors are projected at random to so many (Johnson and Lindenstrauss), as PatchCore does to save time."""

REPORT = 256


def greedy_coreset(vectors: Tensor, count: int, *, seed: int = 0, progress: Progress = silent) -> Tensor:
    """Choose vectors one by one, each the farthest from those before (PatchCore Alg. 1; Gonzalez 1985).

    It begins with one drawn at random. A vector is compared with a new one only where the triangle inequality
    does not rule out that the new one is nearer than the nearest so far (Elkan 2003), which leaves the choice
    as it is and takes a fraction of the time.

    Args:
        vectors: (N, D) float32.
        count: how many; all of them if there are no more.
        seed: of the projection and of the first one.
        progress: told about the choice.

    Returns:
        Their numbers (count,) int64, in the order of the choice; fewer if all others are copies of these.
    """
    if count >= len(vectors):
        return torch.arange(len(vectors))
    rng = np.random.default_rng(seed)
    points = _projected(vectors, rng)
    chosen = [int(rng.integers(len(points)))]
    centres = torch.empty(count, points.shape[1], dtype=points.dtype, device=points.device)
    centres[0] = points[chosen[0]]
    distances = torch.linalg.vector_norm(points - centres[0], dim=1)  # to the nearest centre,
    owners = torch.zeros(len(points), dtype=torch.int64, device=points.device)  # which is this one
    near = torch.empty_like(distances)
    for number in range(1, count):
        if number % REPORT == 0:
            progress(number, count, "choosing a coreset")
        farthest = int(distances.argmax())
        if distances[farthest] == 0:
            break
        centre = points[farthest]
        gaps = torch.linalg.vector_norm(centres[:number] - centre, dim=1)
        torch.index_select(gaps / 2, 0, owners, out=near)  # nothing nearer than this to its owner can move
        unsure = (near < distances).nonzero().squeeze(1)
        found = torch.linalg.vector_norm(points.index_select(0, unsure) - centre, dim=1)
        nearer = found < distances.index_select(0, unsure)
        moved = unsure[nearer]
        distances.index_copy_(0, moved, found[nearer])
        distances[farthest] = 0  # whatever rounding made of it
        owners.index_fill_(0, moved, number)
        centres[number] = centre
        chosen.append(farthest)
    progress(count, count, "choosing a coreset")
    return torch.tensor(chosen)


def _projected(vectors: Tensor, rng: np.random.Generator) -> Tensor:
    if vectors.shape[1] <= DIMENSIONS:
        return vectors
    matrix = rng.standard_normal((vectors.shape[1], DIMENSIONS), dtype=np.float32)
    return vectors @ torch.from_numpy(matrix).to(vectors.device)
