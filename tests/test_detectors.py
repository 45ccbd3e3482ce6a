"""What holds for every method: a new one is tested here the day it is registered."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.nn import functional

from continuad.backbones import Backbone, create_backbone
from continuad.detectors import METHODS, Detector
from continuad.detectors.base import settings_as_dict
from continuad.detectors.checkpoint import Checkpoint
from continuad.detectors.trained import TrainedDetector
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError

SIZE = 64
FLAW = (slice(None), slice(None), slice(12, 28), slice(36, 52))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


@pytest.fixture(scope="module", params=list(METHODS))
def method(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def build(method: str, backbone: Backbone, changes: Mapping[str, Any] | None = None) -> Detector:
    """Build a method on the tiny backbone, even one that is meant for another."""
    return replace(METHODS[method], backbone=None).build(backbone, changes)


def cloth(count: int, seed: int) -> Tensor:
    """Images of a grainy blue-grey surface, (count, 3, S, S) uint8."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 8, (count, 1, SIZE, SIZE)) + rng.normal(0, 4, (count, 3, 1, 1))
    colour = np.array([90.0, 110.0, 130.0]).reshape(3, 1, 1)
    return torch.from_numpy(np.clip(colour + grain, 0, 255).astype(np.uint8))


def schedules(method: str) -> list[str]:
    """The settings that are schedules: of one phase of training, of several, or none."""
    settings = METHODS[method].settings
    return [
        each.name for each in fields(settings) if isinstance(getattr(settings, each.name), TrainingSettings)
    ]


def changes(method: str, epochs: int) -> dict[str, Any]:
    """A short schedule for methods that are trained."""
    steps = len(schedules(method)) > 1 and 2 * epochs  # a training of several phases is stated in steps
    return plan(method, {"epochs": epochs, "min_steps": 0, "steps": int(steps), "batch_size": 8})


def plan(method: str, schedule: dict[str, Any]) -> dict[str, Any]:
    """Changes that give a method this schedule, and a network in keeping with the images."""
    narrow = {"width": 16, "channels": 20}
    fitting = {name: value for name, value in narrow.items() if hasattr(METHODS[method].settings, name)}
    return {**dict.fromkeys(schedules(method), schedule), **fitting}


def learnt(method: str, backbone: Backbone, *, count: int = 12, seed: int = 0) -> Detector:
    detector = build(method, backbone, changes(method, epochs=1))
    detector.fit(cloth(count, 0), seed=seed)
    return detector


@pytest.fixture(scope="module")
def detector(method: str, backbone: Backbone) -> Detector:
    """A detector after a few steps."""
    detector = build(method, backbone, plan(method, {"steps": 150, "batch_size": 8}))
    detector.fit(cloth(24, 0))
    return detector


