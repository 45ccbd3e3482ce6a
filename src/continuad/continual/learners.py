"""Strategies of continual learning: how one detector, or one for each task, meets a stream of tasks."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from continuad.continual.replay import BatchRule, ReplayBuffer, batch_shares
from continuad.continual.routed import Inspection, RoutedHeads
from continuad.continual.routing import RoutingSettings
from continuad.detectors import Detector
from continuad.detectors.checkpoint import named, under
from continuad.detectors.matching import alignment_loss, squared_differences
from continuad.detectors.samples import Samples
from continuad.detectors.trained import Phase, TrainedDetector, unchanged
from continuad.errors import SettingsError
from continuad.metrics.costs import state_bytes
from continuad.progress import Progress, silent
from continuad.registry import Registry
from continuad.stopwatch import Stopwatch

Build = Callable[[], Detector]
"""Gives a new, untrained detector on the shared backbone."""

BATCH = 8


class Learner(ABC):
    """Learns tasks one after another; inspects images of any task so far, whichever it is."""

    @abstractmethod
    def learn(self, task: str, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> None:
        """Learn a task from its normal images (N, 3, S, S) uint8; earlier tasks' images are not at hand."""

    @abstractmethod
    def inspect(self, images: Tensor) -> list[Inspection]:
        """Inspect images (B, 3, S, S) uint8; where there is one detector for all, no task is recognised."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """What is held beside the frozen backbone: networks, buffers, prototypes, and the like."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Everything that was learnt, by name, for `restore`; tasks have the names they were learnt by."""

    @abstractmethod
    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Become what a learner of the same settings was when it gave these tensors, after these tasks."""


class OneDetector(Learner):
    """One detector for all tasks, trained further on each: fine-tuning, which forgets.

    The other strategies change what it is trained on, or how.
    """

    def __init__(self, build: Build) -> None:
        detector = build()
        if not isinstance(detector, TrainedDetector):
            raise SettingsError(
                f"{type(detector).__name__} is not trained by steps, and cannot be trained further.",
                "Use the strategy 'routed'.",
            )
        self.detector = detector
        self.tasks: list[str] = []

    def learn(self, task: str, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> None:
        """Train further on the task's images."""
        self.train(images, seed=seed, progress=progress)
        self.tasks.append(task)

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train on these images."""
        self.detector.train_on(
            Samples(images), count=len(images), seed=seed, warm=bool(self.tasks), progress=progress
        )

    def inspect(self, images: Tensor) -> list[Inspection]:
        """Inspect with the one detector."""
        found: list[Inspection] = []
        for batch in torch.split(images, BATCH):
            maps = self.detector.anomaly_maps(batch)
            scores = self.detector.image_scores(maps).tolist()
            found += [
                Inspection(None, None, each, score)
                for each, score in zip(maps.cpu().numpy(), scores, strict=True)
            ]
        return found

    @property
    def bytes(self) -> int:
        """The detector."""
        return state_bytes(self.detector).total

    def tensors(self) -> dict[str, Tensor]:
        """The detector's state."""
        return named("detector", self.detector.state_dict())

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load the detector's state."""
        self.tasks = list(tasks)
        self.detector.load_state_dict(under("detector", tensors))


class Joint(OneDetector):
    """Keeps all images, and trains from scratch on those of all tasks so far: what forgets nothing."""

    def __init__(self, build: Build) -> None:
        super().__init__(build)
        self._images: list[Tensor] = []

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train a new network on all images."""
        self._images.append(images)
        together = torch.cat(self._images)
        self.detector.train_on(Samples(together), count=len(together), seed=seed, progress=progress)

    @property
    def bytes(self) -> int:
        """The detector and the images."""
        return super().bytes + sum(images.nbytes for images in self._images)

    def tensors(self) -> dict[str, Tensor]:
        """The detector and the images."""
        return super().tensors() | {f"images.{i}": images for i, images in enumerate(self._images)}

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load the detector and the images."""
        super().restore(tasks, tensors)
        self._images = [tensors[f"images.{i}"] for i in range(len(tasks))]


