"""Strategies of continual learning, on small real trainings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.continual.learners import Joint, Learner, OneDetector
from continuad.continual.penalised import ElasticWeightConsolidation, LearningWithoutForgetting
from continuad.continual.replayed import Replay
from continuad.continual.routed_learner import Routed
from continuad.continual.strategies import STRATEGIES
from continuad.detectors import METHODS, Detector
from continuad.detectors.trained import Phase, TrainedDetector
from continuad.errors import SettingsError
from continuad.metrics.costs import state_bytes
from small_learners import SIZE, Builder, learn, photos, same, state


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


# --- every strategy -------------------------------------------------------------------------------


@pytest.fixture(params=list(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def made(strategy: str, build: Builder) -> Learner:
    entry = STRATEGIES[strategy]
    return entry.learner(build, **entry.settings)


def test_it_learns_task_after_task_and_inspects_all_of_them(strategy: str, backbone: Backbone) -> None:
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    learner = learn(made(strategy, Builder(backbone)))
    images = torch.cat([photos(task, 4) for task in range(3)])
    found = learner.inspect(images)
    assert len(found) == 12
    for each in found:
        assert each.anomaly_map is not None
        assert each.anomaly_map.shape == (SIZE, SIZE)
        assert each.score == each.anomaly_map.max() > 0
    assert same(backbone.state_dict(), before)
    again = learn(made(strategy, Builder(backbone))).inspect(images)
    assert [each.score for each in again] == [each.score for each in found]


def test_it_says_what_it_holds(strategy: str, backbone: Backbone) -> None:
    learner = made(strategy, Builder(backbone))
    sizes = []
    for task in range(3):
        learner.learn(str(task), photos(task))
        sizes.append((learner.model_bytes, learner.memory_bytes))
    one = state_bytes(Builder(backbone)()).total
    images, features = 10 * 3 * SIZE * SIZE, 10 * 16 * (SIZE // 4) ** 2 * 4
    parameters = sum(p.nbytes for p in Builder(backbone)().parameters())
    selections = sum(f[0].numel() for f in backbone.features(photos(0, 1), backbone.group("paste")).values())
    kept_a_task = {
        "joint": images,
        "replay": images,
        "compressed-replay": features,
        "routed": 32 * 4,
        "feature-selective": selections + 32 * 4,
    }
    models = [n * one if strategy == "routed" else one for n in (1, 2, 3)]
    memory = [n * kept_a_task.get(strategy, 0) for n in (1, 2, 3)]
    if strategy == "ewc":
        memory = [2 * parameters] * 3
    assert sizes == list(zip(models, memory, strict=True))
    stored = {"joint": 30, "replay": 30, "compressed-replay": 30}
    assert learner.memory_items == stored.get(strategy, 0)


def test_a_strategy_says_what_it_is(strategy: str) -> None:
    assert STRATEGIES[strategy].summary.endswith(".")
    with pytest.raises(SettingsError, match=f"Did you mean '{strategy}'"):
        STRATEGIES[strategy + "x"]


# --- fine-tuning, joint, routed -------------------------------------------------------------------


def test_fine_tuning_goes_on_from_the_last_task(backbone: Backbone) -> None:
    learner = learn(OneDetector(Builder(backbone)), 1)
    first = state(learner)
    cast(OneDetector, learner).detector.settings = replace(
        cast(OneDetector, learner).detector.settings,
        training=replace(
            cast(OneDetector, learner).detector.settings.training,
            learning_rate=1e-12,
            final_learning_rate=1e-12,
        ),
    )
    learner.learn("more", photos(5))
    for name, parameter in cast(OneDetector, learner).detector.named_parameters():
        assert torch.allclose(parameter, first[name], atol=1e-6), name


def test_joint_is_a_training_on_everything(backbone: Backbone) -> None:
    learner = learn(Joint(Builder(backbone)), 2)
    alone = Builder(backbone)()
    alone.fit(torch.cat([photos(0), photos(1)]), seed=1)
    assert same(state(learner), alone.state_dict())


def test_routed_forgets_nothing_to_the_last_bit(backbone: Backbone) -> None:
    learner, images = Routed(Builder(backbone)), photos(0, 4)
    learner.learn("first", photos(0))
    before = learner.inspect(images)
    for task in (1, 2, 3):
        learner.learn(str(task), photos(task))
    after = learner.inspect(images)
    assert [each.product for each in after] == ["first"] * 4
    assert all(
        np.array_equal(cast(Any, a.anomaly_map), cast(Any, b.anomaly_map))
        for a, b in zip(before, after, strict=True)
    )


# --- replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rule", "tasks"), [("paste", "add", 3), ("paste", "replace", 3), ("rd4ad", "add", 2)]
)
def test_compressed_replay_is_replay(backbone: Backbone, method: str, rule: Any, tasks: int) -> None:
    """Behind a frozen prefix, stored features are as good as stored images: gradients and all."""
    build = Builder(backbone, method, layers=("layer1", "layer2") if method == "rd4ad" else ())
    images = learn(Replay(build, size=9, rule=rule), tasks)
    features = learn(Replay(build, size=9, rule=rule, codec="none"), tasks)
    assert same(state(images), state(features))
    assert not same(state(images), state(learn(OneDetector(build), tasks)))


def test_eight_bits_are_nearly_as_good(backbone: Backbone) -> None:
    exact, coded = (learn(Replay(Builder(backbone), size=9, codec=c)) for c in ("none", "int8-map"))
    assert 3 * cast(Replay, coded).buffer.bytes < cast(Replay, exact).buffer.bytes
    scores = [[each.score for each in learner.inspect(photos(0))] for learner in (exact, coded)]
    assert scores[0] == pytest.approx(scores[1], rel=0.2)


class Recorder(TrainedDetector):
    """Notes the minibatches instead of learning from them."""

    def __init__(self, inner: TrainedDetector) -> None:
        super().__init__(inner.backbone)
        self.taps, self.settings = inner.taps, inner.settings
        self.seen: list[list[Tensor]] = []

    def phases(self, samples: Any, *, seed: int, warm: bool = False) -> Any:
        model = torch.nn.Linear(1, 1)
        self.seen.append([])

        def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
            self.seen[-1].append(samples.images[indices])
            return {"none": model.weight.sum() * 0}

        yield Phase("none", model, losses, self.settings.training)

    def anomaly_maps(self, images: Tensor, features: Any = None) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(("rule", "own", "replayed"), [("add", 4, 4), ("replace", 2, 2)])
def test_minibatches_are_mixed_by_the_rule(backbone: Backbone, rule: Any, own: int, replayed: int) -> None:
    recorder = Recorder(cast(TrainedDetector, Builder(backbone)()))
    learner = learn(Replay(lambda: recorder, size=6, rule=rule))
    first, *later = recorder.seen
    assert [len(batch) for batch in first] == [4, 4, 4, 4]  # two epochs, short last batches left out
    assert sum(learner.buffer.counts.values()) == 6  # type: ignore[attr-defined]
    pool = {task: {each.numpy().tobytes() for each in photos(task)} for task in range(3)}
    for number, batches in enumerate(later, start=1):
        for batch in batches:
            origins = [
                next(task for task, images in pool.items() if each.numpy().tobytes() in images)
                for each in batch
            ]
            assert origins[:own] == [number] * own
            assert len(origins) == own + replayed
            assert all(task < number for task in origins[own:])
            if rule == "replace" and number == 2:
                assert sorted(origins[own:]) == [0, 1]


@pytest.mark.parametrize("method", ["stfpm", "adapts-l", "destseg"])
def test_who_looks_at_images_cannot_replay_features(backbone: Backbone, method: str) -> None:
    def build() -> Detector:
        return METHODS[method].build(backbone)

    with pytest.raises(SettingsError, match="looks at images, and cannot be trained on stored features"):
        Replay(build, codec="none")


# --- penalties ------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", [LearningWithoutForgetting, ElasticWeightConsolidation])
def test_a_weight_of_zero_is_fine_tuning(backbone: Backbone, learner: Any) -> None:
    plain = state(learn(OneDetector(Builder(backbone))))
    weightless = state(learn(learner(Builder(backbone), weight=0.0)))
    assert all(torch.allclose(weightless[name], plain[name], atol=1e-6) for name in plain)


def changed(backbone: Backbone, learner: OneDetector) -> float:
    """How far the answers to the first task's images move when a second task is learnt."""
    learn(learner, 1)
    taps = ("layer2", "layer3")
    x = backbone.features(photos(0), ["layer1"])["layer1"]
    before = cast(Any, learner.detector).student.features(x, taps, start="layer1")
    learner.learn("other", photos(1))
    after = cast(Any, learner.detector).student.features(x, taps, start="layer1")
    return sum(float((before[tap] - after[tap]).square().mean()) for tap in taps)


