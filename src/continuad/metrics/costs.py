"""What a model costs: memory and multiply-accumulates, each with its unit and convention in the name."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
"""Bytes in a mebibyte: the "MB" of the papers' model sizes."""

MB = 10**6
"""Bytes in a megabyte: the "MB" of the papers' replay buffers."""


def tensor_bytes(module: nn.Module, *, include_buffers: bool) -> int:
    """Bytes of a module's parameters, trainable or not; a tensor shared by several layers counts once.

    Args:
        module: what to measure.
        include_buffers: also count buffers, persistent or not (batch-norm statistics and step counters).
    """
    tensors = [*module.parameters(), *(module.buffers() if include_buffers else ())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@dataclass(frozen=True)
class StateBytes:
    """Bytes of a state dict, but for batch norms' step counters, which serve no inference.

    Attributes:
        parameters: and buffers called weight or bias, as which quantised layers hold theirs.
        buffers: the rest: batch-norm statistics, scales and zero points, memory banks.
    """

    parameters: int
    buffers: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.parameters + self.buffers


def state_bytes(module: nn.Module) -> StateBytes:
    """Account for what a module would save."""
    parameters = buffers = 0
    for path, tensor in module.state_dict(keep_vars=True).items():
        name = path.rpartition(".")[2]
        if isinstance(tensor, nn.Parameter) or name in ("weight", "bias"):
            parameters += tensor.nbytes
        elif name != "num_batches_tracked":
            buffers += tensor.nbytes
    return StateBytes(parameters, buffers)


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates inside and outside of backward passes."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.forward + self.backward


def macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products that one `call()` runs (FLOPs / 2).

    Element-wise work, normalisation, pooling and resizing are not counted; INT8 products count like float
    ones. Run it under `torch.no_grad` or not: only what the call itself executes counts, so a backward pass
    counts if the call does one.
    """
    return macs_by_pass(call).total


def macs_by_pass(call: Callable[[], object]) -> Macs:
    """Multiply-accumulates as by `macs`, those that autograd runs apart from the others."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter, _Backward(counter) as backward:
        call()
    return Macs((counter.get_total_flops() - backward.flops) // 2, backward.flops // 2)


class _Backward(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The share of a surrounding counter's FLOPs that backward passes run."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counter = counter
        self.flops = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        before = self.counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if self.counter.mod_tracker.is_bw:
            self.flops += self.counter.get_total_flops() - before
        return result


Shape = Sequence[int]


def _int8_product(a: Shape, b: Shape, **_: object) -> int:
    return 2 * math.prod(a) * b[1]


def _convolution_backward(
    grad: Shape,
    x: Shape,
    weight: Shape,
    _bias: object,
    _stride: object,
    _padding: object,
    _dilation: object,
    transposed: bool,
    _output_padding: object,
    _groups: object,
    wanted: Sequence[bool],
    **_: object,
) -> int:
    """The gradients of input and weight take as many products as the convolution, whatever its groups.

    PyTorch's own formula counts the weight's gradient once for each group.
    """
    positions = (x if transposed else grad)[2:]
    return 2 * sum(wanted[:2]) * x[0] * math.prod(positions) * math.prod(weight)


_FORMULAS = {
    torch.ops.aten._int_mm: _int8_product,
    torch.ops.aten.convolution_backward: _convolution_backward,
}
