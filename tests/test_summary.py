"""What runs came to: by hand-made results."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continuad.bench.grid import RunSpec
from continuad.bench.runner import FinishedRun
from continuad.bench.summary import METRICS, Group, groups, labels, quantities, stream, summary_rows
from continuad.bench.table import Row

SPEC = RunSpec(
    method="paste",
    backbone="tiny",
    strategy="replay",
    scenario="continual",
    dataset=Path("data"),
    products=("a", "b", "c"),
)
SCORES = {
    ("a", "a"): 0.8,
    ("b", "a"): 0.6,
    ("b", "b"): 0.4,
    ("c", "a"): 0.2,
    ("c", "b"): 0.5,
    ("c", "c"): 0.9,
}
STEPS = {"a": 0, "b": 1, "c": 2}


def rows(scores: dict[tuple[str, str], float | None], **columns: Any) -> list[Row]:
    """Rows in which every metric has the same score."""
    return [
        {
            "step": STEPS[after],
            "after": after,
            "task": task,
            **dict.fromkeys(METRICS, score),
            "learn_seconds": 10.0 * (STEPS[after] + 1),
            "memory_bytes": 100 * (STEPS[after] + 1),
            **columns,
        }
        for (after, task), score in scores.items()
    ]


def finished(spec: RunSpec = SPEC, scores: Any = SCORES, **columns: Any) -> FinishedRun:
    return FinishedRun(
        f"{spec.seed}", spec, rows(scores, **columns), 1.5, {"python": "3.11"}, Path("nowhere")
    )


def test_a_stream_by_hand() -> None:
    run = finished()
    assert np.array_equal(
        stream(run, "p_ap").scores,
        [[0.8, np.nan, np.nan], [0.6, 0.4, np.nan], [0.2, 0.5, 0.9]],
        equal_nan=True,
    )
    found = quantities(run)
    assert found["p_f1max"] == pytest.approx((0.2 + 0.5 + 0.9) / 3)
    assert found["p_f1max_final_average"] == found["p_f1max"]
    assert found["p_f1max_forgetting"] == pytest.approx((0.6 - 0.1) / 2)
    assert found["i_auroc_relative_forgetting"] == pytest.approx((0.6 / 0.8 - 0.1 / 0.4) / 2)
    assert found["aupro_backward_transfer"] == pytest.approx((-0.6 + 0.1) / 2)
    assert found["learn_seconds"] == 60  # each step once
    assert found["memory_bytes"] == 300  # at the end
    assert "bytes_per_item" not in found
    assert quantities(finished(memory_items=20))["bytes_per_item"] == 15


def test_tasks_by_themselves_have_no_forgetting_and_the_mean_of_what_each_needs() -> None:
    alone = {(name, name): score for name, score in zip("abc", (0.1, 0.2, 0.6), strict=True)}
    found = quantities(finished(replace(SPEC, scenario="single"), alone))
    assert found["i_ap"] == pytest.approx(0.3)
    assert found["memory_bytes"] == 200
    assert found["learn_seconds"] == 60
    assert not any("forgetting" in name for name in found)


def test_what_was_not_measured_on_some_task_is_not_averaged_over_the_others() -> None:
    run = finished(scores=SCORES | {("c", "b"): None})
    assert math.isnan(quantities(run)["p_f1max"])
    assert summary_rows([run])[0]["p_f1max"] is None


def test_groups_are_the_runs_that_differ_in_the_seed_alone() -> None:
    ewc = replace(SPEC, strategy="ewc")
    runs = [
        finished(SPEC),
        finished(ewc),
        finished(replace(SPEC, seed=1), {at: score / 2 for at, score in SCORES.items()}),
    ]
    replay, other = groups(runs)
    assert [run.run.seed for run in replay.runs] == [0, 1]
    assert replay.spec == SPEC
    assert replay.tasks == ["a", "b", "c"]
    whole, half = 1.6 / 3, 0.8 / 3
    assert replay.mean("p_ap") == pytest.approx((whole + half) / 2)
    assert replay.deviation("p_ap") == pytest.approx(abs(whole - half) / math.sqrt(2))
    assert other.mean("p_ap") == pytest.approx(whole)
    assert math.isnan(other.deviation("p_ap"))
    assert math.isnan(other.mean("colour"))
    assert replay.over_time("p_ap") == pytest.approx(0.75 * np.array([0.8, 0.5, whole]))
    assert replay.over_time("memory_bytes").tolist() == [100, 200, 300]
    assert np.nansum(replay.scores("p_ap")) == pytest.approx(0.75 * sum(SCORES.values()))
    assert labels([replay, other]) == ["replay", "ewc"]


def test_labels_say_what_differs_and_nothing_else() -> None:
    coded = [
        replace(SPEC, strategy="compressed-replay", strategy_settings={"codec": codec})
        for codec in ("none", "int8-map")
    ]
    heads = [
        replace(SPEC, method="stfpm", settings={"training": {"epochs": 3}}),
        replace(SPEC, method="stfpm", backbone="phinet", image_size=64),
    ]
    assert labels(groups([finished(each) for each in coded])) == [
        "compressed-replay, codec none",
        "compressed-replay, codec int8-map",
    ]
    assert labels(groups([finished(each) for each in (SPEC, *heads)])) == [
        "paste, tiny, image size 256",
        "stfpm, tiny, training.epochs 3, image size 256",
        "stfpm, phinet, image size 64",
    ]
    both = [
        replace(SPEC, settings={"training": {"epochs": 3}, "norm_axis": axis})
        for axis in ("channels", "height")
    ]
    assert labels(groups([finished(each) for each in both])) == [
        "replay, norm_axis channels",
        "replay, norm_axis height",
    ]
    routed = replace(SPEC, strategy="routed", method="stfpm", settings={"training": {"epochs": 3}})
    assert labels(groups([finished(routed), finished()])) == ["routed, stfpm", "replay, paste"]
    assert labels(groups([finished()])) == ["replay"]
    assert labels([]) == []


def test_the_summary_is_a_tidy_table() -> None:
    (row,) = summary_rows([finished()])
    assert row["strategy"] == "replay"
    assert row["seconds"] == 1.5
    assert json.loads(json.dumps(row)) == row
    assert Group([finished()]).is_stream
