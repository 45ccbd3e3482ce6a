from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from continuad.detectors.adapters import ADAPTER_KINDS, Adapter
from continuad.detectors.quantization import QuantizedAdapter
from continuad.errors import ContinuadError
from continuad.metrics import memory
from continuad.metrics.costs import MB, MIB, Macs, macs, macs_by_pass, state_bytes, tensor_bytes
from continuad.metrics.memory import peak_bytes


def linear_adapter(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 1),
    )


def test_published_adapter_sizes() -> None:
    # AdapTS table 3: linear adapters behind stages 2 and 3 of WideResNet50 take "10.03 MB", buffers included.
    adapters = nn.ModuleList([linear_adapter(512), linear_adapter(1024)])
    parameters = 4 * sum(2 * channels**2 + 4 * channels for channels in (512, 1024))
    statistics = 4 * 2 * (512 + 1024) + 8 * 2  # mean and variance in float32, one int64 counter per layer
    assert tensor_bytes(adapters, include_buffers=False) == parameters
    assert tensor_bytes(adapters, include_buffers=True) == parameters + statistics
    assert tensor_bytes(adapters, include_buffers=True) / MIB == pytest.approx(10.035, abs=5e-4)


def test_published_replay_size() -> None:
    # The thesis' replay of 100 images of 256 x 256: "19.66 MB", decimal.
    module = nn.Module()
    module.register_buffer("images", torch.zeros(100, 3, 256, 256, dtype=torch.uint8), persistent=False)
    assert tensor_bytes(module, include_buffers=True) / MB == 19.6608
    assert tensor_bytes(module, include_buffers=False) == 0


def test_frozen_and_half_precision_parameters_count_and_shared_ones_count_once() -> None:
    layer = nn.Linear(10, 10, bias=False).half().requires_grad_(False)
    assert tensor_bytes(nn.Sequential(layer, layer), include_buffers=False) == 200


CONV, DEPTHWISE = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, groups=8)
INT8 = torch.zeros(18, 32, dtype=torch.int8)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: CONV(torch.zeros(2, 3, 16, 16)), 2 * 8 * 8 * 8 * 3 * 9),
        (lambda: DEPTHWISE(torch.zeros(1, 8, 6, 6)), 4 * 4 * 8 * 9),
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2)(torch.zeros(1, 4, 5, 5)), 25 * 4 * 6 * 4),
        (lambda: nn.Linear(7, 5)(torch.zeros(3, 7)), 3 * 7 * 5),
        (lambda: torch.zeros(2, 3, 4) @ torch.zeros(2, 4, 5), 2 * 3 * 4 * 5),
        (lambda: torch._int_mm(INT8, INT8.t().contiguous()), 18 * 32 * 18),
        (lambda: functional.interpolate(torch.zeros(1, 1, 8, 8), scale_factor=2).relu(), 0),
    ],
    ids=["conv", "depthwise", "transposed", "linear", "bmm", "int8", "element-wise"],
)
@pytest.mark.parametrize("guard", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_macs_by_hand(
    call: Callable[[], object], expected: int, guard: Callable[[], AbstractContextManager[object]]
) -> None:
    with guard():
        assert macs(call) == expected


@pytest.mark.parametrize(("channels", "side"), [(256, 56), (512, 28), (1024, 14)])
def test_macs_of_an_adapter_do_not_depend_on_the_stage(channels: int, side: int) -> None:
    adapter = linear_adapter(channels).eval().to("meta")
    x = torch.zeros(1, channels, side, side, device="meta")
    assert macs(lambda: adapter(x)) == 2 * 56**2 * 256**2  # AdapTS: 411.04 M at 224 px


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize(("channels", "side"), [(16, 4), (40, 1)])
def test_an_int8_adapter_counts_like_its_float_form(kind: str, channels: int, side: int) -> None:
    adapter = Adapter(channels, kind).eval()
    quantized = QuantizedAdapter(channels, adapter.conv1.out_channels)
    x = torch.zeros(2, channels, side, side)
    assert macs(lambda: quantized(x)) == macs(lambda: adapter(x)) > 0


# --- the backward pass


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 8, 3, padding=1),
        nn.Conv2d(4, 8, 3, stride=2, bias=False),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.ConvTranspose2d(4, 8, 2, stride=2),
        nn.ConvTranspose2d(4, 8, 3, groups=4),
        nn.Linear(6, 5),
    ],
    ids=str,
)
def test_each_gradient_takes_what_the_layer_takes(layer: nn.Module) -> None:
    x = torch.zeros(2, 4, 6, 6)
    once = macs(lambda: layer(x))
    assert once > 0
    assert macs_by_pass(lambda: layer(x).sum().backward()) == Macs(once, once)  # of the weight
    x.requires_grad_()
    assert macs_by_pass(lambda: layer(x).sum().backward()) == Macs(once, 2 * once)
    layer.requires_grad_(False)
    assert macs_by_pass(lambda: layer(x).sum().backward()) == Macs(once, once)  # of the input
    assert Macs(once, 2 * once).total == 3 * once