def test_penalties_keep_what_was_learnt(backbone: Backbone) -> None:
    free = changed(backbone, OneDetector(Builder(backbone)))
    assert changed(backbone, LearningWithoutForgetting(Builder(backbone), weight=3.0)) < free
    assert changed(backbone, ElasticWeightConsolidation(Builder(backbone), weight=0.3)) < free


def test_importances_are_mean_squared_gradients(backbone: Backbone) -> None:
    learner = ElasticWeightConsolidation(Builder(backbone), images=10)
    learner.learn("first", photos(0))
    student = cast(Any, learner.detector).student.requires_grad_(True)
    features = backbone.features(photos(0), cast(Any, learner.detector).taps)
    expected: dict[str, Tensor] = {}
    for index in range(10):
        one = {tap: each[index : index + 1] for tap, each in features.items()}
        answers = student.features(one["layer1"], ("layer2", "layer3"), start="layer1")
        loss = sum(
            (1 - torch.cosine_similarity(one[tap], answers[tap])).mean() for tap in ("layer2", "layer3")
        )
        gradients = torch.autograd.grad(cast(Tensor, loss), list(student.parameters()))
        for (name, _), gradient in zip(student.named_parameters(), gradients, strict=True):
            expected[name] = expected.get(name, 0) + gradient.square() / 10
    for name, importance in expected.items():
        torch.testing.assert_close(
            learner.importances[f"student.{name}"], importance, rtol=1e-2, atol=1e-6, msg=name
        )


@pytest.mark.parametrize("learner", [LearningWithoutForgetting, ElasticWeightConsolidation])
def test_a_negative_weight_is_refused(backbone: Backbone, learner: Any) -> None:
    with pytest.raises(SettingsError, match=r"weight is -1"):
        learner(Builder(backbone), weight=-1)
