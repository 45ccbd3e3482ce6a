"""Exact metrics of how well scores rank anomalous above normal."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class RankCounts:
    """How many anomalous and normal items have each distinct score, highest score first.

    All a ranking metric needs to know, whether the scores are exact values or bins of a histogram. Items
    of equal score are one threshold. Every metric is NaN unless both kinds of items are there.

    Attributes:
        positives: (K,) int64, anomalous items.
        negatives: (K,) int64, normal items; positives + negatives >= 1 everywhere.
    """

    positives: NDArray[np.int64]
    negatives: NDArray[np.int64]

    @classmethod
    def of(cls, scores: ArrayLike, labels: ArrayLike) -> RankCounts:
        """Count the items of each score.

        Args:
            scores: (N,) real, higher is more anomalous; infinities are allowed.
            labels: (N,) bool or 0/1, true for anomalous.

        Raises:
            ValueError: the shapes differ, a score is NaN or a label is neither 0 nor 1.
        """
        values, truth = np.asarray(scores, dtype=np.float64), np.asarray(labels)
        if values.ndim != 1 or values.shape != truth.shape:
            raise ValueError(f"scores and labels must both be (N,), not {values.shape} and {truth.shape}")
        if np.isnan(values).any():
            raise ValueError("scores must not be NaN")
        if not np.isin(truth, (0, 1)).all():
            raise ValueError("labels must be 0 or 1")
        distinct, rank = np.unique(-values, return_inverse=True)
        anomalous = truth.astype(bool)
        return cls(
            positives=np.bincount(rank[anomalous], minlength=len(distinct)),
            negatives=np.bincount(rank[~anomalous], minlength=len(distinct)),
        )

    def has_both(self) -> bool:
        """Whether there is at least one anomalous and one normal item."""
        return bool(self.positives.any() and self.negatives.any())

    def auroc(self) -> float:
        """Area under the ROC curve: the share of (anomalous, normal) pairs in order, ties counting half."""
        if not self.has_both():
            return math.nan
        above = np.cumsum(self.positives)
        doubled = int(np.sum(self.negatives * (2 * above - self.positives)))
        return doubled / (2 * int(above[-1]) * int(self.negatives.sum()))

    def average_precision(self) -> float:
        """Mean over the anomalous items of the precision at their score (a step-wise sum, no trapezoids)."""
        if not self.has_both():
            return math.nan
        hits = np.cumsum(self.positives)
        precision = hits / (hits + np.cumsum(self.negatives))
        return float(np.sum(self.positives * precision) / hits[-1])

    def f1_max(self) -> float:
        """The best F1 over all thresholds."""
        if not self.has_both():
            return math.nan
        hits = np.cumsum(self.positives)
        return float(np.max(2 * hits / (hits + np.cumsum(self.negatives) + hits[-1])))


def auroc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Area under the ROC curve of scores (N,) against labels (N,); NaN unless both classes are there.

    Raises:
        ValueError: the shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    return RankCounts.of(scores, labels).auroc()


def average_precision(scores: ArrayLike, labels: ArrayLike) -> float:
    """Average precision of scores (N,) against labels (N,); NaN unless both classes are there.

    Raises:
        ValueError: the shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    return RankCounts.of(scores, labels).average_precision()


def f1_max(scores: ArrayLike, labels: ArrayLike) -> float:
    """Best F1 over all thresholds on scores (N,) against labels (N,); NaN unless both classes are there.

    Raises:
        ValueError: the shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    return RankCounts.of(scores, labels).f1_max()
