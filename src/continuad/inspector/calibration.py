"""A threshold from normal images alone, for a stated false-alarm rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

from continuad.errors import SettingsError

ROUNDING = 1e-4
"""Standard deviation of log scores that rounding alone may cause; what equal images still vary by."""


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
    few images it keeps a wider margin, as it must. Scores of 0 are left out: only a copy of a training image
    has one.

    Args:
        scores: image scores of normal images that were held out of training; not negative,
            at least 2 above 0.
        false_alarm_rate: share of good parts that may be called anomalous.
    """
    check_false_alarm_rate(false_alarm_rate)
    values = np.asarray(scores, dtype=np.float64)
    if not np.isfinite(values).all() or (values < 0).any() or (values > 0).sum() < 2:
        raise SettingsError(
            f"{len(values)} scores do not make a threshold: two must be above 0, and none infinite.",
            "Give at least 2 normal images to calibrate on.",
        )
    logs = np.log(values[values > 0])
    spread = max(logs.std(ddof=1), ROUNDING) * np.sqrt(1 + 1 / len(logs))
    try:
        return math.exp(logs.mean() + stats.t.ppf(1 - false_alarm_rate, len(logs) - 1) * spread)
    except OverflowError as error:
        raise SettingsError(
            f"{len(logs)} scores vary too much for a false-alarm rate of {false_alarm_rate:g}.",
            "Give more normal images to calibrate on, or choose a higher rate.",
        ) from error
