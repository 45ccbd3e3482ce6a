from __future__ import annotations

import json
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from continuad.errors import SettingsError
from continuad.metrics import StreamRow, StreamScores

Matrix = NDArray[np.float64]
NAN = math.nan

# Pixel F1 after each task, as published beside the code of the thesis (clad-paste, plot_notebook.ipynb):
# hazelnut, bottle, cable, capsule, metal nut, pill, toothbrush, transistor, zipper, screw.
NOTEBOOK = {
    "replay_paste": """
        .560
        .462 .755
        .360 .748 .339
        .410 .745 .297 .453
        .330 .725 .273 .417 .689
        .304 .738 .266 .420 .672 .578
        .314 .725 .235 .421 .622 .496 .559
        .244 .669 .227 .360 .616 .468 .461 .444
        .347 .693 .238 .402 .634 .470 .486 .353 .449
        .315 .693 .208 .395 .610 .495 .451 .356 .368 .080
    """,
    "compressed_paste": """
        .564
        .487 .763
        .467 .728 .336
        .428 .725 .296 .452
        .395 .732 .274 .417 .699
        .391 .714 .247 .419 .633 .592
        .324 .702 .240 .435 .686 .523 .558
        .264 .701 .216 .399 .630 .526 .522 .440
        .297 .726 .229 .423 .660 .508 .536 .367 .443
        .299 .702 .234 .379 .571 .490 .506 .370 .391 .095
    """,
    "replay_stfpm_mcunet": """
        .516
        .418 .796
        .317 .750 .287
        .258 .707 .247 .395
        .118 .628 .146 .232 .505
        .260 .722 .231 .342 .589 .616
        .165 .696 .184 .228 .529 .411 .485
        .188 .664 .194 .235 .557 .535 .574 .350
        .187 .707 .189 .309 .571 .468 .598 .324 .411
        .186 .680 .197 .312 .451 .514 .562 .330 .281 .105
    """,
    "finetune_paste": """
        .515
        .102 .778
        .072 .110 .524
        .152 .181 .056 .484
        .158 .119 .060 .052 .784
        .174 .180 .108 .109 .383 .704
        .132 .126 .056 .025 .449 .215 .615
        .076 .116 .056 .025 .400 .465 .100 .484
        .108 .164 .059 .058 .337 .123 .119 .120 .512
        .073 .180 .081 .099 .210 .199 .198 .093 .085 .163
    """,
    "compressed_8bit": """
        .609
        .557 .674
        .554 .635 .255
        .562 .623 .216 .406
        .526 .574 .191 .374 .635
        .560 .562 .188 .361 .597 .470
        .562 .549 .180 .356 .576 .403 .464
        .537 .533 .158 .290 .544 .375 .432 .304
        .556 .532 .168 .346 .541 .349 .425 .241 .282
        .548 .503 .154 .253 .504 .331 .408 .200 .163 .139
    """,
    "compressed_pca": """
        .612
        .556 .675
        .558 .628 .246
        .557 .611 .208 .372
        .534 .546 .179 .341 .636
        .551 .551 .185 .318 .568 .472
        .519 .546 .170 .298 .578 .427 .454
        .491 .509 .157 .273 .572 .411 .405 .304
        .505 .513 .158 .304 .553 .317 .391 .242 .323
        .541 .467 .152 .280 .489 .290 .352 .217 .199 .099
    """,
}
# Final average and forgetting in Tables 5.3 and 5.5 of the thesis, in whole hundredths.
RECONCILED = {
    "replay_paste": (0.40, 0.21),
    "compressed_paste": (0.40, 0.19),
    "compressed_8bit": (0.32, 0.28),
    "compressed_pca": (0.31, 0.29),
}

