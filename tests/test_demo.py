"""The demo: its files, its proof that nothing was forgotten, and what it refuses to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from continuad.bench import DemoReport, run_demo
from continuad.bench import demo as demo_module
from continuad.bench.demo import STRANGER, MemoryProof, fingerprint
from continuad.datasets import load_tasks
from continuad.datasets.demo import DEMO_PRODUCTS, demo_task
from continuad.errors import ContinuadError, DatasetError, SettingsError
from continuad.inspector import Inspector, Product

QUICK: dict[str, Any] = {
    "backbone": "tiny",
    "weights": "random",
    "head": "adapts-s",
    "settings": {"training": {"epochs": 1}},
    "image_size": 64,
    "train": 8,
    "good": 2,
    "defective": 4,
}


def run(out: Path, *products: str, **changes: Any) -> DemoReport:
    return run_demo(out, products=products or ("wood", "cap"), **{**QUICK, **changes})


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> DemoReport:
    return run(tmp_path_factory.mktemp("demo") / "new" / "out")


def test_the_products_are_learnt_in_order_and_measured(report: DemoReport) -> None:
    assert [each.product for each in report.products] == ["wood", "cap"]
    bank = Inspector.open(report.bank)
    assert list(bank.products) == ["wood", "cap"]
    assert bank.product("wood").method == "adapts-s"
    assert report.seconds > sum(each.learn_seconds for each in report.products)


def test_the_report_on_disk_says_the_same(report: DemoReport) -> None:
    on_disk = json.loads((report.bank.parent / "report.json").read_text())
    assert on_disk == json.loads(json.dumps(report.as_dict(), allow_nan=False))
    assert on_disk["memory"]["nothing_forgotten"] is True
    assert len(on_disk["products"]) == 2


def test_the_contact_sheet_is_a_picture_of_three_rows(report: DemoReport) -> None:
    with Image.open(report.contact_sheet) as sheet:
        sheet.load()
        assert sheet.mode == "RGB"
        assert sheet.width > 4 * 3 * demo_module.TILE
        assert sheet.height > 3 * demo_module.TILE


def test_the_photos_are_a_data_set_to_go_on_with(report: DemoReport) -> None:
    assert sorted(path.name for path in report.photos.iterdir()) == ["cap", STRANGER, "wood"]
    (stranger,) = load_tasks(report.photos / STRANGER)
    assert len(stranger.train) == 8
    assert [sample.is_anomalous for sample in stranger.test].count(True) == 3
    assert all(sample.mask is not None for sample in stranger.test if sample.is_anomalous)
    rendered = demo_task("wood", size=64, train=0, good=1, defective=0).test[0].image
    with Image.open(report.photos / "wood" / "test" / "good" / "000.png") as photo:
        assert np.array_equal(np.asarray(photo), rendered)
    kinds = sorted(path.name for path in (report.photos / "wood" / "test").iterdir())
    assert kinds == sorted(["good", *DEMO_PRODUCTS["wood"].defects[:3]])


def test_the_stranger_is_counted_as_the_bank_sees_it(report: DemoReport) -> None:
    photos = sorted((report.photos / STRANGER / "test").rglob("*.png"))
    images = demo_task(STRANGER, size=64, train=0, good=2, defective=3).test
    verdicts = Inspector.open(report.bank).inspect([sample.image for sample in images])
    assert len(photos) == 4
    assert report.stranger.product == STRANGER
    assert report.stranger.images == 5
    assert report.stranger.unknown == sum(verdict.product is None for verdict in verdicts)


def test_the_proof_can_be_repeated_from_the_bank(report: DemoReport) -> None:
    task = demo_task("wood", size=64, train=0, good=2, defective=4)
    memory = report.memory
    assert memory == MemoryProof("wood", 6, 1, memory.after, memory.after)
    assert memory.nothing_forgotten
    assert fingerprint(Inspector.open(report.bank), task) == memory.after
    assert len(memory.after) == 64


def test_the_proof_fails_when_the_first_product_is_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = demo_task("wood", size=64, train=8, good=0, defective=0).train

    def meddle(product: Product) -> None:
        if product.name == "cap":
            Inspector.open(tmp_path / "bank").learn(
                "wood", train, head="adapts-s", settings=QUICK["settings"], seed=9, replace_existing=True
            )

    report = run_demo(tmp_path, products=["wood", "cap"], learnt=meddle, **QUICK)
    assert not report.memory.nothing_forgotten
    assert report.as_dict()["memory"]["nothing_forgotten"] is False


@pytest.mark.parametrize("field", ["score", "map"])
def test_the_fingerprint_sees_the_smallest_change(report: DemoReport, field: str) -> None:
    inspector = Inspector.open(report.bank)
    task = demo_task("wood", size=64, train=0, good=1, defective=0)
    untouched = fingerprint(inspector, task)
    verdict = inspector.inspect(task.test[0].image, product="wood")
    assert verdict.anomaly_map is not None
    if field == "score":
        object.__setattr__(verdict, "score", np.nextafter(verdict.score, 1))
    else:
        verdict.anomaly_map[-1, -1] = np.nextafter(verdict.anomaly_map[-1, -1], np.float32(1))
    inspector.inspect = lambda *_, **__: verdict  # type: ignore[method-assign, assignment]
    assert fingerprint(inspector, task) != untouched


def test_a_second_run_replaces_the_first_and_nothing_else(tmp_path: Path) -> None:
    first = run(tmp_path, "wood", good=1, defective=1)
    (tmp_path / "notes.txt").write_text("mine")
    again = run(tmp_path, "wood", good=1, defective=1)
    assert again.memory == first.memory
    assert list(Inspector.open(again.bank).products) == ["wood"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_an_interrupted_run_can_be_repeated(tmp_path: Path) -> None:
    def interrupt(product: Product) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "wood", learnt=interrupt)
    assert not (tmp_path / "report.json").exists()
    run(tmp_path, "wood", good=1, defective=1)
    assert (tmp_path / "report.json").exists()


def test_a_folder_that_is_no_demo_is_left_alone(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "mine.png").write_bytes(b"precious")
    with pytest.raises(SettingsError, match="not an earlier demo's"):
        run(tmp_path)
    with pytest.raises(SettingsError, match="not an earlier demo's"):
        run(photos / "mine.png")
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "mine.png"]
    assert (photos / "mine.png").read_bytes() == b"precious"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DatasetError, match="file"):
        run(tmp_path / "file" / "out")


def test_all_products_but_one_are_learnt_by_default(tmp_path: Path) -> None:
    learnt: list[str] = []

    def stop_after_six(product: Product) -> None:
        learnt.append(product.name)
        if len(learnt) == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_demo(tmp_path, learnt=stop_after_six, **{**QUICK, "good": 1, "defective": 1})
    assert learnt == [name for name in DEMO_PRODUCTS if name != STRANGER][:6]


def test_another_stranger_stands_in_when_the_usual_one_is_learnt(tmp_path: Path) -> None:
    report = run(tmp_path, STRANGER, good=1, defective=0)
    assert report.stranger.product == next(name for name in DEMO_PRODUCTS if name != STRANGER)
    assert report.products[0].as_dict()["recall"] is None


@pytest.mark.parametrize("products", [[], ["wood", "wood"], list(DEMO_PRODUCTS), ["woud"]])
def test_products_that_make_no_demo_are_refused(tmp_path: Path, products: list[str]) -> None:
    with pytest.raises(ContinuadError, match=r"demo product|make a demo"):
        run_demo(tmp_path / "out", products=products, **QUICK)
    assert not (tmp_path / "out").exists()
