"""MicroNet-M1 (Li et al. 2021), the parameter names of the authors' code.

Every convolution is factorised: a square kernel into a column and a row, a 1x1 kernel into groups. Shuffles
and the activation mix what the groups keep apart.
"""

from __future__ import annotations

from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, Block, average_pool
from continuad.backbones.folding import normalised

_STEM = 6
# channels, kernel, groups of the wide channels, groups of the channels, DY-Shift-Max on the wide ones
_LITE = ((8, 3, 6, 2, False), (16, 3, 8, 4, True), (16, 5, 16, 4, True))
# channels, kernel, stride, groups, reduction
_FULL = ((32, 5, 1, 4, 8), (64, 5, 2, 8, 8), (96, 3, 1, 8, 16))
_HEAD = (576, 12, 16)  # channels, groups, reduction


class Separable(nn.Module):
    """A column convolution, then a row convolution of each channel by itself; each with its batch norm."""

    def __init__(
        self, before: int, middle: int, after: int, kernel: int, *, stride: int, groups: int
    ) -> None:
        super().__init__()
        half = kernel // 2
        self.conv = nn.Sequential(
            nn.Conv2d(before, middle, (kernel, 1), (stride, 1), (half, 0), groups=groups, bias=False),
            nn.BatchNorm2d(middle),
            nn.Conv2d(middle, after, (1, kernel), (1, stride), (0, half), groups=middle, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        column, column_norm, row, row_norm = self.conv.children()
        return normalised(normalised(x, column, column_norm), row, row_norm)  # type: ignore[arg-type]


class Pointwise(nn.Module):
    """A 1x1 convolution in groups and its batch norm."""

    def __init__(self, before: int, after: int, *, groups: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(before, after, 1, groups=groups, bias=False), nn.BatchNorm2d(after)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H, W)."""
        return normalised(x, *self.conv)


class ShiftMax(nn.Module):
    """DY-Shift-Max: each channel and its neighbour mixed in two ways, and the larger of the two.

    A channel's neighbour is the next one of the next group, both in a circle. A mixture is (1 + a) x + b x',
    where a and b of each channel, between -2 and 2, come from the means of all channels.

    Args:
        channels: of input and output.
        groups: of channels.
        reduction: channels for each hidden unit of the perceptron behind a and b.
        mixtures: 2, or 1, which is its own maximum.
    """

    def __init__(self, channels: int, *, groups: int, reduction: int, mixtures: int) -> None:
        super().__init__()
        hidden = max(channels // reduction, 4)
        self.fc = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, 2 * mixtures * channels)
        )
        self._groups = groups

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        batch, channels, height, width = x.shape
        groups = x.view(batch, self._groups, -1, height, width)
        neighbour = groups.roll((-1, -1), (1, 2)).flatten(1, 2)
        weights = 4 * F.hardsigmoid(self.fc(x.mean((2, 3)))) - 2
        a, b, *second = weights.view(batch, -1, channels, 1, 1).unbind(1)
        mixture = (1 + a) * x + b * neighbour
        if second:
            a, b = second
            mixture = torch.maximum(mixture, (1 + a) * x + b * neighbour)
        return mixture


class Stem(nn.Module):
    """A strided separable convolution whose columns see all colours."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            Separable(3, 3, _STEM, 3, stride=2, groups=1), nn.ChannelShuffle(3), nn.ReLU6(inplace=True)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 6, ceil(H / 2), ceil(W / 2))."""
        y: Tensor = self.stem(x)
        return y


class MicroBlock(nn.Module):
    """A sequence of layers."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = self.layers(x)
        return y


def _lite_block(
    before: int, after: int, *, kernel: int, wide_groups: int, groups: int, dynamic: bool
) -> MicroBlock:
    """A strided separable convolution that widens four times, then a 1x1 convolution that narrows."""
    wide = 4 * before
    return MicroBlock(
        Separable(before, 2 * before, wide, kernel, stride=2, groups=before),
        ShiftMax(wide, groups=wide_groups, reduction=8, mixtures=2) if dynamic else nn.ReLU6(inplace=True),
        nn.ChannelShuffle(wide_groups),
        nn.ChannelShuffle(wide // 2) if dynamic else nn.Identity(),
        Pointwise(wide, after, groups=groups),
        ShiftMax(after, groups=groups, reduction=4, mixtures=1),
        nn.ChannelShuffle(groups),
        nn.ChannelShuffle(after // 2),
    )


def _full_block(
    before: int, after: int, *, kernel: int, stride: int, groups: int, reduction: int
) -> MicroBlock:
    """A 1x1 convolution that widens six times, a separable one, and a 1x1 convolution that narrows."""
    wide = 6 * before
    return MicroBlock(
        Pointwise(before, wide, groups=groups),
        ShiftMax(wide, groups=groups, reduction=reduction, mixtures=2),
        nn.ChannelShuffle(groups),
        Separable(wide, wide, wide, kernel, stride=stride, groups=wide),
        nn.Identity(),  # the authors' numbers count it
        ShiftMax(wide, groups=wide // groups, reduction=reduction, mixtures=2),
        nn.ChannelShuffle(wide // 4),
        Pointwise(wide, after, groups=groups),
        ShiftMax(after, groups=groups, reduction=reduction // 2, mixtures=1),
        nn.ChannelShuffle(groups),
        nn.ChannelShuffle(after // 2),
    )


def _pool(x: Tensor) -> Tensor:
    """What the authors' classifier is given: (B, C, H, W) to (B, C, 1, 1)."""
    return F.hardswish(average_pool(F.relu6(x)))


@BACKBONES.register("micronet_m1")
class MicroNetM1(Backbone):
    """0.26 M parameters and 4 M multiplications for 224 x 224 pixels.

    Blocks: `features.0` (stem), `features.1` .. `features.7`, `avgpool` (576 features).
    """

    name = "micronet_m1"
    checkpoint_prefix = (
        "features."  # not an attribute: `features` is what every backbone's main method is called
    )
    layer_groups = MappingProxyType(
        {
            "stfpm": ("features.2", "features.4", "features.5"),
            "paste": ("features.3", "features.4", "features.5"),
            "low": ("features.1", "features.2", "features.3"),
            "mid": ("features.2", "features.3", "features.4"),
            "high": ("features.3", "features.4", "features.5"),
        }
    )

    def __init__(self) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        blocks: list[Block] = []

        def add(layer: nn.Module, channels: int, stride: int) -> int:
            name = str(len(blocks))
            self.add_module(name, layer)
            blocks.append(Block(f"features.{name}", layer, channels, stride, (name,)))
            return channels

        stride = 2
        before = add(Stem(), _STEM, stride)
        for after, kernel, wide_groups, groups, dynamic in _LITE:
            stride *= 2
            lite = _lite_block(
                before, after, kernel=kernel, wide_groups=wide_groups, groups=groups, dynamic=dynamic
            )
            before = add(lite, after, stride)
        for after, kernel, step, groups, reduction in _FULL:
            stride *= step
            full = _full_block(before, after, kernel=kernel, stride=step, groups=groups, reduction=reduction)
            before = add(full, after, stride)
        after, groups, reduction = _HEAD
        head = MicroBlock(
            Pointwise(before, after, groups=groups),
            ShiftMax(after, groups=groups, reduction=reduction, mixtures=1),
        )
        add(head, after, stride)
        blocks.append(Block("avgpool", _pool, after, 0))
        self.set_blocks(blocks)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He's gain is for ReLU; here it would let the features explode
                nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
