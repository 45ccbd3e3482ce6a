"""What is reported about a detector's verdicts on whole images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from numpy.typing import ArrayLike

from continuad.metrics.ranking import RankCounts


@dataclass(frozen=True)
class ImageScores:
    """Image-level metrics, each in [0, 1]; NaN unless both normal and anomalous images were scored."""

    i_auroc: float
    i_ap: float
    i_f1max: float


def image_scores(scores: ArrayLike, labels: ArrayLike) -> ImageScores:
    """Measure image scores (N,) against labels (N,), bool or 0/1, true for anomalous.

    Raises:
        ValueError: the shapes differ, a score is NaN or a label is neither 0 nor 1.
    """
    ranks = RankCounts.of(scores, labels)
    return ImageScores(i_auroc=ranks.auroc(), i_ap=ranks.average_precision(), i_f1max=ranks.f1_max())


def binomial_interval(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval (low, high) of a rate seen as `successes` out of `trials`; (0, 1) for no trials.

    Raises:
        ValueError: not 0 <= successes <= trials, or confidence not strictly between 0 and 1.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"successes must lie in 0..trials, not {successes} of {trials}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, not {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    failures = trials - successes
    centre = successes + z**2 / 2
    margin = z * math.sqrt(successes * failures / max(trials, 1) + z**2 / 4)
    low = (centre - margin) / (trials + z**2) if successes else 0.0
    high = (centre + margin) / (trials + z**2) if failures else 1.0
    return low, high
