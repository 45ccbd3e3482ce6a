"""Figures of the AdapTS paper (arXiv 2603.17530): tables 1 to 4, MB there being MiB."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import pytest
import torch
from torch import nn

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.continual import RoutedHeads, RoutingSettings
from continuad.continual.routing import routing_cost
from continuad.detectors.adapters import ADAPTER_KINDS, Adapter
from continuad.detectors.adapts import AdapTS, AdapTSSettings
from continuad.detectors.adapts_costs import AdapTSCosts, adapter_macs, adapts_costs
from continuad.detectors.quantization import AdapterObserver, QuantizedAdapter
from continuad.errors import SettingsError
from continuad.metrics.costs import MIB, macs, state_bytes
from continuad.stopwatch import Stopwatch

L = AdapTSSettings(strides=(8, 16))
M = AdapTSSettings(strides=(8, 16), int8=True)
S = AdapTSSettings(strides=(8,), int8=True)
CHANNELS = (256, 512, 1024)  # stages 1, 2, 3 of WideResNet50-2
GRIDS = 40  # bytes of an INT8 adapter's scales and zero points


@pytest.fixture(scope="module")
def teacher() -> Backbone:
    with torch.device("meta"):
        return BACKBONES["wide_resnet50_2"]()


Published = Callable[[AdapTSSettings, int], AdapTSCosts]


@pytest.fixture(scope="module")
def published(teacher: Backbone) -> Published:
    """Costs of that many products as in the paper: 224 px, prototypes from the average pool."""

    @functools.cache
    def costs(settings: AdapTSSettings, products: int) -> AdapTSCosts:
        return adapts_costs(
            teacher,
            settings,
            products=products,
            image_size=224,
            router_tap="avgpool",
            prototype_bytes=4 * 2048,
        )

    return costs


def adapter_bytes(channels: int, kind: str, *, int8: bool) -> int:
    with torch.device("meta"):
        adapter = Adapter(channels, kind)
        return state_bytes(QuantizedAdapter(channels, adapter.conv1.out_channels) if int8 else adapter).total


def truncated(value: float, digits: int) -> float:
    return math.floor(value * 10.0**digits) / 10.0**digits


# --- one adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "count"), [(256, 132_096), (512, 526_336), (1024, 2_101_248)])
def test_a_linear_adapter_has_2c2_plus_4c_parameters(channels: int, count: int) -> None:
    statistics = 2 * channels
    assert count == 2 * channels**2 + 4 * channels
    assert adapter_bytes(channels, "linear", int8=False) == 4 * (count + statistics)


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("channels", [1, 3, 40, 256])
def test_bytes_by_hand(channels: int, kind: str) -> None:
    latent = max(1, int(channels * ADAPTER_KINDS[kind]))
    norms = latent + (channels if kind.startswith("bottleneck") else 0)
    floats = 2 * channels * latent + channels + latent + 4 * norms
    assert adapter_bytes(channels, kind, int8=False) == 4 * floats
    assert adapter_bytes(channels, kind, int8=True) == 2 * channels * latent + 4 * (channels + latent) + GRIDS


@pytest.mark.parametrize(("channels", "side"), [(256, 56), (512, 28), (1024, 14)])
def test_an_application_costs_the_same_at_every_stage(channels: int, side: int) -> None:
    assert adapter_macs(channels, "linear", side**2) == 2 * channels**2 * side**2 == 411_041_792


def test_macs_follow_the_latent_size() -> None:
    assert adapter_macs(40, "expansion", 9) == 2 * 40 * 80 * 9
    assert adapter_macs(7, "bottleneck25", 9) == 2 * 7 * 1 * 9


# --- tables 3 and 4: adapters of one product ------------------------------------------------------

TABLES = [
    # kind, stages, MiB float and INT8 as accounted, the same as printed
    ("linear", (1, 2, 3), 10.541, 2.639, 10.54, 2.64),
    ("linear", (1, 2), 2.518, 0.631, 2.51, 0.63),
    ("linear", (2, 3), 10.035, 2.512, 10.03, 2.51),
    ("linear", (2,), 2.012, 0.504, 2.01, 0.50),
    ("expansion", (1, 2, 3), 21.075, 5.271, 21.07, 5.28),
    ("bottleneck50", (1, 2, 3), 5.301, 1.323, 5.30, 1.33),
    ("bottleneck25", (1, 2, 3), 2.668, 0.665, 2.67, 0.68),
]


@pytest.mark.parametrize(("kind", "stages", "as_float", "as_int8", "printed_float", "printed_int8"), TABLES)
def test_published_adapter_sizes(
    kind: str,
    stages: tuple[int, ...],
    as_float: float,
    as_int8: float,
    printed_float: float,
    printed_int8: float,
) -> None:
    for int8, expected, printed in [(False, as_float, printed_float), (True, as_int8, printed_int8)]:
        size = sum(adapter_bytes(CHANNELS[stage - 1], kind, int8=int8) for stage in stages) / MIB
        assert round(size, 3) == expected
        if (
            int8 and kind != "linear"
        ):  # bottlenecks: their second batch norm is folded here; expansion: unexplained
            assert 0 < printed - size < 0.02
        else:
            assert printed in (round(size, 2), truncated(size, 2))


# --- table 1: whole models ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "products", "total", "added", "printed"),
    [
        (L, 1, 105.029, 10.035, 105),
        (M, 1, 97.506, 2.512, 97),
        (S, 1, 16.295, 0.504, 16),
        (L, 15, 245.522, 150.527, 245),
        (M, 15, 132.671, 37.677, 132),
        (S, 15, 23.350, 7.559, 23),
    ],
)
def test_published_memory_on_mvtec(
    published: Published, settings: AdapTSSettings, products: int, total: float, added: float, printed: int
) -> None:
    costs = published(settings, products)
    assert costs.total_bytes_paper / MIB == pytest.approx(total, abs=5e-4)
    assert costs.additional_bytes_paper / MIB == pytest.approx(added, abs=5e-4)
    assert int(costs.total_bytes_paper / MIB) == printed


def test_published_additional_memory_on_mvtec(published: Published) -> None:
    added = [published(settings, 15).additional_bytes_paper / MIB for settings in (L, M, S)]
    assert int(added[0]) == 150
    assert [round(each) for each in added[1:]] == [38, 8]


def test_published_memory_on_visa_is_that_of_mvtec(published: Published) -> None:
    # Table 2 prints 245, 132 and 23 for twelve products; these are the figures of fifteen.
    costs = [published(settings, 12) for settings in (L, M, S)]
    assert [round(c.total_bytes_paper / MIB, 1) for c in costs] == [215.4, 125.1, 21.8]
    assert [round(c.additional_bytes_paper / MIB) for c in costs] == [120, 30, 6]


@pytest.mark.parametrize(
    ("rival", "printed", "ratio"), [(94.994, 13, 12.57), (360.0, 48, 47.63), (1120.77, 149, 148.27)]
)
def test_ratios_of_the_abstract(published: Published, rival: float, printed: int, ratio: float) -> None:
    # Additional MiB of STFPM, RD4AD and DeSTSeg over AdapTS-S; the last ratio is one less than printed.
    found = rival / (published(S, 15).additional_bytes_paper / MIB)
    assert found == pytest.approx(ratio, abs=0.01)
    assert round(found) == (printed if printed != 149 else 148)


def test_dropping_the_deeper_adapter_saves_more_than_the_text_says(published: Published) -> None:
    # Sec. 5.2 says four times less additional memory; table 4's own figures, 10.03 and 2.01, say five.
    both, one = published(L, 1), published(replace(S, int8=False), 1)
    assert both.additional_bytes_paper / one.additional_bytes_paper == pytest.approx(5.0, abs=0.02)


@pytest.mark.parametrize(
    ("settings", "twice", "once", "printed"),
    [(L, 44.45, 42.81, 44), (M, 44.45, 42.81, 44), (S, 34.38, 33.56, 34)],
)
def test_published_flops_are_of_adapters_applied_twice(
    published: Published, settings: AdapTSSettings, twice: float, once: float, printed: int
) -> None:
    as_coded = 2 * published(replace(settings, passes=2), 1).macs_paper / 1e9
    assert round(as_coded, 2) == twice
    assert int(as_coded) == printed
    assert round(2 * published(settings, 1).macs_paper / 1e9, 2) == once


# --- the honest figures ---------------------------------------------------------------------------


@pytest.mark.parametrize(("settings", "total"), [(L, 405.9), (M, 293.0), (S, 262.9)])
def test_honest_totals_with_pooled_prototypes(
    published: Published, settings: AdapTSSettings, total: float
) -> None:
    costs = published(settings, 15)
    assert round(costs.total_bytes / MIB, 1) == total
    assert costs.additional_bytes - costs.additional_bytes_paper == 15 * 2048 * 4


def test_routing_by_an_early_block_costs_next_to_nothing(teacher: Backbone) -> None:
    costs = adapts_costs(
        teacher, S, products=15, image_size=224, router_tap="layer2", prototype_bytes=4 * 512
    )
    assert costs.total_bytes - costs.total_bytes_paper == 15 * 512 * 4
    stages = list(teacher.macs(224).values())
    assert costs.macs == sum(stages[:3]) + 411_041_792  # nothing behind layer2 runs


def test_honest_macs_of_the_presets(teacher: Backbone, published: Published) -> None:
    stem, one, two, three, four, pool = teacher.macs(224).values()
    adapter = 411_041_792
    once = stem + one + two + three + four + pool
    assert published(S, 1).macs == once + adapter
    assert published(L, 1).macs == once + three + 2 * adapter
    assert published(replace(L, passes=2), 1).macs == once + three + 3 * adapter


def test_products_add_memory_and_no_macs(published: Published) -> None:
    one, many = published(M, 1), published(M, 7)
    assert many.additional_bytes == 7 * one.additional_bytes
    assert (many.macs, many.macs_paper) == (one.macs, one.macs_paper)


def test_a_block_that_is_not_there_is_refused(teacher: Backbone) -> None:
    with pytest.raises(SettingsError, match="no block 'layer9'"):
        adapts_costs(teacher, S, products=1, image_size=224, router_tap="layer9", prototype_bytes=0)


# --- against what really lies in memory and runs --------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "taps"),
    [
        ("linear", ("layer2",)),
        ("expansion", ("layer1", "layer2")),
        ("bottleneck50", ("layer0", "layer2", "layer3")),
        ("bottleneck25", ("layer0",)),
    ],
)
@pytest.mark.parametrize("int8", [False, True])
def test_bytes_are_those_of_a_live_detector(kind: str, taps: tuple[str, ...], int8: bool) -> None:
    backbone = create_backbone("tiny", weights="random")
    settings = AdapTSSettings(taps=taps, adapter=kind, int8=int8)
    costs = adapts_costs(
        backbone, settings, products=3, image_size=64, router_tap="layer1", prototype_bytes=64
    )
    state = AdapTS(backbone, settings).state_dict()
    held = sum(t.nbytes for name, t in state.items() if not name.endswith("num_batches_tracked"))
    assert costs.additional_bytes_paper == 3 * held
    assert costs.additional_bytes == 3 * (held + 64)
    layers = nn.ModuleList(backbone.get_submodule(f"layer{i}") for i in range(max(1, int(taps[-1][-1])) + 1))
    below = sum(t.nbytes for t in layers.state_dict().values())
    assert costs.total_bytes == costs.additional_bytes + below


@pytest.mark.parametrize(
    ("taps", "passes", "router_tap", "size", "smoothing"),
    [
        (("layer2",), 1, "avgpool", 64, 0.0),
        (("layer2",), 2, "layer0", 75, 4.0),
        (("layer1", "layer2"), 1, "layer1", 75, 1.0),
        (("layer1", "layer2"), 2, "layer3", 64, 0.0),
        (("layer0", "layer2", "layer3"), 2, "layer1", 75, 0.0),
    ],
)
def test_macs_are_those_of_a_routed_inspection(
    taps: tuple[str, ...], passes: Literal[1, 2], router_tap: str, size: int, smoothing: float
) -> None:
    backbone = create_backbone("tiny", weights="random")
    settings = AdapTSSettings(taps=taps, adapter="bottleneck50", passes=passes, smoothing=smoothing)
    routing = RoutingSettings(router_tap, "mean_std")
    heads = RoutedHeads(backbone, routing)
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    heads.add(
        "part",
        taps=AdapTS(backbone, settings).taps,
        load=lambda: AdapTS(backbone, settings),
        prototype=heads.embed(image)[0],
        limit=1.0,
    )
    heads.head("part")
    counted = macs(lambda: heads.inspect(image, product=None, reject_unknown=False, stopwatch=Stopwatch()))
    costs = adapts_costs(
        backbone,
        settings,
        products=1,
        image_size=size,
        router_tap=router_tap,
        prototype_bytes=routing_cost(backbone, routing),
    )
    assert costs.macs == counted
    assert costs.additional_bytes - costs.additional_bytes_paper == heads.embed(image)[0].nbytes


def test_a_trained_int8_adapter_takes_the_accounted_bytes() -> None:
    observer = AdapterObserver(Adapter(24, "bottleneck25").eval().requires_grad_(False))
    observer(torch.randn(2, 24, 4, 4))
    state = observer.quantized().state_dict()
    assert sum(t.nbytes for t in state.values()) == adapter_bytes(24, "bottleneck25", int8=True)
    assert {t.dtype for name, t in state.items() if name.endswith("weight")} == {torch.int8}
