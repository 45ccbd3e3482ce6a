"""Unfinished training on disk, so that it can go on after an interruption or a power cut."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from safetensors import safe_open
from torch import Tensor

from continuad.durable import write_whole
from continuad.errors import ContinuadError

PAUSE = 10.0
WRITING_SHARE = 0.05


class Checkpoint:
    """A safetensors file that holds the state of a training, replaced now and then while it goes on.

    Args:
        path: the file; its folder is created when there is something to save.
        about: what is being trained, as plain values; a file about something else counts as none.
    """

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self.path = path
        self._about = json.loads(json.dumps(about))
        self._next = time.monotonic() + PAUSE

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the plain values that were saved last; None if nothing usable is there."""
        try:
            with safe_open(self.path, framework="pt") as file:
                facts = json.loads((file.metadata() or {}).get("facts", "{}"))
                if facts.get("about") != self._about:
                    return None
                return {name: file.get_tensor(name) for name in file.keys()}, facts["state"]  # noqa: SIM118
        except (OSError, safetensors.SafetensorError, ValueError):
            return None

    def is_due(self) -> bool:
        """Whether it is time to save again: every 10 s, less often where writing takes long."""
        return time.monotonic() >= self._next

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Replace the file, whole or not at all.

        Raises:
            ContinuadError: it cannot be written.
        """
        started = time.monotonic()
        facts = json.dumps({"about": self._about, "state": dict(state)})
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, safetensors.torch.save(plain, metadata={"facts": facts}))
        except OSError as error:
            raise ContinuadError(
                f"{self.path} cannot be written: {error.strerror or error}.",
                "Check free space and permissions; training goes on from what was saved before.",
            ) from error
        took = time.monotonic() - started
        self._next = time.monotonic() + max(PAUSE, took / WRITING_SHARE)


def named(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with the prefix and a dot before their names."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `named`: the tensors whose names begin with the prefix and a dot, without these."""
    start = f"{prefix}."
    return {name.removeprefix(start): t for name, t in tensors.items() if name.startswith(start)}
