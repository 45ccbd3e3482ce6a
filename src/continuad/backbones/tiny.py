"""A backbone of a few thousand parameters, for tests and for looking at how one is written."""

from __future__ import annotations

from types import MappingProxyType

from torch import nn

from continuad.backbones.base import BACKBONES, Backbone, Block, average_pool


@BACKBONES.register("tiny")
class Tiny(Backbone):
    """Four strided 3x3 convolutions with batch norm; random weights only."""

    name = "tiny"
    layer_groups = MappingProxyType({"stfpm": ("layer1", "layer2"), "paste": ("layer2", "layer3")})

    def __init__(self) -> None:
        super().__init__(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
        channels = (3, 8, 16, 24, 32)
        blocks = []
        for index in range(4):
            name = f"layer{index}"
            before, after = channels[index], channels[index + 1]
            layer = nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(),
            )
            self.add_module(name, layer)
            blocks.append(Block(name, layer, after, 2 ** (index + 1), (name,)))
        blocks.append(Block("avgpool", average_pool, channels[-1], 0))
        self.set_blocks(blocks)
