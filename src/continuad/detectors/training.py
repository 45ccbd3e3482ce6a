"""The one training loop: minibatches, a cosine schedule, progress, the last epoch's weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from continuad.errors import SettingsError
from continuad.progress import Progress


@dataclass(frozen=True)
class TrainingSettings:
    """The defaults are those of AdapTS (published code; the paper does not state them).

    Attributes:
        epochs: passes over the images.
        min_steps: with images so few that the epochs make fewer steps than this, there are more epochs.
        batch_size: images per step; the last batch of an epoch may be smaller.
        optimiser: "sgd" or "adam".
        learning_rate: of the first epoch.
        final_learning_rate: the cosine schedule ends here; it steps once per epoch.
        momentum: of SGD.
        weight_decay: of either optimiser.
    """

    epochs: int = 30
    min_steps: int = 0
    batch_size: int = 32
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    final_learning_rate: float = 0.001
    momentum: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:  # NaN is not
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to more than 0.")
        for name in ("min_steps", "final_learning_rate", "momentum", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to 0 or more.")
        if self.optimiser not in ("sgd", "adam"):
            raise SettingsError(f"The optimiser is {self.optimiser!r}.", "Use 'sgd' or 'adam'.")

    def epochs_for(self, count: int) -> int:
        """The number of epochs for this many images."""
        return max(self.epochs, math.ceil(self.min_steps / math.ceil(count / self.batch_size)))

    def optimiser_for(self, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        """The optimiser of these parameters."""
        if self.optimiser == "adam":
            return torch.optim.Adam(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )


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

    Raises:
        SettingsError: the loss or a weight became infinite or NaN.
    """
    epochs = settings.epochs_for(count)
    parameters = list(parameters)
    optimiser = settings.optimiser_for(parameters)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimiser, epochs, eta_min=settings.final_learning_rate
    )
    generator = torch.Generator().manual_seed(seed)
    steps = math.ceil(count / settings.batch_size)
    history = []
    for epoch in range(epochs):
        means: dict[str, float] = {}
        order = torch.randperm(count, generator=generator)
        for step, indices in enumerate(torch.split(order, settings.batch_size)):
            terms = losses(indices, epoch)
            loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise _diverged(epoch, f"the loss is {loss.item()}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            for name, term in terms.items():
                means[name] = means.get(name, 0.0) + term.item() * len(indices) / count
            progress(epoch * steps + step + 1, epochs * steps, "training")
        if not all(torch.isfinite(parameter).all() for parameter in parameters):
            raise _diverged(epoch, "a weight is no longer a number")
        history.append(means)
        schedule.step()
    return history


def _diverged(epoch: int, how: str) -> SettingsError:
    return SettingsError(f"Training diverged in epoch {epoch + 1}: {how}.", "Lower the learning rate.")
