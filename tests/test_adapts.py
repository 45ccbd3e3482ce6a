from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.detectors import METHODS, Method
from continuad.detectors.adapters import ADAPTER_KINDS, Adapter
from continuad.detectors.adapts import AdapTS, AdapTSSettings
from continuad.detectors.matching import smooth
from continuad.detectors.quantization import QuantizedAdapter
from continuad.detectors.training import TrainingSettings
from continuad.errors import ImageError, SettingsError

PAPER = Method("AdapTS with the paper's settings.", AdapTS, AdapTSSettings())
QUICK = {"epochs": 2, "batch_size": 8}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def images(count: int = 8, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.clip(rng.normal(120, 10, (count, 3, 32, 32)), 0, 255).astype(np.uint8))


def learnt(backbone: Backbone, **settings: Any) -> AdapTS:
    detector = PAPER.build(backbone, {"training": QUICK, **settings})
    assert isinstance(detector, AdapTS)
    detector.fit(images())
    return detector


# --- where the adapters sit -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "kind", "taps"),
    [
        ("adapts-l", Adapter, ("layer2", "layer3")),
        ("adapts-m", QuantizedAdapter, ("layer2", "layer3")),
        ("adapts-s", QuantizedAdapter, ("layer2",)),
    ],
)
def test_presets_on_wide_resnet_are_the_papers(name: str, kind: type, taps: tuple[str, ...]) -> None:
    with torch.device("meta"):
        detector = METHODS[name].build(BACKBONES["wide_resnet50_2"]())
    assert isinstance(detector, AdapTS)
    assert detector.taps == taps
    assert {type(adapter) for adapter in detector.adapters} == {kind}


def test_the_defaults_are_the_papers() -> None:
    settings = AdapTSSettings()
    assert (settings.strides, settings.adapter, settings.passes) == ((8, 16), "linear", 1)
    assert (settings.segmentation, settings.focal_gamma, settings.variants) == (True, 4.0, 0)
    assert (settings.fusion, settings.smoothing) == ("product", 0.0)
    assert settings.training == TrainingSettings()


@pytest.mark.parametrize(
    ("min_channels", "taps"),
    [(0, ("layer1",)), (16, ("layer1",)), (17, ("layer2",)), (32, ("layer3",)), (33, ("layer3",))],
)
def test_a_narrow_stage_is_passed_over(backbone: Backbone, min_channels: int, taps: tuple[str, ...]) -> None:
    # The stages have 8, 16, 24 and 32 channels.
    assert PAPER.build(backbone, {"strides": [4], "min_channels": min_channels}).taps == taps


def test_strides_that_meet_in_one_stage_share_an_adapter(backbone: Backbone) -> None:
    assert PAPER.build(backbone, {"strides": [2, 4], "min_channels": 24}).taps == ("layer2",)


def test_taps_are_sorted_and_outrank_strides(backbone: Backbone) -> None:
    detector = PAPER.build(backbone, {"taps": ["layer2", "layer0", "layer2"], "min_channels": 24})
    assert detector.taps == ("layer0", "layer2")


# --- what is learnt -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ADAPTER_KINDS)
@pytest.mark.parametrize("int8", [False, True])
def test_every_adapter_learns(backbone: Backbone, kind: str, int8: bool) -> None:
    detector = learnt(backbone, adapter=kind, int8=int8)
    first, last = detector.history_
    assert last["alignment"] < first["alignment"]
    maps = detector.anomaly_maps(images(3, 1))
    assert torch.isfinite(maps).all()
    assert maps.min() >= 0
    assert maps.max() > 0


def test_the_history_names_the_terms_of_the_loss(backbone: Backbone) -> None:
    assert [set(epoch) for epoch in learnt(backbone).history_] == [{"alignment", "focal", "l1"}] * 2
    assert [set(epoch) for epoch in learnt(backbone, segmentation=False).history_] == [{"alignment"}] * 2


