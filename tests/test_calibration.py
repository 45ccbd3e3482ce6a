from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from continuad.errors import SettingsError
from continuad.inspector.calibration import ROUNDING, check_false_alarm_rate, threshold

SCORES = st.lists(st.floats(0.1, 10), min_size=3, max_size=40)
RATES = st.floats(1e-4, 0.49)


def test_a_threshold_computed_by_hand() -> None:
    # Logs 1, 2, 3: mean 2, standard deviation 1. t with 2 degrees of freedom exceeds 2.919986 in 5 %.
    expected = math.exp(2 + 2.919986 * math.sqrt(1 + 1 / 3))
    assert threshold([math.e, math.e**2, math.e**3], 0.05) == pytest.approx(expected, rel=1e-6)
    assert stats.t.sf(2.919986, 2) == pytest.approx(0.05, rel=1e-6)


def test_two_scores_by_hand() -> None:
    # t with 1 degree of freedom is the Cauchy distribution: its upper 25 % point is 1.
    logs = np.array([0.0, 1.0])
    expected = math.exp(0.5 + logs.std(ddof=1) * math.sqrt(1.5))
    assert threshold([1.0, math.e], 0.25) == pytest.approx(expected, rel=1e-12)


@given(SCORES, st.floats(1e-4, 0.15))
@settings(deadline=None, max_examples=100)
def test_the_threshold_lies_above_the_median(scores: list[float], rate: float) -> None:
    # Mean and median differ by less than one standard deviation; up to 15 % the quantile of t exceeds 1.
    assert threshold(scores, rate) > np.median(scores)


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
    mean, spread, repetitions = -2.0, 0.4, 4000
    drawn = np.random.default_rng(count).lognormal(mean, spread, (repetitions, count))
    thresholds = np.array([threshold(scores.tolist(), rate) for scores in drawn])
    rates = stats.norm.sf((np.log(thresholds) - mean) / spread)
    standard_error = rates.std() / math.sqrt(repetitions)
    assert standard_error < 0.07 * rate
    assert rates.mean() == pytest.approx(rate, abs=3 * standard_error)


def test_equal_scores_are_no_false_alarms() -> None:
    limit = threshold([0.7] * 3, 0.01)
    assert 0.7 * (1 + ROUNDING) < limit < 0.7 * 1.01


def test_zeros_are_left_out() -> None:
    assert threshold([0.0, 0.5, 0.0, 0.6, 0.7], 0.01) == threshold([0.5, 0.6, 0.7], 0.01)


@pytest.mark.parametrize(
    "scores",
    [[], [1.0], [0.0, 0.0, 0.0], [0.0, 1.0], [1.0, 2.0, -0.1], [1.0, 2.0, math.nan], [1.0, 2.0, math.inf]],
)
def test_scores_that_make_no_threshold(scores: list[float]) -> None:
    with pytest.raises(SettingsError, match=r"do not make a threshold.* at least 2 normal images"):
        threshold(scores, 0.01)


def test_scores_that_vary_too_much() -> None:
    with pytest.raises(
        SettingsError, match=r"2 scores vary too much .* of 0\.0001\. Give more normal images"
    ):
        threshold([0.1, 10.0], 0.0001)


@pytest.mark.parametrize("rate", [0.0, 0.5, 1.0, -0.01, math.nan, math.inf])
def test_rates_that_mean_nothing(rate: float) -> None:
    with pytest.raises(SettingsError, match=r"cannot be calibrated.* Choose a rate such as 0\.01"):
        check_false_alarm_rate(rate)
    with pytest.raises(SettingsError, match="cannot be calibrated"):
        threshold([1.0, 2.0], rate)


def test_a_rate_that_will_do_is_returned() -> None:
    assert check_false_alarm_rate(0.01) == 0.01
