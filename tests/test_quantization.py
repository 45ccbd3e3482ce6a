from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from continuad.detectors.adapters import ADAPTER_KINDS, Adapter
from continuad.detectors.quantization import (
    AdapterObserver,
    QuantizedAdapter,
    QuantizedLinear,
    Range,
    dequantize,
    fold,
    quantize,
)

quick = settings(max_examples=40, deadline=None)
channel_counts = st.sampled_from([1, 2, 3, 7, 8, 24, 40])
bounds = st.floats(-1e4, 1e4, width=32)


def observed(*values: float) -> Range:
    span = Range()
    span.observe(torch.tensor(values))
    return span


def trained(channels: int, kind: str, seed: int) -> Adapter:
    """An adapter whose batch norms have seen something, in eval mode and without gradients."""
    generator = torch.Generator().manual_seed(seed)
    adapter = Adapter(channels, kind).eval().requires_grad_(False)
    for norm in (adapter.norm1, adapter.norm2):
        if norm is not None:
            for tensor in (norm.running_mean, norm.bias, norm.weight):
                assert tensor is not None
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
            assert norm.running_var is not None
            norm.running_var.copy_(0.1 + torch.rand(norm.running_var.shape, generator=generator))
    return adapter


def features(channels: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(3, channels, 5, 4, generator=generator)


def calibrated(adapter: Adapter, x: Tensor) -> QuantizedAdapter:
    observer = AdapterObserver(adapter)
    assert torch.equal(observer(x), adapter(x))
    return observer.quantized()


# --- grids ----------------------------------------------------------------------------------------


@quick
@given(st.lists(bounds, min_size=1, max_size=6))
def test_a_grid_covers_the_range_and_holds_zero_exactly(values: list[float]) -> None:
    span = observed(*values)
    assert span.low == min(0.0, *values)
    assert span.high == max(0.0, *values)
    scale, zero = span.grid()
    assert scale > 0
    assert -128 <= zero <= 127
    assert dequantize(quantize(torch.zeros(1), scale, zero), scale, zero).item() == 0
    x = torch.tensor(values)
    codes = quantize(x, scale, zero)
    assert codes.dtype == torch.int8
    error = (dequantize(codes, scale, zero) - x).abs().max().item()
    assert error <= scale * 1.001 + 1e-9  # the zero point is rounded: one quantum at the ends of the range
    inside = (x - span.low > scale) & (span.high - x > scale)
    if inside.any():
        assert (dequantize(codes, scale, zero) - x).abs()[inside].max().item() <= scale * 0.501 + 1e-9


@pytest.mark.parametrize(
    ("values", "scale", "zero"),
    [
        ((0.0, 255.0), 1.0, -128),
        ((-255.0, 0.0), 1.0, 127),
        ((-128.0, 127.0), 1.0, 0),
        ((-51.0, 204.0), 1.0, -77),
        ((10.0, 510.0), 2.0, -128),  # widened to include zero
    ],
)
def test_scales_and_zero_points_by_hand(values: tuple[float, ...], scale: float, zero: int) -> None:
    assert observed(*values).grid() == (scale, zero)


def test_a_range_widens_over_observations() -> None:
    span = observed(1.0, 2.0)
    span.observe(torch.tensor([-3.0]))
    span.observe(torch.tensor([0.5]))
    assert span == Range(-3.0, 2.0)


def test_values_outside_the_range_saturate() -> None:
    scale, zero = observed(-1.0, 1.0).grid()
    assert quantize(torch.tensor([-50.0, 50.0, 1e30]), scale, zero).tolist() == [-128, 127, 127]


# --- the integer product --------------------------------------------------------------------------


def reference(layer: QuantizedLinear, codes: Tensor) -> NDArray[np.float32]:
    """The layer in numpy, accumulated in int64."""
    (scale_x, zero_x), (scale_w, zero_w) = layer.input_grid.numpy(), layer.weight_grid.numpy()
    q = codes.numpy().astype(np.int64) - int(zero_x)
    w = layer.weight.numpy().astype(np.int64) - int(zero_w)
    result: NDArray[np.float32] = (q @ w.T).astype(np.float32) * (scale_x * scale_w) + layer.bias.numpy()
    return result


@quick
@given(
    rows=st.integers(1, 20),
    inputs=st.integers(1, 48),
    outputs=st.integers(1, 48),
    low=bounds,
    high=bounds,
    seed=st.integers(0, 2**16),
)
@example(rows=20, inputs=1, outputs=8, low=-1.0, high=1.0, seed=0)
@example(rows=1, inputs=7, outputs=1, low=-1.0, high=1.0, seed=0)
def test_the_integer_path_is_exact(
    rows: int, inputs: int, outputs: int, low: float, high: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) + torch.randn(1, generator=generator)
    layer = QuantizedLinear(inputs, outputs)
    layer.load(weight, torch.randn(outputs, generator=generator), observed(low, high))
    codes = torch.randint(-128, 128, (rows, inputs), dtype=torch.int8, generator=generator)
    assert np.array_equal(layer(codes).numpy(), reference(layer, codes))


@pytest.mark.parametrize("code", [-128, 127])
@pytest.mark.parametrize("weight", [-1.0, 1.0])
def test_the_accumulator_neither_saturates_nor_overflows(code: int, weight: float) -> None:
    layer = QuantizedLinear(2048, 16)
    layer.load(torch.full((16, 2048), weight), torch.zeros(16), observed(-1.0, 1.0))
    codes = torch.full((32, 2048), code, dtype=torch.int8)
    assert np.array_equal(layer(codes).numpy(), reference(layer, codes))


def test_a_layer_approximates_the_float_product() -> None:
    x, weight, bias = torch.randn(50, 24), torch.randn(40, 24), torch.randn(40)
    span = Range()
    span.observe(x)
    layer = QuantizedLinear(24, 40)
    layer.load(weight, bias, span)
    found = layer(quantize(x, *span.grid()))
    exact = x @ weight.t() + bias
    assert (found - exact).pow(2).mean().sqrt() < 0.02 * exact.std()


# --- folding --------------------------------------------------------------------------------------


@quick
@given(channels=channel_counts, seed=st.integers(0, 2**16))
def test_folding_a_batch_norm_changes_nothing(channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    adapter = trained(channels, "bottleneck50", seed).double()
    x = features(channels, seed).double()
    for conv, norm, given_x in [
        (adapter.conv1, adapter.norm1, x),
        (adapter.conv2, adapter.norm2, adapter.hidden(x)),
    ]:
        assert norm is not None
        weight, bias = fold(conv, norm)
        folded = nn.functional.conv2d(given_x, weight[:, :, None, None], bias)
        assert torch.allclose(folded, norm(conv(given_x)), atol=1e-9, rtol=1e-9)


def test_without_a_batch_norm_there_is_nothing_to_fold() -> None:
    conv = nn.Conv2d(3, 4, 1)
    weight, bias = fold(conv, None)
    assert conv.bias is not None
    assert torch.equal(weight, conv.weight[:, :, 0, 0])
    assert torch.equal(bias, conv.bias)


# --- the adapter ----------------------------------------------------------------------------------


def tolerance(quantized: QuantizedAdapter, adapter: Adapter, x: Tensor) -> float:
    """What rounding each stored or passed value by at most one quantum can add up to."""
    weight1, _ = fold(adapter.conv1, adapter.norm1)
    weight2, _ = fold(adapter.conv2, adapter.norm2)
    conv1, conv2 = quantized.conv1, quantized.conv2
    step_x, step_h = float(conv1.input_grid[0]), float(conv2.input_grid[0])
    step_y = float(quantized.output_grid[0])
    inputs = x.abs().sum(1).max().item() + x.shape[1] * step_x
    hidden = adapter.hidden(x).abs().sum(1).max().item()
    error_h = weight1.abs().sum(1).max().item() * step_x + inputs * float(conv1.weight_grid[0]) + step_h
    hidden += weight1.shape[0] * error_h
    error_y = weight2.abs().sum(1).max().item() * error_h + hidden * float(conv2.weight_grid[0])
    return step_x + error_y + step_y


@quick
@given(
    channels=channel_counts,
    kind=st.sampled_from(list(ADAPTER_KINDS)),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-3, 1.0, 50.0]),
)
def test_the_int8_adapter_stays_within_the_stated_quanta(
    channels: int, kind: str, seed: int, scale: float
) -> None:
    torch.manual_seed(seed)
    adapter, x = trained(channels, kind, seed), features(channels, seed, scale)
    quantized = calibrated(adapter, x)
    y, exact = quantized(x), adapter(x)
    assert y.shape == x.shape
    assert y.dtype == torch.float32
    assert (y - exact).abs().max().item() <= tolerance(quantized, adapter, x)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("channels", [7, 24, 40, 256])
