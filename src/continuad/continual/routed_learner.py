"""A detector for each task, picked by its prototype."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from continuad.continual.learners import BATCH, Build, Learner
from continuad.continual.routed import Inspection, RoutedHeads
from continuad.continual.routing import RoutingSettings
from continuad.detectors import Detector
from continuad.detectors.checkpoint import named, under
from continuad.metrics.costs import state_bytes
from continuad.progress import Progress, silent
from continuad.stopwatch import Stopwatch


class Routed(Learner):
    """A detector for each task, picked by its prototype: nothing is overwritten.

    Args:
        build: gives a detector for each task.
        routing: how images find it; by default from the backbone's last block of stride 16.
    """

    def __init__(self, build: Build, *, routing: RoutingSettings | None = None) -> None:
        self._build = build
        self._detectors: dict[str, Detector] = {}
        backbone = build().backbone
        self.heads = RoutedHeads(backbone, routing or RoutingSettings(backbone.stage(16)))
        self._prototypes: dict[str, Tensor] = {}

    def learn(self, task: str, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> None:
        """Train a detector of the task's own."""
        detector = self._build().to(images.device)
        detector.fit(images, seed=seed, progress=progress)
        prototype = np.concatenate([self.heads.embed(batch) for batch in torch.split(images, BATCH)]).mean(0)
        self._add(task, detector, torch.from_numpy(prototype))

    def _add(self, task: str, detector: Detector, prototype: Tensor) -> None:
        self._detectors[task] = detector
        self._prototypes[task] = prototype
        self.heads.add(
            task, taps=detector.taps, load=lambda: detector, prototype=prototype.numpy(), limit=np.inf
        )

    def inspect(self, images: Tensor, *, task: str | None = None) -> list[Inspection]:  # noqa: ARG002
        """Inspect each image with the detector of the nearest task."""
        found: list[Inspection] = []
        for batch in torch.split(images, BATCH):
            found += self.heads.inspect(batch, product=None, reject_unknown=False, stopwatch=Stopwatch())
        return found

    @property
    def model_bytes(self) -> int:
        """The detectors."""
        return sum(state_bytes(each).total for each in self._detectors.values())

    @property
    def memory_bytes(self) -> int:
        """The prototypes."""
        return sum(prototype.nbytes for prototype in self._prototypes.values())

    def tensors(self) -> dict[str, Tensor]:
        """The detectors' states and the prototypes, by the number of the task."""
        found: dict[str, Tensor] = {}
        for number, (task, detector) in enumerate(self._detectors.items()):
            found |= named(f"{number}.detector", detector.state_dict())
            found[f"{number}.prototype"] = self._prototypes[task]
        return found

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Build a detector for each task, and load it."""
        for number, task in enumerate(tasks):
            detector = self._build()
            detector.load_state_dict(under(f"{number}.detector", tensors))
            self._add(task, detector, tensors[f"{number}.prototype"])