def content(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


# --- what it learns -------------------------------------------------------------------------------


def test_the_loss_falls(detector: Detector) -> None:
    history = getattr(detector, "history_", None)
    if history is None:
        pytest.skip("fitted in one pass")
    totals = [sum(epoch.values()) for epoch in history]
    assert len(totals) > 1
    assert totals[-1] < 0.7 * totals[0]


def test_maps_have_the_images_size(detector: Detector) -> None:
    maps = detector.anomaly_maps(cloth(3, 1))
    assert maps.shape == (3, SIZE, SIZE)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert torch.isfinite(maps).all()
    assert (maps.amax((1, 2)) > maps.amin((1, 2))).all()


def test_the_image_score_is_the_maximum_of_the_map_or_of_some_of_it(detector: Detector) -> None:
    maps = torch.rand(3, 25, 25)
    worst = getattr(detector.settings, "worst", 0)
    count = getattr(detector.settings, "top", max(1, round(worst * 625)))
    tops = [sum(sorted(each.flatten().tolist())[-count:]) / count for each in maps]
    assert detector.image_scores(maps).tolist() == pytest.approx(tops, rel=1e-5)


def test_a_painted_flaw_is_found_and_located(detector: Detector) -> None:
    clean = cloth(8, 1)
    flawed = clean.clone()
    flawed[FLAW] = 255
    before, after = detector.anomaly_maps(clean), detector.anomaly_maps(flawed)
    assert (detector.image_scores(after) > 1.3 * detector.image_scores(before)).all()
    assert detector.image_scores(after).min() > detector.image_scores(before).max()
    assert (after[:, FLAW[2], FLAW[3]].mean((1, 2)) > 1.25 * after.mean((1, 2))).all()


# --- how it is called -----------------------------------------------------------------------------


def test_given_features_change_nothing(detector: Detector, backbone: Backbone) -> None:
    images = cloth(3, 1)
    features = backbone.features(images, {*detector.taps, "layer0"})
    before = content(features)
    assert torch.equal(detector.anomaly_maps(images, features), detector.anomaly_maps(images))
    assert content(features) == before, "the caller's features were written to"


def test_given_features_spare_the_backbone(
    detector: Detector, backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = cloth(2, 1)
    features = backbone.features(images, detector.taps)
    monkeypatch.setattr(backbone, "normalise", None)  # what an image meets first
    assert detector.anomaly_maps(images, features).shape == (2, SIZE, SIZE)


def test_a_batch_equals_its_images_one_by_one(detector: Detector) -> None:
    images = cloth(5, 1)
    images[1][FLAW[1:]] = 255
    whole = detector.anomaly_maps(images)
    single = torch.cat([detector.anomaly_maps(image[None]) for image in images])
    error = (whole - single).abs() / whole.amax((1, 2), keepdim=True)
    if any(tensor.dtype == torch.int8 for tensor in detector.state_dict().values()):
        # a convolution may round otherwise in another batch, and push a value to the next level
        assert (error > 1e-4).float().mean() < 0.02
        assert error.max() < 0.1
    else:
        assert error.max() < 1e-4


def test_features_are_normalised_over_their_channels(
    detector: Detector, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not isinstance(detector, TrainedDetector):
        pytest.skip("compares no features of two networks")
    axes: set[tuple[int, int]] = set()
    normalize, cosine = functional.normalize, functional.cosine_similarity

    def normalise(x: Tensor, p: float = 2, dim: int = 1, *rest: Any) -> Tensor:
        axes.add((x.dim(), dim))
        return normalize(x, p, dim, *rest)

    def similarity(one: Tensor, other: Tensor, dim: int = 1, *rest: Any) -> Tensor:
        axes.add((one.dim(), dim))
        return cosine(one, other, dim, *rest)

    monkeypatch.setattr(functional, "normalize", normalise)
    monkeypatch.setattr(functional, "cosine_similarity", similarity)
    detector.anomaly_maps(cloth(2, 1))
    assert axes == {(4, 1)}


def test_images_are_left_alone(method: str, backbone: Backbone) -> None:
    detector = build(method, backbone, changes(method, 1))
    images = cloth(8, 0)
    detector.fit(images, seed=0)
    detector.anomaly_maps(images)
    assert torch.equal(images, cloth(8, 0))


def test_one_image_is_enough_to_run(method: str, backbone: Backbone) -> None:
    detector = learnt(method, backbone, count=1)
    assert torch.isfinite(detector.anomaly_maps(cloth(1, 0))).all()


# --- what it leaves alone, and what it depends on -------------------------------------------------


def test_the_backbone_stays_as_it_is_byte_for_byte(method: str) -> None:
    backbone = create_backbone("tiny", weights="random")
    before = content(backbone.state_dict())
    detector = learnt(method, backbone)
    detector.train()
    detector.anomaly_maps(cloth(2, 1))
    assert content(backbone.state_dict()) == before
    assert not any(
        parameter.requires_grad or parameter.grad is not None for parameter in backbone.parameters()
    )
    assert not any(module.training for module in backbone.modules())


def test_the_backbone_is_not_part_of_the_state(detector: Detector, backbone: Backbone) -> None:
    pointers = {tensor.data_ptr() for tensor in backbone.state_dict().values()}
    state = detector.state_dict()
    assert state
    assert pointers.isdisjoint(tensor.data_ptr() for tensor in state.values())
    assert detector.backbone is backbone
    assert not any(parameter.requires_grad for parameter in detector.parameters())


def test_same_seed_same_detector_other_seed_another_one(method: str, backbone: Backbone) -> None:
    first = content(learnt(method, backbone, seed=3).state_dict())
    torch.rand(5)  # whatever the caller draws in between
    again = learnt(method, backbone, seed=3)
    assert content(again.state_dict()) == first
    again.fit(cloth(12, 0), seed=4)
    assert content(again.state_dict()) != first
    again.fit(cloth(12, 0), seed=3)
    assert content(again.state_dict()) == first, "what was learnt before shows"


def test_the_callers_random_states_are_left_alone(method: str, backbone: Backbone) -> None:
    before, legacy = torch.random.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    learnt(method, backbone).anomaly_maps(cloth(2, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == legacy  # type: ignore[index]  # noqa: NPY002


# --- progress -------------------------------------------------------------------------------------


def test_progress_counts_up_to_the_total(method: str, backbone: Backbone) -> None:
    ticks: list[tuple[int, int]] = []
    detector = build(method, backbone, changes(method, 2))
    detector.fit(cloth(10, 0), progress=lambda done, total, what: ticks.append((done, total)))
    assert [done for done, _ in ticks] == sorted(done for done, _ in ticks)
    assert ticks[-1][0] == ticks[-1][1]


def test_work_that_is_stopped_leaves_the_detector_as_it_was(method: str, backbone: Backbone) -> None:
    detector = learnt(method, backbone)
    before = content(detector.state_dict())

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        detector.fit(cloth(12, 5), seed=9, progress=stop)
    assert content(detector.state_dict()) == before


@pytest.mark.parametrize("moment", [1, 3, 4])
def test_work_that_is_stopped_goes_on_and_ends_the_same(
    method: str, backbone: Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    if not schedules(method):
        pytest.skip("fitted in one pass, which is short")
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    whole, halted, resumed = (build(method, backbone, changes(method, epochs=2)) for _ in range(3))
    steps: list[int] = []
    whole.fit(cloth(20, 0), seed=5)

    def stop(done: int, total: int, what: str) -> None:
        steps.append(done)
        if len(steps) == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halted.fit(cloth(20, 0), seed=5, progress=stop, checkpoints=tmp_path)
    resumed.fit(
        cloth(20, 0), seed=5, progress=lambda done, total, what: steps.append(done), checkpoints=tmp_path
    )
    assert steps == sorted(steps)
    assert len(steps) <= steps[-1] + 2, "steps were made twice"
    assert content(resumed.state_dict()) == content(whole.state_dict())
    assert getattr(resumed, "history_", None) == getattr(whole, "history_", None)


# --- saving ---------------------------------------------------------------------------------------


def test_state_and_settings_make_the_same_detector(
    method: str, detector: Detector, backbone: Backbone
) -> None:
    settings = json.loads(json.dumps(settings_as_dict(detector)))
    saved = {name: tensor.contiguous() for name, tensor in detector.state_dict().items()}
    state = safetensors.torch.load(safetensors.torch.save(saved))
    copy = build(method, backbone, settings)
    assert settings_as_dict(copy) == settings
    assert copy.taps == detector.taps
    copy.load_state_dict(state)
    images = cloth(3, 1)
    assert torch.equal(copy.anomaly_maps(images), detector.anomaly_maps(images))


def test_default_settings_survive_json(method: str) -> None:
    entry = METHODS[method]
    backbone = create_backbone("tiny", weights="random")
    settings = json.loads(json.dumps(settings_as_dict(build(method, backbone))))
    assert entry.configure(settings) == entry.settings


# --- settings -------------------------------------------------------------------------------------


def test_an_unknown_setting_is_refused_with_the_known_ones(method: str) -> None:
    with pytest.raises(SettingsError, match=r"no setting 'colour'\. Choose from: \w+"):
        METHODS[method].configure({"colour": 3})


def test_values_of_another_type_are_refused(method: str, backbone: Backbone) -> None:
    for name in settings_as_dict(build(method, backbone)):
        with pytest.raises(SettingsError, match=f"{name} is .*Set {name} to "):
            METHODS[method].configure({name: object()})


def test_settings_within_settings_are_checked_too(method: str) -> None:
    configure = METHODS[method].configure
    for name in schedules(method):
        assert getattr(configure({name: {"epochs": 7}}), name).epochs == 7
        with pytest.raises(SettingsError, match=r"no setting 'epoch'\. Choose from: epochs"):
            configure({name: {"epoch": 7}})
        for wrong in ("7", 7.5, True, None):
            with pytest.raises(SettingsError, match=r"epochs is .*a value of type int"):
                configure({name: {"epochs": wrong}})
        with pytest.raises(SettingsError, match=rf"{name} is 7\. Set {name}"):
            configure({name: 7})


def test_a_method_says_what_it_is(method: str) -> None:
    assert METHODS[method].summary.endswith(".")
    with pytest.raises(SettingsError, match=f"Did you mean '{method}'"):
        METHODS[method + "x"]
