"""What a run of a grid does: a learner meets tasks as a scenario has it, and is tested on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from continuad.backbones import BACKBONES, create_backbone
from continuad.bench.exam import Exam, load_images
from continuad.bench.grid import RunSpec, flat_settings
from continuad.continual.strategies import STRATEGIES, Strategy
from continuad.datasets import Task, load_tasks
from continuad.detectors import METHODS, Detector
from continuad.detectors.checkpoint import Checkpoint
from continuad.detectors.costs import method_costs
from continuad.errors import ContinuadError, SettingsError
from continuad.progress import Progress, part, silent
from continuad.registry import Registry

TICKS = 1000
LEARNING = 700
"""Of the ticks of a step, those of learning; the rest are for the test."""


@dataclass(frozen=True)
class Step:
    """A part of a scenario.

    Attributes:
        learn: tasks to learn, as if they were one.
        test: tasks to be tested on afterwards.
        is_new: whether a new learner does it.
    """

    learn: Sequence[Task]
    test: Sequence[Task]
    is_new: bool

    @property
    def name(self) -> str:
        """What was learnt."""
        return "+".join(task.name for task in self.learn)


SCENARIOS: Registry[Callable[[Sequence[Task]], Iterator[Step]]] = Registry("scenario")


@SCENARIOS.register("single")
def single(tasks: Sequence[Task]) -> Iterator[Step]:
    """A learner for each task, tested on that task."""
    return (Step([task], [task], True) for task in tasks)


@SCENARIOS.register("multi-class")
def multi_class(tasks: Sequence[Task]) -> Iterator[Step]:
    """All tasks at once, as one."""
    yield Step(tasks, tasks, True)


@SCENARIOS.register("continual")
def continual(tasks: Sequence[Task]) -> Iterator[Step]:
    """One task after another; after each, a test on all so far."""
    for number, task in enumerate(tasks):
        yield Step([task], tasks[: number + 1], number == 0)


def full_settings(run: RunSpec) -> dict[str, Any]:
    """Return all settings of a run's method and strategy, defaults included, as plain values.

    Raises:
        SettingsError: something that it names does not exist, or its parts do not go together.
    """
    method, strategy = METHODS[run.method], STRATEGIES[run.strategy]
    _ = SCENARIOS[run.scenario], BACKBONES[run.backbone]
    if method.backbone not in (None, run.backbone):
        raise SettingsError(
            f"The method {run.method} is for {method.backbone}, not for {run.backbone}.",
            f"Use {method.backbone}, or a method for any backbone.",
        )
    settings = asdict(method.configure(run.settings))
    return {"method": settings, "strategy": _strategy_settings(strategy, run)}


def applicable(settings: Mapping[str, Any], methods: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return for each method those of some changes, nested as settings are, whose names it has.

    Raises:
        SettingsError: none of the methods has one of them.
    """
    found = {name: _known(settings, METHODS[name].settings) for name in methods}
    used = {name for changes in found.values() for name, _ in flat_settings(changes)}
    for name, _ in flat_settings(settings):
        if name not in used:
            raise SettingsError(
                f"No method here has a setting {name!r}: {', '.join(methods)}.",
                "See 'continuad methods --json' for the settings of each.",
            )
    return found


