from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.datasets.synthetic import PerlinAnomalies
from continuad.datasets.textures import FolderTextures
from continuad.detectors import METHODS, trained
from continuad.detectors.checkpoint import Checkpoint
from continuad.detectors.corrupted import CorruptedFeatures, CorruptedImages
from continuad.detectors.destseg import DeSTSeg, DeSTSegSettings
from continuad.detectors.destseg_networks import (
    DenoisingStudent,
    PyramidPooling,
    SegmentationNetwork,
    SingleValueNorm,
    similarities,
)
from continuad.detectors.training import TrainingSettings, train
from continuad.errors import SettingsError

MIB = 2**20
SIZE = 64
QUICK = TrainingSettings(
    steps=4, batch_size=4, drop_last=True, learning_rate=0.1, final_learning_rate=0.1, momentum=0.9
)
SMALL = DeSTSegSettings(width=8, variants=2, student=QUICK, segmentation=replace(QUICK, learning_rate=0.05))
FLAW = (slice(20, 40), slice(30, 50))


@pytest.fixture
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def on_meta(name: str) -> Backbone:
    with torch.device("meta"):
        return BACKBONES[name]()


def cloth(count: int, seed: int = 0) -> Tensor:
    """Images of a grainy surface, (count, 3, SIZE, SIZE) uint8."""
    rng = np.random.default_rng(seed)
    grain = rng.normal(0, 8, (count, 1, SIZE, SIZE)) + rng.normal(0, 4, (count, 3, 1, 1))
    return torch.from_numpy(np.clip(120 + grain, 0, 255).astype(np.uint8))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def content(module: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in module.state_dict().items()}


def mebibytes(module: nn.Module) -> float:
    return sum(tensor.nbytes for tensor in module.state_dict().values()) / MIB


# --- networks -------------------------------------------------------------------------------------


def test_its_memory_on_wide_resnet50_is_that_of_the_adapts_paper() -> None:
    backbone = on_meta("wide_resnet50_2")
    with torch.device("meta"):
        detector = METHODS["destseg-wrn50"].build(backbone)
    assert isinstance(detector, DeSTSeg)
    teacher = backbone.parameter_bytes("layer3", include_buffers=True) / MIB
    additional = mebibytes(detector)
    assert f"{additional:.2f}" == "1120.77"
    assert f"{teacher + additional:.2f}" == "1215.76"


def test_channels_on_wide_resnet50_are_the_published_ones() -> None:
    with torch.device("meta"):
        detector = DeSTSeg(on_meta("wide_resnet50_2"), DeSTSegSettings())
    student, segmentation = detector.student, detector.segmentation
    assert student.last == "layer4"
    outputs = [stage[-1].conv2.out_channels for stage in student.decoder]  # type: ignore[index, union-attr]
    assert outputs == [2048, 1024, 512, 256]
    assert segmentation.residual[0].conv1.in_channels == 1792  # type: ignore[union-attr]
    assert [each.conv.dilation for each in segmentation.head[0].dilated] == [(6, 6), (12, 12), (18, 18)]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", list(BACKBONES))
def test_every_backbone_will_do(name: str) -> None:
    backbone, size = on_meta(name), 100  # some strides do not divide it
    with torch.device("meta"):
        detector = METHODS["destseg"].build(backbone)
        images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
        teacher = backbone.features(images, detector.taps)
        student = detector.student(images)  # type: ignore[operator]
        logits = detector.segmentation(similarities(teacher, student))  # type: ignore[operator]
        assert detector.anomaly_maps(images).shape == (2, size, size)
    assert list(student) == list(teacher) == list(backbone.group("stfpm"))
    assert [f.shape for f in student.values()] == [f.shape for f in teacher.values()]
    assert logits.shape == (2, *teacher[detector.taps[0]].shape[-2:])


@pytest.mark.parametrize(
    ("name", "last", "widths"),
    [
        ("resnet18", "layer4", [512, 256, 128, 64]),
        ("efficientnet_lite0", "head", [224, 112, 40, 24]),
        ("mobilenet_v2", "features.18", [320, 160, 64, 24]),
        ("tiny", "layer3", [32, 24, 16]),
    ],
)
def test_the_decoder_begins_at_stride_32_or_as_deep_as_there_is(
    name: str, last: str, widths: list[int]
) -> None:
    backbone = on_meta(name)
    with torch.device("meta"):
        student = DenoisingStudent(backbone, backbone.group("stfpm"))
    assert student.last == last
    assert [stage[-1].conv2.out_channels for stage in student.decoder] == widths  # type: ignore[index, union-attr]