# Thesis, Tables 4.2 and 4.3: published pixel F1, then the rows after T0, T1, T2, T3 of each column.
CHAPTER_4 = {
    "all": (0.269, ".645 / .127 .758 / .042 .111 .585 / .382 .162 .106 .425"),
    "inference 5 %": (0.189, ".456 / .153 .566 / .089 .111 .299 / .233 .149 .077 .296"),
    "inference 10 %": (0.241, ".540 / .147 .668 / .093 .110 .385 / .335 .169 .103 .359"),
    "inference 15 %": (0.257, ".577 / .189 .670 / .102 .110 .418 / .393 .174 .114 .348"),
    "inference 20 %": (0.256, ".584 / .229 .704 / .091 .111 .388 / .362 .192 .115 .355"),
    "inference 10 %, range": (0.213, ".539 / .162 .666 / .080 .110 .365 / .293 .153 .094 .313"),
    "inference 10 %, no conflicts": (0.148, ".389 / .122 .533 / .066 .115 .275 / .192 .144 .066 .192"),
    "training 10 %, no conflicts": (0.173, ".383 / .098 .628 / .058 .115 .349 / .172 .138 .061 .322"),
    "training 10 %": (0.239, ".572 / .210 .725 / .125 .110 .425 / .317 .142 .100 .398"),
    "training 15 %": (0.255, ".596 / .180 .744 / .112 .113 .448 / .349 .156 .111 .405"),
    "training 20 %": (0.281, ".611 / .202 .746 / .102 .110 .461 / .400 .177 .117 .430"),
}
# Figure 4.20: the mean just-trained pixel F1, to about a hundredth (0.488 stands there as 0.48).
FIGURE_4_20 = {
    "all": 0.60,
    "inference 5 %": 0.40,
    "inference 10 %": 0.48,
    "inference 15 %": 0.50,
    "inference 20 %": 0.51,
    "training 10 %": 0.53,
    "training 15 %": 0.55,
    "training 20 %": 0.56,
}


def lower(text: str, separator: str) -> StreamScores:
    """A stream from the rows of a lower triangle."""
    rows = [[float(value) for value in row.split()] for row in text.strip().split(separator)]
    scores = np.full((len(rows), len(rows)), NAN)
    for i, row in enumerate(rows):
        scores[i, : i + 1] = row
    return stream(scores)


def stream(scores: object) -> StreamScores:
    return StreamScores(scores, tasks=[f"T{i}" for i in range(len(scores))])  # type: ignore[arg-type]


def notebook(run: str) -> StreamScores:
    return lower(NOTEBOOK[run], "\n")


@pytest.mark.parametrize("run", RECONCILED)
def test_thesis_chapter_5_reconciles(run: str) -> None:
    average, forgetting = RECONCILED[run]
    assert notebook(run).final_average() == pytest.approx(average, abs=0.005)
    assert notebook(run).relative_forgetting() == pytest.approx(forgetting, abs=0.005)


@pytest.mark.parametrize(
    ("run", "average", "forgetting"),
    [
        ("replay_paste", 0.397, 0.207),
        ("compressed_paste", 0.404, 0.193),
        ("compressed_8bit", 0.320, 0.279),
        ("compressed_pca", 0.309, 0.285),
        ("replay_stfpm_mcunet", 0.362, 0.238),
        ("finetune_paste", 0.138, 0.782),
    ],
)
def test_notebook_to_three_digits(run: str, average: float, forgetting: float) -> None:
    scores = notebook(run)
    assert round(scores.final_average(), 3) == average
    assert round(scores.relative_forgetting(), 3) == forgetting
    # The matrices say nothing of forward entries, and no task gained on its best: the thesis's code agrees.
    assert scores.relative_forgetting(include_forward=True, clip=True) == scores.relative_forgetting()


def test_thesis_stfpm_resnet18_is_known_by_its_final_scores_only() -> None:
    scores = np.full((10, 10), NAN)
    scores[-1] = [0.506, 0.595, 0.283, 0.338, 0.497, 0.610, 0.559, 0.344, 0.583, 0.291]
    assert round(stream(scores).final_average(), 3) == 0.461  # Table 5.3 prints 0.46
    assert math.isnan(stream(scores).relative_forgetting())


def test_thesis_finetuning_does_not_reconcile() -> None:
    # Table 5.3 prints 0.15 and 0.76.
    scores = notebook("finetune_paste")
    assert scores.final_average() == pytest.approx(0.1381)
    assert scores.relative_forgetting() == pytest.approx(0.7819, abs=5e-5)
    assert abs(scores.final_average() - 0.15) > 0.01
    assert abs(scores.relative_forgetting() - 0.76) > 0.02


def test_thesis_stfpm_mcunet_forgetting_does_not_reconcile() -> None:
    # Table 5.3 prints 0.36 and 0.20; against the just-trained score, not the best, the loss would be 0.20.
    scores = notebook("replay_stfpm_mcunet")
    assert scores.final_average() == pytest.approx(0.36, abs=0.005)
    assert scores.relative_forgetting() == pytest.approx(0.2381, abs=5e-5)
    assert abs(scores.relative_forgetting() - 0.20) > 0.03
    trained, final = np.diagonal(scores.scores)[:-1], scores.scores[-1, :-1]
    assert np.mean((trained - final) / trained) == pytest.approx(0.20, abs=0.005)


