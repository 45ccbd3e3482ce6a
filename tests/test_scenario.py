"""Scenarios: what is learnt and tested when, with every strategy, on small real trainings."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from continuad.bench.exam import examples
from continuad.bench.grid import RunSpec
from continuad.bench.scenario import SCENARIOS, applicable, full_settings, run_scenario
from continuad.continual.strategies import STRATEGIES
from continuad.datasets import Task
from continuad.datasets.demo import demo_task, write_mvtec
from continuad.errors import ContinuadError, SettingsError
from continuad.images import load_image

PRODUCTS = ("cap", "wood", "flange")
MEASURED = ("learn_seconds", "ms_per_image", "inspection_peak_bytes", "training_peak_bytes")
QUICK = {"training": {"epochs": 2, "min_steps": 0, "batch_size": 4}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in PRODUCTS:
        write_mvtec(demo_task(name, size=64, train=8, good=2, defective=3), root / name)
    return root


def spec(data: Path, **changes: Any) -> RunSpec:
    values = {"method": "paste", "strategy": "fine-tuning", "scenario": "continual", "settings": QUICK}
    return RunSpec(
        **{"backbone": "tiny", "weights": "random", "image_size": 64, "dataset": data, "products": PRODUCTS}
        | values
        | changes
    )


def pairs(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(row["after"], row["task"]) for row in rows]


def test_scenarios_by_hand() -> None:
    a, b = Task("a", ()), Task("b", ())
    steps = {
        name: [(step.name, [t.name for t in step.test], step.is_new) for step in scenario([a, b])]
        for name, scenario in SCENARIOS.items()
    }
    assert steps == {
        "single": [("a", ["a"], True), ("b", ["b"], True)],
        "multi-class": [("a+b", ["a", "b"], True)],
        "continual": [("a", ["a"], True), ("b", ["a", "b"], False)],
    }


ROUTED = {"routed", "feature-selective"}


@pytest.mark.parametrize("strategy", list(STRATEGIES))
def test_every_strategy_runs_through_a_stream(data: Path, tmp_path: Path, strategy: str) -> None:
    ticks: list[float] = []
    rows = run_scenario(
        spec(data, strategy=strategy), tmp_path, lambda done, total, what: ticks.append(done / total)
    )
    assert pairs(rows) == [(PRODUCTS[i], PRODUCTS[j]) for i in range(3) for j in range(i + 1)]
    assert all(0 <= row[name] <= 1 for row in rows for name in ("i_auroc", "p_auroc", "p_f1max", "aupro"))
    assert all(row["model_bytes"] > 0 < row["learn_seconds"] for row in rows)
    assert {row["total_bytes"] - row["model_bytes"] - row["memory_bytes"] for row in rows} == {
        rows[0]["backbone_bytes"]
    }
    assert [row["step"] for row in rows] == [0, 1, 1, 2, 2, 2]
    assert all(math.isnan(row["routing_accuracy"]) != (strategy in ROUTED) for row in rows)
    assert ticks == sorted(ticks)
    assert ticks[-1] == 1


@pytest.mark.parametrize("strategy", list(STRATEGIES))
@pytest.mark.parametrize("scenario", ["continual", "single"])
def test_a_run_that_is_stopped_goes_on_after_the_last_task(
    data: Path, tmp_path: Path, strategy: str, scenario: str
) -> None:
    run = spec(data, strategy=strategy, scenario=scenario)
    (tmp_path / "whole").mkdir()
    (tmp_path / "halted").mkdir()
    whole = run_scenario(run, tmp_path / "whole")

    def stop(done: int, total: int, what: str) -> None:
        if done > 1500:  # in the middle of the second of three tasks
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_scenario(run, tmp_path / "halted", stop)
    ticks: list[int] = []
    rest = run_scenario(run, tmp_path / "halted", lambda done, total, what: ticks.append(done))
    assert min(ticks[:-1]) >= 1000
    assert timeless(rest) == timeless(whole)


def timeless(rows: list[dict[str, Any]]) -> str:
    return repr([{key: value for key, value in row.items() if key not in MEASURED} for row in rows])


def test_the_same_run_gives_the_same_rows(data: Path, tmp_path: Path) -> None:
    run = spec(data, strategy="replay", strategy_settings={"size": 6})
    other = spec(data, strategy="replay", strategy_settings={"size": 6}, seed=1)
    first, again, third = (
        timeless(run_scenario(each, tmp_path / str(number))) for number, each in enumerate((run, run, other))
    )
    assert first == again
    assert first != third


def test_a_defect_of_each_task_is_drawn(data: Path, tmp_path: Path) -> None:
    run_scenario(spec(data), tmp_path)
    marked = []
    for name in PRODUCTS:
        drawn = {what: load_image(path) for what, path in examples(tmp_path / "examples", name).items()}
        assert {what: each.shape for what, each in drawn.items()} == dict.fromkeys(
            ("photo", "truth", "map"), (64, 64, 3)
        )
        assert 0 < (drawn["truth"] == 255).mean() < 0.5
        marked.append(not np.array_equal(drawn["photo"], drawn["map"]))
    assert any(marked)
    assert examples(tmp_path / "examples", "wheel") == {}


def test_single_is_each_task_by_itself(data: Path, tmp_path: Path) -> None:
    rows = run_scenario(spec(data, scenario="single"), tmp_path)
    assert pairs(rows) == [(name, name) for name in PRODUCTS]
    alone = run_scenario(spec(data, scenario="single", products=("wood",)), tmp_path / "alone")
    assert timeless([{**rows[1], "step": 0}]) == timeless(alone)


def test_all_at_once(data: Path, tmp_path: Path) -> None:
    rows = run_scenario(spec(data, scenario="multi-class"), tmp_path)
    assert pairs(rows) == [("cap+wood+flange", name) for name in PRODUCTS]


def test_routed_heads_give_in_a_stream_what_they_give_alone(data: Path, tmp_path: Path) -> None:
    stream = run_scenario(spec(data, strategy="routed", method="adapts-s"), tmp_path)
    cap = [row for row in stream if row["task"] == "cap"]
    assert len(cap) == 3
    assert all(row["routing_accuracy"] == 1 for row in cap)
    assert len({(row["i_auroc"], row["p_ap"], row["aupro"]) for row in cap}) == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "replai"}, "no strategy named 'replai'"),
        ({"scenario": "contual"}, "no scenario named 'contual'"),
        ({"method": "past"}, "no method named 'past'"),
        ({"strategy_settings": {"size": 3}}, "fine-tuning has no setting 'size'. Settings: it has none"),
        ({"strategy": "ewc", "strategy_settings": {"size": 3}}, "Settings: weight, images"),
        ({"settings": {"colour": 1}}, "no setting 'colour'"),
    ],
)
def test_a_run_that_cannot_be_is_refused(
    data: Path, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises((SettingsError, ContinuadError), match=words):
        run_scenario(spec(data, **change), tmp_path)
    with pytest.raises(SettingsError, match=words):
        full_settings(spec(data, **change))


def test_full_settings_are_plain_and_complete(data: Path) -> None:
    found = full_settings(spec(data, strategy="replay", strategy_settings={"size": 6}, seed=3))
    assert found["strategy"] == {"size": 6, "rule": "add", "seed": 3}
    assert found["method"]["training"] | QUICK["training"] == found["method"]["training"]
    assert len(found["method"]["training"]) > 5
    assert json.loads(json.dumps(found)) is not None
    with pytest.raises(SettingsError, match="is for mcunet_in3, not for tiny"):
        full_settings(spec(data, method="paste-mcunet"))
    with pytest.raises(SettingsError, match="no backbone named 'tinny'"):
        full_settings(spec(data, backbone="tinny"))


def test_changes_reach_the_methods_that_have_them() -> None:
    changes = {"training": {"epochs": 3}, "student": {"steps": 5}, "fusion": "sum"}
    assert applicable(changes, ["paste", "destseg"]) == {
        "paste": {"training": {"epochs": 3}, "fusion": "sum"},
        "destseg": {"student": {"steps": 5}},
    }
    for name, changes in (
        ("colour", {"colour": 1}),
        ("training.colour", {"training": {"colour": 1}}),
        ("fusion.colour", {"fusion": {"colour": 1}}),
    ):
        with pytest.raises(SettingsError, match=f"No method here has a setting '{name}': paste, destseg"):
            applicable(changes, ["paste", "destseg"])
