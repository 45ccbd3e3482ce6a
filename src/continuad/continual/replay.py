"""Replay: a few items of every task seen are stored, to be learnt again beside the current task's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import safetensors
import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor

from continuad.continual.codecs import CODECS, Encoded
from continuad.detectors.checkpoint import named, under
from continuad.durable import write_whole
from continuad.errors import ContinuadError, SettingsError

BatchRule = Literal["add", "replace"]


def batch_shares(size: int, rule: BatchRule) -> tuple[int, int]:
    """How many of a batch's own items stay in it, and how many replayed ones join them.

    "add" replays as many as there are (thesis); "replace" overwrites half of them, rounded down
    (published code of AdapTS for DeSTSeg, where the replayed half is balanced over tasks).
    """
    if rule not in ("add", "replace"):
        raise SettingsError(f"The batch rule is {rule!r}.", "Use 'add' or 'replace'.")
    return (size, size) if rule == "add" else (size - size // 2, size // 2)


class Items(Protocol):
    """A tensor (N, C, H, W), or anything else that gives item `index` as (C, H, W)."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Tensor: ...


class ReplayBuffer:
    """Stored items of the tasks seen so far, each with an equal share of a fixed number of places.

    What is stored depends on the tasks, their order and the seed alone; so it does when the buffer was saved
    and loaded in between.

    Args:
        size: items of all tasks together, at most.
        codec: name of the codec that stores them.
        seed: of the choice of items.

    Raises:
        SettingsError: the size or seed cannot be, or there is no such codec.
    """

    def __init__(self, size: int, codec: str, *, seed: int) -> None:
        if size < 1:
            raise SettingsError(
                f"A replay buffer of size {size} holds nothing.", "Set its size to 1 or more."
            )
        if seed < 0:
            raise SettingsError(f"The seed is {seed}.", "Set it to 0 or more.")
        self.size = size
        self.codec = codec
        self.seed = seed
        self._codec = CODECS[codec]
        self._tasks: dict[str, Encoded] = {}

    @property
    def counts(self) -> dict[str, int]:
        """How many items of each task are stored, in the order in which the tasks were added."""
        return {name: len(held) for name, held in self._tasks.items()}

    @property
    def bytes(self) -> int:
        """The size of all that is stored, with what is needed to decode it."""
        return sum(held.bytes for held in self._tasks.values())

    def add(self, name: str, items: Items) -> None:
        """Add a task, drawing items uniformly without replacement; every task keeps floor(size / tasks).

        Earlier tasks give up items at random, and keep the others as they are. A task with fewer items than
        its share is stored whole. Where something is wrong, the buffer stays as it was.

        Args:
            name: of the task.
            items: all of its items; only those that are drawn are looked at.

        Raises:
            SettingsError: the buffer is too small for so many tasks, or the items do not suit it.
            ContinuadError: it has a task of that name.
        """
        seen = len(self._tasks) + 1
        share = self.size // seen
        if name in self._tasks:
            raise ContinuadError(
                f"The replay buffer holds a task {name!r} already.", "Give every task a name of its own."
            )
        if share < 1:
            raise SettingsError(
                f"A replay buffer of size {self.size} has no room for {seen} tasks.", "Make it larger."
            )
        if not len(items):
            raise SettingsError(f"Task {name!r} has no items to replay.", "Give at least one.")
        rng = np.random.default_rng([self.seed, seen])  # by the task's number: no state to be saved
        added = torch.stack([items[index] for index in _sample(len(items), share, rng)])
        self._check_fits(added)
        earlier = {task: held.keep(_sample(len(held), share, rng)) for task, held in self._tasks.items()}
        self._tasks = {**earlier, name: self._codec.encode(added)}

    def choose(self, count: int, rng: np.random.Generator, *, balanced: bool = False) -> list[int]:
        """Draw numbers of stored items: for each a task uniformly, then one of its items uniformly.

        Args:
            count: how many, with replacement.
            rng: what draws; a training that is to be resumed gives a new one, seeded by the step, each time.
            balanced: draw from each task equally often, or once more; which ones is drawn.

        Returns:
            Positions in what `items` returns.

        Raises:
            ContinuadError: no task was added.
        """
        if not self._tasks:
            raise ContinuadError("There is nothing to replay yet.", "Add a task to the buffer first.")
        counts = [len(held) for held in self._tasks.values()]
        starts = np.cumsum([0, *counts])
        tasks = (
            np.resize(rng.permutation(len(counts)), count)
            if balanced
            else rng.integers(len(counts), size=count)
        )
        return [int(starts[task] + rng.integers(counts[task])) for task in tasks]

    def items(self) -> Tensor:
        """Return all stored items (N, C, H, W) on the CPU, decoded, task after task."""
        return torch.cat([held.decode(range(len(held))) for held in self._tasks.values()])

    def save(self, path: Path) -> None:
        """Write the buffer to a safetensors file, whole or not at all.

        Raises:
            ContinuadError: it cannot be written.
        """
        facts = json.dumps(
            {"size": self.size, "codec": self.codec, "seed": self.seed, "tasks": list(self._tasks)}
        )
        tensors = self.tensors()
        metadata = {"facts": facts, "sha256": _checksum(facts, tensors)}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, safetensors.torch.save(tensors, metadata=metadata))
        except OSError as error:
            raise ContinuadError(
                f"{path} cannot be written: {error.strerror or error}.", "Check free space and permissions."
            ) from error

    @classmethod
    def load(cls, path: Path) -> ReplayBuffer:
        """Return the buffer that `save` wrote.

        Raises:
            ContinuadError: there is none, or it is damaged.
            SettingsError: its codec is not known here.
        """
        damaged = ContinuadError(
            f"{path} is damaged, or no replay buffer.", "Restore it from a backup, or learn its tasks again."
        )
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        except safetensors.SafetensorError as error:
            raise damaged from error
        except OSError as error:
            raise ContinuadError(
                f"{path} cannot be read: {error.strerror or error}.", "Check the path and permissions."
            ) from error
        facts = metadata.get("facts", "")
        if metadata.get("sha256") != _checksum(facts, tensors):
            raise damaged
        content = json.loads(facts)
        buffer = cls(content["size"], content["codec"], seed=content["seed"])
        buffer.restore(content["tasks"], tensors)
        return buffer

    def tensors(self) -> dict[str, Tensor]:
        """All that is stored, by the number of the task, for `restore`."""
        found: dict[str, Tensor] = {}
        for number, held in enumerate(self._tasks.values()):
            found |= named(str(number), held.tensors())
        return found

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Hold these tensors, which a buffer of the same size, codec and seed gave after these tasks."""
        self._tasks = {
            task: Encoded.from_tensors(self._codec, under(str(number), tensors))
            for number, task in enumerate(tasks)
        }

    def _template(self) -> Tensor:
        """Some stored item (C, H, W), for its shape and dtype."""
        return next(iter(self._tasks.values())).decode([0])[0]

    def _check_fits(self, items: Tensor) -> None:
        if self._tasks and (shape := self._template().shape) != items.shape[1:]:
            raise SettingsError(
                f"The replay buffer holds items of shape {tuple(shape)}, not {tuple(items.shape[1:])}.",
                "Use one image size, and one block of the backbone, for all tasks.",
            )


def _sample(count: int, share: int, rng: np.random.Generator) -> list[int]:
    """Draw `share` of `count` numbers uniformly without replacement, or all, in ascending order."""
    drawn = rng.choice(count, min(share, count), replace=False)
    return [int(number) for number in np.sort(drawn)]


def _checksum(facts: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(facts.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()