def test_without_segmentation_nothing_is_corrupted(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("continuad.datasets.synthetic.perlin_noise", None)
    learnt(backbone, segmentation=False)
    with pytest.raises(TypeError):
        learnt(backbone)


@pytest.mark.parametrize(
    "change",
    [
        {"passes": 2},
        {"segmentation": False},
        {"focal_gamma": 0.0},
        {"variants": 1},
        {"training": QUICK | {"momentum": 0.9}},
        {"training": QUICK | {"optimiser": "adam"}},
        {"training": QUICK | {"learning_rate": 0.01}},
    ],
    ids=str,
)
def test_a_setting_of_the_training_changes_what_is_learnt(backbone: Backbone, change: dict[str, Any]) -> None:
    plain = learnt(backbone, taps=["layer1", "layer2"]).state_dict()
    changed = learnt(backbone, **{"taps": ["layer1", "layer2"], **change}).state_dict()
    assert any(not torch.equal(changed[name], plain[name]) for name in plain)


def test_fusion_and_smoothing_change_only_the_map(backbone: Backbone) -> None:
    product, total, blurred = (
        learnt(backbone),
        learnt(backbone, fusion="sum"),
        learnt(backbone, smoothing=2.0),
    )
    assert all(torch.equal(t, total.state_dict()[name]) for name, t in product.state_dict().items())
    test = images(2, 1)
    assert (total.anomaly_maps(test) > product.anomaly_maps(test)).all()
    assert torch.equal(blurred.anomaly_maps(test), smooth(product.anomaly_maps(test), 2.0))


def test_int8_adapters_give_nearly_the_float_maps(backbone: Backbone) -> None:
    as_float, as_int8 = learnt(backbone), learnt(backbone, int8=True)
    assert as_float.history_ == as_int8.history_
    test = images(4, 1)
    exact, rounded = as_float.anomaly_maps(test), as_int8.anomaly_maps(test)
    assert not torch.equal(exact, rounded)
    assert (exact - rounded).abs().mean() < 0.1 * exact.mean()


def test_the_first_adapter_sees_the_teachers_features(backbone: Backbone) -> None:
    detector = learnt(backbone)
    teacher = backbone.features(images(2, 1), detector.taps)
    first, second = detector.adapters
    student = detector.student_features(teacher["layer2"], list(detector.adapters))
    assert torch.equal(student["layer2"], first(teacher["layer2"]))
    deeper = backbone.features(student["layer2"], ["layer3"], start="layer2")["layer3"]
    assert torch.equal(student["layer3"], second(deeper))


def test_the_backbone_sees_an_image_once_per_copy(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    normalise = backbone.normalise

    def counted(x: Tensor) -> Tensor:
        seen.append(len(x))
        return normalise(x)

    monkeypatch.setattr(backbone, "normalise", counted)
    learnt(backbone, int8=True, variants=1, training=QUICK | {"epochs": 5})
    assert sum(seen) == 2 * 8, "clean and corrupted"
    seen.clear()
    learnt(backbone, int8=True, segmentation=False, training=QUICK | {"epochs": 5})
    assert sum(seen) == 8


def test_textures_of_a_folder(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No image was found"):
        learnt(backbone, textures=str(tmp_path))
    Image.new("L", (16, 16), 255).save(tmp_path / "white.png")
    found = learnt(backbone, textures=str(tmp_path)).state_dict()
    assert any(not torch.equal(t, found[name]) for name, t in learnt(backbone).state_dict().items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strides": []}, "no block to put an adapter on"),
        ({"strides": [3]}, "no features of stride 3"),
        ({"taps": ["layer7"]}, "no block 'layer7'"),
        ({"adapter": "lora"}, "no adapter kind 'lora'"),
        ({"passes": 3}, "passes is 3"),
        ({"fusion": "max"}, "fusion is 'max'"),
        ({"min_channels": -1}, "min_channels is -1"),
        ({"focal_gamma": -1.0}, "focal_gamma is -1.0"),
        ({"variants": -1}, "variants is -1"),
        ({"smoothing": -0.5}, "smoothing is -0.5"),
        ({"smoothing": float("nan")}, "smoothing is nan"),
        ({"focal_gamma": float("nan")}, "focal_gamma is nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    backbone: Backbone, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        PAPER.build(backbone, settings)


def test_divergence_names_the_remedy(backbone: Backbone) -> None:
    with pytest.raises(SettingsError, match=r"diverged.*Lower the learning rate"):
        learnt(backbone, training=QUICK | {"learning_rate": 1e30})
