"""A threshold from normal images alone, for a stated false-alarm rate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import stats

from continuad.errors import SettingsError


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
    few images it keeps a wider margin, as it must.

    Args:
        scores: image scores of normal images that were held out of training; at least 2, not negative.
        false_alarm_rate: share of good parts that may be called anomalous.
    """
    check_false_alarm_rate(false_alarm_rate)
    values = np.asarray(scores, dtype=np.float64)
    if len(values) < 2 or not np.isfinite(values).all() or (values < 0).any():
        raise SettingsError(
            f"{len(values)} usable scores do not make a threshold.",
            "Give at least 2 normal images to calibrate on.",
        )
    logs = np.log(np.maximum(values, np.finfo(np.float64).tiny))
    spread = logs.std(ddof=1) * np.sqrt(1 + 1 / len(logs))
    return float(np.exp(logs.mean() + stats.t.ppf(1 - false_alarm_rate, len(logs) - 1) * spread))