class Replay(OneDetector):
    """Stores a few items of each task, and mixes them into the minibatches of later ones.

    Args:
        build: gives the detector.
        size: items of all tasks together.
        codec: how they are stored: "uint8-image", or a codec for features, which are those of the detector's
            first tap (compressed replay); the detector must not look at images then.
        rule: of the minibatches, see `batch_shares`.
        seed: of what is stored.
    """

    def __init__(
        self,
        build: Build,
        *,
        size: int = 100,
        codec: str = "uint8-image",
        rule: BatchRule = "add",
        seed: int = 0,
    ) -> None:
        super().__init__(build)
        batch_shares(1, rule)
        self.buffer = ReplayBuffer(size, codec, seed=seed)
        self.rule: BatchRule = rule
        self._block = None if codec == "uint8-image" else self.detector.taps[0]
        if self._block is not None:
            self.detector.check_features_do()

    def learn(self, task: str, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> None:
        """Train on the task's images and what is stored, then store some of the task."""
        super().learn(task, images, seed=seed, progress=progress)
        items = images.cpu() if self._block is None else _Features(self.detector, images, self._block)
        self.buffer.add(task, items)

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train with what is stored in every minibatch."""
        samples, adapt = Samples(images), unchanged
        if self.buffer.counts:
            stored = self.buffer.items().to(images.device)
            samples = (
                Samples(torch.cat([images, stored]))
                if self._block is None
                else Samples(images, features=stored, block=self._block)
            )
            adapt = partial(self._mixed, seed=seed, first=len(images))
        self.detector.train_on(
            samples, count=len(images), seed=seed, warm=bool(self.tasks), adapt=adapt, progress=progress
        )

    def _mixed(self, phase: Phase, *, seed: int, first: int) -> Phase:
        """Extend the minibatches by stored samples, whose numbers begin with `first`."""

        def losses(indices: Tensor, epoch: int) -> Mapping[str, Tensor]:
            own, replayed = batch_shares(len(indices), self.rule)
            rng = np.random.default_rng([seed, epoch, int(indices[0])])  # of this step, were it repeated
            chosen = self.buffer.choose(replayed, rng, balanced=self.rule == "replace")
            numbers = first + torch.tensor(chosen, dtype=indices.dtype)
            return phase.losses(torch.cat([indices[:own], numbers]), epoch)

        return replace(phase, losses=losses)

    @property
    def bytes(self) -> int:
        """The detector and the buffer."""
        return super().bytes + self.buffer.bytes

    def tensors(self) -> dict[str, Tensor]:
        """The detector and the buffer."""
        return super().tensors() | named("buffer", self.buffer.tensors())

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load the detector and the buffer."""
        super().restore(tasks, tensors)
        self.buffer.restore(tasks, under("buffer", tensors))


@dataclass(frozen=True)
class _Features:
    """The outputs of a block for images, computed for those that are asked for."""

    detector: Detector
    images: Tensor
    block: str

    def __len__(self) -> int:
        return len(self.images)

    @torch.no_grad()
    def __getitem__(self, index: int) -> Tensor:
        features = self.detector.backbone.features(self.images[index : index + 1], [self.block])
        return features[self.block][0].cpu()


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
        images: of each task, at random, from which importances are estimated.
    """

    def __init__(self, build: Build, *, weight: float = 1000.0, images: int = 64) -> None:
        super().__init__(build)
        self.weight = _weight(weight)
        self.images = images
        self.importances: dict[str, Tensor] = {}
        self.values: dict[str, Tensor] = {}

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train under the penalty, then estimate what mattered."""
        trained: list[Phase] = []

        def adapt(phase: Phase) -> Phase:
            trained.append(phase)
            return replace(phase, on_gradients=partial(self._penalise, phase.name))

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

    def _penalise(self, name: str, model: nn.Module) -> None:
        for key, parameter in model.named_parameters():
            importance = self.importances.get(f"{name}.{key}")
            if importance is not None and parameter.grad is not None:
                distance = parameter.detach() - self.values[f"{name}.{key}"]
                parameter.grad += self.weight * importance * distance

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
    def bytes(self) -> int:
        """The detector, the importances and the values."""
        return super().bytes + sum(t.nbytes for t in (*self.importances.values(), *self.values.values()))

    def tensors(self) -> dict[str, Tensor]:
        """The detector, the importances and the values."""
        penalty = named("importance", self.importances) | named("value", self.values)
        return super().tensors() | penalty

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load the detector, the importances and the values."""
        super().restore(tasks, tensors)
        self.importances, self.values = under("importance", tensors), under("value", tensors)


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

    def inspect(self, images: Tensor) -> list[Inspection]:
        """Inspect each image with the detector of the nearest task."""
        found: list[Inspection] = []
        for batch in torch.split(images, BATCH):
            found += self.heads.inspect(batch, product=None, reject_unknown=False, stopwatch=Stopwatch())
        return found

    @property
    def bytes(self) -> int:
        """The detectors and the prototypes."""
        heads = sum(state_bytes(each).total for each in self._detectors.values())
        return heads + sum(prototype.nbytes for prototype in self._prototypes.values())

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


def _weight(value: float) -> float:
    if not value >= 0:
        raise SettingsError(f"The weight is {value}.", "Set it to 0 or more.")
    return value


@dataclass(frozen=True)
class Strategy:
    """A named way to learn a stream.

    Attributes:
        summary: a line that says what it is.
        learner: called with what builds a detector, and the settings by name.
        settings: the settings and their defaults.
    """

    summary: str
    learner: Callable[..., Learner]
    settings: Mapping[str, Any]


STRATEGIES: Registry[Strategy] = Registry("strategy")
STRATEGIES.register("fine-tuning")(Strategy("One detector, trained further on each task.", OneDetector, {}))
STRATEGIES.register("joint")(Strategy("One detector, trained anew on all tasks so far.", Joint, {}))
STRATEGIES.register("replay")(
    Strategy("Fine-tuning with stored images.", Replay, {"size": 100, "rule": "add", "seed": 0})
)
STRATEGIES.register("compressed-replay")(
    Strategy(
        "Fine-tuning with stored features.", Replay, {"size": 100, "codec": "none", "rule": "add", "seed": 0}
    )
)
STRATEGIES.register("lwf")(
    Strategy("Fine-tuning that keeps earlier answers.", LearningWithoutForgetting, {"weight": 1.0})
)
STRATEGIES.register("ewc")(
    Strategy(
        "Fine-tuning that keeps weights that mattered.",
        ElasticWeightConsolidation,
        {"weight": 1000.0, "images": 64},
    )
)
STRATEGIES.register("routed")(Strategy("A detector for each task, picked by its prototype.", Routed, {}))
