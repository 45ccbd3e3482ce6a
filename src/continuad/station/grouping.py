"""Which images belong together when nobody has said what they show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import pdist, squareform

NEIGHBOURS = 3
"""The distance of this neighbour says how far apart images of one kind lie, where an image is."""

REACH = 2.5
"""An image reaches others of its kind within this multiple of that distance."""

NEAREST, FARTHEST = 0.1, 0.5
"""Bounds of the reach, as shares of the embedding's length: photos of one part, taken again and
again, lie closer than its kind, and two images of two kinds tell nothing of the distances within either."""


def group(embeddings: NDArray[np.float32]) -> list[list[int]]:
    """Group images by similarity: those belong together that chains of images connect.

    Two images are connected if each lies within the other's reach. Dense and scattered kinds may so occur
    side by side, as local scaling allows in spectral clustering (Zelnik-Manor and Perona 2004). The order of
    the images does not matter.

    Args:
        embeddings: (N, D), in the router's space; N may be 0. Memory and time grow with N squared.

    Returns:
        The images of each group by index, ascending; the largest group first, among equals the one with the
        earliest image.
    """
    count = len(embeddings)
    if count < 2:
        return [[index] for index in range(count)]
    vectors = embeddings.astype(np.float64)
    distances = squareform(pdist(vectors))
    rank = min(NEIGHBOURS, count - 1)  # an image is its own neighbour of rank 0
    typical = np.partition(distances, rank, axis=1)[:, rank]
    length = np.linalg.norm(vectors, axis=1)
    reach = np.clip(REACH * typical, NEAREST * length, FARTHEST * length)
    _, kinds = connected_components(distances <= np.minimum(reach, reach[:, np.newaxis]), directed=False)
    groups = [np.flatnonzero(kinds == kind).tolist() for kind in range(kinds.max() + 1)]
    return sorted(groups, key=lambda members: (-len(members), members[0]))
