"""Detectors that are trained by minibatches: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from continuad.backbones import Backbone
from continuad.detectors.base import Detector
from continuad.detectors.training import Losses, TrainingSettings, train
from continuad.progress import Progress, silent


@dataclass(frozen=True)
class Phase:
    """A network to train, and how.

    Attributes:
        name: of its checkpoint.
        model: the network; see `train` for this and what follows.
        losses: by minibatch and epoch.
        settings: the schedule.
        learning_rates: of parts of the model.
    """

    name: str
    model: nn.Module
    losses: Losses
    settings: TrainingSettings
    learning_rates: Sequence[tuple[nn.Module, float]] = ()


class TrainedDetector(Detector):
    """The base of methods that minimise losses; their settings hold a schedule for each phase, in order.

    Attributes:
        history_: mean of each loss term per epoch, phase after phase, after `fit`.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.history_: list[dict[str, float]] = []

    @abstractmethod
    def phases(self, images: Tensor, seed: int) -> Iterator[Phase]:
        """Yield new networks to train on images (N, 3, S, S) uint8, and take them over after the last yield.

        What is drawn from PyTorch's generator is drawn by the seed.
        """

    def fit(
        self, images: Tensor, *, seed: int = 0, progress: Progress = silent, checkpoints: Path | None = None
    ) -> None:
        """Train from scratch on normal images (N, 3, S, S) uint8."""
        totals = [schedule.steps_for(len(images))[1] for schedule in schedules(self.settings).values()]
        history: list[dict[str, float]] = []
        phases, before = self.phases(images, seed), 0
        for steps in (*totals, 0):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                phase = next(phases, None)
            if phase is None:
                break
            history += train(
                phase.model,
                phase.losses,
                count=len(images),
                settings=phase.settings,
                seed=seed,
                progress=_part(progress, before, steps, sum(totals)),
                learning_rates=phase.learning_rates,
                checkpoint=checkpoints and checkpoints / f"{phase.name}.safetensors",
            )
            before += steps
        self.history_ = history


def schedules(settings: Any) -> dict[str, TrainingSettings]:
    """The schedules among a method's settings, by name, in order."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, TrainingSettings)}


def _part(progress: Progress, before: int, steps: int, total: int) -> Progress:
    """Report on a part of the work as `steps` of `total`, after those `before` it."""

    def report(done: int, of: int, what: str, /) -> None:
        progress(before + steps * done // of, total, what)

    return report