def _known(changes: Mapping[str, Any], settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in changes.items():
        if not hasattr(settings, name):
            continue
        current = getattr(settings, name)
        if not isinstance(value, Mapping):
            found[name] = value
        elif is_dataclass(current) and (inner := _known(value, current)):
            found[name] = inner
    return found


def run_scenario(run: RunSpec, folder: Path, progress: Progress = silent) -> list[dict[str, Any]]:
    """Learn and test; the result depends on nothing but the run.

    Args:
        run: what to do.
        folder: for unfinished work: what was learnt and measured is kept there after each step. Pictures of a
            defect of each task, see `Exam.examples`, are left in its subfolder `examples`.
        progress: told about the whole run.

    Returns:
        A row for each test of a task: `step` (from 0), `after` (what had been learnt last) and `task`; image
        and pixel metrics (thresholds over this task's images and pixels; pixels of normal images and of
        defective ones with a mask); `routing_accuracy` (NaN where no task is recognised); `ms_per_image`;
        `learn_seconds` of the step; `backbone_bytes` up to the last block used, `model_bytes`, `memory_bytes`
        and `memory_items` of the learner, its `facts`, `total_bytes`; and what `method_costs` says of the
        method.

    Raises:
        ContinuadError: the run cannot be done.
    """
    strategy, method = STRATEGIES[run.strategy], METHODS[run.method]
    tasks = load_tasks(run.dataset, layout=run.layout, products=run.products)
    steps = list(SCENARIOS[run.scenario](tasks))
    backbone = create_backbone(run.backbone, weights=run.weights).to(run.device)
    settings = _strategy_settings(strategy, run)

    def build() -> Detector:
        return method.build(backbone, run.settings).to(run.device)

    learner = strategy.learner(build, **settings)
    kept = Checkpoint(folder / "learner.safetensors", run.facts())
    rows: list[dict[str, Any]] = []
    learnt: list[str] = []
    done = 0
    if (saved := kept.load()) is not None:
        tensors, state = saved
        rows, learnt, done = state["rows"], state["learnt"], state["done"]
        learner.restore(learnt, tensors)
    costs = _costs(build(), run.image_size)
    exams: dict[str, Exam] = {}
    for number, step in enumerate(steps[done:], start=done):
        start, total = number * TICKS, len(steps) * TICKS
        if step.is_new and learnt:
            learner, learnt = strategy.learner(build, **settings), []
        if step.is_new or number == done:
            learner.foresee(_stream(steps[number:], run))
        images = _images(step, run)
        started = time.perf_counter()
        learner.learn(
            step.name, images, seed=run.seed, progress=part(progress, start, start + LEARNING, total)
        )
        facts = {
            "learn_seconds": time.perf_counter() - started,
            "model_bytes": learner.model_bytes,
            "memory_bytes": learner.memory_bytes,
            "memory_items": learner.memory_items,
            "total_bytes": costs["backbone_bytes"] + learner.model_bytes + learner.memory_bytes,
            **learner.facts,
            **costs,
        }
        inspecting = part(progress, start + LEARNING, start + TICKS, total)
        for index, task in enumerate(step.test):
            inspecting(index, len(step.test), "inspecting")
            if task.name not in exams:
                exams[task.name] = Exam(task, run.image_size, run.device)
            result = exams[task.name].take(learner, pictures=folder / "examples")
            rows.append({"step": number, "after": step.name, "task": task.name, **result, **facts})
        learnt.append(step.name)
        kept.save(learner.tensors(), {"rows": rows, "learnt": learnt, "done": number + 1})
    progress(1, 1, "done")
    return rows


def _stream(steps: Sequence[Step], run: RunSpec) -> Iterator[tuple[str, Tensor]]:
    """What one learner is to learn, from the first of these steps on."""
    for number, step in enumerate(steps):
        if number and step.is_new:
            return
        yield step.name, _images(step, run)


def _images(step: Step, run: RunSpec) -> Tensor:
    return torch.cat([load_images(task.train, run.image_size) for task in step.learn]).to(run.device)


def _costs(detector: Detector, image_size: int) -> dict[str, Any]:
    """What the method costs; peaks are None where this system cannot measure them."""
    try:
        costs = method_costs(detector, image_size=image_size, training=True, peaks=True)
    except ContinuadError:
        costs = method_costs(detector, image_size=image_size, training=True)
    return {
        "backbone_bytes": costs.backbone_parameter_bytes + costs.backbone_buffer_bytes,
        "macs": costs.macs,
        "training_macs_forward": costs.training_macs_forward,
        "training_macs": costs.training_macs,
        "inspection_peak_bytes": costs.inspection_peak_bytes,
        "training_peak_bytes": costs.training_peak_bytes,
    }


def _strategy_settings(strategy: Strategy, run: RunSpec) -> dict[str, Any]:
    """The strategy's settings with the run's changes; what is drawn is drawn by the run's seed."""
    for name in run.strategy_settings:
        if name not in strategy.settings:
            known = ", ".join(strategy.settings) or "it has none"
            raise SettingsError(f"{run.strategy} has no setting {name!r}.", f"Settings: {known}.")
    seed = {"seed": run.seed} if "seed" in strategy.settings else {}
    return {**strategy.settings, **seed, **run.strategy_settings}
