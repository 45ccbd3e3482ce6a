"""MobileNetV2 (Sandler et al. 2018) at width 1.0, torchvision's parameter names."""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, Block, average_pool
from continuad.backbones.folding import normalised

# expansion, channels, repeats, stride of the first repeat (Table 2 of the paper)
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Convolution(nn.Sequential):
    """Convolution, batch norm and ReLU6."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(
            nn.Conv2d(before, after, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(after),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / stride, W / stride)."""
        return F.relu6(normalised(x, *self), inplace=True)


class InvertedResidual(nn.Module):
    """1x1 expansion (absent at 1), 3x3 depthwise, linear 1x1 projection; a shortcut where shapes agree."""

    def __init__(self, before: int, after: int, *, stride: int, expansion: int) -> None:
        super().__init__()
        inner = before * expansion
        expand = [] if expansion == 1 else [Convolution(before, inner, 1)]
        self.conv = nn.Sequential(
            *expand,
            Convolution(inner, inner, 3, stride=stride, groups=inner),
            nn.Conv2d(inner, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.has_shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, H / stride, W / stride)."""
        *layers, project, norm = self.conv.children()
        y = x
        for layer in layers:
            y = layer(y)
        y = normalised(y, project, norm)  # type: ignore[arg-type]
        if self.has_shortcut:
            y += x
        return y


@BACKBONES.register("mobilenet_v2")
class MobileNetV2(Backbone):
    """2.2 M parameters, made for phones.

    Blocks: `features.0` (stem), 17 inverted residuals, `features.18` (1x1 head), `avgpool` (1280 features).
    """

    name = "mobilenet_v2"
    checkpoint_prefix = (
        "features."  # not an attribute: `features` is what every backbone's main method is called
    )
    layer_groups = MappingProxyType(
        {
            "stfpm": ("features.3", "features.8", "features.14"),
            "paste": ("features.7", "features.10", "features.14"),
            "low": ("features.4", "features.7", "features.10"),
            "mid": ("features.7", "features.10", "features.13"),
            "high": ("features.10", "features.13", "features.16"),
        }
    )

    def __init__(self) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        blocks: list[Block] = []

        def add(layer: nn.Module, channels: int, stride: int) -> None:
            name = str(len(blocks))
            self.add_module(name, layer)
            blocks.append(Block(f"features.{name}", layer, channels, stride, (name,)))

        before, stride = 32, 2
        add(Convolution(3, before, 3, stride=2), before, stride)
        for expansion, after, repeats, first in _STAGES:
            for step in (first, *(1,) * (repeats - 1)):
                stride *= step
                add(InvertedResidual(before, after, stride=step, expansion=expansion), after, stride)
                before = after
        add(Convolution(before, 1280, 1), 1280, stride)
        blocks.append(Block("avgpool", average_pool, 1280, 0))
        self.set_blocks(blocks)
