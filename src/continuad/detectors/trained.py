"""Detectors that are trained by minibatches: what they share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from continuad.backbones import Backbone
from continuad.detectors.base import Detector
from continuad.detectors.samples import Samples
from continuad.detectors.training import Losses, TrainingSettings, train
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent


@dataclass(frozen=True)
class Matching:
    """Losses that compare the outputs of a network with something.

    Attributes:
        outputs: called with a network and the indices of a minibatch; (B, C_l, H_l, W_l) for each layer.
        compare: called with these and the indices, returns the terms.
    """

    outputs: Callable[[nn.Module, Tensor], list[Tensor]]
    compare: Callable[[list[Tensor], Tensor], Mapping[str, Tensor]]

    def losses(self, model: nn.Module) -> Losses:
        """The losses of a model."""
        return lambda indices, epoch: self.compare(self.outputs(model, indices), indices)  # noqa: ARG005


@dataclass(frozen=True)
class Phase:
    """A network to train, and how.

    Attributes:
        name: of its checkpoint.
        model: the network; see `train` for this and what follows.
        losses: by minibatch and epoch.
        settings: the schedule.
        learning_rates: of parts of the model.
        on_gradients: changes gradients before a step.
        matching: what the losses consist of, where a new network can be compared with an old one.
    """

    name: str
    model: nn.Module
    losses: Losses
    settings: TrainingSettings
    learning_rates: Sequence[tuple[nn.Module, float]] = ()
    on_gradients: Callable[[nn.Module], None] | None = None
    matching: Matching | None = None


def unchanged(phase: Phase) -> Phase:
    """Adapt nothing."""
    return phase


class TrainedDetector(Detector):
    """The base of methods that minimise losses; their settings hold a schedule for each phase, in order.

    Attributes:
        history_: mean of each loss term per epoch, phase after phase, after `fit`.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.history_: list[dict[str, float]] = []

    @property
    def looks_at_images(self) -> bool:
        """Whether training needs images, or the frozen features at the first tap are enough."""
        return True

    @abstractmethod
    def phases(self, samples: Samples, *, seed: int, warm: bool = False) -> Iterator[Phase]:
        """Yield networks to train, one after another, and take them over after the last yield.

        Args:
            samples: what to train on; minibatches are indices into them.
            seed: of what the samples are corrupted by; PyTorch's generator has been set by it, too.
            warm: begin with copies of the networks that the detector has, instead of new ones.
        """

    def fit(
        self, images: Tensor, *, seed: int = 0, progress: Progress = silent, checkpoints: Path | None = None
    ) -> None:
        """Train from scratch on normal images (N, 3, S, S) uint8."""
        self.train_on(
            Samples(images), count=len(images), seed=seed, progress=progress, checkpoints=checkpoints
        )

    def train_on(
        self,
        samples: Samples,
        *,
        count: int,
        seed: int,
        warm: bool = False,
        adapt: Callable[[Phase], Phase] = unchanged,
        progress: Progress = silent,
        checkpoints: Path | None = None,
    ) -> None:
        """Train as a strategy of continual learning wants it.

        Args:
            samples: what to train on.
            count: minibatches are drawn from the first so many; the others are for `adapt` to draw from.
            seed: of all that is random.
            warm: go on with the networks that the detector has.
            adapt: changes each phase before it begins.
            progress: told about it.
            checkpoints: see `fit`.

        Raises:
            SettingsError: there are stored features among the samples, and the method needs images.
        """
        if samples.features is not None:
            self.check_features_do()
        totals = [schedule.steps_for(count)[1] for schedule in schedules(self.settings).values()]
        history: list[dict[str, float]] = []
        phases, before = self.phases(samples, seed=seed, warm=warm), 0
        for steps in (*totals, 0):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                phase = next(phases, None)
            if phase is None:
                break
            phase = adapt(phase)
            history += train(
                phase.model,
                phase.losses,
                count=count,
                settings=phase.settings,
                seed=seed,
                progress=part(progress, before, before + steps, sum(totals)),
                learning_rates=phase.learning_rates,
                on_gradients=phase.on_gradients,
                checkpoint=checkpoints and checkpoints / f"{phase.name}.safetensors",
            )
            before += steps
        self.history_ = history

    def check_features_do(self) -> None:
        """Raise a `SettingsError` if stored features are not enough to train on."""
        if self.looks_at_images:
            raise SettingsError(
                f"{type(self).__name__} looks at images, and cannot be trained on stored features.",
                "Store images, or use a method whose student shares the first blocks.",
            )


def schedules(settings: Any) -> dict[str, TrainingSettings]:
    """The schedules among a method's settings, by name, in order."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    return {name: value for name, value in values.items() if isinstance(value, TrainingSettings)}
