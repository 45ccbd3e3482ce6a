"""One detector that is held back from forgetting by a penalty: on its answers, or on its weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from continuad.continual.learners import Build, OneDetector
from continuad.detectors.checkpoint import named, under
from continuad.detectors.matching import alignment_loss, squared_differences
from continuad.detectors.samples import Samples
from continuad.detectors.trained import Phase, schedules, unchanged
from continuad.errors import SettingsError
from continuad.progress import Progress


class LearningWithoutForgetting(OneDetector):
    """Keeps the network's earlier answers to the new task's images (Li and Hoiem, ECCV 2016).

    The student's features are matched with those of the student before the task, as with the teacher's.

    Args:
        build: gives the detector.
        weight: of that term.
    """

    def __init__(self, build: Build, *, weight: float = 1.0) -> None:
        super().__init__(build)
        self.weight = _weight(weight)

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train with the earlier answers as a second target."""
        self.detector.train_on(
            Samples(images),
            count=len(images),
            seed=seed,
            warm=bool(self.tasks),
            adapt=self._distilled if self.tasks else unchanged,
            progress=progress,
        )

    def _distilled(self, phase: Phase) -> Phase:
        matching = phase.matching
        if matching is None:
            raise SettingsError(
                f"{type(self.detector).__name__} has no features to be distilled.", "Use another strategy."
            )
        earlier = copy.deepcopy(phase.model).eval().requires_grad_(False)

        def losses(indices: Tensor, epoch: int) -> Mapping[str, Tensor]:  # noqa: ARG001
            with torch.no_grad():
                old = matching.outputs(earlier, indices)
            new = matching.outputs(phase.model, indices)
            differences = [squared_differences(a, b) for a, b in zip(old, new, strict=True)]
            kept = self.weight * alignment_loss(differences)
            return {**matching.compare(new, indices), "distillation": kept}

        return replace(phase, losses=losses)


class ElasticWeightConsolidation(OneDetector):
    """Ties weights to their earlier values, the more so the more they mattered (Kirkpatrick et al. 2017).

    The importances, the diagonal of the empirical Fisher information, are summed over the tasks; the values
    are those after the last one (online EWC).

    Args:
        build: gives the detector.
        weight: of the penalty, half of which times importance times squared distance is added to the loss.
            Weight times importance is limited to 1 / learning rate: with more, steps overshoot.
        images: of each task, at random, from which importances are estimated.
    """

    def __init__(self, build: Build, *, weight: float = 10_000.0, images: int = 64) -> None:
        super().__init__(build)
        self.weight = _weight(weight)
        self.images = images
        self.importances: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train under the penalty, then estimate what mattered."""
        trained: list[Phase] = []
        limit = 1 / max(each.learning_rate for each in schedules(self.detector.settings).values())

        def adapt(phase: Phase) -> Phase:
            trained.append(phase)
            return replace(phase, on_gradients=partial(self._penalise, phase.name, limit))

        self.detector.train_on(
            Samples(images),
            count=len(images),
            seed=seed,
            warm=bool(self.tasks),
            adapt=adapt,
            progress=progress,
        )
        chosen = np.random.default_rng(seed).permutation(len(images))[: self.images].tolist()
        for phase in trained:
            self._estimate(phase, chosen)

    def _penalise(self, name: str, limit: float, model: nn.Module) -> None:
        for key, parameter in model.named_parameters():
            importance = self.importances.get(f"{name}.{key}")
            if importance is not None and parameter.grad is not None:
                distance = parameter.detach() - self.values[f"{name}.{key}"]
                parameter.grad += (self.weight * importance).clamp(max=limit) * distance

    def _estimate(self, phase: Phase, numbers: list[int]) -> None:
        phase.model.requires_grad_(True)
        parameters = dict(phase.model.named_parameters())
        for number in numbers:
            loss = torch.stack([*phase.losses(torch.tensor([number]), 0).values()]).sum()
            gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            for key, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    name = f"{phase.name}.{key}"
                    share = gradient.square() / len(numbers)
                    self.importances[name] = self.importances.get(name, torch.zeros_like(share)) + share
        phase.model.requires_grad_(False)
        self.values |= {f"{phase.name}.{key}": p.detach().clone() for key, p in parameters.items()}

    @property
    def memory_bytes(self) -> int:
        """The importances and the values."""
        return sum(t.nbytes for t in (*self.importances.values(), *self.values.values()))

    def tensors(self) -> dict[str, Tensor]:
        """The detector, the importances and the values."""
        penalty = named("importance", self.importances) | named("value", self.values)
        return super().tensors() | penalty

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load the detector, the importances and the values."""
        super().restore(tasks, tensors)
        self.importances, self.values = under("importance", tensors), under("value", tensors)


def _weight(value: float) -> float:
    if not value >= 0:
        raise SettingsError(f"The weight is {value}.", "Set it to 0 or more.")
    return value
