"""ResNet v1.5 (He et al. 2016) and Wide ResNet (Zagoruyko and Komodakis 2016), named as in torchvision."""

from __future__ import annotations

from types import MappingProxyType
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, Block, average_pool
from continuad.backbones.folding import normalised


def _shortcut(before: int, after: int, stride: int) -> nn.Sequential | None:
    """Return the projection of a residual whose shape changes, None where the identity will do."""
    if stride == 1 and before == after:
        return None
    return nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _shortcut(before, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, planes, H / stride, W / stride)."""
        y = F.relu(normalised(x, self.conv1, self.bn1), inplace=True)
        y = normalised(y, self.conv2, self.bn2)
        y += x if self.downsample is None else normalised(x, *self.downsample)
        return F.relu(y, inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and a shortcut; the stride is on the 3x3 (v1.5)."""

    expansion: ClassVar[int] = 4
    widening: ClassVar[int] = 1

    def __init__(self, before: int, planes: int, stride: int) -> None:
        super().__init__()
        inner, after = planes * self.widening, planes * self.expansion
        self.conv1 = nn.Conv2d(before, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, after, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(after)
        self.downsample = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, 4 * planes, H / stride, W / stride)."""
        y = F.relu(normalised(x, self.conv1, self.bn1), inplace=True)
        y = F.relu(normalised(y, self.conv2, self.bn2), inplace=True)
        y = normalised(y, self.conv3, self.bn3)
        y += x if self.downsample is None else normalised(x, *self.downsample)
        return F.relu(y, inplace=True)


class WideBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution has twice the channels."""

    widening: ClassVar[int] = 2


class ResNet(Backbone):
    """Blocks: `stem`, `layer1` .. `layer4` (strides 4, 8, 16, 32), `avgpool` (512 or 2048 features).

    Attributes:
        residual: the kind of residual block.
        depths: residual blocks in each stage.
    """

    layer_groups = MappingProxyType({"stfpm": ("layer1", "layer2", "layer3"), "paste": ("layer2", "layer3")})

    def __init__(self, residual: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int]) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        self.residual, self.depths = residual, depths
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        blocks = [Block("stem", self._stem, 64, 4, ("conv1", "bn1"))]
        before = 64
        for index, depth in enumerate(depths):
            name, planes = f"layer{index + 1}", 64 * 2**index
            after = planes * residual.expansion
            stage = nn.Sequential(
                residual(before, planes, 1 if index == 0 else 2),
                *(residual(after, planes, 1) for _ in range(depth - 1)),
            )
            self.add_module(name, stage)
            blocks.append(Block(name, stage, after, 4 * 2**index, (name,)))
            before = after
        blocks.append(Block("avgpool", average_pool, before, 0))
        self.set_blocks(blocks)

    def _stem(self, x: Tensor) -> Tensor:
        return F.max_pool2d(F.relu(normalised(x, self.conv1, self.bn1), inplace=True), 3, stride=2, padding=1)


@BACKBONES.register("resnet18")
class ResNet18(ResNet):
    """18 layers, 11.2 M parameters."""

    name = "resnet18"

    def __init__(self) -> None:
        super().__init__(BasicBlock, (2, 2, 2, 2))


@BACKBONES.register("resnet34")
class ResNet34(ResNet):
    """34 layers, 21.3 M parameters."""

    name = "resnet34"

    def __init__(self) -> None:
        super().__init__(BasicBlock, (3, 4, 6, 3))


@BACKBONES.register("resnet50")
class ResNet50(ResNet):
    """50 layers, 23.5 M parameters."""

    name = "resnet50"

    def __init__(self) -> None:
        super().__init__(Bottleneck, (3, 4, 6, 3))


@BACKBONES.register("wide_resnet50_2")
class WideResNet50x2(ResNet):
    """50 layers, twice as wide inside, 66.8 M parameters: the teacher of AdapTS (sec. 4.1)."""

    name = "wide_resnet50_2"

    def __init__(self) -> None:
        super().__init__(WideBottleneck, (3, 4, 6, 3))
