from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from continuad.bench.findings import findings
from continuad.bench.runner import FailedRun, FinishedRun
from continuad.bench.summary import groups, labels
from made_runs import FORGETS, HOLDS, KEEPS, failed_run, made, seeds


def said(*runs: FinishedRun, failed: Sequence[FailedRun] = ()) -> list[str]:
    """The findings, without those on how many runs there are."""
    together = groups(runs)
    found = findings(together, labels(together), failed)
    return [each for each in found if not each.startswith("Each number is")]


def test_nothing_says_nothing() -> None:
    assert findings([], [], []) == []
    assert findings([], [], [failed_run()]) == ["1 of 1 runs failed and are in no mean."]


def test_how_many_runs_and_seeds_stand_behind_the_numbers() -> None:
    def counted(*runs: FinishedRun) -> list[str]:
        together = groups(runs)
        return findings(together, labels(together), [failed_run()])[:2]

    assert counted(made("joint")) == [
        "1 of 2 runs failed and are in no mean.",
        "Each number is of a single seed: how far seeds differ is not known.",
    ]
    assert (
        counted(*seeds("joint", 0, 0))[1] == "Each number is a mean over 2 seeds, ± their standard deviation."
    )
    assert "over 2 to 3 seeds" in counted(*seeds("joint", 0, 0, 0), *seeds("ewc", 0, 0))[1]


def test_the_best_is_named_with_the_next() -> None:
    found = said(made("ewc", shift=0.1), made("lwf"), made("routed", shift=-0.1))
    assert found[:2] == [
        "Highest P-F1 of 3: “ewc” with 0.700, then “lwf” with 0.600, a difference of 0.100.",
        "Highest I-AUROC of 3: “ewc” with 0.850, then “lwf” with 0.800, a difference of 0.050.",
    ]


def test_a_difference_within_the_seeds_is_not_resolved() -> None:
    (first, _) = said(*seeds("ewc", 0, 0.2), *seeds("lwf", 0.06, 0.06))
    assert first == (
        "Highest P-F1 of 2: “ewc” with 0.700 ± 0.141, then “lwf” with 0.660 ± 0.000; the difference of 0.040 "
        "is within one standard deviation of the seeds: it is not resolved."
    )


def test_a_difference_beyond_the_seeds_says_how_far() -> None:
    (first, _) = said(*seeds("ewc", 0.1, 0.12), *seeds("lwf", -0.1, -0.1))  # 0.210 and 0.01414
    assert first.endswith("0.500 ± 0.000, a difference of 0.210 or 14.8 standard deviations of the seeds.")


def test_a_difference_that_all_seeds_share_is_not_divided_by_nothing() -> None:
    assert said(*seeds("ewc", 0.1, 0.1), *seeds("lwf", 0, 0))[0].endswith("of 0.100 that all seeds share.")
    assert said(*seeds("ewc", 0, 0), *seeds("lwf", 0, 0))[0].endswith("0.600 ± 0.000, which is the same.")


@pytest.mark.parametrize(
    "other",
    [
        made("lwf", [[0.5], [0.6], [0.7]], scenario="single"),
        made("lwf", tasks=("bolt", "nut", "ring")),
        made("lwf", [[0.5], [0.5, 0.6], [0.5, None, 0.7]]),
    ],
    ids=["other scenario", "other task", "not measured"],
)
def test_what_did_not_take_the_same_test_is_not_ranked(other: FinishedRun) -> None:
    assert said(made("ewc"), other) == []


def test_tests_of_many_tasks_differ_by_any_of_them() -> None:
    scores = [[0.5] * (step + 1) for step in range(5)]
    assert said(made("ewc", scores, tasks="abcde"), made("lwf", scores, tasks="abcdx")) == []
    first, *_ = said(
        made("ewc", scores, tasks="abcde"),
        made("lwf", scores, tasks="edcba"),
        made("ewc", scores, tasks="abcdx"),
    )
    assert first.startswith("Highest P-F1 of 2 (continual, a, b, 3 more of parts, 256 px): ")


