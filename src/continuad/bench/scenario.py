"""What a run of a grid does: a learner meets tasks as a scenario has it, and is tested on them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from continuad.backbones import create_backbone
from continuad.bench.grid import RunSpec
from continuad.continual.learners import Learner
from continuad.continual.strategies import STRATEGIES, Strategy
from continuad.datasets import Task, load_tasks
from continuad.detectors import METHODS
from continuad.detectors.checkpoint import Checkpoint
from continuad.errors import SettingsError
from continuad.images import load_mask, load_stack, resize_mask
from continuad.metrics import PixelMetrics, image_scores
from continuad.progress import Progress, silent
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


def run_scenario(run: RunSpec, folder: Path, progress: Progress = silent) -> list[dict[str, Any]]:
    """Learn and test; the result depends on nothing but the run.

    Args:
        run: what to do.
        folder: for unfinished work: what was learnt and measured is kept there after each step.
        progress: told about the whole run.

    Returns:
        A row for each test of a task: `after` (what had been learnt last) and `task`; image and pixel metrics
        (thresholds over this task's images and pixels; pixels of normal images and of defective ones with a
        mask); `routing_accuracy` (NaN where no task is recognised); `bytes` that the learner holds beside the
        backbone and `learn_seconds` of the step.

    Raises:
        ContinuadError: the run cannot be done.
    """
    strategy, method = STRATEGIES[run.strategy], METHODS[run.method]
    tasks = load_tasks(run.dataset, layout=run.layout, products=run.products)
    steps = list(SCENARIOS[run.scenario](tasks))
    backbone = create_backbone(run.backbone, weights=run.weights)
    settings = _strategy_settings(strategy, run)
    build = partial(method.build, backbone, run.settings)
    learner = strategy.learner(build, **settings)
    kept = Checkpoint(folder / "learner.safetensors", run.facts())
    rows: list[dict[str, Any]] = []
    learnt: list[str] = []
    done = 0
    if (saved := kept.load()) is not None:
        tensors, state = saved
        rows, learnt, done = state["rows"], state["learnt"], state["done"]
        learner.restore(learnt, tensors)
    for number, step in enumerate(steps[done:], start=done):
        part = partial(_part, progress, number, len(steps))
        if step.is_new and learnt:
            learner, learnt = strategy.learner(build, **settings), []
        images = torch.cat([_images(task.train, run.image_size) for task in step.learn])
        started = time.perf_counter()
        learner.learn(step.name, images, seed=run.seed, progress=partial(part, 0, LEARNING))
        facts = {"bytes": learner.bytes, "learn_seconds": time.perf_counter() - started}
        for index, task in enumerate(step.test):
            part(LEARNING, TICKS, index, len(step.test), "inspecting")
            metrics = _test(learner, task, run.image_size)
            rows.append({"after": step.name, "task": task.name, **metrics, **facts})
        learnt.append(step.name)
        kept.save(learner.tensors(), {"rows": rows, "learnt": learnt, "done": number + 1})
    progress(1, 1, "done")
    return rows


def _test(learner: Learner, task: Task, image_size: int) -> dict[str, float]:
    """Metrics of a task's test images."""
    found = learner.inspect(_images([sample.image for sample in task.test], image_size))
    pixels, defective = PixelMetrics(), np.array([sample.is_anomalous for sample in task.test], np.bool_)
    for sample, each in zip(task.test, found, strict=True):
        assert each.anomaly_map is not None  # noqa: S101 - learners reject nothing
        if not sample.is_anomalous:
            pixels.update(each.anomaly_map[None], np.zeros((1, image_size, image_size), np.bool_))
        elif sample.mask is not None:
            pixels.update(each.anomaly_map[None], resize_mask(load_mask(sample.mask), image_size)[None])
    routed = [each.product == task.name for each in found if each.product is not None]
    return {
        **vars(image_scores([each.score for each in found], defective)),
        **vars(pixels.compute()),
        "routing_accuracy": float(np.mean(routed)) if routed else float("nan"),
    }


def _images(sources: Sequence[Any], size: int) -> Tensor:
    return torch.from_numpy(load_stack(sources, size))


def _strategy_settings(strategy: Strategy, run: RunSpec) -> dict[str, Any]:
    """The strategy's settings with the run's changes; what is drawn is drawn by the run's seed."""
    for name in run.strategy_settings:
        if name not in strategy.settings:
            known = ", ".join(strategy.settings) or "it has none"
            raise SettingsError(f"{run.strategy} has no setting {name!r}.", f"Settings: {known}.")
    seed = {"seed": run.seed} if "seed" in strategy.settings else {}
    return {**strategy.settings, **seed, **run.strategy_settings}


def _part(
    progress: Progress, number: int, count: int, first: int, last: int, done: int, total: int, what: str
) -> None:
    """Report on ticks `first` to `last` of step `number` of `count`."""
    ticks = first + (last - first) * done // max(total, 1)
    progress(number * TICKS + ticks, count * TICKS, what)
