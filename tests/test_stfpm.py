from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.detectors import METHODS
from continuad.detectors.stfpm import STFPM, STFPMSettings
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError

SIZE = 32
SHARED = {"shares_prefix": True, "group": "paste"}


@pytest.fixture
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def photos(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=generator, dtype=torch.uint8)


def detector(backbone: Backbone, **values: Any) -> STFPM:
    return STFPM(backbone, STFPMSettings(**values))


# --- what the student is --------------------------------------------------------------------------


def test_the_student_has_the_blocks_up_to_the_last_layer(backbone: Backbone) -> None:
    stfpm = detector(backbone)
    assert (stfpm.layers, stfpm.split, stfpm.taps) == (("layer1", "layer2"), None, ("layer1", "layer2"))
    assert {name.partition(".")[0] for name, _ in stfpm.student.named_parameters()} == {
        "layer0",
        "layer1",
        "layer2",
    }


def test_paste_has_no_copy_of_what_it_shares(backbone: Backbone) -> None:
    paste = detector(backbone, **SHARED)
    assert (paste.layers, paste.split) == (("layer2", "layer3"), "layer1")
    assert paste.taps == ("layer1", "layer2", "layer3")
    assert {name.partition(".")[0] for name in paste.state_dict()} == {"student"}
    assert {name.split(".")[1] for name in paste.state_dict()} == {"layer2", "layer3"}


def test_paste_does_not_look_at_the_images_again(backbone: Backbone) -> None:
    paste = detector(backbone, **SHARED)
    features = backbone.features(photos(2), paste.taps)
    expected = paste.anomaly_maps(photos(2))
    assert torch.equal(paste.anomaly_maps(torch.zeros_like(photos(2)), features), expected)


@pytest.mark.parametrize("shares_prefix", [False, True])
def test_a_student_that_is_its_teacher_sees_no_anomaly(backbone: Backbone, shares_prefix: bool) -> None:
    twin = detector(backbone, layers=("layer2", "layer3"), shares_prefix=shares_prefix)
    assert twin.anomaly_maps(photos(2)).min() > 1e-4
    twin.student.load_state_dict(backbone.state_dict(), strict=False)
    assert twin.anomaly_maps(photos(2)).abs().max() < 1e-9


def test_sharing_begins_before_the_first_layer(backbone: Backbone) -> None:
    with pytest.raises(SettingsError, match=r"nothing to share before 'layer0'. Choose later layers"):
        detector(backbone, layers=("layer0", "layer2"), shares_prefix=True)


# --- map and loss ---------------------------------------------------------------------------------


def pieces(stfpm: STFPM, backbone: Backbone, images: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Teacher's and student's features of each layer."""
    teacher = backbone.features(images, stfpm.layers)
    student = stfpm.student.features(images, stfpm.layers)
    return [(teacher[layer], student[layer]) for layer in stfpm.layers]


@pytest.mark.parametrize(("axis", "dim"), [("channels", 1), ("height", 2)])
def test_the_map_is_the_product_of_the_layers_distances(backbone: Backbone, axis: Any, dim: int) -> None:
    stfpm = detector(backbone, norm_axis=axis)
    expected = torch.ones(2, SIZE, SIZE)
    for teacher, student in pieces(stfpm, backbone, photos(2)):
        difference = teacher / teacher.norm(dim=dim, keepdim=True).clamp(min=1e-12)
        difference = difference - student / student.norm(dim=dim, keepdim=True).clamp(min=1e-12)
        layer = difference.square().sum(1, keepdim=True)
        expected *= F.interpolate(layer, (SIZE, SIZE), mode="bilinear")[:, 0]
    torch.testing.assert_close(stfpm.anomaly_maps(photos(2)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_loss_of_a_step(backbone: Backbone, reduction: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stfpm = detector(backbone, reduction=reduction, training=TrainingSettings(epochs=1, batch_size=4))
    fresh = stfpm._new_student().train()
    monkeypatch.setattr(stfpm, "_new_student", lambda: fresh)
    images = photos(4)
    twin = backbone.student("layer2").train()
    twin.load_state_dict(fresh.state_dict())
    expected = 0.0
    teacher, student = backbone.features(images, stfpm.layers), twin.features(images, stfpm.layers)
    for layer in stfpm.layers:
        for t, s in zip(teacher[layer], student[layer], strict=True):
            cosine = F.cosine_similarity(t, s, dim=0)
            distance = (2 * (1 - cosine)).mean().item()  # mean over positions of |t - s|^2
            expected += distance / 2 if reduction == "sum" else distance / len(images)
    stfpm.fit(images)
    assert stfpm.history_ == [{"matching": pytest.approx(expected, rel=1e-4)}]


def test_a_frozen_image_is_seen_by_the_teacher_once(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    compute = backbone.features

    def features(x: Tensor, *arguments: Any, **options: Any) -> dict[str, Tensor]:
        assert not torch.is_grad_enabled()
        seen.append(len(x))
        return compute(x, *arguments, **options)

    monkeypatch.setattr(backbone, "features", features)
    paste = detector(backbone, **SHARED, training=TrainingSettings(epochs=3, batch_size=4))
    paste.fit(photos(10))
    assert sum(seen) == 10
    assert len(paste.history_) == 3


# --- settings and presets -------------------------------------------------------------------------


def test_the_defaults_are_the_thesis() -> None:
    training = STFPMSettings().training
    assert (training.epochs, training.batch_size, training.drop_last) == (10, 8, True)
    assert (training.optimiser, training.momentum, training.weight_decay) == ("sgd", 0.9, 1e-4)
    assert training.learning_rate == training.final_learning_rate == 0.4
    baseline = METHODS["stfpm-wrn50"].settings
    assert (baseline.reduction, baseline.training.momentum, baseline.training.weight_decay) == ("mean", 0, 0)
    assert METHODS["paste-micronet"].settings.training.learning_rate == 0.04


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"reduction": "max"}, "reduction is 'max'. Set it to 'sum' or 'mean'"),
        ({"fusion": "max"}, "fusion is 'max'"),
        ({"norm_axis": "width"}, "norm_axis is 'width'"),
        ({"smoothing": -1.0}, "smoothing is -1.0"),
    ],
)
def test_settings_that_mean_nothing_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        STFPMSettings(**values)


@pytest.mark.parametrize("name", list(BACKBONES))
@pytest.mark.parametrize("method", ["stfpm", "paste"])
def test_any_backbone_will_do(name: str, method: str) -> None:
    with torch.device("meta"):
        backbone = BACKBONES[name]()
        built = METHODS[method].build(backbone)
    strides = [backbone.block(layer).stride for layer in built.layers]
    assert strides == sorted(strides)
    assert len(strides) in (2, 3)


def test_a_method_named_after_a_backbone_is_for_that_one(backbone: Backbone) -> None:
    with pytest.raises(SettingsError, match=r"for resnet18, but the backbone is tiny\. Use resnet18"):
        METHODS["stfpm-resnet18"].build(backbone)
    for name, method in METHODS.items():
        if method.backbone is not None:
            assert method.backbone in BACKBONES, name
            assert replace(method, backbone=None).build(backbone).taps


def test_an_unknown_group_of_layers_is_refused(backbone: Backbone) -> None:
    with pytest.raises(SettingsError, match=r"no group of layers .low.\. Choose from: stfpm, paste"):
        detector(backbone, group="low")
