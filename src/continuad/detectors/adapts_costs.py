"""What AdapTS costs: by the convention of the paper's tables, and by what really is held and run."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from continuad.backbones import Backbone
from continuad.detectors.adapters import Adapter
from continuad.detectors.adapts import AdapTS, AdapTSSettings
from continuad.detectors.costs import method_costs
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
        macs: what the detector runs (`method_costs`), and the backbone's way on to the router's block where
            that is later.
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
        detector = AdapTS(backbone, settings)
    detector.to_empty(device=backbone.mean.device)
    one = method_costs(detector, image_size=image_size)
    last = detector.taps[-1]
    furthest = backbone.order([last, router_tap])[-1]
    adapters = products * (one.parameter_bytes + one.buffer_bytes)
    additional = adapters + products * prototype_bytes

    blocks = [backbone.block(tap) for tap in detector.taps]
    sides = [-(-image_size // block.stride) if block.stride else 1 for block in blocks]
    single = sum(
        adapter_macs(block.channels, settings.adapter, side**2)
        for block, side in zip(blocks, sides, strict=True)
    )
    per_block = backbone.macs(image_size)
    names = list(per_block)
    student = sum(per_block[name] for name in names[: names.index(last) + 1])
    routing = sum(per_block[name] for name in names[names.index(last) + 1 : names.index(furthest) + 1])
    return AdapTSCosts(
        additional_bytes_paper=adapters,
        total_bytes_paper=adapters + backbone.parameter_bytes(last, include_buffers=True),
        macs_paper=sum(per_block.values()) + student + settings.passes * single,
        additional_bytes=additional,
        total_bytes=additional + backbone.parameter_bytes(furthest, include_buffers=True),
        macs=one.macs + routing,
    )


def adapter_macs(channels: int, kind: str, positions: int) -> int:
    """Multiply-accumulates of one application of an adapter, float or INT8, to that many positions."""
    with torch.device("meta"):
        adapter = Adapter(channels, kind).eval()
        return macs(lambda: adapter(torch.empty(1, channels, 1, positions)))