@pytest.mark.parametrize("column", CHAPTER_4)
def test_thesis_chapter_4_final_average(column: str) -> None:
    published, rows = CHAPTER_4[column]
    assert lower(rows, "/").final_average() == pytest.approx(published, abs=0.0006)


@pytest.mark.parametrize("column", FIGURE_4_20)
def test_thesis_figure_4_20_is_the_just_trained_mean(column: str) -> None:
    assert lower(CHAPTER_4[column][1], "/").just_trained() == pytest.approx(FIGURE_4_20[column], abs=0.01)


def test_just_trained_to_three_digits() -> None:
    assert round(lower(CHAPTER_4["all"][1], "/").just_trained(), 3) == 0.603
    assert round(lower(CHAPTER_4["training 20 %"][1], "/").just_trained(), 3) == 0.562


def test_hand_computed() -> None:
    # Old tasks fall 0.8 -> 0.6 (best 0.8) and 0.4 -> 0.3 (trained at 0.4, best 0.5 after the third task).
    scores = stream(
        [[0.8, NAN, NAN, NAN], [0.7, 0.4, NAN, NAN], [0.7, 0.5, 0.2, NAN], [0.6, 0.3, 0.4, 1.0]],
    )
    assert scores.averages() == pytest.approx([0.8, 0.55, 1.4 / 3, 0.575])
    assert scores.just_trained() == pytest.approx(0.6)
    assert scores.forgetting() == pytest.approx((0.2 + 0.2 - 0.2) / 3)
    assert scores.relative_forgetting() == pytest.approx((0.25 + 0.4 - 1.0) / 3)
    assert scores.relative_forgetting(clip=True) == pytest.approx((0.25 + 0.4) / 3)
    assert scores.backward_transfer() == pytest.approx((-0.2 - 0.1 + 0.2) / 3)


def test_forward_scores_count_only_when_asked() -> None:
    scores = stream([[0.5, 0.8], [0.5, 0.4]])  # the last task is not old: its forward score never counts
    assert scores.relative_forgetting(include_forward=True) == 0
    scores = stream([[0.5, 0.8, NAN], [0.5, 0.4, NAN], [0.5, 0.2, 0.9]])
    assert scores.forgetting() == pytest.approx(0.2 / 2)
    assert scores.relative_forgetting() == pytest.approx(0.5 / 2)
    assert scores.relative_forgetting(include_forward=True) == pytest.approx(0.75 / 2)


def test_a_task_whose_best_is_zero_counts_zero() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = stream([[0.0, NAN, NAN], [0.0, 0.5, NAN], [0.3, 0.25, 0.5]])
        assert scores.relative_forgetting() == pytest.approx(0.5 / 2)
        assert scores.forgetting() == pytest.approx((-0.3 + 0.25) / 2)
        assert math.copysign(1, stream([[0.0, 0.0], [0.5, 0.0]]).relative_forgetting()) == 1


def test_one_task_has_nothing_to_forget() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = stream([[0.7]])
        assert scores.final_average() == scores.just_trained() == 0.7
        for forgetting in (scores.forgetting(), scores.relative_forgetting(), scores.backward_transfer()):
            assert math.isnan(forgetting)


def test_a_summary_that_lacks_a_score_is_nan() -> None:
    full = np.array([[0.8, 0.1, 0.1], [0.6, 0.5, 0.1], [0.4, 0.4, 0.6]])
    needs = {
        (0, 0): {"just_trained", "forgetting", "relative_forgetting", "backward_transfer"},
        (1, 0): {"forgetting", "relative_forgetting"},
        (1, 1): {"just_trained", "forgetting", "relative_forgetting", "backward_transfer"},
        (2, 0): {"final_average", "forgetting", "relative_forgetting", "backward_transfer"},
        (2, 1): {"final_average", "forgetting", "relative_forgetting", "backward_transfer"},
        (2, 2): {"final_average", "just_trained"},
        (0, 1): set(),
        (0, 2): set(),
        (1, 2): set(),
    }
    for (i, j), missing in needs.items():
        holed = full.copy()
        holed[i, j] = NAN
        scores = stream(holed)
        summaries = scores.as_dict()
        assert {name for name, value in summaries.items() if value is None} == missing, (i, j)
        assert math.isnan(scores.averages()[i]) == (j <= i)
        assert math.isnan(scores.relative_forgetting(include_forward=True)) == ("forgetting" in missing)


