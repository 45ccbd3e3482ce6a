from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.detectors import METHODS, Detector
from continuad.detectors.costs import Costs, method_costs
from continuad.detectors.trained import schedules
from continuad.errors import ContinuadError
from continuad.metrics.costs import MIB
from continuad.progress import Progress, silent

linux = pytest.mark.skipif(sys.platform != "linux", reason="resident memory is measured on Linux alone")


# --- what the documents state


def on_meta(method: str, size: int, **changes: Any) -> Costs:
    entry = METHODS[method]
    with torch.device("meta"):
        detector = entry.build(BACKBONES[entry.backbone or "tiny"](), changes)
    return method_costs(detector, image_size=size)


@pytest.mark.parametrize(
    ("method", "mib", "mmacs"),
    [
        ("stfpm-wrn50", 189.686, 2 * 9186.6),
        ("stfpm-mobilenetv2", 5.324, 450.9),
        ("paste-mobilenetv2", 5.112, 337.7),
        ("stfpm-mcunet", 1.763, 224.3),
        ("paste-mcunet", 1.677, 159.0),
        ("stfpm-phinet", 2.700, 433.8),
        ("stfpm-micronet", 0.596, 5.86),
    ],
)
def test_published_parameters_and_macs_at_224_pixels(method: str, mib: float, mmacs: float) -> None:
    costs = on_meta(method, 224)
    parameters = costs.backbone_parameter_bytes + costs.parameter_bytes
    assert parameters / MIB == pytest.approx(mib, abs=6e-4)
    assert costs.macs / 1e6 == pytest.approx(mmacs, abs=0.06)


@pytest.mark.parametrize(
    ("method", "total"),
    [
        ("stfpm-resnet18", 21.27),
        ("stfpm-mcunet", 1.83),
        ("paste-mcunet", 1.74),
        ("rd4ad-wrn50", 414.92),
        ("destseg-wrn50", 1215.76),
    ],
)
def test_published_totals_with_buffers(method: str, total: float) -> None:
    costs = on_meta(method, 64)
    assert round(costs.total_bytes / MIB, 2) == total
    parts = (costs.backbone_parameter_bytes, costs.backbone_buffer_bytes)
    assert sum(parts) + costs.parameter_bytes + costs.buffer_bytes == costs.total_bytes


def test_rd4ad_counts_its_transposed_convolutions() -> None:
    with torch.device("meta"):
        unused = BACKBONES["wide_resnet50_2"]().macs(224)["layer4"]
    flops = 2 * (on_meta("rd4ad-wrn50", 224, smoothing=0.0).macs + unused)
    assert round(flops / 1e9, 2) == 51.05  # 48.28 without them, as published


# --- what is run


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return create_backbone("tiny", weights="random")


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.backbone is None])
def test_every_method_is_accounted_for(tiny: Backbone, name: str) -> None:
    detector = METHODS[name].build(tiny)
    before = {key: tensor.clone() for key, tensor in detector.state_dict().items()}
    random = torch.random.get_rng_state()
    costs = method_costs(detector, image_size=96, training=True)
    assert all(torch.equal(before[key], tensor) for key, tensor in detector.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), random)
    plain = on_meta(name, 96)
    assert (costs.macs, costs.total_bytes) == (plain.macs, plain.total_bytes)
    assert plain.training_macs is plain.training_macs_forward is plain.training_peak_bytes is None
    if not schedules(detector.settings):
        assert costs.training_macs is costs.later_training_macs is None
        return
    assert costs.training_macs is not None
    assert costs.training_macs_forward is not None
    assert costs.later_training_macs is not None
    assert costs.later_training_macs_forward is not None
    backward = costs.training_macs - costs.training_macs_forward
    assert backward == costs.later_training_macs - costs.later_training_macs_forward > 0
    # the clean image goes through the backbone in the first epoch alone
    blocks = list(tiny.macs(96).values())
    depth = [block.name for block in tiny.blocks].index(detector.taps[-1]) + 1
    assert costs.training_macs_forward - costs.later_training_macs_forward >= sum(blocks[:depth])


def training_macs(detector: Detector) -> tuple[int | None, ...]:
    costs = method_costs(detector, image_size=64, training=True)
    return (
        costs.training_macs_forward,
        costs.training_macs,
        costs.later_training_macs_forward,
        costs.later_training_macs,
    )


@pytest.mark.parametrize(("shares_prefix", "first"), [(False, 0), (True, 2)])
def test_training_of_a_student_by_hand(tiny: Backbone, shares_prefix: bool, first: int) -> None:
    settings = {"layers": ("layer2", "layer3"), "shares_prefix": shares_prefix}
    blocks = list(tiny.macs(64).values())[:4]
    student = sum(blocks[first:])
    backward = 2 * student - blocks[first]  # nobody asks for the gradient of the first block's input
    forward = sum(blocks) + student
    expected = (forward, forward + backward, student, student + backward)
    assert training_macs(METHODS["stfpm"].build(tiny, settings)) == expected


