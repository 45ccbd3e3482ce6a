"""What tests of strategies share: a quick detector, photos of tasks, and a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.continual.learners import Learner, OneDetector
from continuad.detectors import METHODS, Detector

SIZE = 32
QUICK = {"training": {"epochs": 2, "min_steps": 0, "batch_size": 4}}


def photos(task: int, count: int = 10) -> Tensor:
    """Noise of a colour of the task's own."""
    rng = np.random.default_rng(task)
    colour = rng.integers(0, 200, (1, 3, 1, 1))
    return torch.from_numpy((colour + rng.integers(0, 50, (count, 3, SIZE, SIZE))).astype(np.uint8))


class Builder:
    """Builds the same detector each time."""

    def __init__(self, backbone: Backbone, method: str = "paste", **changes: Any) -> None:
        self.backbone, self.method, self.changes = backbone, method, {**QUICK, **changes}

    def __call__(self) -> Detector:
        torch.manual_seed(0)
        return METHODS[self.method].build(self.backbone, self.changes)


def learn(learner: Learner, tasks: int = 3) -> Learner:
    for task in range(tasks):
        learner.learn(f"task {task}", photos(task), seed=task)
    return learner


def state(learner: Learner) -> dict[str, Tensor]:
    return {name: t.clone() for name, t in cast(OneDetector, learner).detector.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
