"""What a model costs: memory and multiply-accumulates, each with its unit and convention in the name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
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


def macs(call: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products that one `call()` runs (FLOPs / 2).

    Element-wise work, normalisation, pooling and resizing are not counted. Run it under `torch.no_grad` or
    not: only what the call itself executes counts, so a backward pass counts if the call does one.
    """
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops()) // 2
