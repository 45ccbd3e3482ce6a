from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from continuad.errors import SettingsError
from continuad.inspector.calibration import (
    USUAL_SCORES,
    USUAL_SPREAD,
    check_false_alarm_rate,
    threshold,
)

SCORES = st.lists(st.floats(0.1, 10), min_size=3, max_size=40)
RATES = st.floats(1e-4, 0.49)


def test_a_threshold_computed_by_hand() -> None:
    # Logs 1, 2, 3: mean 2, variance 1 with 2 degrees of freedom; moderated by 4 of the usual 0.35 it is
    # (2 * 1 + 4 * 0.1225) / 6 = 0.415. t with 6 degrees of freedom exceeds 1.943180 in 5 %.
    expected = math.exp(2 + 1.943180 * math.sqrt(0.415 * (1 + 1 / 3)))
    assert threshold([math.e, math.e**2, math.e**3], 0.05) == pytest.approx(expected, rel=1e-6)
    assert stats.t.sf(1.943180, 6) == pytest.approx(0.05, rel=1e-6)


def test_many_scores_need_no_other_knowledge() -> None:
    scores = np.random.default_rng(0).lognormal(0, 0.1, 400)
    logs = np.log(scores)
    alone = math.exp(logs.mean() + stats.t.ppf(0.99, 399) * logs.std(ddof=1))
    assert threshold(scores.tolist(), 0.01) == pytest.approx(alone, rel=0.02)


def test_a_stray_among_few_scores_does_not_carry_the_threshold_away() -> None:
    usual = [1.0, 1.1, 0.9, 1.05]
    assert threshold([*usual, 3.0], 0.01) < 6
    alone = np.log([*usual, 3.0])
    assert math.exp(alone.mean() + stats.t.ppf(0.99, 4) * alone.std(ddof=1) * math.sqrt(1.2)) > 8


@given(SCORES, RATES)
@settings(deadline=None, max_examples=100)
def test_the_threshold_lies_above_the_mean_of_the_logarithms(scores: list[float], rate: float) -> None:
    assert threshold(scores, rate) > math.exp(np.log(scores).mean())


@given(SCORES, RATES, RATES)
@settings(deadline=None, max_examples=100)
def test_fewer_false_alarms_need_a_higher_threshold(scores: list[float], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert threshold(scores, low) >= threshold(scores, high)
    if high > 1.01 * low:
        assert threshold(scores, low) > threshold(scores, high)


@given(SCORES, RATES, st.floats(1e-3, 1e3))
@settings(deadline=None, max_examples=100)
def test_the_unit_of_scores_does_not_matter(scores: list[float], rate: float, unit: float) -> None:
    expected = unit * threshold(scores, rate)
    assert threshold([unit * score for score in scores], rate) == pytest.approx(expected, rel=1e-9)


@given(st.permutations([0.3, 0.5, 0.4, 0.9, 0.2]))
@settings(deadline=None, max_examples=10)
def test_the_order_of_scores_does_not_matter(scores: list[float]) -> None:
    assert threshold(scores, 0.01) == pytest.approx(threshold(sorted(scores), 0.01), rel=1e-12)


@pytest.mark.parametrize(("count", "rate"), [*itertools.product((5, 20, 100), (0.01, 0.1))])
def test_the_stated_rate_of_false_alarms_holds_on_average(count: int, rate: float) -> None:
    # For log-normal scores the rate of a given threshold is exact: how much of the normal law lies above it.
    # Over products whose variances follow the law that moderation supposes, it is the stated one.
    mean, repetitions = -2.0, 4000
    rng = np.random.default_rng(count)
    spread = USUAL_SPREAD * np.sqrt(USUAL_SCORES / rng.chisquare(USUAL_SCORES, repetitions))
    drawn = rng.lognormal(mean, spread[:, np.newaxis], (repetitions, count))
    thresholds = np.array([threshold(scores.tolist(), rate) for scores in drawn])
    rates = stats.norm.sf((np.log(thresholds) - mean) / spread)
    standard_error = rates.std() / math.sqrt(repetitions)
    assert standard_error < 0.07 * rate
    assert rates.mean() == pytest.approx(rate, abs=3 * standard_error)


def test_equal_scores_are_no_false_alarms() -> None:
    assert 0.7 < threshold([0.7] * 3, 0.01) < 3 * 0.7
    assert 0.7 < threshold([0.7] * 100, 0.01) < 1.25 * 0.7


def test_scores_of_copies_are_left_out() -> None:
    assert threshold([0.0, 0.5, -0.2, 0.6, 0.7], 0.01) == threshold([0.5, 0.6, 0.7], 0.01)


@pytest.mark.parametrize(
    "scores",
    [[], [1.0], [0.0, 0.0, 0.0], [0.0, 1.0], [1.0, 2.0, math.nan], [1.0, 2.0, math.inf]],
)
def test_scores_that_make_no_threshold(scores: list[float]) -> None:
    with pytest.raises(SettingsError, match=r"do not make a threshold.* at least 2 normal images"):
        threshold(scores, 0.01)


def test_scores_that_vary_too_much() -> None:
    with pytest.raises(SettingsError, match=r"2 scores vary too much .* of 1e-09\. Give more normal images"):
        threshold([1e-150, 1e150], 1e-9)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0, -0.01, math.nan, math.inf])
def test_rates_that_mean_nothing(rate: float) -> None:
    with pytest.raises(SettingsError, match=r"cannot be calibrated.* Choose a rate such as 0\.01"):
        check_false_alarm_rate(rate)
    with pytest.raises(SettingsError, match="cannot be calibrated"):
        threshold([1.0, 2.0], rate)


def test_a_rate_that_will_do_is_returned() -> None:
    assert check_false_alarm_rate(0.01) == 0.01
