"""Feature-selective learning, on small real trainings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.continual.learners import Joint, OneDetector
from continuad.continual.routed import Inspection
from continuad.continual.selective import FeatureSelective
from continuad.detectors.importance import feature_importance
from continuad.detectors.matching import fuse
from continuad.detectors.samples import Samples
from continuad.detectors.selection import most_important, without_shared
from continuad.detectors.stfpm import STFPM
from continuad.errors import SettingsError
from small_learners import SIZE, Builder, learn, photos, same, state


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def selections(learner: FeatureSelective, tasks: list[str | None]) -> Mapping[str, Tensor]:
    return learner._selection(tasks)


def maps(found: list[Inspection]) -> np.ndarray[Any, Any]:
    return np.stack([cast(Any, each.anomaly_map) for each in found])


def expected_mask(backbone: Backbone, task: int, layer: str, percent: float) -> Tensor:
    found = feature_importance(backbone, photos(task), [layer])[layer]
    return torch.from_numpy(most_important(found.importance, percent))


def test_anomaly_maps_of_selected_features_by_hand(backbone: Backbone) -> None:
    detector = cast(STFPM, Builder(backbone)())
    detector.fit(photos(0))
    images = photos(1, 3)
    teacher = backbone.features(images, detector.taps)
    assert detector.split is not None
    student = detector.student.features(teacher[detector.split], detector.layers, start=detector.split)
    selected = {tap: torch.rand(teacher[tap].shape[1:]) < 0.4 for tap in detector.layers}
    differences = []
    for tap in detector.layers:
        a, b = (torch.where(selected[tap], f[tap], 0.0) for f in (teacher, student))
        differences.append((F.normalize(a) - F.normalize(b)) ** 2)
    expected = fuse(differences, (SIZE, SIZE), "product")
    torch.testing.assert_close(detector.anomaly_maps(images, selected=selected), expected)
    everything = {tap: torch.ones_like(mask) for tap, mask in selected.items()}
    torch.testing.assert_close(
        detector.anomaly_maps(images, selected=everything), detector.anomaly_maps(images), rtol=0, atol=0
    )


@pytest.mark.parametrize("joint", [False, True])
def test_with_all_features_it_is_the_plain_strategy(backbone: Backbone, joint: bool) -> None:
    selective = learn(FeatureSelective(Builder(backbone), percent=100, joint=joint))
    plain = learn((Joint if joint else OneDetector)(Builder(backbone)))
    assert same(state(selective), state(plain))


@pytest.mark.parametrize("joint", [False, True])
def test_it_trains_on_each_tasks_own_features(backbone: Backbone, joint: bool) -> None:
    learner = FeatureSelective(Builder(backbone), percent=20, joint=joint)
    learn(learner, 2)
    detector = cast(STFPM, Builder(backbone)())
    masks = [{tap: expected_mask(backbone, task, tap, 20) for tap in detector.layers} for task in (0, 1)]

    def train(tasks: list[int], warm: bool) -> None:
        images = torch.cat([photos(task) for task in tasks])
        owners = [task for task in tasks for _ in range(10)]
        selected = Samples(
            images,
            selected=lambda rows: {
                tap: torch.stack([masks[owners[row]][tap] for row in rows]) for tap in detector.layers
            },
        )
        detector.train_on(selected, count=len(images), seed=tasks[-1], warm=warm)

    train([0], warm=False)
    train([0, 1] if joint else [1], warm=not joint)
    assert same(state(learner), detector.state_dict())
    untrained = learn(FeatureSelective(Builder(backbone), percent=20, joint=joint, training=False), 2)
    assert same(state(untrained), state(learn((Joint if joint else OneDetector)(Builder(backbone)), 2)))


def test_the_router_finds_the_selection_that_the_true_task_has(backbone: Backbone) -> None:
    images = photos(0, 4)
    routed = learn(FeatureSelective(Builder(backbone), percent=5))
    told = learn(FeatureSelective(Builder(backbone), percent=5, oracle=True))
    found = routed.inspect(images)
    assert [each.product for each in found] == ["task 0"] * 4
    np.testing.assert_array_equal(maps(found), maps(routed.inspect(images, task="task 1")))
    right, wrong = told.inspect(images, task="task 0"), told.inspect(images, task="task 1")
    assert all(each.product is None for each in right)
    np.testing.assert_array_equal(maps(found), maps(right))
    assert not np.array_equal(maps(right), maps(wrong))


def test_an_unknown_task_has_all_features(backbone: Backbone) -> None:
    learner = cast(FeatureSelective, learn(FeatureSelective(Builder(backbone), percent=5, oracle=True)))
    images = photos(0, 4)
    plain = learner.detector.anomaly_maps(images).numpy()
    np.testing.assert_array_equal(maps(learner.inspect(images, task="else")), plain)


def test_conflicts_with_tasks_to_come_are_settled_by_foresight_alone(backbone: Backbone) -> None:
    blind = FeatureSelective(Builder(backbone), percent=30, conflicts="drop")
    foreseeing = FeatureSelective(Builder(backbone), percent=30, conflicts="drop", foresight=True)
    for learner in (blind, foreseeing):
        learner.foresee((f"task {task}", photos(task)) for task in range(3))
        learner.learn("task 0", photos(0))
    for layer, mask in selections(blind, ["task 0"]).items():
        all_of_them = {str(task): expected_mask(backbone, task, layer, 30).numpy() for task in range(3)}
        np.testing.assert_array_equal(mask[0].numpy(), all_of_them["0"])
        settled = without_shared(all_of_them)["0"]
        assert 0 < settled.sum() < all_of_them["0"].sum()
        np.testing.assert_array_equal(selections(foreseeing, ["task 0"])[layer][0].numpy(), settled)


def test_nothing_is_looked_at_that_is_not_wanted(backbone: Backbone) -> None:
    def tasks() -> Any:
        raise AssertionError("looked at")
        yield

    FeatureSelective(Builder(backbone)).foresee(tasks())


@pytest.mark.parametrize("settings", [{}, {"joint": True}, {"conflicts": "drop-disjoint", "foresight": True}])
def test_restored_it_goes_on_as_if_it_had_never_stopped(backbone: Backbone, settings: Any) -> None:
    def new() -> FeatureSelective:
        return FeatureSelective(Builder(backbone), percent=30, **settings)

    tasks = [(f"task {task}", photos(task)) for task in range(3)]
    first = new()
    first.foresee(tasks)
    first.learn(*tasks[0])
    first.learn(*tasks[1])
    second = new()
    second.restore(["task 0", "task 1"], {k: t.clone() for k, t in first.tensors().items()})
    second.foresee(tasks[2:])
    for learner in (first, second):
        learner.learn(*tasks[2])
    assert same(first.tensors(), second.tensors())
    images = torch.cat([photos(task, 3) for task in range(3)])
    np.testing.assert_array_equal(maps(first.inspect(images)), maps(second.inspect(images)))


def test_it_needs_a_student_that_matches_features(backbone: Backbone) -> None:
    with pytest.raises(SettingsError, match="STFPM or PaSTe"):
        FeatureSelective(Builder(backbone, "rd4ad", layers=("layer1", "layer2")))


@pytest.mark.parametrize("wrong", [{"percent": 0}, {"percent": 101}, {"conflicts": "ignore"}])
def test_settings_that_cannot_be(backbone: Backbone, wrong: Any) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        FeatureSelective(Builder(backbone), **wrong)