def test_a_missing_final_score_is_nan_even_where_the_best_is_zero() -> None:
    assert math.isnan(stream([[0.0, NAN], [NAN, 0.5]]).relative_forgetting())


# Thousandths, so that sums differ only by rounding; every entry is measured, some are 0.
SQUARE = st.integers(1, 6).flatmap(lambda n: hnp.arrays(np.int64, (n, n), elements=st.integers(0, 1000)))
MATRICES = SQUARE.map(lambda thousandths: thousandths / 1000)
STREAMS = st.integers(2, 6).flatmap(lambda n: hnp.arrays(np.int64, (n, n), elements=st.integers(1, 1000)))
POSITIVE = STREAMS.map(lambda thousandths: thousandths / 1000)


def reference(s: Matrix, *, include_forward: bool, clip: bool) -> dict[str, float]:
    """Every definition, written as loops."""
    n = len(s)
    old = range(n - 1)
    share = []
    for j in old:
        steps = [i for i in range(n - 1) if include_forward or i >= j]
        worst = max(s[i, j] for i in steps)
        term = max((s[i, j] - s[-1, j]) / s[i, j] for i in steps if s[i, j] > 0) if worst > 0 else 0.0
        share.append(max(term, 0.0) if clip else term)
    lost = [max(s[i, j] for i in range(j, n - 1)) - s[-1, j] for j in old]
    moved = [s[-1, j] - s[j, j] for j in old]
    return {
        "final_average": sum(s[-1, j] for j in range(n)) / n,
        "just_trained": sum(s[j, j] for j in range(n)) / n,
        "forgetting": sum(lost) / (n - 1) if n > 1 else NAN,
        "relative_forgetting": sum(share) / (n - 1) if n > 1 else NAN,
        "backward_transfer": sum(moved) / (n - 1) if n > 1 else NAN,
    }


@settings(max_examples=100, deadline=None)
@given(MATRICES, st.booleans(), st.booleans())
def test_agrees_with_loops(matrix: Matrix, include_forward: bool, clip: bool) -> None:
    scores = stream(matrix)
    expected = reference(matrix, include_forward=include_forward, clip=clip)
    assert scores.averages() == pytest.approx([matrix[i, : i + 1].mean() for i in range(len(matrix))])
    assert scores.final_average() == pytest.approx(expected["final_average"])
    assert scores.just_trained() == pytest.approx(expected["just_trained"])
    assert scores.forgetting() == pytest.approx(expected["forgetting"], abs=1e-12, nan_ok=True)
    assert scores.backward_transfer() == pytest.approx(expected["backward_transfer"], abs=1e-12, nan_ok=True)
    forgetting = scores.relative_forgetting(include_forward=include_forward, clip=clip)
    assert forgetting == pytest.approx(expected["relative_forgetting"], abs=1e-12, nan_ok=True)


@settings(max_examples=50, deadline=None)
@given(POSITIVE)
def test_columns_that_stay_constant_are_not_forgotten(matrix: Matrix) -> None:
    scores = stream(np.tile(matrix[0], (len(matrix), 1)))
    assert scores.forgetting() == scores.relative_forgetting() == scores.backward_transfer() == 0
    assert scores.final_average() == pytest.approx(scores.just_trained())


