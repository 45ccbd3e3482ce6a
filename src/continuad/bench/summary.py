"""What finished runs came to: numbers for each run, and for runs that differ in nothing but the seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continuad.bench.grid import RunSpec, flat_settings
from continuad.bench.runner import FinishedRun
from continuad.bench.table import Row, Value
from continuad.metrics.stream import StreamScores

METRICS = {
    "i_auroc": "I-AUROC",
    "i_ap": "I-AP",
    "i_f1max": "I-F1",
    "p_auroc": "P-AUROC",
    "p_ap": "P-AP",
    "p_f1max": "P-F1",
    "aupro": "AUPRO",
}
"""The metrics of a test and what they are called."""

_SETTINGS_OF = {"settings": "method", "strategy_settings": "strategy"}


def quantities(run: FinishedRun) -> dict[str, float]:
    """What a run came to, by name; NaN for what was not measured on some task.

    Each column of the rows is the mean over the tasks of the last test on each. `learn_seconds` is the sum of
    all steps. Where items are stored, there is `bytes_per_item`. Each metric of a stream of several tasks has
    the summaries of `StreamScores`, too, as in `p_f1max_forgetting`.
    """
    last = {row["task"]: row for row in run.rows}.values()
    found = {
        name: float(np.mean([_number(row[name]) for row in last]))
        for name in run.rows[0]
        if name not in ("step", "after", "task")
    }
    found["learn_seconds"] = sum({row["step"]: _number(row["learn_seconds"]) for row in run.rows}.values())
    if found.get("memory_items", 0) > 0:
        found["bytes_per_item"] = found["memory_bytes"] / found["memory_items"]
    if is_stream(run):
        for metric in METRICS:
            summaries = stream(run, metric).as_dict()
            found |= {f"{metric}_{name}": _number(value) for name, value in summaries.items()}
    return found


def is_stream(run: FinishedRun) -> bool:
    """Whether several tasks were learnt one after another, and tested again after each."""
    return run.run.scenario == "continual" and len(tasks_of(run)) > 1


def tasks_of(run: FinishedRun) -> list[str]:
    """The names of the tasks, in the order in which they were first tested."""
    return list(dict.fromkeys(str(row["task"]) for row in run.rows))


def stream(run: FinishedRun, metric: str) -> StreamScores:
    """The scores of a stream: each task's after each task."""
    tasks = tasks_of(run)
    scores = np.full((len(tasks), len(tasks)), np.nan)
    for row in run.rows:
        scores[tasks.index(str(row["after"])), tasks.index(str(row["task"]))] = _number(row[metric])
    return StreamScores(scores, tasks=tasks)


@dataclass(frozen=True)
class Group:
    """Runs that differ in nothing but the seed.

    Attributes:
        runs: at least one.
    """

    runs: Sequence[FinishedRun]

    @property
    def spec(self) -> RunSpec:
        """What was run; with the first seed."""
        return self.runs[0].run

    @property
    def tasks(self) -> list[str]:
        """The names of the tasks, in order."""
        return tasks_of(self.runs[0])

    @property
    def is_stream(self) -> bool:
        """Whether tasks were learnt one after another."""
        return is_stream(self.runs[0])

    def of_task(self, task: str) -> Group | None:
        """The runs with the rows of one task alone; None if it was not learnt."""
        if task not in self.tasks:
            return None
        return Group(
            [replace(run, rows=[row for row in run.rows if row["task"] == task]) for run in self.runs]
        )

    def mean(self, quantity: str) -> float:
        """Mean over the seeds of one of `quantities`; NaN where it was not measured, or does not exist."""
        return float(np.mean(self._values(quantity)))

    def deviation(self, quantity: str) -> float:
        """Sample standard deviation over the seeds; NaN for a single one."""
        values = self._values(quantity)
        return float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")

    def over_time(self, column: str) -> NDArray[np.float64]:
        """A column of the rows after each step, (T,): the mean over the tasks tested then, and the seeds."""
        return np.asarray(np.mean([_over_time(run, column) for run in self.runs], axis=0))

    def scores(self, metric: str) -> NDArray[np.float64]:
        """Mean over the seeds of a stream's matrix, (T, T): see `StreamScores.scores`."""
        return np.asarray(np.mean([stream(run, metric).scores for run in self.runs], axis=0))

    def _values(self, quantity: str) -> list[float]:
        return [found.get(quantity, float("nan")) for found in self._quantities]

    @cached_property
    def _quantities(self) -> list[dict[str, float]]:
        return [quantities(run) for run in self.runs]


def groups(runs: Sequence[FinishedRun]) -> list[Group]:
    """Put runs together that differ in nothing but the seed, in the order of the first of each."""
    found: dict[str, list[FinishedRun]] = {}
    for run in runs:
        found.setdefault(json.dumps(_facts(run.run)), []).append(run)
    return [Group(together) for together in found.values()]


def labels(together: Sequence[Group]) -> list[str]:
    """Name each group by what it does not share with all others; no two names are the same.

    Settings are named where another group of the same method, or strategy, has others.
    """
    facts = [_facts(group.spec) for group in together]
    differing = [name for name in facts[0] if len({fact[name] for fact in facts}) > 1] if facts else []
    shown = [name for name in ("strategy", "method", "backbone", "scenario") if name in differing]
    if not shown:
        shown = ["strategy"]
    rest = [name for name in differing if name not in shown]

    def said(fact: dict[str, Value], name: str) -> str:
        if name not in _SETTINGS_OF:
            return f"{name.replace('_', ' ')} {fact[name]}"
        axis = _SETTINGS_OF[name]
        every = [_pairs(other[name]) for other in facts if other[axis] == fact[axis]]
        pairs = [pair for pair in _pairs(fact[name]) if not all(pair in others for others in every)]
        return ", ".join(f"{key} {setting}" for key, setting in pairs)

    return [
        ", ".join([*(str(fact[name]) for name in shown), *filter(None, (said(fact, name) for name in rest))])
        for fact in facts
    ]


def summary_rows(runs: Sequence[FinishedRun]) -> list[Row]:
    """A tidy table with a row for each run: its facts and what it came to, None for NaN."""
    return [
        {
            **run.run.facts(),
            **{name: None if value != value else value for name, value in quantities(run).items()},
            "seconds": run.seconds,
            "key": run.key,
        }
        for run in runs
    ]


def _facts(run: RunSpec) -> dict[str, Value]:
    return {name: value for name, value in run.facts().items() if name != "seed"}


def _pairs(settings: Value) -> list[tuple[str, Any]]:
    return flat_settings(json.loads(str(settings)))


def _over_time(run: FinishedRun, column: str) -> NDArray[np.float64]:
    steps: dict[Value, list[float]] = {}
    for row in run.rows:
        steps.setdefault(row["step"], []).append(_number(row[column]))
    return np.array([np.mean(values) for values in steps.values()])


def _number(value: Value) -> float:
    """A value of a table as a number, NaN for None."""
    return float("nan") if value is None else float(value)