def test_tests_are_told_apart_where_there_are_several() -> None:
    single = {"scenario": "single", "scores": [[0.5], [0.6], [0.7]]}
    runs = [made("ewc"), made("lwf"), made("ewc", method="b", **single), made("lwf", method="b", **single)]
    assert [each.split(":")[0] for each in said(*runs)[::2]] == [
        "Highest P-F1 of 2 (continual, bolt, cap, nut of parts, 256 px)",
        "Highest P-F1 of 2 (single, bolt, cap, nut of parts, 256 px)",
    ]


def test_joint_training_is_exceeded_or_not() -> None:
    assert said(made("joint"), made("ewc", shift=-0.1), made("lwf", shift=-0.2))[2] == (
        "“joint”, the usual upper bound, is not exceeded in mean P-F1: it has 0.600, “ewc” comes nearest "
        "with 0.500, a difference of 0.100."
    )
    above = said(made("joint"), made("ewc", shift=0.1), made("lwf", shift=-0.1))
    assert above[2:] == [
        "“ewc” exceeds “joint”, the usual upper bound, in mean P-F1: 0.700 against 0.600, "
        "a difference of 0.100."
    ]


def test_joint_training_bounds_streams_alone() -> None:
    single = {"scores": [[0.5], [0.6], [0.7]], "scenario": "single"}
    assert len(said(made("joint", **single), made("ewc", shift=0.1, **single))) == 2


def test_joint_training_bounds_only_what_agrees_in_all_else() -> None:
    assert len(said(made("joint"), made("ewc", shift=0.1, backbone="large"))) == 2
    assert len(said(made("joint"), made("ewc", shift=0.1, settings={"training": {"epochs": 3}}))) == 2


def _lost(*runs: FinishedRun) -> list[str]:
    return [each for each in said(*runs) if " loses " in each]


def test_forgetting_is_compared_with_fine_tuning() -> None:
    assert _lost(made("fine-tuning", FORGETS), made("replay", HOLDS), made("joint", KEEPS)) == [
        "“fine-tuning” loses 3.6 times as much of the best P-F1 of old tasks as “replay”: 0.625 against "
        "0.175, a difference of 0.450."
    ]
    (found,) = _lost(made("fine-tuning", HOLDS), made("ewc", FORGETS))
    assert found.startswith("“ewc” loses 3.6 times as much of the best P-F1 of old tasks as “fine-tuning”:")


def test_there_is_no_ratio_to_nothing() -> None:
    assert _lost(made("fine-tuning", FORGETS), made("replay", KEEPS)) == [
        "“fine-tuning” loses 0.625 of the best P-F1 of old tasks, “replay” 0.000, a difference of 0.625."
    ]


def test_there_is_no_ratio_within_the_seeds() -> None:
    tuned = [made("fine-tuning", FORGETS), made("fine-tuning", HOLDS, seed=1)]  # 0.400 ± 0.318
    (found,) = _lost(*tuned, made("replay", HOLDS), made("replay", HOLDS, seed=1))
    assert found == (
        "“fine-tuning” loses 0.400 ± 0.318 of the best P-F1 of old tasks, “replay” 0.175 ± 0.000; the "
        "difference of 0.225 is within one standard deviation of the seeds: it is not resolved."
    )


def test_forgetting_of_other_detectors_is_not_compared() -> None:
    assert _lost(made("fine-tuning", FORGETS), made("replay", HOLDS, method="stfpm")) == []
    single = [[0.5], [0.6], [0.7]]
    assert _lost(*(made(name, single, scenario="single") for name in ("fine-tuning", "replay"))) == []


def _stored(*runs: FinishedRun) -> list[str]:
    return [each for each in said(*runs) if each.startswith("The buffer")]


