"""What reverse distillation trains: a bottleneck behind the teacher, and a decoder that runs it backwards.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones import Backbone, Block
from continuad.backbones.resnet import BasicBlock, Bottleneck, ResNet
from continuad.errors import SettingsError

DEPTH = 2
"""Residual blocks of a stage where the teacher has none to go by."""

Residual = type[BasicBlock | Bottleneck]


class ReverseNetwork(nn.Module):
    """Compresses a teacher's features of an image, and computes them again from what is left.

    For a ResNet it is the published one, of the teacher's own residual blocks. For others the blocks are
    basic, and each layer gets a 1x1 convolution behind the last ReLU: their features go below zero, too.

    Args:
        teacher: the backbone.
        layers: its blocks to reconstruct, in order.

    Raises:
        SettingsError: the layers are too many, or one is pooled or of a stride that halving does not give.
    """

    def __init__(self, teacher: Backbone, layers: Sequence[str]) -> None:
        super().__init__()
        blocks = [teacher.block(layer) for layer in layers]
        residual: Residual = BasicBlock
        depths: tuple[int, ...] = (DEPTH,) * (len(layers) + 1)
        if isinstance(teacher, ResNet):
            residual, depths = teacher.residual, teacher.depths
        if len(layers) > len(depths):
            raise SettingsError(
                f"A decoder of {len(depths)} stages cannot restore {len(layers)} layers of {teacher.name}.",
                "Choose fewer layers.",
            )
        self.bottleneck = OneClassBottleneck(blocks, residual, depths[-1])
        self.decoder = Decoder(blocks, residual, depths[: len(layers)])
        self.heads = nn.ModuleList(
            nn.Identity() if isinstance(teacher, ResNet) else nn.Conv2d(block.channels, block.channels, 1)
            for block in blocks
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Map the teacher's features (B, C_l, H_l, W_l) of each layer to features of the same shapes."""
        decoded = self.decoder(self.bottleneck(features), [f.shape[-2:] for f in features])
        return [head(x) for head, x in zip(self.heads, decoded, strict=True)]


class OneClassBottleneck(nn.Module):
    """Brings all layers to the last one's size and fuses them (MFF), then embeds them at half of it (OCE).

    As published, but without a 1x1 convolution and its norm that are declared there and never run.
    """

    def __init__(self, layers: Sequence[Block], residual: Residual, depth: int) -> None:
        super().__init__()
        channels = layers[-1].channels
        self.descents = nn.ModuleList(_descent(layers[index:]) for index in range(len(layers)))
        self.embedding = _stage(residual, len(layers) * channels, 2 * channels, [2], depth)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map features (B, C_l, H_l, W_l) of each layer to (B, 2 C, H / 2, W / 2), of the last C, H and W."""
        fused = torch.cat([descent(f) for descent, f in zip(self.descents, features, strict=True)], 1)
        embedded: Tensor = self.embedding(fused)
        return embedded


class Decoder(nn.Module):
    """A residual stage per layer, from the last to the first, each ending where the layer does.

    As published, depths are not mirrored: the first stage to run is as deep as the teacher's first.
    """

    def __init__(self, layers: Sequence[Block], residual: Residual, depths: Sequence[int]) -> None:
        super().__init__()
        backwards = layers[::-1]
        channels = [2 * layers[-1].channels, *(layer.channels for layer in backwards)]
        steps = [[2], *(_steps(layer, later) for later, layer in itertools.pairwise(backwards))]
        self.stages = nn.ModuleList(
            _mirrored(_stage(residual, before, after, strides, depth))
            for (before, after), strides, depth in zip(
                itertools.pairwise(channels), steps, depths, strict=True
            )
        )

    def forward(self, x: Tensor, sizes: Sequence[torch.Size]) -> list[Tensor]:
        """Map the embedding to a ReLU's output (B, C_l, H_l, W_l) for each layer.

        Args:
            x: (B, 2 C, H / 2, W / 2), of the last layer's C, H and W.
            sizes: (H_l, W_l) of each layer.
        """
        decoded: list[Tensor] = []
        for stage, (height, width) in zip(self.stages, reversed(sizes), strict=True):
            x = stage(x)[..., :height, :width]  # half of an odd size was rounded up
            decoded.insert(0, x)
        return decoded


class UpConv2d(nn.Conv2d):
    """A transposed convolution with a kernel as wide as its stride; its weight is that of a convolution."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__(before, after, stride, stride=stride, bias=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map (B, before, H, W) to (B, after, stride * H, stride * W)."""
        return F.conv_transpose2d(x, weight.transpose(0, 1), bias, self.stride)


def _stage(residual: Residual, before: int, after: int, steps: Sequence[int], depth: int) -> nn.Sequential:
    """Residual blocks whose first have these strides, at least `depth` of them."""
    strides = [*steps, *[1] * (depth - len(steps))]
    channels = [before, *[after] * (len(strides) - 1)]
    planes = after // residual.expansion
    return nn.Sequential(*(residual(c, planes, stride) for c, stride in zip(channels, strides, strict=True)))


def _mirrored(stage: nn.Sequential) -> nn.Sequential:
    """Replace strided convolutions by transposed ones, so that the stage enlarges what it made smaller."""
    for name, conv in [*stage.named_modules()]:
        if isinstance(conv, nn.Conv2d) and conv.stride != (1, 1):
            parent, _, attribute = name.rpartition(".")
            transposed = UpConv2d(conv.in_channels, conv.out_channels, conv.stride[0])
            setattr(stage.get_submodule(parent), attribute, transposed)
    return stage


def _descent(layers: Sequence[Block]) -> nn.Sequential:
    """3x3 convolutions that bring the first of the layers to the size and channels of the last."""
    modules: list[nn.Module] = []
    for layer, following in itertools.pairwise(layers):
        before, after = layer.channels, following.channels
        for stride in _steps(layer, following):
            modules += [
                nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.ReLU(inplace=True),
            ]
            before = after
    return nn.Sequential(*modules)


def _steps(layer: Block, following: Block) -> list[int]:
    """The strides, 2 each, that lead from one layer to a later one; a single 1 where they are as large."""
    ratio, rest = divmod(following.stride, layer.stride)
    if rest or ratio.bit_count() != 1:
        raise SettingsError(
            f"{following.name!r} is not {layer.name!r} halved in size some times.", "Choose other layers."
        )
    return [2] * (ratio.bit_length() - 1) or [1]
