"""Feature selection: the most important features of each task, and what to do where tasks select the same.

A feature is a channel at a position of a layer. Chapter 4 of the thesis.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from continuad.errors import SettingsError

Mask = NDArray[np.bool_]
"""(C, H, W), true where a feature is selected."""

OVERLAP = 0.3
"""Two tasks' ranges agree if they have so much in common."""

SPREADS = 3.0
"""A range reaches so many standard deviations to both sides of the mean."""


def most_important(importance: NDArray[np.float32], percent: float) -> Mask:
    """Select the `percent` most important channels at each position of importance (C, H, W).

    These are all that reach the percentile, which is interpolated: at least one, more where they tie.

    Raises:
        SettingsError: there is no such percentage.
    """
    if not 0 < percent <= 100:
        raise SettingsError(f"percent is {percent}.", "Set percent above 0, up to 100.")
    selected: Mask = importance >= np.percentile(importance, 100 - percent, axis=0)
    return selected


def shared(masks: Mapping[str, Mask]) -> Mask:
    """The features that two or more tasks select."""
    found: Mask = np.sum([*masks.values()], axis=0) > 1
    return found


def without_shared(masks: Mapping[str, Mask]) -> dict[str, Mask]:
    """Drop for all tasks what two or more of them select (filter 1)."""
    drop = shared(masks)
    return {task: mask & ~drop for task, mask in masks.items()}


def without_disjoint(
    masks: Mapping[str, Mask],
    means: Mapping[str, NDArray[np.float32]],
    stds: Mapping[str, NDArray[np.float32]],
) -> dict[str, Mask]:
    """Drop for all tasks what two or more of them select, unless some two agree on its range (filter 2).

    A task's range of a feature is its mean and three standard deviations to both sides; two ranges agree if
    their intersection is more than 0.3 of their union. That agreement keeps a feature, and not that it
    distinguishes tasks, is the thesis's choice.

    Args:
        masks: by task.
        means: by task, (C, H, W) of the features over the task's images.
        stds: by task, likewise.
    """
    agreed = np.zeros_like(shared(masks))
    for one, other in combinations(masks, 2):
        overlap = _overlap(means[one], stds[one], means[other], stds[other])
        agreed |= masks[one] & masks[other] & (overlap > OVERLAP)
    drop = shared(masks) & ~agreed
    return {task: mask & ~drop for task, mask in masks.items()}


def _overlap(
    mean: NDArray[np.float32],
    std: NDArray[np.float32],
    other_mean: NDArray[np.float32],
    other_std: NDArray[np.float32],
) -> NDArray[np.float32]:
    """Intersection over union of the ranges; 1 where both are the same single value."""
    low, high = mean - SPREADS * std, mean + SPREADS * std
    other_low, other_high = other_mean - SPREADS * other_std, other_mean + SPREADS * other_std
    both = np.clip(np.minimum(high, other_high) - np.maximum(low, other_low), 0, None)
    either = np.maximum(high, other_high) - np.minimum(low, other_low)
    overlap: NDArray[np.float32] = np.divide(both, either, where=either > 0, out=np.ones_like(both))
    return overlap
