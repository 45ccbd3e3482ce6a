from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from continuad.datasets import LAYOUTS, Task, hold_out, load_tasks
from continuad.errors import DatasetError, ProductError, SettingsError
from continuad.images import load_image, load_mask


def put(root: Path, *names: str) -> None:
    """Make files that no one may decode."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def mvtec(root: Path) -> None:
    put(root, *(f"train/good/{index:03}.png" for index in range(12)))
    put(root, "test/good/000.png", "test/crack/000.png", "test/crack/001.png", "test/scratch/000.png")
    put(root, "ground_truth/crack/000_mask.png", "ground_truth/crack/001.png", "license.txt")


def rows(task: Task) -> list[tuple[str, bool, str, str | None]]:
    return [
        (
            Path(str(s.image)).name,
            s.is_anomalous,
            s.defect,
            None if s.mask is None else Path(str(s.mask)).name,
        )
        for s in task.test
    ]


def test_mvtec_product(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    (task,) = load_tasks(tmp_path / "bottle")
    assert task.name == "bottle"
    assert [Path(str(path)).name for path in task.train] == [f"{index:03}.png" for index in range(12)]
    assert rows(task) == [
        ("000.png", True, "crack", "000_mask.png"),
        ("001.png", True, "crack", "001.png"),
        ("000.png", False, "good", None),
        ("000.png", True, "scratch", None),
    ]
    assert task.test[0].mask == tmp_path / "bottle/ground_truth/crack/000_mask.png"


def test_images_and_masks_of_any_kind_are_paired_by_name(tmp_path: Path) -> None:
    put(tmp_path / "p", "train/good/1.BMP", "test/crack/2.jpg", "test/crack/10.bmp", "test/crack/about.txt")
    put(
        tmp_path / "p",
        "ground_truth/crack/10_mask.tif",
        "ground_truth/crack/2_mask.png",
        "ground_truth/crack/2.txt",
    )
    assert rows(load_tasks(tmp_path / "p")[0]) == [
        ("2.jpg", True, "crack", "2_mask.png"),
        ("10.bmp", True, "crack", "10_mask.tif"),
    ]


def test_the_paths_lead_to_the_images(tmp_path: Path) -> None:
    mvtec(tmp_path / "cap no. 1")
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cap no. 1/test/crack/000.png")
    Image.fromarray(pixels[:, :, 0] // 128 * 255).save(tmp_path / "cap no. 1/ground_truth/crack/000_mask.png")
    sample = load_tasks(tmp_path)[0].test[0]
    assert sample.mask is not None
    np.testing.assert_array_equal(load_image(sample.image), pixels)
    np.testing.assert_array_equal(load_mask(sample.mask), pixels[:, :, 0] >= 128)


def test_products_up_to_two_levels_down_in_alphabetical_order(tmp_path: Path) -> None:
    for name in ("mvtec/screw", "mvtec/Bottle", "other/commutator", "tile", "too/deep/down/pill"):
        mvtec(tmp_path / name)
    put(tmp_path, "textures/banded/1.png", "textures/woven/1.png", "README.md", ".cache/x/train/good/1.png")
    assert [task.name for task in load_tasks(tmp_path)] == ["Bottle", "commutator", "screw", "tile"]
    chosen = load_tasks(tmp_path, products=["tile", "Bottle"])
    assert [task.name for task in chosen] == ["tile", "Bottle"]
    assert load_tasks(tmp_path, products=[]) == []


def test_an_unknown_product_suggests_near_names(tmp_path: Path) -> None:
    for name in ("bottle", "tile"):
        mvtec(tmp_path / name)
    with pytest.raises(ProductError, match=r"'botle'.*Did you mean bottle"):
        load_tasks(tmp_path, products=["tile", "botle"])
    with pytest.raises(ProductError, match="There are: bottle, tile"):
        load_tasks(tmp_path, products=["xyz"])


def test_btad(tmp_path: Path) -> None:
    put(
        tmp_path / "02",
        "train/ok/0000.bmp",
        "test/ok/0003.bmp",
        "test/ko/0001.bmp",
        "ground_truth/ko/0001.png",
    )
    put(tmp_path / "01", "train/ok/0000.bmp", "test/ko/0001.bmp")
    first, second = load_tasks(tmp_path)
    assert (first.name, rows(first)) == ("01", [("0001.bmp", True, "ko", None)])
    assert rows(second) == [("0001.bmp", True, "ko", "0001.png"), ("0003.bmp", False, "good", None)]


VISA_ROWS = (
    "candle,train,normal,candle/Data/Images/Normal/0000.JPG,",
    "candle,train,normal,candle/Data/Images/Normal/0002.JPG,",
    "candle,test,normal,candle/Data/Images/Normal/0001.JPG,",
    "candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png",
    "fryum,train,normal,fryum/Data/Images/Normal/0000.JPG,",
)


def visa(root: Path, table: str) -> None:
    put(
        root,
        *(row.split(",")[3] for row in VISA_ROWS),
        "candle/Data/Masks/Anomaly/000.png",
        "split_csv/1cls.csv",
    )
    (root / "split_csv/1cls.csv").write_text(table)


def test_visa(tmp_path: Path) -> None:
    visa(tmp_path, "\n".join(["object,split,label,image,mask", *VISA_ROWS]))
    candle, fryum = load_tasks(tmp_path)
    assert [Path(str(path)).name for path in candle.train] == ["0000.JPG", "0002.JPG"]
    assert rows(candle) == [("0001.JPG", False, "good", None), ("000.JPG", True, "anomaly", "000.png")]
    assert all(Path(str(s.image)).is_file() for s in candle.test)
    assert candle.test[1].mask == tmp_path / "candle/Data/Masks/Anomaly/000.png"
    assert (len(fryum.train), fryum.test) == (1, [])
    assert load_tasks(tmp_path / "candle") == [candle]


def test_visa_with_a_missing_or_wrong_table(tmp_path: Path) -> None:
    visa(tmp_path, "object,split,label,image\n" + "\n".join(VISA_ROWS))
    with pytest.raises(DatasetError, match=r"1cls\.csv has not the columns"):
        load_tasks(tmp_path)
    (tmp_path / "split_csv/1cls.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DatasetError, match=r"1cls\.csv is damaged"):
        load_tasks(tmp_path)
    (tmp_path / "split_csv/1cls.csv").write_text("object,split,label,image,mask\n")
    with pytest.raises(DatasetError, match="candle has no normal images"):
        load_tasks(tmp_path)
    (tmp_path / "split_csv/1cls.csv").unlink()
    with pytest.raises(DatasetError) as caught:
        load_tasks(tmp_path)
    assert str(tmp_path / "split_csv/1cls.csv") in caught.value.problem


@pytest.mark.parametrize("good", ["good", "Normal", "OK"])
def test_good_and_bad(tmp_path: Path, good: str) -> None:
    put(tmp_path / "cap", *(f"{good}/{index}.jpg" for index in range(20)))
    put(tmp_path / "cap", "bad/1.jpg", "scratch/deep/2.jpg", "masks/1.png", "notes/readme.txt")
    (task,) = load_tasks(tmp_path / "cap")
    held_out = [sample for sample in task.test if not sample.is_anomalous]
    assert (len(task.train), len(held_out)) == (16, 4)
    images = {*map(str, task.train), *(str(sample.image) for sample in held_out)}
    assert images == {str(tmp_path / "cap" / good / f"{index}.jpg") for index in range(20)}
    assert rows(task)[4:] == [("1.jpg", True, "bad", None), ("2.jpg", True, "scratch", None)]
    assert load_tasks(tmp_path) == [task]


def test_good_alone_is_all_learned(tmp_path: Path) -> None:
    put(tmp_path / "cap", *(f"good/{index}.jpg" for index in range(20)))
    (task,) = load_tasks(tmp_path / "cap")
    assert (len(task.train), task.test) == (20, [])


def test_a_folder_of_images_is_one_product(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "cap", "img10.png", "img2.png", "notes.txt")
    (task,) = load_tasks(tmp_path / "cap")
    assert task == Task("cap", [tmp_path / "cap/img2.png", tmp_path / "cap/img10.png"], [])
    monkeypatch.chdir(tmp_path / "cap")
    assert load_tasks(".")[0].name == "cap"
    with pytest.raises(DatasetError):
        load_tasks(tmp_path)  # folders of images may be anything


def test_half_a_dataset_is_not_mistaken_for_another(tmp_path: Path) -> None:
    put(tmp_path / "bottle", "test/good/1.png", "test/crack/1.png", "train/1.png")
    put(tmp_path / "01", "test/ok/1.png", "test/ko/1.png", "train/1.png")
    for root in (tmp_path, tmp_path / "bottle", tmp_path / "01", tmp_path / "01/test"):
        with pytest.raises(DatasetError, match="No product was recognised"):
            load_tasks(root)


def test_a_picture_beside_the_products_is_no_product(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    put(tmp_path, "cover.png")
    assert [task.name for task in load_tasks(tmp_path)] == ["bottle"]


def test_no_product_lies_in_or_around_another(tmp_path: Path) -> None:
    mvtec(tmp_path / "bottle")
    put(tmp_path / "bottle", "ground_truth/good/000_mask.png")
    put(tmp_path, "good/1.png")
    assert [task.name for task in load_tasks(tmp_path)] == ["bottle"]
    assert [task.name for task in load_tasks(tmp_path / "bottle")] == ["bottle"]


def test_datasets_of_several_layouts_side_by_side(tmp_path: Path) -> None:
    mvtec(tmp_path / "mvtec/bottle")
    put(tmp_path / "btad", "01/train/ok/1.bmp")
    visa(tmp_path / "visa", "\n".join(["object,split,label,image,mask", *VISA_ROWS]))
    assert [task.name for task in load_tasks(tmp_path)] == ["01", "bottle", "candle", "fryum"]
    assert [task.name for task in load_tasks(tmp_path, layout="btad")] == ["01"]


def test_an_unrecognised_folder_shows_what_it_holds_and_every_layout(tmp_path: Path) -> None:
    put(tmp_path, *(f"lot{index}/1.png" for index in range(9)), "about.txt")
    with pytest.raises(DatasetError) as caught:
        load_tasks(tmp_path)
    assert str(tmp_path) in caught.value.problem
    assert "lot0/, lot1/, lot2/, lot3/, lot4/, lot5/ and 4 more" in caught.value.problem
    for name, layout in LAYOUTS.items():
        assert f"{name}: {layout.looks_like}" in caught.value.remedy
    with pytest.raises(DatasetError) as caught:
        load_tasks(tmp_path, layout="visa")
    assert "mvtec" not in caught.value.remedy
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match="holds nothing"):
        load_tasks(tmp_path / "void")


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "mvtec.tar.xz").touch()
    with pytest.raises(DatasetError, match="is a file"):
        load_tasks(tmp_path / "mvtec.tar.xz")
    with pytest.raises(DatasetError, match="does not exist"):
        load_tasks(tmp_path / "gone")
    with pytest.raises(DatasetError):
        load_tasks("x" * 5000)
    with pytest.raises(SettingsError, match="Did you mean 'mvtec'"):
        load_tasks(tmp_path, layout="mvtek")


def test_a_product_without_normal_images_and_two_of_one_name(tmp_path: Path) -> None:
    mvtec(tmp_path / "a/pill")
    mvtec(tmp_path / "b/pill")
    with pytest.raises(DatasetError, match="Two products are named 'pill'"):
        load_tasks(tmp_path)
    (tmp_path / "c/train/good").mkdir(parents=True)
    with pytest.raises(DatasetError, match="c has no normal images"):
        load_tasks(tmp_path / "c")


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 60), st.floats(0.01, 0.99), st.integers(0, 9))
def test_hold_out_is_a_repeatable_split(count: int, fraction: float, seed: int) -> None:
    items = [f"item {index}" for index in range(count)]
    kept, held = hold_out(items, fraction, seed=seed)
    assert sorted(kept + held) == sorted(items)
    assert kept == [item for item in items if item not in held]
    assert held == [item for item in items if item not in kept]
    if count > 1:
        assert len(held) == min(max(round(count * fraction), 1), count - 1)
    else:
        assert held == []
    assert hold_out(items, fraction, seed=seed) == (kept, held)


def test_hold_out_depends_on_the_seed_and_checks_the_fraction() -> None:
    splits = {tuple(hold_out(range(50), 0.2, seed=seed)[1]) for seed in range(5)}
    assert len(splits) == 5
    for fraction in (0.0, 1.0, -1.0, 20.0, float("nan")):
        with pytest.raises(SettingsError):
            hold_out(range(5), fraction, seed=0)