def test_stored_features_are_compared_with_stored_images() -> None:
    assert _stored(made("replay", memory=4096), made("compressed-replay", shift=-0.1, memory=1024)) == [
        "The buffer of “compressed-replay” takes 25.0% of the memory of “replay” (1.0 against 4.0 KiB); "
        "the P-F1 is 0.500 against 0.600, a difference of 0.100."
    ]


def test_codecs_are_compared_with_floats_alone() -> None:
    runs = [
        made("compressed-replay", memory=4096, codec="none"),
        made("compressed-replay", shift=0.1, memory=1024, codec="int8-map"),
        made("compressed-replay", memory=3072, codec="pca-task"),
    ]
    first, second = _stored(*runs)
    assert first == (
        "The buffer of “compressed-replay, codec int8-map” takes 25.0% of the memory of “compressed-replay, "
        "codec none” (1.0 against 4.0 KiB); the P-F1 is 0.700 against 0.600, a difference of 0.100."
    )
    assert "pca-task” takes 75.0%" in second
    assert second.endswith("; the P-F1 is 0.600 against 0.600, which is the same.")


def test_the_default_codec_is_that_of_floats() -> None:
    runs = [made("compressed-replay", memory=4), made("compressed-replay", memory=2, codec="float16")]
    (found,) = _stored(*runs)
    assert "codec float16” takes 50.0% of the memory of “compressed-replay”" in found


def test_buffers_of_other_sizes_are_not_compared() -> None:
    image = made("replay", memory=4096, size=10)
    assert _stored(image, made("compressed-replay", memory=1024)) == []
    assert len(_stored(image, made("compressed-replay", memory=1024, size=10))) == 1
    assert _stored(image, made("compressed-replay", memory=1024, size=10, rule="replace")) == []


def test_memory_that_is_not_known_is_not_compared() -> None:
    assert _stored(made("replay"), made("compressed-replay")) == []
    unknown = [[0.5], [0.5, None], [0.5, 0.6, None]]
    (found,) = _stored(made("replay", memory=4096), made("compressed-replay", unknown, memory=1024))
    assert found.endswith("(1.0 against 4.0 KiB).")


def test_routing_that_keeps_everything_forgets_exactly_nothing() -> None:
    assert said(made("routed", KEEPS, routing=0.98)) == [
        "“routed” forgets exactly nothing: no task's P-F1 changed after the task was learnt; the routing "
        "accuracy at the end is 0.980."
    ]
    assert said(made("routed", KEEPS)) == [
        "“routed” forgets exactly nothing: no task's P-F1 changed after the task was learnt."
    ]


def test_forgetting_that_only_looks_like_nothing_is_not_nothing() -> None:
    almost = [[0.5], [0.5, 0.6], [0.5 - 2e-5, 0.6, 0.7]]
    assert said(made("routed", almost)) == [
        "“routed” does not keep every P-F1: the forgetting is 1e-05, not exactly 0."
    ]
    gained = [[0.5], [0.5, 0.6], [0.6, 0.5, 0.7]]  # in the mean nothing
    (found,) = said(made("routed", gained))
    assert found.startswith("“routed” does not keep every P-F1")


def test_one_seed_that_forgets_is_enough() -> None:
    (found,) = said(made("routed", KEEPS), made("routed", FORGETS, seed=1))
    assert "does not keep every P-F1" in found


def test_routing_without_a_stream_says_nothing_about_forgetting() -> None:
    assert said(made("routed", [[0.5], [0.6], [0.7]], scenario="single", routing=1.0)) == []
    assert said(made("routed", [[0.5], [0.5, None], [0.5, None, 0.7]], routing=1.0)) == []


def test_no_sentence_says_nan() -> None:
    unknown = [[None], [None, None], [None, None, None]]
    names = ("fine-tuning", "replay", "compressed-replay", "joint", "routed", "lwf")
    runs = [made(name, unknown, memory=1, routing=math.nan) for name in names]
    assert not any("nan" in each for each in said(*runs))
