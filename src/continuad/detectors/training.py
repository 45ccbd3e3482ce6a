"""The one training loop: minibatches, SGD with a cosine schedule, progress, the last epoch's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continuad.errors import SettingsError
from continuad.progress import Progress


@dataclass(frozen=True)
class TrainingSettings:
    """Defaults of AdapTS (paper and published code).

    Attributes:
        epochs: passes over the images.
        batch_size: images per step; the last batch of an epoch may be smaller.
        learning_rate: of the first epoch.
        final_learning_rate: the cosine schedule ends here; it steps once per epoch.
        momentum: of SGD.
        weight_decay: of SGD.
    """

    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 0.1
    final_learning_rate: float = 0.001
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to more than 0.")


def train(
    parameters: Iterable[nn.Parameter],
    losses: Callable[[Tensor, int], dict[str, Tensor]],
    *,
    count: int,
    settings: TrainingSettings,
    seed: int,
    progress: Progress,
) -> list[dict[str, float]]:
    """Minimise the sum of the losses and return their means of each epoch.

    Args:
        parameters: what is trained.
        losses: called with the indices (B,) of a minibatch and the epoch; returns the terms by name.
        count: images in the training set.
        settings: the schedule.
        seed: orders the minibatches.
        progress: called after every step.
    """
    optimiser = torch.optim.SGD(
        parameters,
        lr=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, settings.epochs, eta_min=settings.final_learning_rate
    )
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(count / settings.batch_size)
    history = []
    for epoch in range(settings.epochs):
        means: dict[str, float] = {}
        order = torch.randperm(count, generator=generator)
        for step, indices in enumerate(torch.split(order, settings.batch_size)):
            terms = losses(indices, epoch)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise SettingsError(
                    f"Training diverged in epoch {epoch + 1}: the loss is {loss.item()}.",
                    "Lower the learning rate.",
                )
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + term.item() * len(indices) / count
            progress(epoch * steps + step + 1, settings.epochs * steps, "training")
        history.append(means)
        schedule.step()
    return history