def test_the_typical_error_is_near_the_grid_of_the_output(channels: int, kind: str) -> None:
    torch.manual_seed(0)
    adapter, x = trained(channels, kind, 0), features(channels, 0)
    exact = adapter(x)
    error = (calibrated(adapter, x)(x) - exact).pow(2).mean().sqrt()
    assert error < 0.03 * exact.std()


def test_the_output_lies_on_its_grid() -> None:
    adapter, x = trained(24, "linear", 0), features(24, 0)
    quantized = calibrated(adapter, x)
    scale, zero = quantized.output_grid.tolist()
    codes = quantized(x) / scale + zero
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.min() > -128.5
    assert codes.max() < 127.5


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0])
@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_constant_inputs_calibrate(value: float, kind: str) -> None:
    adapter, x = trained(8, kind, 1), torch.full((1, 8, 3, 3), value)
    quantized = calibrated(adapter, x)
    y = quantized(x)
    assert torch.isfinite(y).all()
    assert (y - adapter(x)).abs().max().item() <= tolerance(quantized, adapter, x)
    assert torch.isfinite(quantized(features(8, 0, 100.0))).all()


def test_an_adapter_of_zeros_is_the_identity_up_to_rounding() -> None:
    adapter, x = Adapter(8).eval().requires_grad_(False), features(8, 0)
    nn.init.zeros_(adapter.conv1.weight)
    nn.init.zeros_(adapter.conv2.weight)
    quantized = calibrated(adapter, x)
    assert (quantized(x) - x).abs().max() <= 2 * quantized.output_grid[0]


