"""A threshold from normal images alone, for a stated false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from continuad.errors import SettingsError

USUAL_SPREAD = 0.35
"""Standard deviation of the logarithms of normal scores: 0.25 to 0.59 on eight real products."""

USUAL_SCORES = 4
"""How many scores that knowledge is worth: little beside 20 of a product's own, much beside 3."""


def check_false_alarm_rate(rate: float) -> float:
    """Return the rate if it lies strictly between 0 and 0.5."""
    if not 0 < rate < 0.5:
        raise SettingsError(
            f"A false-alarm rate of {rate:g} cannot be calibrated.",
            "Choose a rate such as 0.01 (one in a hundred).",
        )
    return rate


def threshold(scores: Sequence[float], false_alarm_rate: float) -> float:
    """The score that a further normal image exceeds with probability `false_alarm_rate`.

    The upper prediction limit of a Student t distribution fitted to the logarithms of held-out scores: with
    few images it keeps a wider margin, as it must. A handful of scores says little of how much they vary, so
    their variance is moderated by what is usual, which counts as `USUAL_SCORES` further ones (Smyth 2004,
    "Linear models and empirical Bayes methods", sec. 3). Scores of 0 and below are left out: only a copy of a
    training image has one.

    Args:
        scores: image scores of normal images that were held out of training, at least 2 above 0.
        false_alarm_rate: share of good parts that may be called anomalous.
    """
    check_false_alarm_rate(false_alarm_rate)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all() or (values > 0).sum() < 2:
        raise SettingsError(
            f"{len(values)} scores do not make a threshold: two must be above 0, and none infinite.",
            "Give at least 2 normal images to calibrate on.",
        )
    logs = np.log(values[values > 0])
    freedom = len(logs) - 1 + USUAL_SCORES
    variance = ((len(logs) - 1) * logs.var(ddof=1) + USUAL_SCORES * USUAL_SPREAD**2) / freedom
    margin = stats.t.ppf(1 - false_alarm_rate, freedom) * math.sqrt(variance * (1 + 1 / len(logs)))
    try:
        return math.exp(logs.mean() + margin)
    except OverflowError as error:
        raise SettingsError(
            f"{len(logs)} scores vary too much for a false-alarm rate of {false_alarm_rate:g}.",
            "Give more normal images to calibrate on, or choose a higher rate.",
        ) from error
