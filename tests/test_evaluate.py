"""The continual protocol: what is measured, on hand-made verdicts; and that learning resumes."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from continuad.bench import ProductReport, evaluate, mean_report
from continuad.bench.evaluate import learn_tasks, measure
from continuad.datasets import Sample, Task
from continuad.datasets.demo import demo_tasks
from continuad.detectors import METHODS
from continuad.detectors.checkpoint import Checkpoint
from continuad.errors import BankError, ProductError, SettingsError
from continuad.inspector import Inspector, Product
from continuad.metrics import ImageScores, PixelScores, binomial_interval
from continuad.verdict import Verdict

QUICK = {"training": {"epochs": 2}}


class Scripted:
    """An inspector of 8 px that gives prepared verdicts, in order."""

    image_size = 8

    def __init__(self, verdicts: Sequence[Verdict]) -> None:
        self.verdicts = list(verdicts)
        self.seen: list[np.ndarray] = []

    def product(self, name: str) -> Any:
        return SimpleNamespace(name=name, method="adapts-s", images=48, seconds=2.5, bytes=3072)

    def inspect(self, image: np.ndarray, *, reject_unknown: bool) -> Verdict:
        assert not reject_unknown
        self.seen.append(image)
        return self.verdicts.pop(0)


def said(
    score: float,
    product: str = "bolt",
    *,
    mask: np.ndarray | None = None,
    distance: float = 0.5,
    ms: float = 1,
) -> Verdict:
    """A verdict at threshold 2.5 whose map is high exactly where the mask is."""
    values = np.zeros((8, 8), np.float32) if mask is None else np.where(mask, score, 0).astype(np.float32)
    timings = {"backbone": 0.75 * ms, "head": 0.25 * ms}
    return Verdict(product, score, 2.5, score > 2.5, values, product, distance, timings)


def run(verdicts: Sequence[Verdict], test: Sequence[Sample]) -> ProductReport:
    inspector = Scripted(verdicts)
    report = measure(cast(Inspector, inspector), Task("bolt", [], test))
    assert not inspector.verdicts
    assert all(image.shape == (8, 8, 3) for image in inspector.seen)
    return report


IMAGE = np.full((16, 16, 3), 90, np.uint8)
CORNER = np.zeros((16, 16), np.bool_)
CORNER[:4, :6] = True
SMALL_CORNER = CORNER[::2, ::2]
GOOD = Sample(IMAGE, is_anomalous=False)
HOLE = Sample(IMAGE, is_anomalous=True, defect="hole", mask=CORNER)
DENT = Sample(IMAGE, is_anomalous=True, defect="dent")


def test_a_hand_computed_report() -> None:
    report = run(
        [
            said(1, ms=10),
            said(3, "nut", ms=20, distance=1.01),
            said(4, mask=SMALL_CORNER, ms=30),
            said(2, mask=~SMALL_CORNER, ms=100, distance=1.0),
        ],
        [GOOD, GOOD, HOLE, DENT],
    )
    assert report.image == ImageScores(i_auroc=0.75, i_ap=pytest.approx((1 + 2 / 3) / 2), i_f1max=0.8)
    assert report.pixel == PixelScores(1.0, 1.0, 1.0, pytest.approx(1.0))  # the dent has no mask: left out
    assert report.routing_accuracy == 0.75
    assert report.unknown_rate == 0.25
    assert report.false_alarm_rate == 0.5
    assert report.false_alarm_interval == binomial_interval(1, 2)
    assert report.recall == 0.5
    assert report.recall_interval == binomial_interval(1, 2)
    assert (report.learn_seconds, report.kib, report.train_images) == (2.5, 3.0, 48)
    assert report.ms_per_image == pytest.approx(25)


def test_maps_that_are_high_off_the_mask_are_measured_so() -> None:
    report = run([said(1), said(4, mask=~SMALL_CORNER)], [GOOD, HOLE])
    pixels, hits = 2 * 64, int(SMALL_CORNER.sum())
    normal, missed_below = pixels - hits, 64 - hits
    assert report.pixel.p_auroc == pytest.approx(1 - (missed_below + 64 / 2) / normal)


def test_without_any_mask_pixel_metrics_are_nan_and_image_metrics_are_not() -> None:
    report = run([said(1), said(4, mask=SMALL_CORNER)], [GOOD, DENT])
    assert all(math.isnan(value) for value in vars(report.pixel).values())
    assert report.image.i_auroc == 1


@pytest.mark.parametrize(
    ("verdicts", "test", "missing"),
    [
        ([], [], {"routing_accuracy", "unknown_rate", "false_alarm_rate", "recall", "ms_per_image"}),
        ([said(1)], [GOOD], {"recall"}),
        ([said(4, mask=SMALL_CORNER)], [HOLE], {"false_alarm_rate"}),
    ],
)
def test_what_cannot_be_measured_is_null_in_json(
    verdicts: list[Verdict], test: list[Sample], missing: set[str]
) -> None:
    report = run(verdicts, test)
    values = json.loads(json.dumps(report.as_dict(), allow_nan=False))
    nulls = {key for key, value in values.items() if value is None}
    if len({sample.is_anomalous for sample in test}) < 2:
        missing = missing | {"i_auroc", "i_ap", "i_f1max"}
    if test != [HOLE]:  # one image with a mask has pixels of both kinds
        missing = missing | {"p_auroc", "p_ap", "p_f1max", "aupro"}
    assert nulls == missing
    assert values["product"] == "bolt"
    assert values["recall_interval"] == list(report.recall_interval)


def test_means_leave_out_what_could_not_be_measured() -> None:
    both = run([said(1), said(4, mask=SMALL_CORNER)], [GOOD, HOLE])
    no_mask = replace(run([said(3), said(1)], [GOOD, DENT]), kib=9.0)
    means = mean_report([both, no_mask])
    assert means["i_auroc"] == 0.5
    assert means["p_auroc"] == both.pixel.p_auroc == 1
    assert means["kib"] == 6
    assert means["false_alarm_rate"] == 0.5
    assert set(means) < set(both.as_dict())
    assert mean_report([no_mask])["aupro"] is None
    assert set(mean_report([]).values()) == {None}
    json.dumps(means, allow_nan=False)


def test_progress_counts_the_test_images() -> None:
    calls: list[tuple[int, int, str]] = []
    measure(
        cast(Inspector, Scripted([said(1), said(2)])),
        Task("bolt", [], [GOOD, DENT]),
        progress=lambda *call: calls.append(call),
    )
    assert calls == [(done, 2, "bolt: inspecting") for done in range(3)]


@pytest.fixture(scope="module")
def tasks() -> list[Task]:
    return demo_tasks(["cap", "wood", "flange"], size=64, train=10, good=2, defective=3)


def bank(path: Path) -> Inspector:
    return Inspector.create(path / "bank", backbone="tiny", weights="random", image_size=64)


def timeless(reports: Sequence[ProductReport]) -> list[dict[str, Any]]:
    return [replace(report, learn_seconds=0, ms_per_image=0).as_dict() for report in reports]


def test_an_interrupted_evaluation_resumes(
    tmp_path: Path, tasks: list[Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    learn = Inspector.learn

    def counting(self: Inspector, name: str, *args: Any, **kwargs: Any) -> Product:
        calls.append(name)
        return learn(self, name, *args, **kwargs)

    def interrupt(product: Product) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Inspector, "learn", counting)
    inspector = bank(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        evaluate(inspector, tasks, head="adapts-s", settings=QUICK, learnt=interrupt)
    assert calls == ["cap"]
    first = inspector.product("cap")

    told: list[str] = []
    resumed = evaluate(
        Inspector.open(tmp_path / "a" / "bank"),
        tasks,
        head="adapts-s",
        settings=QUICK,
        learnt=lambda product: told.append(product.name),
    )
    assert calls == ["cap", "wood", "flange"]
    assert told == ["wood", "flange"]
    assert inspector.product("cap") == first

    straight = evaluate(bank(tmp_path / "b"), tasks, head="adapts-s", settings=QUICK)
    assert timeless(resumed) == timeless(straight)
    assert [report.product for report in straight] == ["cap", "wood", "flange"]
    assert all(report.ms_per_image > 0 and report.learn_seconds > 0 for report in straight)


@pytest.mark.parametrize("method", [name for name, each in METHODS.items() if each.backbone is None])
def test_any_method_can_be_evaluated_and_goes_on_within_a_training(
    tmp_path: Path, tasks: list[Task], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)
    defaults = METHODS[method].settings
    plans = [each.name for each in fields(defaults) if hasattr(getattr(defaults, each.name), "batch_size")]
    settings: dict[str, Any] = {key: {"steps": 3, "batch_size": 4} for key in plans}
    if hasattr(defaults, "width"):
        settings["width"] = 8
    steps: list[tuple[str, int]] = []

    def halt(done: int, total: int, what: str) -> None:
        if what.endswith("training" if plans else "looking at normal images"):
            steps.append((what, done))
            if len(steps) == 2:
                raise KeyboardInterrupt

    inspector = bank(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        evaluate(inspector, tasks[:2], head=method, settings=settings, progress=halt)
    reports = evaluate(inspector, tasks[:2], head=method, settings=settings, progress=halt)
    assert [report.method for report in reports] == [method] * 2
    assert all(0 <= report.image.i_auroc <= 1 for report in reports)
    numbers = range(1, 3 * len(plans) + 1)
    assert not plans or steps == [(f"{task.name}: training", n) for task in tasks[:2] for n in numbers]


def test_the_report_agrees_with_the_inspector(tmp_path: Path, tasks: list[Task]) -> None:
    inspector = bank(tmp_path)
    cap = evaluate(inspector, tasks, head="adapts-l", settings=QUICK, false_alarm_rate=0.05)[0]
    verdicts = inspector.inspect([sample.image for sample in tasks[0].test], reject_unknown=False)
    product = inspector.product("cap")
    assert cap.routing_accuracy == np.mean([verdict.product == "cap" for verdict in verdicts])
    assert cap.unknown_rate == np.mean([verdict.distance > 1 for verdict in verdicts])
    assert cap.false_alarm_rate == np.mean([verdict.is_anomalous for verdict in verdicts[:2]])
    assert cap.recall == np.mean([verdict.is_anomalous for verdict in verdicts[2:]])
    assert cap.kib == (inspector.bank.path / product.file).stat().st_size / 1024
    assert cap.method == product.method == "adapts-l"
    assert product.calibration.false_alarm_rate == 0.05


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"head": "adapts-l"}, "head"),
        ({"settings": {"training": {"epochs": 1}}}, "'training' setting"),
        ({"false_alarm_rate": 0.02}, "false-alarm rate"),
        ({"fewer": 1}, "number of images"),
    ],
)
def test_a_product_learnt_otherwise_is_refused_before_anything_is_learnt(
    tmp_path: Path, tasks: list[Task], change: dict[str, Any], what: str
) -> None:
    inspector = bank(tmp_path)
    asked: dict[str, Any] = {"head": "adapts-s", "settings": QUICK}
    learn_tasks(inspector, tasks[:1], **asked)
    before = dict(inspector.products)
    fewer = change.pop("fewer", 0)
    cap = replace(tasks[0], train=tasks[0].train[fewer:])
    with pytest.raises(BankError, match=f"'cap', learnt with another {what}"):
        evaluate(inspector, [tasks[1], cap], **{**asked, **change})
    assert inspector.products == before


def test_the_seed_reaches_learning(tmp_path: Path, tasks: list[Task]) -> None:
    digests = set()
    for seed in (0, 1):
        inspector = bank(tmp_path / str(seed))
        learn_tasks(inspector, tasks[:1], head="adapts-s", settings=QUICK, seed=seed)
        digests.add(inspector.product("cap").sha256)
    assert len(digests) == 2


def test_mistakes_are_named(tmp_path: Path, tasks: list[Task]) -> None:
    inspector = bank(tmp_path)
    with pytest.raises(SettingsError, match="adapts-x"):
        evaluate(inspector, tasks, head="adapts-x")
    with pytest.raises(SettingsError, match="epoch"):
        evaluate(inspector, tasks, head="adapts-s", settings={"epoch": 1})
    with pytest.raises(ProductError, match="cap"):
        measure(inspector, tasks[0])
    assert not inspector.products
