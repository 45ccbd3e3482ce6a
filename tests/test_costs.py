from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest
import torch
from torch import nn
from torch.nn import functional

from continuad.metrics.costs import MB, MIB, macs, tensor_bytes


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


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: CONV(torch.zeros(2, 3, 16, 16)), 2 * 8 * 8 * 8 * 3 * 9),
        (lambda: DEPTHWISE(torch.zeros(1, 8, 6, 6)), 4 * 4 * 8 * 9),
        (lambda: nn.ConvTranspose2d(4, 6, 2, stride=2)(torch.zeros(1, 4, 5, 5)), 25 * 4 * 6 * 4),
        (lambda: nn.Linear(7, 5)(torch.zeros(3, 7)), 3 * 7 * 5),
        (lambda: torch.zeros(2, 3, 4) @ torch.zeros(2, 4, 5), 2 * 3 * 4 * 5),
        (lambda: functional.interpolate(torch.zeros(1, 1, 8, 8), scale_factor=2).relu(), 0),
    ],
    ids=["conv", "depthwise", "transposed", "linear", "bmm", "element-wise"],
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
