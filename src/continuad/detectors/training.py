"""The one training loop: minibatches, a cosine schedule, early stopping, checkpoints, progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from continuad.datasets import hold_out
from continuad.detectors.checkpoint import Checkpoint, named, under
from continuad.errors import SettingsError
from continuad.progress import Progress, silent

Losses = Callable[[Tensor, int], Mapping[str, Tensor]]


@dataclass(frozen=True)
class TrainingSettings:
    """The defaults are those of AdapTS (published code; the paper does not state them).

    Attributes:
        epochs: passes over the images.
        min_steps: with images so few that the epochs make fewer steps than this, there are more epochs.
        steps: end after exactly so many steps, whatever `epochs` and `min_steps` say; 0 leaves it to them.
        batch_size: images per step.
        drop_last: leave out the last batch of an epoch where it is smaller, unless it is the only one.
        optimiser: "sgd" or "adam".
        learning_rate: of the first epoch.
        final_learning_rate: the cosine schedule ends here; it steps once per epoch.
        momentum: of SGD.
        betas: of Adam.
        weight_decay: of either optimiser.
        patience: stop after so many epochs without a lower loss on held-out training images, all normal, and
            return to the best epoch; 0 trains to the end and returns the last.
        held_out: share of the images that `patience` holds out.
        mixed_precision: compute losses in bfloat16 where it saves time, on a GPU; a CPU takes no notice.
    """

    epochs: int = 30
    min_steps: int = 0
    steps: int = 0
    batch_size: int = 32
    drop_last: bool = False
    optimiser: Literal["sgd", "adam"] = "sgd"
    learning_rate: float = 0.1
    final_learning_rate: float = 0.001
    momentum: float = 0.0
    betas: tuple[float, ...] = (0.9, 0.999)
    weight_decay: float = 0.0
    patience: int = 0
    held_out: float = 0.2
    mixed_precision: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:  # NaN is not
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to more than 0.")
        for name in ("min_steps", "steps", "final_learning_rate", "momentum", "weight_decay", "patience"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to 0 or more.")
        if self.optimiser not in ("sgd", "adam"):
            raise SettingsError(f"The optimiser is {self.optimiser!r}.", "Use 'sgd' or 'adam'.")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise SettingsError(f"betas is {self.betas}.", "Set betas to two numbers from 0 to below 1.")
        if not 0 < self.held_out < 1:
            raise SettingsError(f"held_out is {self.held_out}.", "Set held_out between 0 and 1.")

    def batches(self, order: Tensor) -> tuple[Tensor, ...]:
        """Split the images of an epoch, in this order, into minibatches."""
        batches: tuple[Tensor, ...] = torch.split(order, self.batch_size)
        short = self.drop_last and len(batches) > 1 and len(batches[-1]) < self.batch_size
        return batches[:-1] if short else batches

    def steps_for(self, count: int) -> tuple[int, int]:
        """Steps of an epoch over this many images, and of all epochs together."""
        each = len(self.batches(torch.arange(count)))
        return each, self.steps or each * max(self.epochs, math.ceil(self.min_steps / each))

    def decay(self, epoch: int, epochs: int) -> float:
        """The learning rate of an epoch as a share of the first one's."""
        floor = self.final_learning_rate / self.learning_rate
        return floor + (1 - floor) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    def optimiser_for(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        """The optimiser of these parameters, or groups of parameters."""
        if self.optimiser == "adam":
            first, second = self.betas
            return torch.optim.Adam(
                parameters, lr=self.learning_rate, betas=(first, second), weight_decay=self.weight_decay
            )
        return torch.optim.SGD(
            parameters, lr=self.learning_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )


def train(
    model: nn.Module,
    losses: Losses,
    *,
    count: int,
    settings: TrainingSettings,
    seed: int,
    progress: Progress = silent,
    learning_rates: Sequence[tuple[nn.Module, float]] = (),
    on_gradients: Callable[[nn.Module], None] | None = None,
    checkpoint: Path | None = None,
) -> list[dict[str, float]]:
    """Minimise the sum of the losses; return their means of each epoch.

    Args:
        model: what is trained, with its statistics; in training mode for the steps, in eval mode for the
            loss of held-out images ("held_out" in what is returned) and in the end.
        losses: called with the indices (B,) of a minibatch and the epoch; returns the terms by name. Nothing
            else that is random may matter to them, or a resumed training would differ.
        count: images in the training set.
        settings: the schedule.
        seed: orders the minibatches, and draws what early stopping holds out.
        progress: called after every step.
        learning_rates: parts of the model that have a first learning rate of their own; if given, only these
            parts are trained.
        on_gradients: called with the model between the backward pass and the step; may change the gradients,
            as the penalties and projections of continual learning do.
        checkpoint: keeps an unfinished training, and is where it goes on if the same one is called for again.

    Raises:
        SettingsError: the loss or a weight became infinite or NaN, or no image is left to hold out.
        ContinuadError: the checkpoint cannot be written.
    """
    groups = [{"params": [*part.parameters()], "lr": rate} for part, rate in learning_rates]
    optimiser = settings.optimiser_for(groups or model.parameters())
    parameters = [each for group in optimiser.param_groups for each in group["params"]]
    first_rates = [group["lr"] for group in optimiser.param_groups]
    trained, watched = _split(count, settings, seed)
    each, total = settings.steps_for(len(trained))
    epochs = math.ceil(total / each)
    about = {"settings": asdict(settings), "count": count, "seed": seed, "rates": first_rates}
    run = _Run(model, optimiser, Checkpoint(checkpoint, about) if checkpoint else None)
    on_gpu = parameters[0].is_cuda
    precision = torch.autocast("cuda", torch.bfloat16, enabled=settings.mixed_precision and on_gpu)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        order = trained[torch.randperm(len(trained), generator=generator)]
        if epoch < len(run.history):  # before an interruption
            continue
        if settings.patience and run.stale >= settings.patience:
            break
        for group, rate in zip(optimiser.param_groups, first_rates, strict=True):
            group["lr"] = rate * settings.decay(epoch, epochs)
        model.train()
        batches = settings.batches(order)[: total - epoch * each]
        for indices in batches[run.step - epoch * each :]:
            with precision:
                terms = _computed(losses, indices, epoch)
                loss = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(loss):
                raise _diverged(epoch, f"the loss is {loss.item()}")
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            if on_gradients is not None:
                on_gradients(model)
            optimiser.step()
            run.end_step(terms, len(indices))
            progress(run.step, total, "training")
        if not all(torch.isfinite(parameter).all() for parameter in parameters):
            raise _diverged(epoch, "a weight is no longer a number")
        model.eval()
        run.end_epoch(_mean_loss(losses, watched, settings, epoch) if len(watched) else None)
    model.eval()
    run.end()
    if run.step < total:  # stopped early
        progress(total, total, "training")
    return run.history


class _Run:
    """Where a training stands; taken up from its checkpoint, if there is one.

    Attributes:
        step: steps made.
        history: mean of each loss term, for each finished epoch.
        stale: finished epochs since the lowest held-out loss.
    """

    def __init__(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, checkpoint: Checkpoint | None
    ) -> None:
        self.step = 0
        self.history: list[dict[str, float]] = []
        self.stale = 0
        self._sums: dict[str, float] = {}
        self._images = 0
        self._best: dict[str, Tensor] = {}
        self._model, self._optimiser, self._checkpoint = model, optimiser, checkpoint
        if checkpoint is not None and (saved := checkpoint.load()) is not None:
            self._restore(*saved)

    def end_step(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Count a step and its loss terms."""
        self.step += 1
        self._images += images
        for name, term in terms.items():
            self._sums[name] = self._sums.get(name, 0.0) + term.item() * images
        self._save_if_due()

    def end_epoch(self, held_out: float | None) -> None:
        """Book the epoch's mean losses, and its weights if no epoch had a lower loss on held-out images."""
        means = {name: value / self._images for name, value in self._sums.items()}
        if held_out is not None:
            earlier = [epoch["held_out"] for epoch in self.history]
            means["held_out"] = held_out
            self.stale += 1
            if held_out < min(earlier, default=math.inf):
                self.stale = 0
                self._best = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self.history.append(means)
        self._sums, self._images = {}, 0

    def end(self) -> None:
        """Return to the best epoch, where one was looked for."""
        self._save_if_due()
        if self._best:
            self._model.load_state_dict(self._best)

    def _save_if_due(self) -> None:
        if self._checkpoint is None or not self._checkpoint.is_due():
            return
        tensors = named("model", self._model.state_dict()) | named("best", self._best)
        for index, values in self._optimiser.state_dict()["state"].items():
            kept = {name: value for name, value in values.items() if value is not None}
            tensors |= named(f"optimiser.{index}", kept)
        facts = ("step", "history", "stale", "_sums", "_images")
        self._checkpoint.save(tensors, {name: getattr(self, name) for name in facts})

    def _restore(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        vars(self).update(facts)
        self._model.load_state_dict(under("model", tensors))
        self._best = under("best", tensors)
        values: dict[int, dict[str, Tensor]] = {}
        for name, tensor in under("optimiser", tensors).items():
            index, _, key = name.partition(".")
            values.setdefault(int(index), {})[key] = tensor
        self._optimiser.load_state_dict({**self._optimiser.state_dict(), "state": values})


def _split(count: int, settings: TrainingSettings, seed: int) -> tuple[Tensor, Tensor]:
    """The indices of the images to train on, and of those that early stopping watches."""
    if not settings.patience:
        return torch.arange(count), torch.arange(0)
    if count < 2:
        raise SettingsError(
            f"{count} image leaves none to hold out.", "Give more images, or set patience to 0."
        )
    kept, held = hold_out(range(count), settings.held_out, seed=seed)
    return torch.tensor(kept), torch.tensor(held)


@torch.no_grad()
def _mean_loss(losses: Losses, indices: Tensor, settings: TrainingSettings, epoch: int) -> float:
    """The mean over images of the sum of the losses."""
    batches = torch.split(indices, settings.batch_size)
    sums = [sum(term.item() for term in losses(b, epoch).values()) * len(b) for b in batches]
    return math.fsum(sums) / len(indices)


def _computed(losses: Losses, indices: Tensor, epoch: int) -> Mapping[str, Tensor]:
    try:
        return losses(indices, epoch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise SettingsError(
            "A minibatch has a single value for a batch norm to know the spread of.",
            "Give more or larger images, or set drop_last to true.",
        ) from error


def _diverged(epoch: int, how: str) -> SettingsError:
    return SettingsError(f"Training diverged in epoch {epoch + 1}: {how}.", "Lower the learning rate.")
