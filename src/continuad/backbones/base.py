"""A backbone: a frozen, pretrained network seen as an ordered list of named blocks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from continuad.errors import SettingsError, WeightsError
from continuad.registry import Registry

BACKBONES: Registry[Callable[[], Backbone]] = Registry("backbone")

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)

PIXELS_AT_A_TIME = 2**17


@dataclass(frozen=True)
class Block:
    """One step of a backbone.

    Attributes:
        name: what taps and split points call it.
        run: maps the previous block's output to this one's.
        channels: channels of its output.
        stride: input pixels per output pixel along one side, rounded up; 0 when the output is pooled to 1x1.
        modules: the (dotted) attributes of the backbone that hold its parameters.
    """

    name: str
    run: Callable[[Tensor], Tensor]
    channels: int
    stride: int
    modules: tuple[str, ...] = ()


class Backbone(nn.Module):
    """The base of all architectures: frozen, always in eval mode, indifferent to who calls it.

    A subclass builds its modules under the parameter names of its public checkpoints, then calls
    `set_blocks`. Images are (B, 3, H, W), RGB, on the 0..255 scale, uint8 or floating; normalisation and
    padding happen here.

    Attributes:
        name: what it is registered as.
        checkpoint_prefix: what public checkpoints put before the parameter names.
        layer_groups: blocks that suit a method, by the name of the group; all backbones have "stfpm" and
            "paste", those of the PaSTe paper also its "low", "mid" and "high".
    """

    name: ClassVar[str] = ""
    checkpoint_prefix: ClassVar[str] = ""
    layer_groups: ClassVar[Mapping[str, tuple[str, ...]]] = MappingProxyType({})
    mean: Tensor
    std: Tensor

    def __init__(self, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._steps: dict[str, Block] = {}
        self._missing: dict[str, int] = {}  # stride by block name
        self._missing_because = ""
        self._is_student = False

    def set_blocks(self, blocks: Sequence[Block]) -> None:
        """State the blocks in order, draw He-normal convolutions and freeze everything.

        PyTorch's own initial convolutions would let the features of a deep network fade to 1e-8.
        """
        self._steps = {block.name: block for block in blocks}
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Backbone:
        """Stay in eval mode, unless this is a student: no frozen batch-norm statistic is ever updated."""
        return super().train(mode and self._is_student)

    def student(self, last: str, *, behind: str | None = None) -> Backbone:
        """Return a new network of this architecture that can be trained, with random weights.

        Its batch norms use the batch's statistics while it is in training mode, which it is not yet.

        Args:
            last: it ends with this block.
            behind: it has no parameters up to and including this block, which it shares with its teacher:
                call its `features` with `start`.

        Raises:
            SettingsError: there is no such block.
        """
        student = BACKBONES[self.name]()
        student.truncate(last, "the student ends before")
        if behind is not None:
            for name in student._names(until=behind):
                student._drop(name)
        student._is_student = True
        student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return student.requires_grad_(True)

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, first to last."""
        return tuple(self._steps.values())

    def block(self, name: str) -> Block:
        """Return the block called `name`.

        Raises:
            WeightsError: the block exists in the architecture, but the loaded checkpoint stops before it.
            SettingsError: there is no such block.
        """
        if name not in self._steps:
            known = ", ".join(self._steps)
            if name in self._missing:
                raise WeightsError(
                    f"{self.name} has no block {name!r}: {self._missing_because}.",
                    f"Use one of {known}, or load weights that reach further.",
                )
            raise SettingsError(f"{self.name} has no block {name!r}.", f"Choose from: {known}.")
        return self._steps[name]

    def stage(self, stride: int) -> str:
        """Return the name of the last block whose output has this stride (8 is ResNet's `layer2`).

        Raises:
            WeightsError: that block exists in the architecture, but the loaded checkpoint stops before it.
            SettingsError: no block has this stride.
        """
        strides = {block.name: block.stride for block in self.blocks} | self._missing
        names = [name for name, value in strides.items() if value == stride]
        if not names:
            choices = sorted({value for value in strides.values() if value})
            raise SettingsError(
                f"{self.name} has no features of stride {stride}.", f"Choose a stride from {choices}."
            )
        return self.block(names[-1]).name

    def order(self, names: Collection[str]) -> tuple[str, ...]:
        """Return the names sorted from the first block to the last, without repeats."""
        wanted = {self.block(name).name for name in names}
        return tuple(name for name in self._steps if name in wanted)

    def truncate(self, last: str, because: str) -> None:
        """Drop every block after `last` and its parameters; `because` tells whoever asks for them why."""
        kept = self._names(until=last)
        for name in [name for name in self._steps if name not in kept]:
            self._drop(name)
            self._missing[name] = self._steps.pop(name).stride
        self._missing_because = because

    def _names(self, *, until: str) -> list[str]:
        """The names of the blocks up to and including `until`."""
        names = list(self._steps)
        return names[: names.index(self.block(until).name) + 1]

    def _drop(self, name: str) -> None:
        """Delete the parameters of a block."""
        for path in self._steps[name].modules:
            parent, _, attribute = path.rpartition(".")
            delattr(self.get_submodule(parent), attribute)

    def checkpoint_name(self, name: str) -> str:
        """Return what public checkpoints call the parameter or module of this name."""
        return f"{self.checkpoint_prefix}{name}"

    def group(self, name: str) -> tuple[str, ...]:
        """Return the blocks of a group in `layer_groups`.

        Raises:
            SettingsError: this backbone has no such group.
        """
        if name not in self.layer_groups:
            known = ", ".join(self.layer_groups)
            raise SettingsError(f"{self.name} has no group of layers {name!r}.", f"Choose from: {known}.")
        return self.layer_groups[name]

    def before(self, name: str) -> str | None:
        """Return the block before this one; None before the first."""
        names = self._names(until=name)
        return names[-2] if len(names) > 1 else None

    def normalise(self, images: Tensor) -> Tensor:
        """Turn pixels on the 0..255 scale into what the first block expects (float32)."""
        return (images.float() - self.mean) / self.std

    def features(self, x: Tensor, taps: Collection[str], start: str | None = None) -> dict[str, Tensor]:
        """Run the blocks up to the last tap and return the output of each tap.

        Args:
            x: images (B, 3, H, W) on the 0..255 scale; or, with `start`, that block's output.
            taps: names of the blocks whose outputs are wanted; nothing after the last of them runs.
            start: continue behind this block instead of from the image.

        Returns:
            Tap name to feature map (B, C, H / stride, W / stride), in block order.

        Raises:
            SettingsError: a tap does not exist or does not lie behind `start`.
        """
        wanted = self.order(taps)
        if not wanted:
            return {}
        names = list(self._steps)
        first = 0 if start is None else names.index(self.block(start).name) + 1
        last = names.index(wanted[-1])
        if names.index(wanted[0]) < first:
            raise SettingsError(
                f"{self.name}: block {wanted[0]!r} does not lie behind {start!r}.", "Ask for later taps."
            )
        run = [self._steps[name] for name in names[first : last + 1]]
        if start is not None:
            return _outputs(x, run, wanted)
        parts = [_outputs(self.normalise(part), run, wanted) for part in _in_cache(x)]
        return parts[0] if len(parts) == 1 else {tap: torch.cat([p[tap] for p in parts]) for tap in wanted}

    def macs(self, size: int) -> dict[str, int]:
        """Multiply-accumulates of each block's convolutions for one image of `size` x `size` pixels."""
        x = self.normalise(torch.zeros(1, 3, size, size, device=self.mean.device))
        counts: dict[str, int] = {}
        with torch.no_grad():
            for block in self.blocks:
                with FlopCounterMode(display=False) as counter:
                    x = block.run(x)
                counts[block.name] = counter.get_total_flops() // 2
        return counts

    def parameter_bytes(self, last: str, *, include_buffers: bool) -> int:
        """Bytes of the parameters (and batch-norm buffers) of all blocks up to and including `last`."""
        total = 0
        for name in self._names(until=last):
            for attribute in self._steps[name].modules:
                module = self.get_submodule(attribute)
                tensors = [*module.parameters(), *(module.buffers() if include_buffers else ())]
                total += sum(t.numel() * t.element_size() for t in tensors)
        return total


def _outputs(x: Tensor, blocks: Sequence[Block], taps: Sequence[str]) -> dict[str, Tensor]:
    """Run blocks one after the other and return the outputs of those called `taps`."""
    out: dict[str, Tensor] = {}
    for block in blocks:
        x = block.run(x)
        if block.name in taps:
            out[block.name] = x
    return out


def _in_cache(images: Tensor) -> Sequence[Tensor]:
    """Split a batch (B, 3, H, W), where nothing is trained on a CPU, into parts that fit into its cache.

    A larger batch takes up to twice as long per image.
    """
    if torch.is_grad_enabled() or images.device.type != "cpu":
        return [images]
    return torch.split(images, max(1, PIXELS_AT_A_TIME // (images.shape[2] * images.shape[3])))


def average_pool(x: Tensor) -> Tensor:
    """Average (B, C, H, W) over the image to (B, C, 1, 1)."""
    return x.mean((2, 3), keepdim=True)
