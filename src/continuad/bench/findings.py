"""What a bench found, in sentences: computed from the runs, and no more than they show."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from continuad.bench.runner import FailedRun
from continuad.bench.summary import METRICS, Group, stream
from continuad.bench.table import Value
from continuad.continual.strategies import STRATEGIES

REPLAY = ("replay", "compressed-replay")
"""The strategies that store items of earlier tasks."""

_AGAINST_FORGETTING = (*REPLAY, "lwf", "ewc")
_STRATEGY = ("strategy", "strategy_settings")
_NAMED_TASKS = 4
_ROUNDING = 1e-9


def findings(groups: Sequence[Group], labels: Sequence[str], failed: Sequence[FailedRun]) -> list[str]:
    """Say what the runs show, a sentence or two for each finding.

    Two groups are compared if they agree in every fact but the one that the sentence is about, and are ranked
    if they took the same test. Means and standard deviations are over the seeds; a difference of two means
    that is no larger than the larger of their deviations is called unresolved.

    Args:
        groups: what `summary.groups` made of the finished runs.
        labels: their names.
        failed: the runs that are missing in them.
    """
    named = [_Named(group, label) for group, label in zip(groups, labels, strict=True)]
    return [
        *_runs(named, failed),
        *_best(named),
        *_upper_bound(named),
        *_forgetting(named),
        *_compression(named),
        *_routing(named),
    ]


@dataclass(frozen=True)
class _Named:
    group: Group
    label: str

    def __str__(self) -> str:
        return f"“{self.label}”"

    @property
    def strategy(self) -> str:
        return self.group.spec.strategy

    def facts(self, *, without: Sequence[str]) -> dict[str, Value]:
        """What was run, without the seed and these facts."""
        return {
            name: value for name, value in self.group.spec.facts().items() if name not in ("seed", *without)
        }

    def has(self, quantity: str) -> bool:
        """Whether it was measured, on every task and by every seed."""
        return not math.isnan(self.group.mean(quantity))

    def value(self, quantity: str) -> str:
        """Mean and deviation, where there is one."""
        deviation = self.group.deviation(quantity)
        mean = _number(self.group.mean(quantity))
        return mean if math.isnan(deviation) else f"{mean} ± {deviation:.3f}"


def _runs(named: Sequence[_Named], failed: Sequence[FailedRun]) -> list[str]:
    """How many runs there are, and how many seeds stand behind each mean."""
    found = []
    counts = sorted(len(each.group.runs) for each in named)
    if failed:
        found.append(f"{len(failed)} of {len(failed) + sum(counts)} runs failed and are in no mean.")
    if counts and counts[-1] == 1:
        found.append("Each number is of a single seed: how far seeds differ is not known.")
    elif counts:
        seeds = f"{counts[0]}" if counts[0] == counts[-1] else f"{counts[0]} to {counts[-1]}"
        found.append(f"Each number is a mean over {seeds} seeds, ± their standard deviation.")
    return found


def _best(named: Sequence[_Named]) -> list[str]:
    """Which group has the highest metric, of those that took the same test."""
    exams: dict[tuple[object, ...], list[_Named]] = {}
    for each in named:
        spec = each.group.spec
        exam = (spec.scenario, spec.dataset.name, spec.layout, spec.image_size, *sorted(each.group.tasks))
        exams.setdefault(exam, []).append(each)
    found = []
    for takers in exams.values():
        where = f" ({_exam(takers[0].group)})" if len(exams) > 1 else ""
        for metric in ("p_f1max", "i_auroc"):
            scored = [each for each in takers if each.has(metric)]
            if len(scored) > 1:
                first, second = sorted(scored, key=lambda each: -each.group.mean(metric))[:2]
                found.append(
                    f"Highest {METRICS[metric]} of {len(scored)}{where}: {first} with {first.value(metric)}, "
                    f"then {second} with {second.value(metric)}{_resolution(first, second, metric)}."
                )
    return found


def _exam(group: Group) -> str:
    """What a group was tested on, in few words."""
    tasks = sorted(group.tasks)
    names = ", ".join(tasks if len(tasks) <= _NAMED_TASKS else [*tasks[:2], f"{len(tasks) - 2} more"])
    spec = group.spec
    return f"{spec.scenario}, {names} of {spec.dataset.name}, {spec.image_size} px"


def _upper_bound(named: Sequence[_Named]) -> list[str]:
    """Whether a way to learn exceeds joint training, which sees the images of all tasks."""
    found = []
    streams = [each for each in named if each.group.is_stream and each.has("p_f1max")]
    for joint in (each for each in streams if each.strategy == "joint"):
        others = [each for each in streams if each.strategy != "joint" and _agree(joint, each, _STRATEGY)]
        above = [each for each in others if each.group.mean("p_f1max") > joint.group.mean("p_f1max")]
        found += [
            f"{each} exceeds {joint}, the usual upper bound, in mean P-F1: {each.value('p_f1max')} against "
            f"{joint.value('p_f1max')}{_resolution(each, joint, 'p_f1max')}."
            for each in above
        ]
        if others and not above:
            nearest = max(others, key=lambda each: each.group.mean("p_f1max"))
            found.append(
                f"{joint}, the usual upper bound, is not exceeded in mean P-F1: it has "
                f"{joint.value('p_f1max')}, {nearest} comes nearest with {nearest.value('p_f1max')}"
                f"{_resolution(joint, nearest, 'p_f1max')}."
            )
    return found


def _forgetting(named: Sequence[_Named]) -> list[str]:
    """How much more fine-tuning forgets than what is meant to keep it from that."""
    quantity = "p_f1max_relative_forgetting"
    return [
        _more_and_less(tuned, other, quantity)
        for tuned in named
        if tuned.strategy == "fine-tuning" and tuned.has(quantity)
        for other in named
        if other.strategy in _AGAINST_FORGETTING and other.has(quantity) and _agree(tuned, other, _STRATEGY)
    ]


def _more_and_less(one: _Named, other: _Named, quantity: str) -> str:
    """Who forgets how much; how many times as much, where that is resolved and the less is clearly not 0."""
    more, less = sorted((one, other), key=lambda each: -each.group.mean(quantity))
    larger, smaller = more.group.mean(quantity), less.group.mean(quantity)
    spread = np.nan_to_num(max(each.group.deviation(quantity) for each in (one, other)))
    resolution = _resolution(more, less, quantity)
    if smaller > spread and larger - smaller > spread:
        return (
            f"{more} loses {larger / smaller:.1f} times as much of the best P-F1 of old tasks as {less}: "
            f"{more.value(quantity)} against {less.value(quantity)}{resolution}."
        )
    return (
        f"{more} loses {more.value(quantity)} of the best P-F1 of old tasks, {less} {less.value(quantity)}"
        f"{resolution}."
    )


def _compression(named: Sequence[_Named]) -> list[str]:
    """What stored features take and give beside stored images, and coded features beside floats."""
    found = []
    streams = [each for each in named if each.group.is_stream]
    for coded in (each for each in streams if each.strategy == "compressed-replay"):
        for plain in streams:
            is_base = plain.strategy == "replay" or (
                plain.strategy == "compressed-replay" and _codec(plain) == "none" != _codec(coded)
            )
            if is_base and _agree(coded, plain, _STRATEGY) and _buffer(coded) == _buffer(plain):
                found += _less_memory(coded, plain)
    return found


def _less_memory(coded: _Named, plain: _Named) -> list[str]:
    sizes = [each.group.mean("memory_bytes") for each in (coded, plain)]
    if not min(sizes) > 0:
        return []
    kib = " against ".join(f"{size / 1024:,.1f}" for size in sizes)
    memory = f"The buffer of {coded} takes {sizes[0] / sizes[1]:.1%} of the memory of {plain} ({kib} KiB)"
    if not (coded.has("p_f1max") and plain.has("p_f1max")):
        return [f"{memory}."]
    scores = f"{coded.value('p_f1max')} against {plain.value('p_f1max')}"
    return [f"{memory}; the P-F1 is {scores}{_resolution(coded, plain, 'p_f1max')}."]


def _routing(named: Sequence[_Named]) -> list[str]:
    """Whether detectors of their own keep tasks as they were, and how often the right one is picked."""
    found = []
    for each in (each for each in named if each.strategy == "routed" and each.group.is_stream):
        if not each.has("p_f1max_forgetting"):
            continue
        if _is_unchanged(each.group, "p_f1max"):
            said = f"{each} forgets exactly nothing: no task's P-F1 changed after the task was learnt"
        else:
            said = (
                f"{each} does not keep every P-F1: the forgetting is {each.value('p_f1max_forgetting')}, "
                "not exactly 0"
            )
        if each.has("routing_accuracy"):
            said += f"; the routing accuracy at the end is {each.value('routing_accuracy')}"
        found.append(f"{said}.")
    return found


def _is_unchanged(group: Group, metric: str) -> bool:
    """Whether every score stayed what it was right after its task was learnt, to the last bit."""
    matrices = [stream(run, metric).scores for run in group.runs]
    return all(
        np.array_equal(np.tril(each), np.tril(np.zeros_like(each) + np.diagonal(each))) for each in matrices
    )


def _resolution(one: _Named, other: _Named, quantity: str) -> str:
    """How a difference compares with the spread over the seeds."""
    difference = abs(one.group.mean(quantity) - other.group.mean(quantity))
    if difference < _ROUNDING:
        return ", which is the same"
    deviations = [each.group.deviation(quantity) for each in (one, other)]
    if any(map(math.isnan, deviations)):
        return f", a difference of {_number(difference)}"
    spread = max(deviations)
    if difference <= spread:
        return (
            f"; the difference of {_number(difference)} is within one standard deviation of the seeds: "
            "it is not resolved"
        )
    if spread < _ROUNDING:
        return f", a difference of {_number(difference)} that all seeds share"
    times = f"{difference / spread:.1f} standard deviations of the seeds"
    return f", a difference of {_number(difference)} or {times}"


def _agree(one: _Named, other: _Named, but: Sequence[str]) -> bool:
    return one.facts(without=but) == other.facts(without=but)


def _codec(named: _Named) -> str:
    return str(_settings(named)["codec"])


def _buffer(named: _Named) -> dict[str, object]:
    """The settings of a replay strategy but for what is stored."""
    return {name: value for name, value in _settings(named).items() if name not in ("codec", "seed")}


def _settings(named: _Named) -> dict[str, object]:
    return {**STRATEGIES[named.strategy].settings, **named.group.spec.strategy_settings}


def _number(value: float) -> str:
    """Three decimals, or one digit of what would else look like 0."""
    return f"{value:.3f}" if value == 0 or abs(value) >= 0.0005 else f"{value:.0e}"