@pytest.mark.parametrize("int8", [False, True])
def test_training_of_an_adapter_by_hand(tiny: Backbone, int8: bool) -> None:
    settings = {"taps": ("layer1",), "segmentation": False, "int8": int8}
    teacher = sum(list(tiny.macs(64).values())[:2])
    layer = 16 * 16 * 16**2  # one of the adapter's two
    calibration = 3 * layer if int8 else 0  # the adapter, and its latent once more
    expected = (teacher + 2 * layer + calibration, teacher + 5 * layer + calibration, 2 * layer, 5 * layer)
    assert training_macs(METHODS["adapts-l"].build(tiny, settings)) == expected


def test_only_new_synthetic_anomalies_pass_the_backbone_again(tiny: Backbone) -> None:
    settings = {"taps": ("layer1",)}
    one, two = (
        training_macs(METHODS["adapts-l"].build(tiny, {**settings, "variants": count})) for count in (1, 2)
    )
    teacher = sum(list(tiny.macs(64).values())[:2])
    assert one[:2] == two[:2]
    assert [b - a for a, b in zip(one[2:], two[2:], strict=True)] == [teacher, teacher]


def test_early_stopping_does_not_need_a_second_image(tiny: Backbone) -> None:
    patient, other = (METHODS["paste"].build(tiny, {"training": {"patience": n}}) for n in (3, 0))
    assert training_macs(patient) == training_macs(other)


@linux
def test_peaks_are_measured_with_the_minibatch_of_the_settings(tiny: Backbone) -> None:
    def costs(batch: int) -> Costs:
        detector = METHODS["stfpm"].build(tiny, {"training": {"batch_size": batch}})
        return method_costs(detector, image_size=128, peaks=True)

    small, large = costs(1), costs(48)
    assert large.training_macs is None  # was not asked for
    assert small.inspection_peak_bytes is not None
    assert small.training_peak_bytes is not None
    assert large.training_peak_bytes is not None
    assert 0 < small.inspection_peak_bytes < 16 * MIB
    activations = 4 * 8 * 64 * 64  # of the first block, before and behind its norm, for the gradients
    assert large.training_peak_bytes - small.training_peak_bytes > 47 * 2 * activations


@dataclass(frozen=True)
class NoSettings:
    gain: float = 1.0


class Brightness(Detector):
    """Nothing is trained: a pixel's anomaly is the first tap's mean channel."""

    taps = ("layer0",)

    def __init__(self, backbone: Backbone) -> None:
        super().__init__(backbone)
        self.settings = NoSettings()
        self.register_buffer("bank", torch.zeros(10, 8))

    def fit(
        self, images: Tensor, *, seed: int = 0, progress: Progress = silent, checkpoints: Path | None = None
    ) -> None:
        pytest.fail("there is nothing to train")

    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        maps = self.teacher_features(images, features)["layer0"].mean(1, keepdim=True)
        return functional.interpolate(maps, images.shape[-2:])[:, 0]


@linux
def test_a_method_without_training_has_no_training_costs(tiny: Backbone) -> None:
    costs = method_costs(Brightness(tiny), image_size=64, training=True, peaks=True)
    assert costs.macs == tiny.macs(64)["layer0"]
    assert (costs.parameter_bytes, costs.buffer_bytes) == (0, 320)
    assert costs.inspection_peak_bytes is not None
    assert costs.training_macs is costs.later_training_macs is costs.training_peak_bytes is None


@pytest.mark.parametrize("wanted", [{"training": True}, {"peaks": True}])
def test_nothing_is_trained_or_measured_without_tensors(wanted: dict[str, bool]) -> None:
    with torch.device("meta"):
        detector = METHODS["stfpm"].build(BACKBONES["tiny"]())
    with pytest.raises(ContinuadError, match="meta device"):
        method_costs(detector, image_size=64, **wanted)


# --- methods that are fitted in one pass


@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_a_fitted_method_is_accounted_for_as_it_is_after_learning(tiny: Backbone, method: str) -> None:
    changes = {"channels": 9} if method == "padim" else {}
    detector = METHODS[method].build(tiny, changes)
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    costs = method_costs(detector, image_size=64, images=5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    detector.fit(torch.randint(256, (5, 3, 64, 64), dtype=torch.uint8))
    assert costs.parameter_bytes == 0
    assert costs.buffer_bytes == sum(tensor.nbytes for tensor in detector.state_dict().values())
    assert costs.training_macs is None


def test_the_search_of_patchcore_is_counted(tiny: Backbone) -> None:
    few, many = (
        method_costs(METHODS["patchcore"].build(tiny), image_size=64, images=images) for images in (10, 30)
    )
    positions = (64 // 8) ** 2
    vectors = 0.1 * 20 * positions
    dimensions = few.buffer_bytes / 4 / (0.1 * 10 * positions)
    assert many.macs - few.macs == pytest.approx(positions * vectors * dimensions)
