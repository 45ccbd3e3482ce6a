"""The rendered demo products: deterministic, varied, and with masks that say what the defect changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from continuad.datasets.demo import DEMO_PRODUCTS, demo_task, demo_tasks, write_mvtec
from continuad.datasets.task import Task
from continuad.errors import DatasetError, SettingsError

PRODUCTS = list(DEMO_PRODUCTS)
DEFECTS = [(name, defect) for name, product in DEMO_PRODUCTS.items() for defect in product.defects]


def rng(seed: int = 7) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_there_is_a_choice_of_products_and_defects() -> None:
    assert len(DEMO_PRODUCTS) >= 6
    for name, product in DEMO_PRODUCTS.items():
        assert product.name == name
        assert product.description
        assert len(set(product.defects)) == len(product.defects) >= 3
        assert "good" not in product.defects


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("size", [128, 256])
def test_a_normal_image_fills_its_range_and_has_an_empty_mask(name: str, size: int) -> None:
    image, mask = DEMO_PRODUCTS[name].render(rng(), size)
    assert image.shape == (size, size, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (size, size)
    assert mask.dtype == np.bool_
    assert not mask.any()
    assert 40 < image.mean() < 215
    assert image.std() > 10
    assert (image == 255).all(axis=2).mean() < 0.05


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_same_product_looks_alike_at_both_sizes(name: str) -> None:
    small, large = (DEMO_PRODUCTS[name].render(rng(), size)[0].astype(float) for size in (128, 256))
    blocks = [
        image.reshape(16, len(image) // 16, 16, len(image) // 16, 3).mean((1, 3)) for image in (small, large)
    ]
    assert abs(blocks[0].mean() - blocks[1].mean()) < 8


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_same_state_gives_the_same_bytes_and_another_gives_another_image(name: str) -> None:
    product = DEMO_PRODUCTS[name]
    first, again, other = (product.render(rng(seed), 128)[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2


@pytest.mark.parametrize(("name", "defect"), DEFECTS)
@pytest.mark.parametrize("size", [128, 256])
def test_the_mask_is_what_the_defect_changed(name: str, defect: str, size: int) -> None:
    product = DEMO_PRODUCTS[name]
    for seed in range(3):
        normal, _ = product.render(rng(seed), size)
        image, mask = product.render(rng(seed), size, defect)
        assert 0.0005 <= mask.mean() <= 0.25
        change = np.abs(image.astype(int) - normal).max(axis=2)
        assert change[mask].mean() > 10
        assert (change[mask] >= 4).mean() > 0.6
        assert change[~mask].max() <= 7


@pytest.mark.parametrize(("name", "defect"), DEFECTS)
def test_a_defect_has_many_faces(name: str, defect: str) -> None:
    masks = [DEMO_PRODUCTS[name].render(rng(seed), 128, defect)[1] for seed in range(3)]
    assert not np.array_equal(masks[0], masks[1])
    assert not np.array_equal(masks[1], masks[2])


def test_an_unknown_defect_or_product_is_refused() -> None:
    with pytest.raises(SettingsError, match="no defect 'rot'"):
        DEMO_PRODUCTS["wood"].render(rng(), 128, "rot")
    with pytest.raises(SettingsError, match=r"no demo product named 'woods'.*'wood'"):
        demo_task("woods")


@pytest.mark.parametrize("bad", [{"size": 32}, {"train": -1}, {"good": -1}, {"defective": -1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(bad: dict[str, int]) -> None:
    with pytest.raises(SettingsError):
        demo_task("wood", **bad)


def test_a_task_spreads_the_defects_evenly() -> None:
    steps: list[tuple[int, int]] = []
    task = demo_task(
        "flange",
        size=64,
        train=2,
        good=3,
        defective=6,
        progress=lambda done, total, _: steps.append((done, total)),
    )
    assert task.name == "flange"
    assert len(task.train) == 2
    counts = Counter(sample.defect for sample in task.test)
    assert counts.pop("good") == 3
    assert set(counts) == set(DEMO_PRODUCTS["flange"].defects)
    assert max(counts.values()) - min(counts.values()) <= 1
    for sample in task.test:
        assert sample.is_anomalous == (sample.defect != "good") == (sample.mask is not None)
    assert steps == [(done, 11) for done in range(12)]


def test_an_image_does_not_depend_on_how_many_there_are() -> None:
    few = demo_task("wood", size=64, train=1, good=1, defective=5, seed=3)
    many = demo_task("wood", size=64, train=3, good=2, defective=9, seed=3)
    assert np.array_equal(few.train[0], many.train[0])
    assert np.array_equal(few.test[0].image, many.test[0].image)
    for left, right in zip(few.test[1:], many.test[2:], strict=False):
        assert left.defect == right.defect
        assert np.array_equal(left.image, right.image)
        assert np.array_equal(left.mask, right.mask)


def test_no_two_images_are_alike() -> None:
    images = []
    for task in (demo_task("leather", size=64, train=3, good=2, defective=4, seed=seed) for seed in (0, 1)):
        images += [
            np.asarray(image).tobytes() for image in (*task.train, *(sample.image for sample in task.test))
        ]
    assert len(set(images)) == 18


def test_all_products_come_in_order_unless_some_are_named() -> None:
    tasks = demo_tasks(size=64, train=1, good=0, defective=0)
    assert [task.name for task in tasks] == PRODUCTS
    assert [task.name for task in demo_tasks(["wood", "cap"], size=64, train=1, good=0, defective=0)] == [
        "wood",
        "cap",
    ]


@pytest.fixture(scope="module")
def small_task() -> Task:
    return demo_task("fabric", size=64, train=2, good=1, defective=5)


def test_the_files_hold_the_task(small_task: Task, tmp_path: Path) -> None:
    folder = tmp_path / "fabric"
    write_mvtec(small_task, folder)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*.png")}
    kinds = DEMO_PRODUCTS["fabric"].defects
    defective = [f"{kind}/000" for kind in kinds] + [f"{kinds[0]}/001"]
    assert files == {
        "train/good/000.png",
        "train/good/001.png",
        "test/good/000.png",
        *(f"test/{stem}.png" for stem in defective),
        *(f"ground_truth/{stem}_mask.png" for stem in defective),
    }
    assert np.array_equal(Image.open(folder / "train/good/001.png"), small_task.train[1])
    last = small_task.test[-1]
    assert np.array_equal(Image.open(folder / f"test/{kinds[0]}/001.png"), last.image)
    mask = np.asarray(Image.open(folder / f"ground_truth/{kinds[0]}/001_mask.png"))
    assert np.array_equal(mask, np.asarray(last.mask) * 255)


def test_files_are_never_overwritten(small_task: Task, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("keep me")
    with pytest.raises(DatasetError, match="exists already"):
        write_mvtec(small_task, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
