"""PhiNet (Paissan et al. 2022) as PaSTe uses it: alpha 1.2, beta 0.5, t0 6, seven layers.

Parameter names are those of micromind's PhiNet.
"""

from __future__ import annotations

import itertools
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones.base import BACKBONES, IMAGENET_MEAN, IMAGENET_STD, Backbone, Block, average_pool
from continuad.backbones.folding import normalised

_STEM = 56
# expanded channels, those of squeeze-and-excitation, channels, stride: the paper's scaling in multiples of 8
_BLOCKS = (
    (56, 0, 32, 1),
    (176, 32, 32, 2),
    (168, 32, 32, 1),
    (152, 24, 56, 2),
    (240, 40, 112, 2),
    (432, 72, 232, 2),
    (792, 136, 232, 1),
    (696, 120, 464, 2),
)


def _norm(channels: int) -> nn.BatchNorm2d:
    # not with micromind's momentum of 0.999, which in PyTorch keeps next to nothing but the last batch
    return nn.BatchNorm2d(channels, eps=1e-3)


class Layers(nn.Module):
    """A sequence; a convolution and the batch norm behind it run as one."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self._layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        for layer, following in itertools.pairwise((*self._layers, nn.Identity())):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                x = normalised(x, layer, following)
            elif not isinstance(layer, nn.BatchNorm2d):
                x = layer(x)
        return x


class Stem(Layers):
    """3x3 convolution of each colour by itself, then 1x1."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 3, 3, stride=2, groups=3, bias=False),
            nn.Conv2d(3, _STEM, 1, bias=False),
            _norm(_STEM),
            nn.Hardswish(inplace=True),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to (B, 56, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[2:]
        return super().forward(F.pad(x, (width % 2, 1, height % 2, 1)))  # an even side: zeros behind only


class SqueezeExcite(nn.Module):
    """Weight each channel by what the means of all channels say (Hu et al. 2018); no biases."""

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.se_conv = nn.Conv2d(channels, reduced, 1, bias=False)
        self.se_conv2 = nn.Conv2d(reduced, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, channels, H, W) to the same shape."""
        weights: Tensor = self.se_conv2(F.hardswish(self.se_conv(average_pool(x))))
        return x * weights.sigmoid()


class PhiBlock(Layers):
    """1x1 expansion, 3x3 depthwise, squeeze-and-excitation, 1x1 projection; a shortcut where shapes agree.

    Without expansion where `inner` is `before`, without squeeze-and-excitation where `reduced` is 0.
    """

    def __init__(self, before: int, inner: int, reduced: int, after: int, *, stride: int) -> None:
        expand = (nn.Conv2d(before, inner, 1, bias=False), _norm(inner), nn.Hardswish(inplace=True))
        super().__init__(
            *(expand if inner != before else ()),
            nn.Identity(),  # micromind's dropout: a student is to learn the same on every run
            nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False),
            _norm(inner),
            nn.Hardswish(inplace=True),
            *((SqueezeExcite(inner, reduced),) if reduced else ()),
            nn.Conv2d(inner, after, 1, bias=False),
            _norm(after),
        )
        self._has_shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        y = super().forward(x)
        if self._has_shortcut:
            y += x
        return y


@BACKBONES.register("phinet")
class PhiNet(Backbone):
    """1.6 M parameters, of a family made for microcontrollers.

    Blocks: `layers.1` (stem, with the padding that is micromind's layer 0), `layers.2` (no expansion),
    `layers.3` .. `layers.9`, `avgpool` (464 features).
    """

    name = "phinet"
    checkpoint_prefix = "_layers."
    layer_groups = MappingProxyType(
        {
            "stfpm": ("layers.2", "layers.6", "layers.7"),
            "paste": ("layers.5", "layers.6", "layers.7"),
            "low": ("layers.4", "layers.5", "layers.6"),
            "mid": ("layers.5", "layers.6", "layers.7"),
            "high": ("layers.6", "layers.7", "layers.8"),
        }
    )

    def __init__(self) -> None:
        super().__init__(mean=IMAGENET_MEAN, std=IMAGENET_STD)
        blocks: list[Block] = []

        def add(layer: nn.Module, channels: int, stride: int) -> None:
            name = str(1 + len(blocks))
            self.add_module(name, layer)
            blocks.append(Block(f"layers.{name}", layer, channels, stride, (name,)))

        before, stride = _STEM, 2
        add(Stem(), before, stride)
        for inner, reduced, after, step in _BLOCKS:
            stride *= step
            add(PhiBlock(before, inner, reduced, after, stride=step), after, stride)
            before = after
        blocks.append(Block("avgpool", average_pool, before, 0))
        self.set_blocks(blocks)
