from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from continuad.metrics import (
    ImageScores,
    auroc,
    average_precision,
    binomial_interval,
    f1_max,
    image_scores,
)

METRICS: tuple[Callable[..., float], ...] = (auroc, average_precision, f1_max)

# Few distinct scores, so that ties within and across the classes are the rule; both classes are there.
ITEMS = st.lists(st.tuples(st.integers(-8, 8), st.booleans()), min_size=1, max_size=40).map(
    lambda items: [*items, (0, True), (1, False)]
)


def split(items: list[tuple[int, bool]]) -> tuple[list[int], list[bool]]:
    return [score for score, _ in items], [label for _, label in items]


def test_hand_computed() -> None:
    # Ranked: 0.8 +, 0.4 -, 0.35 +, 0.1 -: three of four pairs in order; precisions 1/1 and 2/3.
    scores, labels = [0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1]
    assert auroc(scores, labels) == 0.75
    assert average_precision(scores, labels) == pytest.approx((1 + 2 / 3) / 2, abs=1e-15)
    assert f1_max(scores, labels) == 0.8  # threshold 0.35: precision 2/3, recall 1


def test_all_tied() -> None:
    scores, labels = [3.0] * 4, [True, False, False, False]
    assert auroc(scores, labels) == 0.5
    assert average_precision(scores, labels) == 0.25
    assert f1_max(scores, labels) == 0.4


def test_tie_across_classes_counts_half() -> None:
    assert auroc([1.0, 2.0, 2.0], [0, 0, 1]) == 0.75


def test_infinite_scores_rank_at_the_ends() -> None:
    assert auroc([-np.inf, 0.0, np.inf], [0, 0, 1]) == 1.0
    assert auroc([-np.inf, 0.0, np.inf], [1, 0, 0]) == 0.0


@given(ITEMS)
@settings(deadline=None, max_examples=60)
def test_agrees_with_scikit_learn(items: list[tuple[int, bool]]) -> None:
    scores, labels = split(items)
    precision, recall, _ = precision_recall_curve(labels, scores)
    best = max(2 * p * r / (p + r) for p, r in zip(precision, recall, strict=True) if p + r)
    assert auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        average_precision_score(labels, scores), abs=1e-12
    )
    assert f1_max(scores, labels) == pytest.approx(best, abs=1e-12)


@given(ITEMS, st.integers(-30, 30))
@settings(deadline=None, max_examples=40)
def test_only_the_order_of_scores_matters(items: list[tuple[int, bool]], exponent: int) -> None:
    scores, labels = split(items)
    for metric in METRICS:
        expected = metric(scores, labels)
        assert metric([score * 2.0**exponent for score in scores], labels) == expected
        assert metric([score**3 + score for score in scores], labels) == expected
        assert metric(np.exp(scores), labels) == expected


@given(ITEMS)
@settings(deadline=None, max_examples=40)
def test_reversed_scores_complement_auroc(items: list[tuple[int, bool]]) -> None:
    scores, labels = split(items)
    assert auroc([-score for score in scores], labels) == pytest.approx(1 - auroc(scores, labels), abs=1e-15)


@given(st.lists(st.booleans(), min_size=1, max_size=300).map(lambda labels: [*labels, True, False]))
@settings(deadline=None, max_examples=40)
def test_perfect_and_inverted_rankings_are_exact(labels: list[bool]) -> None:
    scores = [index + 1000 * label for index, label in enumerate(labels)]
    assert image_scores(scores, labels) == ImageScores(i_auroc=1.0, i_ap=1.0, i_f1max=1.0)
    assert auroc([-score for score in scores], labels) == 0.0


@pytest.mark.parametrize("labels", [[], [0, 0], [True, True]])
def test_one_class_or_none_is_nan(labels: list[int]) -> None:
    scores = [0.5] * len(labels)
    assert all(math.isnan(metric(scores, labels)) for metric in METRICS)
    assert math.isnan(image_scores(scores, labels).i_f1max)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.1, math.nan], [0, 1], "NaN"),
        ([0.1, 0.2], [0, 1, 1], "both be"),
        ([[0.1, 0.2]], [[0, 1]], "both be"),
        ([0.1, 0.2], [-1, 1], "0 or 1"),
    ],
)
def test_bad_input_is_refused(scores: list[float], labels: list[int], message: str) -> None:
    calls: tuple[Callable[..., object], ...] = (*METRICS, image_scores)
    for metric in calls:
        with pytest.raises(ValueError, match=message):
            metric(scores, labels)


@given(st.integers(0, 200), st.integers(0, 200), st.sampled_from([0.8, 0.95, 0.99]))
@settings(deadline=None, max_examples=40)
def test_interval_agrees_with_scipy(successes: int, failures: int, confidence: float) -> None:
    trials = successes + failures
    low, high = binomial_interval(successes, trials, confidence)
    assert 0 <= low < high <= 1
    if trials:
        expected = binomtest(successes, trials).proportion_ci(confidence, method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_interval_by_hand() -> None:
    # 0 of 10 at 95 %: z^2 / (10 + z^2), z = 1.959964.
    assert binomial_interval(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert binomial_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize("arguments", [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_interval_refuses_nonsense(arguments: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="must lie"):
        binomial_interval(*arguments)


def test_metrics_do_not_import_torch() -> None:
    code = "import sys, continuad.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