@settings(max_examples=50, deadline=None)
@given(POSITIVE, st.floats(0.01, 1))
def test_scaling_the_scores_leaves_relative_forgetting_and_scales_the_rest(
    matrix: Matrix, factor: float
) -> None:
    scores, scaled = stream(matrix), stream(matrix * factor)
    assert scaled.relative_forgetting() == pytest.approx(scores.relative_forgetting(), abs=1e-9)
    assert scaled.forgetting() == pytest.approx(scores.forgetting() * factor, abs=1e-12)
    assert scaled.backward_transfer() == pytest.approx(scores.backward_transfer() * factor, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(POSITIVE, st.data())
def test_a_lower_final_score_of_an_old_task_is_more_forgetting(matrix: Matrix, data: st.DataObject) -> None:
    worse = matrix.copy()
    worse[-1, data.draw(st.integers(0, len(matrix) - 2))] /= 2
    before, after = stream(matrix), stream(worse)
    assert after.forgetting() > before.forgetting()
    assert after.relative_forgetting() > before.relative_forgetting()
    assert after.backward_transfer() < before.backward_transfer()
    assert after.final_average() < before.final_average()


@settings(max_examples=50, deadline=None)
@given(POSITIVE, st.data())
def test_a_higher_earlier_score_is_never_less_forgetting(matrix: Matrix, data: st.DataObject) -> None:
    i, j = (data.draw(st.integers(0, len(matrix) - 2)) for _ in range(2))
    higher = matrix.copy()
    higher[i, j] = 1
    for include_forward in (False, True):
        low, high = (stream(m).relative_forgetting(include_forward=include_forward) for m in (matrix, higher))
        assert high >= low - 1e-12
    assert stream(higher).forgetting() >= stream(matrix).forgetting() - 1e-12


@settings(max_examples=50, deadline=None)
@given(MATRICES.filter(lambda matrix: len(matrix) > 1))
def test_ranges_and_order(matrix: Matrix) -> None:
    scores = stream(matrix)
    assert -1 <= scores.forgetting() <= 1
    assert (
        scores.forgetting() >= -scores.backward_transfer() - 1e-12
    )  # the best is no less than the just-trained
    assert scores.relative_forgetting() <= scores.relative_forgetting(clip=True) <= 1
    assert scores.relative_forgetting(clip=True) >= 0


@settings(max_examples=50, deadline=None)
@given(MATRICES)
def test_forward_scores_change_no_default_summary(matrix: Matrix) -> None:
    forward = np.triu_indices(len(matrix), k=1)
    unmeasured = matrix.copy()
    unmeasured[forward] = NAN
    assert stream(matrix).as_dict() == stream(unmeasured).as_dict()


def test_as_dict_is_json() -> None:
    summaries = stream([[0.5]]).as_dict()
    assert json.loads(json.dumps(summaries, allow_nan=False)) == {
        "final_average": 0.5,
        "just_trained": 0.5,
        "forgetting": None,
        "relative_forgetting": None,
        "backward_transfer": None,
    }


def test_rows_hold_what_was_measured() -> None:
    scores = StreamScores([[0.5, NAN], [0.25, 0.75]], tasks=["bottle", "cable"])
    assert scores.rows("p_f1max") == [
        StreamRow("bottle", "bottle", "p_f1max", 0.5),
        StreamRow("cable", "bottle", "p_f1max", 0.25),
        StreamRow("cable", "cable", "p_f1max", 0.75),
    ]
    assert all(type(row.value) is float for row in scores.rows("p_f1max"))


def test_scores_are_a_copy_that_cannot_be_written() -> None:
    given = np.array([[0.5]])
    scores = stream(given)
    given[0, 0] = 0.9
    assert scores.final_average() == 0.5
    with pytest.raises(ValueError, match="read-only"):
        scores.scores[0, 0] = 0.9


def test_rounding_above_one_is_accepted() -> None:
    assert stream([[1 + 1e-12]]).final_average() == pytest.approx(1)


@pytest.mark.parametrize(
    ("scores", "tasks", "problem"),
    [
        ([[0.5, 0.5]], ["a", "b"], "scores of 2 tasks are of shape (1, 2)"),
        ([0.5, 0.5], ["a", "b"], "scores of 2 tasks are of shape (2,)"),
        ([[0.5]], ["a", "b"], "scores of 2 tasks are of shape (1, 1)"),
        ([[0.5], [0.5, 0.5]], ["a", "b"], "not an array of numbers"),
        ([["high"]], ["a"], "not an array of numbers"),
        ([], [], "cannot be named []"),
        ([[0.5, 0.5], [0.5, 0.5]], ["a", "a"], "cannot be named ['a', 'a']"),
        ([[0.5, NAN], [64.5, 0.5]], ["a", "b"], "score of task 'a' after task 'b' is 64.5"),
        ([[0.5, -0.1], [0.5, 0.5]], ["a", "b"], "score of task 'b' after task 'a' is -0.1"),
        ([[math.inf]], ["a"], "score of task 'a' after task 'a' is inf"),
    ],
)
def test_refused(scores: list[object], tasks: list[str], problem: str) -> None:
    with pytest.raises(SettingsError) as caught:
        StreamScores(scores, tasks=tasks)  # type: ignore[arg-type]
    assert problem in caught.value.problem
    assert caught.value.remedy.startswith("Give ")
