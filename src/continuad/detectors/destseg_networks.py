"""The networks of DeSTSeg: a student that denoises, and one that compares it with its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from continuad.backbones import BACKBONES, Backbone
from continuad.backbones.folding import normalised
from continuad.backbones.resnet import BasicBlock

RATES = (6, 12, 18)
DEEPEST_STRIDE = 32


def _stage(before: int, after: int) -> nn.Sequential:
    """Two residual blocks with He-normal convolutions."""
    stage = nn.Sequential(BasicBlock(before, after, 1), BasicBlock(after, after, 1))
    for module in stage.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return stage


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear", align_corners=False)


class DenoisingStudent(nn.Module):
    """An encoder of the teacher's architecture and a decoder back to the teacher's features.

    The encoder goes on to stride 32 (`layer4` of a ResNet), whether or not the teacher's checkpoint does. The
    decoder has a stage there, of twice the last tap's channels as in ResNets or of the encoder's if these are
    fewer, and one for each tap.

    Args:
        teacher: the backbone; the student shares nothing with it.
        taps: blocks of the teacher, first to last.
    """

    def __init__(self, teacher: Backbone, taps: Sequence[str]) -> None:
        super().__init__()
        self.taps = tuple(taps)
        with torch.device("meta"):  # the teacher's own blocks may end early
            blocks = [block for block in BACKBONES[teacher.name]().blocks if block.stride]
        deep = [block for block in blocks if block.stride == DEEPEST_STRIDE] or blocks
        last = next(block for block in reversed(blocks) if block.name in (deep[-1].name, self.taps[-1]))
        self.last = last.name
        self.encoder = teacher.student(self.last)
        channels = [teacher.block(tap).channels for tap in self.taps]
        widths = (last.channels, min(last.channels, 2 * channels[-1]), *reversed(channels))
        self.decoder = nn.ModuleList(_stage(before, after) for before, after in pairwise(widths))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Map images (B, 3, S, S) uint8 to tap name: features of the teacher's shape (B, C, H, W)."""
        encoded = self.encoder.features(images, (*self.taps, self.last))
        bottom, *stages = self.decoder
        x = bottom(encoded[self.last])
        decoded: dict[str, Tensor] = {}
        for tap, stage in zip(reversed(self.taps), stages, strict=True):
            x = stage(_resize(x, encoded[tap].shape[-2:]))
            decoded[tap] = x
        return {tap: decoded[tap] for tap in self.taps}


def similarities(teacher: Mapping[str, Tensor], student: Mapping[str, Tensor]) -> Tensor:
    """What each channel contributes to the cosine similarity of the features, negated.

    Args:
        teacher: tap name to features (B, C, H, W), first to last.
        student: the same.

    Returns:
        (B, sum of C, H_1, W_1), all taps at the first one's size.
    """
    layers = [-F.normalize(teacher[tap], dim=1) * F.normalize(student[tap], dim=1) for tap in student]
    return torch.cat([_resize(layer, layers[0].shape[-2:]) for layer in layers], 1)


class SegmentationNetwork(nn.Module):
    """Two residual blocks, atrous spatial pyramid pooling, a 3x3 and a 1x1 convolution.

    Args:
        channels: of what it is given.
        width: channels within.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.residual = _stage(channels, width)
        self.head = nn.Sequential(
            PyramidPooling(width), ConvNormReLU(width, width, 3), nn.Conv2d(width, 1, 1)
        )
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to logits (B, H, W)."""
        logits: Tensor = self.head(self.residual(x))
        return logits.squeeze(1)


class PyramidPooling(nn.Module):
    """Dilated convolutions of several rates beside a pooled view of the whole image (Chen et al. 2017)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.whole = ConvNormReLU(width, width, 1)
        self.whole.norm = SingleValueNorm(width)
        self.dilated = nn.ModuleList(ConvNormReLU(width, width, 3, dilation=rate) for rate in RATES)
        self.fused = ConvNormReLU((1 + len(RATES)) * width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the same shape."""
        whole = self.whole(x.mean((2, 3), keepdim=True)).expand_as(x)
        fused: Tensor = self.fused(torch.cat([whole, *(branch(x) for branch in self.dilated)], 1))
        return fused


class ConvNormReLU(nn.Module):
    """A convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, before: int, after: int, kernel: int, *, dilation: int = 1) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(before, after, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H, W)."""
        return F.relu(normalised(x, self.conv, self.norm))


class SingleValueNorm(nn.BatchNorm2d):
    """Batch norm that uses its running statistics for a single value per channel, which has no variance."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        if x.numel() > x.shape[1]:
            return super().forward(x)
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
