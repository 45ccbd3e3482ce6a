"""From a network's map to a score, and to a map at the size of the photo."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]


def score(anomaly_map: Map, pixels: int) -> float:
    """The mean of a map's highest pixels, so many of them."""
    values = anomaly_map.ravel()
    if pixels < values.size:
        values = np.partition(values, values.size - pixels)[values.size - pixels :]
    return float(values.mean(dtype=np.float32))


def enlarge(anomaly_map: Map, height: int, width: int) -> Map:
    """Resize a map (H, W) bilinearly to (height, width), pixel centres aligned, as PyTorch does.

    No value exceeds the map's highest, which rounding could bring about.
    """
    if anomaly_map.shape == (height, width):
        return anomaly_map.copy()
    wide = _stretch(np.ascontiguousarray(anomaly_map.T), width)
    full = _stretch(np.ascontiguousarray(wide.T), height)
    np.minimum(full, anomaly_map.max(), out=full)
    return full


def _stretch(rows: Map, count: int) -> Map:
    """Interpolate rows (N, W) linearly to so many: (count, W)."""
    before, after, share = _places(len(rows), count)
    stretched = rows[after]
    first = rows[before]
    stretched -= first
    stretched *= share
    stretched += first
    return stretched


@lru_cache(maxsize=16)
def _places(size: int, count: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Map]:
    """Which rows of `size` each of `count` lies between, and how near to the second (count, 1)."""
    places = np.clip((np.arange(count) + 0.5) * (size / count) - 0.5, 0, size - 1)
    before = places.astype(np.intp)
    share = (places - before).astype(np.float32)
    return before, np.minimum(before + 1, size - 1), share[:, None]
