"""How one detector meets a stream of tasks: trained further on each, or anew on all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from continuad.continual.routed import Inspection
from continuad.detectors import Detector
from continuad.detectors.checkpoint import named, under
from continuad.detectors.samples import Samples
from continuad.detectors.trained import TrainedDetector
from continuad.errors import SettingsError
from continuad.metrics.costs import state_bytes
from continuad.progress import Progress, silent

Build = Callable[[], Detector]
"""Gives a new, untrained detector on the shared backbone."""

BATCH = 8


class Learner(ABC):
    """Learns tasks one after another; inspects images of any task so far, whichever it is."""

    @abstractmethod
    def learn(self, task: str, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> None:
        """Learn a task from its normal images (N, 3, S, S) uint8; earlier tasks' images are not at hand."""

    def foresee(self, tasks: Iterable[tuple[str, Tensor]]) -> None:  # noqa: B027 - most do not
        """Look at tasks to come, by name and images (N, 3, S, S) uint8, where a published method does.

        Called before the first task, and after `restore`.
        """

    @abstractmethod
    def inspect(self, images: Tensor, *, task: str | None = None) -> list[Inspection]:
        """Inspect images (B, 3, S, S) uint8; where there is one detector for all, no task is recognised.

        Args:
            images: of any tasks.
            task: the true one of them all: for published methods that take it for known, and for no other.
        """

    @property
    @abstractmethod
    def model_bytes(self) -> int:
        """Size of the detectors' networks, the frozen backbone left out."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Size of what the strategy keeps beside them: stored items, prototypes, importances."""

    @property
    def memory_items(self) -> int:
        """How many images, or features of images, are stored."""
        return 0

    @property
    def facts(self) -> dict[str, float]:
        """What else there is to say of the task learnt last, by name."""
        return {}

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

    def inspect(self, images: Tensor, *, task: str | None = None) -> list[Inspection]:  # noqa: ARG002
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
    def model_bytes(self) -> int:
        """The detector."""
        return state_bytes(self.detector).total

    @property
    def memory_bytes(self) -> int:
        """Nothing."""
        return 0

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
    def memory_bytes(self) -> int:
        """The images."""
        return sum(images.nbytes for images in self._images)

    @property
    def memory_items(self) -> int:
        """All images so far."""
        return sum(map(len, self._images))

    def tensors(self) -> dict[str, Tensor]:
        """The detector and the images."""
        return super().tensors() | {f"images.{i}": images for i, images in enumerate(self._images)}

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load the detector and the images."""
        super().restore(tasks, tensors)
        self._images = [tensors[f"images.{i}"] for i in range(len(tasks))]