@pytest.mark.parametrize("shape", [(1, 7, 1, 1), (2, 7, 1, 9), (1, 7, 13, 3)])
def test_any_spatial_size_and_memory_layout(shape: tuple[int, ...]) -> None:
    quantized = calibrated(trained(7, "linear", 0), features(7, 0))
    x = torch.randn(shape)
    y = quantized(x)
    assert y.shape == shape
    assert torch.equal(quantized(x.contiguous(memory_format=torch.channels_last)), y)
    for row in range(shape[0]):
        assert torch.equal(quantized(x[row : row + 1]), y[row : row + 1])


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
def test_state_survives_and_is_stored_as_int8(kind: str) -> None:
    adapter, x = trained(40, kind, 0), features(40, 0)
    quantized = calibrated(adapter, x)
    state = quantized.state_dict()
    assert {name for name, t in state.items() if t.dtype == torch.int8} == {"conv1.weight", "conv2.weight"}
    assert {t.dtype for name, t in state.items() if not name.endswith("weight")} == {torch.float32}
    assert sum(t.nbytes for t in state.values()) < 0.4 * sum(t.nbytes for t in adapter.state_dict().values())
    copy = QuantizedAdapter(40, adapter.conv1.out_channels)
    copy.load_state_dict(state)
    assert torch.equal(copy(x), quantized(x))
    assert not list(quantized.parameters())


def test_an_observer_takes_ranges_over_all_images() -> None:
    adapter, x = trained(8, "linear", 0), features(8, 0)
    whole, pieces = AdapterObserver(adapter), AdapterObserver(adapter)
    whole(x)
    for row in x:
        pieces(row[None])
    assert whole.inputs == pieces.inputs == Range(float(x.min()), float(x.max()))
    assert pieces.hidden.low == 0
    for span, same in [(whole.hidden, pieces.hidden), (whole.outputs, pieces.outputs)]:
        assert (span.low, span.high) == pytest.approx((same.low, same.high), rel=1e-5)