def test_a_teacher_that_ends_early_has_a_whole_student() -> None:
    backbone = on_meta("resnet18")
    backbone.truncate("layer3", "the file ends there")
    with torch.device("meta"):
        student = DenoisingStudent(backbone, ("layer2", "layer3"))
    assert student.last == "layer4"
    assert student.encoder.block("layer4").channels == 512


def test_layers_behind_stride_32_are_reached() -> None:
    backbone = on_meta("phinet")
    with torch.device("meta"):
        student = DenoisingStudent(backbone, ("layers.6", "layers.9"))
        found = student(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))
    assert found["layers.9"].shape == (1, 464, 2, 2)


def test_what_the_student_decodes_comes_from_its_deepest_block(backbone: Backbone) -> None:
    student = DenoisingStudent(backbone, ("layer1", "layer2")).eval()
    images = cloth(2)
    before = student(images)
    nn.init.zeros_(student.encoder.layer3[0].weight)  # type: ignore[index, union-attr, arg-type]
    after = student(images)
    assert not any(torch.equal(before[tap], after[tap]) for tap in before)


def test_similarities_are_negated_products_of_normalised_features() -> None:
    teacher = {"a": noise(2, 3, 4, 4), "b": noise(2, 5, 2, 2, seed=1)}
    student = {"a": noise(2, 3, 4, 4, seed=2), "b": noise(2, 5, 2, 2, seed=3)}
    found = similarities(teacher, student)
    assert found.shape == (2, 8, 4, 4)
    for image in range(2):
        for y in range(4):
            for x in range(4):
                t, s = teacher["a"][image, :, y, x], student["a"][image, :, y, x]
                assert torch.allclose(found[image, :3, y, x], -t / t.norm() * (s / s.norm()), atol=1e-6)
        for y, x in ((0, 0), (3, 3)):  # a corner is not blended with its neighbours
            t, s = teacher["b"][image, :, y // 3, x // 3], student["b"][image, :, y // 3, x // 3]
            assert torch.allclose(found[image, 3:, y, x], -t / t.norm() * (s / s.norm()), atol=1e-6)


def test_pooling_sees_the_whole_image_and_branches_see_their_distance() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pooling: Any = PyramidPooling(16).eval()
    x = noise(1, 16, 40, 40).requires_grad_()

    def seen(branch: nn.Module) -> set[int]:
        """How far right and left of the middle the middle depends on the image."""
        (gradient,) = torch.autograd.grad(branch(x)[0, :, 20, 20].sum(), x)
        return {int(column) - 20 for column in gradient[0].abs().sum((0, 1)).nonzero()[:, 0]}

    for branch, rate in zip(pooling.dilated, (6, 12, 18), strict=True):
        assert seen(branch) == {-rate, 0, rate}
    assert pooling(x).shape == x.shape
    assert len(seen(pooling)) == 40


def test_one_value_per_channel_is_normalised_by_what_was_seen_before() -> None:
    norm = SingleValueNorm(5)
    norm(noise(8, 5, 1, 1) + 3)
    single = noise(1, 5, 1, 1, seed=1)
    trained, before = norm(single), content(norm)
    assert torch.equal(trained, norm.eval()(single))
    assert content(norm) == before
    pair = noise(2, 5, 1, 1, seed=2)
    assert torch.equal(norm.train()(pair), nn.BatchNorm2d(5)(pair))


def test_one_image_can_train_the_segmentation_network() -> None:
    network = SegmentationNetwork(6, 4).train()
    network(noise(1, 6, 8, 8)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


# --- corrupted images -----------------------------------------------------------------------------


def copies(images: Tensor, *, variants: int = 2, seed: int = 0, **options: Any) -> CorruptedImages:
    anomalies = options.pop("anomalies", PerlinAnomalies(threshold=0.1))
    return CorruptedImages(images, anomalies, variants=variants, mask_size=(SIZE, SIZE), seed=seed, **options)


@dataclass(frozen=True)
class Counted(PerlinAnomalies):
    """Counts the copies that it makes."""

    made: tuple[list[int], ...] = ([],)

    def __call__(
        self, image: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        self.made[0].append(1)
        return super().__call__(image, rng)


@pytest.mark.parametrize(("variants", "budget", "drawn"), [(2, 2**20, 6), (2, 0, 12), (0, 2**20, 12)])
def test_copies_are_drawn_once_where_they_may_be_kept(variants: int, budget: int, drawn: int) -> None:
    made: list[int] = []
    corrupted = copies(cloth(3), variants=variants, anomalies=Counted(made=(made,)), budget=budget)
    for epoch in range(4):
        corrupted([2, 0, 1], epoch)
    assert len(made) == drawn


def test_keeping_copies_changes_none() -> None:
    keeping, forgetting = copies(cloth(3)), copies(cloth(3), budget=0)
    for epoch in range(4):
        for _ in range(2):
            found, expected = keeping([1, 0], epoch), forgetting([1, 0], epoch)
            assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_copy_differs_within_its_mask_alone() -> None:
    images = cloth(6)
    corrupted, masks = copies(images)(range(6), 1)
    changed = (corrupted != images).any(1)
    assert not (changed & (masks == 0)).any()
    assert changed.float().mean() > 0.5 * masks.mean() > 0


def test_images_and_features_are_corrupted_alike(backbone: Backbone) -> None:
    images, anomalies = cloth(3), PerlinAnomalies(threshold=0.1)
    photos, masks = copies(images, seed=7)([2, 1], 3)
    features, same_masks = CorruptedFeatures(
        backbone, ["layer1"], images, anomalies, variants=2, mask_size=(SIZE, SIZE), seed=7
    )([2, 1], 3)
    assert torch.equal(masks, same_masks)
    torch.testing.assert_close(features["layer1"], backbone.features(photos, ["layer1"])["layer1"])


# --- losses ---------------------------------------------------------------------------------------


@dataclass
class Phase:
    """A call of `train`."""

    model: nn.Module
    losses: Callable[[Tensor, int], Mapping[str, Tensor]]
    settings: TrainingSettings
    learning_rates: Any


def phases(
    backbone: Backbone, images: Tensor, monkeypatch: pytest.MonkeyPatch, settings: DeSTSegSettings = SMALL
) -> tuple[Phase, Phase]:
    """What is trained, and how, without training it."""
    made: list[Phase] = []

    def record(model: nn.Module, losses: Any, **options: Any) -> list[dict[str, float]]:
        made.append(Phase(model.eval(), losses, options["settings"], options.get("learning_rates")))
        return []

    monkeypatch.setattr(trained, "train", record)
    DeSTSeg(backbone, settings).fit(images, seed=3)
    first, second = made
    return first, second


def test_the_students_loss_is_one_minus_cosine_by_hand(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, rows, epoch = cloth(5), [3, 0], 1
    first, _ = phases(backbone, images, monkeypatch)
    damaged, _ = CorruptedImages(images, PerlinAnomalies(), variants=2, mask_size=(1, 1), seed=3)(rows, epoch)
    teacher = backbone.features(images[rows], ("layer1", "layer2"))
    with torch.no_grad():
        student = first.model(damaged)
        found = first.losses(torch.tensor(rows), epoch)
    expected = 0.0
    for tap in ("layer1", "layer2"):
        height, width = teacher[tap].shape[-2:]
        for image in range(2):
            for y in range(height):
                for x in range(width):
                    t, s = teacher[tap][image, :, y, x], student[tap][image, :, y, x]
                    expected += (1 - float(t @ s / (t.norm() * s.norm()))) / (height * width)
    assert list(found) == ["matching"]
    assert found["matching"].item() == pytest.approx(expected, rel=1e-4)


def test_the_segmentation_loss_is_focal_and_l1_by_hand(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, rows = cloth(5), [0, 1, 2, 4]
    student, segmentation = (phase.model for phase in phases(backbone, images, monkeypatch))
    _, second = phases(backbone, images, monkeypatch, replace(SMALL, focal_gamma=3))
    second.model.load_state_dict(segmentation.state_dict())
    damaged, masks = CorruptedImages(images, PerlinAnomalies(), variants=2, mask_size=(16, 16), seed=3)(
        rows, 0
    )
    assert 0 < masks.mean() < 1
    with torch.no_grad():
        compared = similarities(backbone.features(damaged, ("layer1", "layer2")), student(damaged))
        probabilities = segmentation(compared).sigmoid().flatten().tolist()
        found = second.losses(torch.tensor(rows), 0)
    focal = l1 = 0.0
    for p, wanted in zip(probabilities, masks.flatten().tolist(), strict=True):
        right = p if wanted == 1 else 1 - p
        focal -= (1 - right) ** 3 * math.log(right) / len(probabilities)
        l1 += (1 - right) / len(probabilities)
    assert list(found) == ["focal", "l1"]
    assert found["focal"].item() == pytest.approx(focal, rel=1e-4)
    assert found["l1"].item() == pytest.approx(l1, rel=1e-4)


def test_the_student_sees_damage_where_the_teacher_does_not(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, rows = cloth(6), torch.arange(6)
    first, second = phases(backbone, images, monkeypatch)
    seen: dict[str, list[Tensor]] = {"teacher": [], "student": []}
    features, forward = backbone.features, DenoisingStudent.forward

    def teacher(x: Tensor, taps: Collection[str], start: str | None = None) -> dict[str, Tensor]:
        seen["teacher"] += x
        return features(x, taps, start)

    def student(self: DenoisingStudent, x: Tensor) -> dict[str, Tensor]:
        seen["student"] += x
        return forward(self, x)

    monkeypatch.setattr(backbone, "features", teacher)
    monkeypatch.setattr(DenoisingStudent, "forward", student)
    damaged, _ = CorruptedImages(images, PerlinAnomalies(), variants=2, mask_size=(1, 1), seed=3)(range(6), 1)
    assert not torch.equal(damaged, images)
    first.losses(rows, 1)
    second.losses(rows, 1)
    assert torch.equal(torch.stack(seen["teacher"]), torch.cat([images[1:], damaged]))  # 0 gave the size
    assert torch.equal(torch.stack(seen["student"]), torch.cat([damaged, damaged]))


def test_textures_come_from_the_folder(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8), (255, 0, 255)).save(tmp_path / "pink.png")
    images, seen = cloth(4), []
    first, _ = phases(backbone, images, monkeypatch, replace(SMALL, textures=str(tmp_path)))
    monkeypatch.setattr(
        DenoisingStudent, "forward", lambda self, x: seen.append(x) or backbone.features(x, self.taps)
    )
    first.losses(torch.arange(4), 0)
    anomalies = PerlinAnomalies(FolderTextures(tmp_path))
    expected, _ = CorruptedImages(images, anomalies, variants=2, mask_size=(1, 1), seed=3)(range(4), 0)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(expected, images)


def test_blocks_and_head_are_trained_at_their_own_rates(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = phases(backbone, cloth(3), monkeypatch, DeSTSegSettings(width=8))
    assert first.settings.learning_rate == 0.4
    assert not first.learning_rates
    assert [rate for _, rate in second.learning_rates] == [0.1, 0.01]
    parts = [parameter for part, _ in second.learning_rates for parameter in part.parameters()]
    assert {id(parameter) for parameter in parts} == {id(p) for p in second.model.parameters()}
    assert len(parts) == len(list(second.model.parameters()))
    assert not any(parameter.requires_grad for parameter in first.model.parameters())


def test_published_schedules() -> None:
    for method in ("destseg-resnet18", "destseg-wrn50"):
        settings = METHODS[method].settings
        assert (settings.width, settings.top, settings.focal_gamma, settings.variants) == (256, 100, 4, 0)
        for schedule in (settings.student, settings.segmentation):
            assert (schedule.steps, schedule.batch_size, schedule.optimiser) == (1000, 32, "sgd")
            assert (schedule.momentum, schedule.weight_decay) == (0.9, 1e-4)
            assert schedule.final_learning_rate == schedule.learning_rate


# --- maps and scores ------------------------------------------------------------------------------


def test_the_map_is_the_resized_probability(backbone: Backbone) -> None:
    detector, images = DeSTSeg(backbone, SMALL), cloth(2)
    with torch.no_grad():
        compared = similarities(backbone.features(images, detector.taps), detector.student(images))
        probability = detector.segmentation(compared).sigmoid()
    maps = detector.anomaly_maps(images)
    assert probability.shape == (2, 16, 16)
    corners = maps[:, [0, 0, -1, -1], [0, -1, 0, -1]]  # not blended with their neighbours
    assert torch.allclose(corners, probability[:, [0, 0, -1, -1], [0, -1, 0, -1]], atol=1e-6)
    assert torch.allclose(maps[:, 1, 2], 0.125 * probability[:, 0, 1] + 0.875 * probability[:, 0, 0])


def test_the_score_is_the_mean_of_the_highest_pixels(backbone: Backbone) -> None:
    maps = torch.tensor([[[1.0, 9.0, 2.0], [7.0, 3.0, 8.0]], [[0.0, 0.0, 0.0], [6.0, 0.0, 0.0]]])
    score = DeSTSeg(backbone, replace(SMALL, top=3)).image_scores
    assert score(maps).tolist() == [8.0, 2.0]
    everything = DeSTSeg(backbone, SMALL).image_scores
    assert everything(maps).tolist() == [5.0, 1.0]
    assert everything(torch.cat([torch.ones(100), torch.zeros(44)]).view(1, 12, 12)).tolist() == [1.0]


# --- training -------------------------------------------------------------------------------------


def learn(backbone: Backbone, settings: DeSTSegSettings = SMALL, count: int = 9, **options: Any) -> DeSTSeg:
    detector = DeSTSeg(backbone, settings)
    detector.fit(cloth(count), seed=3, **options)
    return detector


def test_both_phases_learn_and_a_defect_stands_out(backbone: Backbone) -> None:
    longer = replace(QUICK, batch_size=8, steps=100, learning_rate=0.4, final_learning_rate=0.4)
    settings = DeSTSegSettings(
        width=16,
        variants=4,
        student=longer,
        segmentation=replace(longer, steps=120, learning_rate=0.1, final_learning_rate=0.1),
        head_learning_rate=0.1,
    )
    detector = learn(backbone, settings, count=16)
    student = [sum(epoch.values()) for epoch in detector.history_ if "matching" in epoch]
    segmentation = [sum(epoch.values()) for epoch in detector.history_ if "focal" in epoch]
    assert (len(student), len(segmentation)) == (50, 60)
    assert "matching" in detector.history_[49]
    assert student[-1] < 0.2 * student[0]
    assert segmentation[-1] < 0.4 * segmentation[0]

    clean = cloth(6, seed=1)
    flawed = clean.clone()
    flawed[(..., *FLAW)] = 255
    before, after = detector.anomaly_maps(clean), detector.anomaly_maps(flawed)
    assert 0 <= after.min() < after.max() <= 1
    assert detector.image_scores(after).min() > 1.5 * detector.image_scores(before).max()
    assert (after[(..., *FLAW)].mean((1, 2)) > 2 * after.mean((1, 2))).all()


def test_the_student_is_finished_before_the_segmentation_network_begins(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished: list[dict[str, bytes]] = []

    def watched(model: nn.Module, *arguments: Any, **options: Any) -> list[dict[str, float]]:
        before = content(model)
        history = train(model, *arguments, **options)
        assert content(model) != before
        finished.append(content(model))
        return history

    monkeypatch.setattr(trained, "train", watched)
    detector = learn(backbone)
    assert finished == [content(detector.student), content(detector.segmentation)]
    assert not any(module.training for module in detector.student.modules())
    assert not any(module.training for module in detector.segmentation.modules())
    assert not any(parameter.requires_grad for parameter in detector.parameters())


@pytest.mark.parametrize("variants", [0, 2])
@pytest.mark.parametrize("stopped", [1, 3, 4, 5, 7, 8])
def test_an_interruption_in_either_phase_changes_nothing(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stopped: int, variants: int
) -> None:
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    settings = replace(SMALL, variants=variants)
    whole = learn(backbone, settings)
    steps: list[int] = []

    def stop(done: int, total: int, what: str, /) -> None:
        assert total == 8
        steps.append(done)
        if done == stopped:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learn(backbone, settings, progress=stop, checkpoints=tmp_path)
    assert (tmp_path / "segmentation.safetensors").exists() == (stopped > 4)
    resumed = learn(
        backbone, settings, progress=lambda done, total, what: steps.append(done), checkpoints=tmp_path
    )
    assert steps == sorted(steps)
    assert content(resumed) == content(whole)
    assert resumed.history_ == whole.history_


def test_progress_counts_both_phases_up_to_one_total(backbone: Backbone) -> None:
    ticks: list[tuple[int, int]] = []
    settings = replace(SMALL, student=replace(QUICK, steps=3), segmentation=replace(QUICK, steps=6))
    learn(backbone, settings, progress=lambda done, total, what: ticks.append((done, total)))
    assert {total for _, total in ticks} == {9}
    assert sorted({done for done, _ in ticks}) == list(range(1, 10))
    assert all(one <= other for one, other in pairwise(done for done, _ in ticks))


def test_progress_jumps_on_where_a_phase_stops_early(backbone: Backbone) -> None:
    stale = replace(QUICK, steps=0, epochs=40, patience=1, learning_rate=1e-9, final_learning_rate=1e-9)
    ticks: list[tuple[int, int]] = []
    settings = replace(SMALL, student=stale, segmentation=QUICK)
    learn(backbone, settings, progress=lambda done, total, what: ticks.append((done, total)))
    dones = [done for done, _ in ticks]
    assert dones == sorted(dones)
    assert len({total for _, total in ticks}) == 1
    assert ticks[-1][0] == ticks[-1][1]
    assert len(ticks) < ticks[-1][1]


@pytest.mark.parametrize(
    ("name", "value"),
    [("width", 0), ("top", 0), ("variants", -1), ("focal_gamma", math.nan), ("head_learning_rate", 0.0)],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(SettingsError, match=f"{name} is {value}. Set {name} to "):
        replace(SMALL, **{name: value})  # type: ignore[arg-type]