def test_what_follows_a_backward_pass_is_forward_again() -> None:
    x, weight = torch.zeros(3, 7), torch.zeros(7, 5, requires_grad=True)

    def call() -> None:
        (x @ weight).sum().backward()
        x @ weight

    assert macs_by_pass(call) == Macs(2 * 105, 105)


# --- memory


def test_state_is_parameters_and_buffers_without_step_counters() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), QuantizedAdapter(6, 2))
    module.register_buffer("scratch", torch.zeros(100), persistent=False)
    weights = 4 * (12 + 4) + 4 * 8 + (12 + 12) + 4 * (2 + 6)  # convolution, norm, INT8 weights and biases
    sizes = state_bytes(module)
    assert (sizes.parameters, sizes.buffers) == (weights, 4 * 8 + 5 * 8)  # norm, INT8 grids
    assert sizes.total == weights + 72


linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured on Linux alone")
CPU = torch.device("cpu")


@linux
def test_the_peak_is_what_a_call_held_at_once() -> None:
    def twice(size: int) -> None:
        for _ in range(2):
            torch.empty(size, dtype=torch.uint8).fill_(1)

    for size in (128 * MIB, 32 * MIB):  # the second does not see the peak of the first
        found = peak_bytes(lambda size=size: twice(size), CPU)  # type: ignore[misc]
        assert 0.8 * size < found < 2.5 * size  # the process does other things, too


@linux
def test_freed_memory_that_is_used_again_counts_again() -> None:
    def pieces() -> bytes:
        held = [b"x" * 50_000 for _ in range(1000)]  # too small for glibc to map each alone
        return held[-1]

    last = pieces()  # behind the others on the heap, which so cannot shrink
    assert peak_bytes(pieces, CPU) > 40 * MB
    assert len(last) == 50_000


@pytest.mark.parametrize(
    ("status", "why"),
    [
        (None, "No such file"),
        ("VmHWM:\t  900000 kB\nVmRSS:\t  100000 kB\n", "does not reset"),
        ("VmRSS:\t  100000 kB\n", "does not state VmHWM"),
        ("Name:\tpython\n", "does not state VmRSS"),
    ],
)
def test_where_the_peak_cannot_be_measured_nothing_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str | None, why: str
) -> None:
    process = tmp_path / "self"
    if status is not None:
        process.mkdir()
        (process / "status").write_text(status)
    monkeypatch.setattr(memory, "_PROCESS", process)
    with pytest.raises(ContinuadError, match=why):
        peak_bytes(lambda: pytest.fail("was run"), CPU)


def test_a_device_without_memory_is_refused() -> None:
    with pytest.raises(ContinuadError, match="device meta"):
        peak_bytes(lambda: pytest.fail("was run"), torch.device("meta"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_peak_on_cuda_is_that_of_the_allocator() -> None:
    device = torch.device("cuda")
    held = torch.zeros(32 * MIB, dtype=torch.uint8, device=device)
    torch.zeros_like(held)  # an earlier peak
    assert peak_bytes(lambda: torch.zeros(8 * MIB, dtype=torch.uint8, device=device), device) == 8 * MIB
