"""Replay: one detector, whose minibatches hold stored items of earlier tasks, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from continuad.continual.learners import Build, OneDetector
from continuad.continual.replay import BatchRule, ReplayBuffer, batch_shares
from continuad.detectors import Detector
from continuad.detectors.checkpoint import named, under
from continuad.detectors.samples import Samples
from continuad.detectors.trained import Phase, unchanged
from continuad.progress import Progress, silent


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
    def memory_bytes(self) -> int:
        """The buffer."""
        return self.buffer.bytes

    @property
    def memory_items(self) -> int:
        """Those in the buffer."""
        return sum(self.buffer.counts.values())

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
