"""A few vectors that stand for many: none of the many is far from all of the few."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from continuad.detectors.neighbours import nearest
from continuad.progress import Progress, silent

DIMENSIONS = 64
"""Vectors are projected at random to so many (Johnson and Lindenstrauss), as PatchCore does to save time."""

FARTHEST = 2048
"""Vectors that a round chooses among."""


def greedy_coreset(vectors: Tensor, count: int, *, seed: int = 0, progress: Progress = silent) -> Tensor:
    """Choose vectors one by one, each the farthest from those before (PatchCore Alg. 1; Gonzalez 1985).

    It begins with one drawn at random, and goes on in rounds. A round looks at those alone that are farthest
    when it begins: as distances only shrink, the farthest of all is one of them until each is nearer than the
    others were. All vectors are then compared with the round's choice at once.

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
    distances, owners = _nearest(points, torch.tensor(chosen))
    while len(chosen) < count:
        progress(len(chosen), count, "choosing a coreset")
        new = _round(points, distances, owners, count - len(chosen))
        if not len(new):
            break
        chosen += new.tolist()
        found, places = _nearest(points, new)
        owners = torch.where(found < distances, places, owners)
        distances = torch.minimum(found, distances)
    progress(count, count, "choosing a coreset")
    return torch.tensor(chosen)


def _round(points: Tensor, distances: Tensor, owners: Tensor, count: int) -> Tensor:
    """Choose as many of the points (N, D), up to `count`, as are certain from the farthest of them alone.

    Args:
        points: all of them.
        distances: (N,) to the nearest that is chosen already, give or take what rounding does.
        owners: (N,) the number of that one.
        count: at most so many.

    Returns:
        Their numbers, in the order of the choice; none if all points are copies of chosen ones.
    """
    farthest, numbers = distances.topk(min(FARTHEST, len(points)))
    others = farthest[-1] if len(farthest) < len(points) else -1.0
    candidates = points[numbers]
    distances = torch.linalg.vector_norm(candidates - points[owners[numbers]], dim=1)
    chosen: list[int] = []
    while len(chosen) < count:
        place = int(distances.argmax())
        if distances[place] == 0 or (chosen and distances[place] < others):
            break
        chosen.append(place)
        to_new = torch.linalg.vector_norm(candidates - candidates[place], dim=1)
        distances = torch.minimum(distances, to_new)
    return numbers[chosen]


def _nearest(points: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Distance (N,) of each point to the nearest of some of them, and which one that is."""
    squares, places = nearest(points, points[numbers])
    return squares.squeeze(1).sqrt(), numbers.to(points.device)[places.squeeze(1)]


def _projected(vectors: Tensor, rng: np.random.Generator) -> Tensor:
    if vectors.shape[1] <= DIMENSIONS:
        return vectors
    matrix = rng.standard_normal((vectors.shape[1], DIMENSIONS), dtype=np.float32)
    return vectors @ torch.from_numpy(matrix).to(vectors.device)
