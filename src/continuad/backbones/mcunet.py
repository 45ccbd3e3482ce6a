"""MCUNet (Lin et al. 2020): ImageNet networks searched for microcontrollers, MIT HAN Lab's parameter names.

Layer tables, input scale and batch norms (eps 1e-5) are those of the networks' published configurations.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones.base import BACKBONES, Backbone, Block, average_pool
from continuad.backbones.folding import normalised


class Convolution(nn.Module):
    """Convolution and batch norm, and a ReLU6 unless linear."""

    def __init__(
        self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False
        )
        self.bn = nn.BatchNorm2d(after)
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        y = normalised(x, self.conv, self.bn)
        return y if self.linear else F.relu6(y, inplace=True)


class MBConv(nn.Module):
    """1x1 expansion (absent at factor 1), depthwise, linear 1x1 projection; a shortcut where shapes agree."""

    def __init__(self, before: int, after: int, *, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        inner = before * expansion
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if expansion != 1:
            layers["inverted_bottleneck"] = Convolution(before, inner, 1)
        layers["depth_conv"] = Convolution(inner, inner, kernel, stride=stride, groups=inner)
        layers["point_linear"] = Convolution(inner, after, 1, linear=True)
        self.mobile_inverted_conv = nn.Sequential(layers)
        self.has_shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.mobile_inverted_conv(x)
        if self.has_shortcut:
            y += x
        return y


class MCUNet(Backbone):
    """What the networks share: a 3x3 convolution of stride 2, MBConvs from a table, the average.

    Attributes:
        stem: channels of the first convolution.
        layers: expansion, channels, stride and kernel of each MBConv.
    """

    stem: ClassVar[int]
    layers: ClassVar[tuple[tuple[int, int, int, int], ...]]

    def __init__(self) -> None:
        super().__init__(mean=(127.5, 127.5, 127.5), std=(127.5, 127.5, 127.5))
        self.first_conv = Convolution(3, self.stem, 3, stride=2)
        self._blocks = nn.ModuleList()
        blocks: list[Block] = []
        before, stride = self.stem, 2
        for index, (expansion, after, step, kernel) in enumerate(self.layers):
            stride *= step
            layer = MBConv(before, after, stride=step, expansion=expansion, kernel=kernel)
            self._blocks.append(layer)
            blocks.append(Block(f"blocks.{index}", layer, after, stride, (f"_blocks.{index}",)))
            before = after
        # the first convolution belongs to block 0, so that block k is the k-th MBConv, as in PaSTe
        blocks[0] = replace(blocks[0], run=self._first, modules=("first_conv", "_blocks.0"))
        blocks.append(Block("avgpool", average_pool, before, 0))
        self.set_blocks(blocks)

    def checkpoint_name(self, name: str) -> str:
        """Return the name without the underscore of `_blocks`: `blocks` is taken, every backbone has them."""
        return name.removeprefix("_")

    def _first(self, x: Tensor) -> Tensor:
        y: Tensor = self._blocks[0](self.first_conv(x))
        return y


@BACKBONES.register("mcunet_in3")
class MCUNetIn3(MCUNet):
    """0.58 M parameters, made for 320 KB of SRAM and 1 MB of flash (mcunet-320kb-1mb, trained at 176 x 176).

    Blocks: `blocks.0` (with the stem) .. `blocks.17`, `avgpool` (160 features).
    """

    name = "mcunet_in3"
    stem = 16
    layers = (
        (1, 8, 1, 3),
        (3, 16, 2, 7),
        (5, 16, 1, 3),
        (5, 16, 1, 7),
        (4, 16, 1, 5),
        (5, 24, 2, 5),
        (5, 24, 1, 5),
        (5, 24, 1, 5),
        (5, 40, 2, 3),
        (6, 40, 1, 7),
        (4, 40, 1, 5),
        (5, 48, 1, 5),
        (5, 48, 1, 7),
        (5, 48, 1, 3),
        (6, 96, 2, 3),
        (5, 96, 1, 7),
        (4, 96, 1, 3),
        (5, 160, 1, 7),
    )
    layer_groups = MappingProxyType(
        {
            "stfpm": ("blocks.2", "blocks.6", "blocks.14"),
            "paste": ("blocks.6", "blocks.10", "blocks.14"),
            "low": ("blocks.3", "blocks.6", "blocks.9"),
            "mid": ("blocks.6", "blocks.9", "blocks.12"),
            "high": ("blocks.9", "blocks.12", "blocks.15"),
        }
    )


@BACKBONES.register("mcunet_in4")
class MCUNetIn4(MCUNet):
    """1.4 M parameters, made for 512 KB of SRAM and 2 MB of flash (mcunet-512kb-2mb, trained at 160 x 160).

    Blocks: `blocks.0` (with the stem) .. `blocks.16`, `avgpool` (320 features). The groups are ours, PaSTe
    does not use this network: each block of a group of `mcunet_in3` became the one of its stride here that
    is as many blocks behind the downsampling.
    """

    name = "mcunet_in4"
    stem = 32
    layers = (
        (1, 16, 1, 3),
        (3, 24, 2, 7),
        (5, 24, 1, 3),
        (4, 24, 1, 5),
        (5, 40, 2, 7),
        (4, 40, 1, 3),
        (4, 40, 1, 7),
        (3, 80, 2, 7),
        (3, 80, 1, 3),
        (3, 80, 1, 7),
        (4, 96, 1, 3),
        (3, 96, 1, 5),
        (3, 96, 1, 5),
        (4, 192, 2, 7),
        (3, 192, 1, 7),
        (3, 192, 1, 5),
        (4, 320, 1, 5),
    )
    layer_groups = MappingProxyType(
        {
            "stfpm": ("blocks.2", "blocks.5", "blocks.13"),
            "paste": ("blocks.5", "blocks.9", "blocks.13"),
            "low": ("blocks.3", "blocks.5", "blocks.8"),
            "mid": ("blocks.5", "blocks.8", "blocks.11"),
            "high": ("blocks.8", "blocks.11", "blocks.14"),
        }
    )
