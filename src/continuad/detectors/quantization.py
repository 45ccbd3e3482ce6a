"""INT8 adapters by static post-training quantisation (AdapTS sec. 3.2).

Weights are per-tensor affine int8, activations per-tensor affine uint8 (held as int8, shifted by 128), both
ranged by their minimum and maximum. Products are accumulated in int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from continuad.detectors.adapters import Adapter


@dataclass
class Range:
    """The running minimum and maximum of an activation; zero is always inside."""

    low: float = 0.0
    high: float = 0.0

    def observe(self, x: Tensor) -> None:
        """Widen the range by the values of `x`."""
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))

    def grid(self) -> tuple[float, int]:
        """Return (scale, zero point) of the 256 levels -128..127 that cover the range."""
        scale = max(self.high - self.low, 1e-12) / 255
        return scale, round(-128 - self.low / scale)


def quantize(x: Tensor, scale: float | Tensor, zero: int | Tensor) -> Tensor:
    """Round to int8 levels: clamp(round(x / scale) + zero, -128, 127)."""
    return ((x / scale).round() + zero).clamp(-128, 127).to(torch.int8)


def dequantize(q: Tensor, scale: float | Tensor, zero: int | Tensor) -> Tensor:
    """Return (q - zero) * scale as float32."""
    return (q.float() - zero) * scale


class QuantizedLinear(nn.Module):
    """An affine int8 matrix product over channels; the only float state is bias, scales and zero points."""

    weight: Tensor
    bias: Tensor
    weight_grid: Tensor
    input_grid: Tensor

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("weight_grid", torch.tensor([1.0, 0.0]))
        self.register_buffer("input_grid", torch.tensor([1.0, 0.0]))

    def load(self, weight: Tensor, bias: Tensor, inputs: Range) -> None:
        """Quantise a float weight (outputs, inputs); `inputs` is the observed range of what comes in."""
        span = Range()
        span.observe(weight)
        scale, zero = span.grid()
        self.weight.copy_(quantize(weight, scale, zero))
        self.bias.copy_(bias)
        self.weight_grid.copy_(torch.tensor([scale, zero]))
        self.input_grid.copy_(torch.tensor(inputs.grid()))

    def forward(self, q: Tensor) -> Tensor:
        """Map int8 codes (N, inputs) on `input_grid` to float32 (N, outputs)."""
        zero_x, zero_w = self.input_grid[1].int(), self.weight_grid[1].int()
        # a clone, for `contiguous` keeps the strides (1, 1) of a single input, which _int_mm misreads
        weight = self.weight.t().clone(memory_format=torch.contiguous_format)
        total = torch._int_mm(q, weight)
        total -= zero_x * self.weight.sum(1, dtype=torch.int32)
        total -= (zero_w * q.sum(1, dtype=torch.int32))[:, None]
        total += q.shape[1] * zero_x * zero_w
        return total.float() * (self.input_grid[0] * self.weight_grid[0]) + self.bias


class QuantizedAdapter(nn.Module):
    """The INT8 form of an `Adapter`: batch norms folded, both convolutions and the output on int8 grids."""

    output_grid: Tensor

    def __init__(self, channels: int, latent: int) -> None:
        super().__init__()
        self.conv1 = QuantizedLinear(channels, latent)
        self.conv2 = QuantizedLinear(latent, channels)
        self.register_buffer("output_grid", torch.tensor([1.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) float32 to the same shape."""
        batch, channels, height, width = x.shape
        rows = x.permute(0, 2, 3, 1).reshape(-1, channels)
        codes = quantize(rows, *self.conv1.input_grid)
        hidden = self.conv1(codes).relu_()
        rows = dequantize(codes, *self.conv1.input_grid) + self.conv2(
            quantize(hidden, *self.conv2.input_grid)
        )
        rows = dequantize(quantize(rows, *self.output_grid), *self.output_grid)
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


class AdapterObserver:
    """Ranges of an adapter's input, latent and output, gathered over calibration images."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.inputs, self.hidden, self.outputs = Range(), Range(), Range()

    def __call__(self, x: Tensor) -> Tensor:
        """Run the adapter and observe it."""
        y: Tensor = self.adapter(x)
        self.inputs.observe(x)
        self.hidden.observe(self.adapter.hidden(x))
        self.outputs.observe(y)
        return y

    def quantized(self) -> QuantizedAdapter:
        """Return the INT8 adapter for the ranges seen so far."""
        weight1, bias1 = fold(self.adapter.conv1, self.adapter.norm1)
        weight2, bias2 = fold(self.adapter.conv2, self.adapter.norm2)
        result = QuantizedAdapter(weight1.shape[1], weight1.shape[0])
        result.conv1.load(weight1, bias1, self.inputs)
        result.conv2.load(weight2, bias2, self.hidden)
        result.output_grid.copy_(torch.tensor(self.outputs.grid()))
        return result.to(weight1.device)


def fold(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Return weight (outputs, inputs) and bias of a 1x1 convolution with its eval-mode batch norm."""
    weight, bias = conv.weight.detach().flatten(1), conv.bias
    assert bias is not None  # noqa: S101 - adapters always have one
    if norm is None:
        return weight, bias.detach()
    assert norm.running_mean is not None  # noqa: S101
    assert norm.running_var is not None  # noqa: S101
    gain = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
    return weight * gain[:, None], (bias.detach() - norm.running_mean) * gain + norm.bias.detach()
