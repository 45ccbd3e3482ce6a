"""What AdapTS costs: by the convention of the paper's tables, and by what really is held and run."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.adapters import Adapter
from continuad.detectors.adapts import AdapTS, AdapTSSettings
from continuad.detectors.matching import smooth
from continuad.detectors.quantization import QuantizedAdapter
from continuad.metrics.costs import macs


@dataclass(frozen=True)
class AdapTSCosts:
    """Memory in bytes for all products together; multiply-accumulates (half the FLOPs) for one image.

    The paper's tables leave out what routing needs, the blocks behind the last adapter and the prototypes,
    from the memory but not from the FLOPs, and run the backbone twice. The other figures are what an
    inspection that routes the image really holds and runs. Backbones count with their batch-norm buffers.

    Attributes:
        additional_bytes_paper: adapters.
        total_bytes_paper: and the backbone up to the last adapter.
        macs_paper: the whole backbone (teacher), the backbone up to the last adapter once more (student), and
            every adapter `passes` times; the published code's figures come with `passes=2`.
        additional_bytes: adapters and prototypes.
        total_bytes: and the backbone up to the last adapter or the router's block, whichever is later.
        macs: the backbone up to that block once, the student's own way from the first adapter to the last,
            every adapter `passes` times, but the last one once, and the smoothing of the map.
    """

    additional_bytes_paper: int
    total_bytes_paper: int
    macs_paper: int
    additional_bytes: int
    total_bytes: int
    macs: int


def adapts_costs(
    backbone: Backbone,
    settings: AdapTSSettings,
    *,
    products: int,
    image_size: int,
    router_tap: str,
    prototype_bytes: int,
) -> AdapTSCosts:
    """Account for AdapTS on a backbone, which may be on the meta device: no weights are looked at.

    Args:
        backbone: shared by all products.
        settings: of every product's head.
        products: how many are known.
        image_size: side of the network's input in pixels.
        router_tap: the block that prototypes are taken from.
        prototype_bytes: of one prototype.

    Raises:
        SettingsError: the backbone has no such block.
    """
    with torch.device("meta"):
        taps = AdapTS(backbone, settings).taps
    first, last = taps[0], taps[-1]
    furthest = backbone.order([last, router_tap])[-1]

    kind, blocks = settings.adapter, [backbone.block(tap) for tap in taps]
    adapters = products * sum(adapter_bytes(block.channels, kind, int8=settings.int8) for block in blocks)
    additional = adapters + products * prototype_bytes

    sides = [-(-image_size // block.stride) if block.stride else 1 for block in blocks]
    single = [adapter_macs(block.channels, kind, side**2) for block, side in zip(blocks, sides, strict=True)]
    per_block = backbone.macs(image_size)
    order = list(per_block)

    def path(start: int, end: str) -> int:
        return sum(per_block[name] for name in order[start : order.index(end) + 1])

    return AdapTSCosts(
        additional_bytes_paper=adapters,
        total_bytes_paper=adapters + backbone.parameter_bytes(last, include_buffers=True),
        macs_paper=path(0, order[-1]) + path(0, last) + settings.passes * sum(single),
        additional_bytes=additional,
        total_bytes=additional + backbone.parameter_bytes(furthest, include_buffers=True),
        macs=path(0, furthest)
        + path(order.index(first) + 1, last)
        + settings.passes * sum(single[:-1])
        + single[-1]
        + macs(lambda: smooth(torch.empty(1, image_size, image_size, device="meta"), settings.smoothing)),
    )


def adapter_bytes(channels: int, kind: str, *, int8: bool) -> int:
    """Bytes of one adapter: float parameters and batch-norm statistics, or its INT8 form.

    INT8 is int8 weights and float32 biases, batch norms folded, and 40 bytes of scales and zero points.
    Batch-norm step counters serve no inference and are not counted.
    """
    with torch.device("meta"):
        adapter = Adapter(channels, kind)
        held = QuantizedAdapter(channels, adapter.conv1.out_channels) if int8 else adapter
    state: dict[str, Tensor] = held.state_dict()
    return sum(tensor.nbytes for name, tensor in state.items() if not name.endswith("num_batches_tracked"))


def adapter_macs(channels: int, kind: str, positions: int) -> int:
    """Multiply-accumulates of one application of an adapter, float or INT8, to that many positions."""
    with torch.device("meta"):
        adapter = Adapter(channels, kind).eval()
        return macs(lambda: adapter(torch.empty(1, channels, 1, positions)))
