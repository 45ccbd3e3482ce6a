"""Datasets in folders: which layout a folder has, and the tasks in it. Nothing is decoded here."""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from continuad.datasets.task import Sample, Task, hold_out
from continuad.errors import DatasetError, ProductError
from continuad.files import images_in, is_image, natural_key
from continuad.registry import Registry

GOOD_NAMES = frozenset({"good", "normal", "ok"})
MASK_NAMES = frozenset({"ground_truth", "mask", "masks"})
HELD_OUT = 0.2


@dataclass(frozen=True)
class Layout:
    """A way to arrange a product's images.

    Attributes:
        looks_like: what it expects, in a line that a user can act on.
        depth: how many levels below the root a product's folder may lie.
        recognises: whether a folder is a product in this layout.
        read: makes the task of such a folder.
    """

    looks_like: str
    depth: int
    recognises: Callable[[Path], bool]
    read: Callable[[Path], Task]


LAYOUTS: Registry[Layout] = Registry("dataset layout")


def load_tasks(
    root: str | os.PathLike[str], *, layout: str = "auto", products: Sequence[str] | None = None
) -> list[Task]:
    """List the products in a dataset folder, each as a task named like its folder.

    The root may be one product, a dataset of products, or a folder of datasets.

    Args:
        root: the folder.
        layout: a name from `LAYOUTS`; "auto" tries them in their order, folder by folder.
        products: which products, in which order; all of them in alphabetical order if not given.

    Raises:
        DatasetError: nothing is recognised, a product is incomplete, or two have the same name.
        ProductError: one of `products` is not there.
        SettingsError: there is no such layout.
    """
    root = Path(root)
    layouts = dict(LAYOUTS) if layout == "auto" else {layout: LAYOUTS[layout]}
    try:
        if not root.is_dir():
            problem = "is a file, not a folder" if root.is_file() else "does not exist"
            raise DatasetError(f"The dataset {root} {problem}.", "Give the folder of the unpacked dataset.")
        found = _find_products(root.resolve() if root.name in ("", "..") else root, tuple(layouts.values()))
        if not found:
            expected = "; ".join(f"{name}: {entry.looks_like}" for name, entry in layouts.items())
            raise DatasetError(
                f"No product was recognised in {root}, which holds {_contents(root)}.",
                f"Arrange it in one of these ways: {expected}.",
            )
        return [found[name][0].read(found[name][1]) for name in _chosen(found, products)]
    except OSError as error:
        raise DatasetError(
            f"{error.filename} cannot be read ({error.strerror}).", "Check its name and permissions."
        ) from error


def _find_products(root: Path, layouts: Sequence[Layout]) -> dict[str, tuple[Layout, Path]]:
    """Map product names to where they lie; no product lies inside another."""
    levels = [[root]]
    for _ in range(max(layout.depth for layout in layouts)):
        levels.append([child for folder in levels[-1] for child in _folders(folder)])
    places: dict[Path, Layout] = {}
    around: set[Path] = set()  # the folders above the products found
    for layout in layouts:
        for folder in (folder for level in levels[: layout.depth + 1] for folder in level):
            taken = folder in places or folder in around or not places.keys().isdisjoint(folder.parents)
            if not taken and layout.recognises(folder):
                places[folder] = layout
                around.update(folder.parents)
    found: dict[str, tuple[Layout, Path]] = {}
    for folder, layout in places.items():
        if folder.name in found:
            raise DatasetError(
                f"Two products are named {folder.name!r}: {found[folder.name][1]} and {folder}.",
                "Rename one of the folders, or load the datasets one by one.",
            )
        found[folder.name] = layout, folder
    return found


def _chosen(found: Collection[str], products: Sequence[str] | None) -> list[str]:
    if products is None:
        return sorted(found, key=lambda name: natural_key(Path(name)))
    for name in products:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3)
            hint = f"Did you mean {' or '.join(near)}?" if near else f"There are: {', '.join(sorted(found))}."
            raise ProductError(f"The dataset has no product {name!r}.", hint)
    return list(products)


def _read_train_test(folder: Path, *, good: str) -> Task:
    train = images_in(folder / "train" / good)
    test: list[Sample] = []
    for kind in _folders(folder / "test"):
        is_good = kind.name == good
        test += _normal(images_in(kind)) if is_good else _anomalous(kind, folder / "ground_truth")
    return _task(folder, train, test, folder / "train" / good)


def _read_visa(folder: Path) -> Task:
    """Read a product of VisA by the one-class split that comes with the dataset."""
    root = folder.parent
    table = root / "split_csv" / "1cls.csv"
    if not table.is_file():
        raise DatasetError(
            f"The VisA product {folder} has no table of train and test images: {table} is missing.",
            "Copy the folder split_csv of the dataset there.",
        )
    train: list[Path] = []
    test: list[Sample] = []
    for row in _rows(table):
        if row["object"] != folder.name:
            continue
        image = root / row["image"]
        if row["split"] == "train":
            train.append(image)
        elif row["label"] == "normal":
            test.append(Sample(image, is_anomalous=False))
        else:
            mask = root / row["mask"] if row["mask"] else None
            test.append(Sample(image, is_anomalous=True, defect="anomaly", mask=mask))
    return _task(folder, train, test, table)


def _rows(table: Path) -> list[dict[str, str]]:
    columns = ["object", "split", "label", "image", "mask"]
    try:
        with table.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream, restval=""))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(
            f"The table {table} is damaged ({error}).", "Take it from VisA unchanged."
        ) from error
    if rows and not rows[0].keys() >= set(columns):
        raise DatasetError(
            f"The table {table} has not the columns {', '.join(columns)}.", "Take it from VisA unchanged."
        )
    return rows


def _is_good_and_bad(folder: Path) -> bool:
    # The train and test folders of a damaged dataset of another layout look like this too.
    return folder.name not in ("train", "test") and any(_is_good(child) for child in _folders(folder))


def _read_good_and_bad(folder: Path) -> Task:
    """Read good images and defects that nobody has split.

    Where there are defects, a fifth of the good images, the same ones every time, is held out for the test.
    """
    children = _folders(folder)
    good = [image for child in children if _is_good(child) for image in images_in(child)]
    defects = [
        sample
        for child in children
        if not _is_good(child) and child.name.casefold() not in MASK_NAMES
        for sample in _anomalous(child, folder / "ground_truth")
    ]
    train, held_out = hold_out(good, HELD_OUT, seed=0) if defects else (good, [])
    return _task(folder, train, [*_normal(held_out), *defects], folder)


def _is_images_only(folder: Path) -> bool:
    return not _folders(folder) and any(is_image(path) for path in folder.iterdir())


def _read_images_only(folder: Path) -> Task:
    return _task(folder, images_in(folder), [], folder)


def _task(folder: Path, train: Sequence[Path], test: Sequence[Sample], where: Path) -> Task:
    if not train:
        raise DatasetError(
            f"The product {folder} has no normal images to learn from.", f"Put at least one into {where}."
        )
    return Task(folder.name, train, test)


def _normal(images: Sequence[Path]) -> list[Sample]:
    return [Sample(image, is_anomalous=False) for image in images]


def _anomalous(kind: Path, ground_truth: Path) -> list[Sample]:
    """Make the samples of one folder of defects, with masks named <image>_mask or <image>."""
    masks = {mask.stem: mask for mask in images_in(ground_truth / kind.name)}
    return [
        Sample(image, True, kind.name, masks.get(f"{image.stem}_mask", masks.get(image.stem)))
        for image in images_in(kind)
    ]


def _is_good(folder: Path) -> bool:
    return folder.name.casefold() in GOOD_NAMES


def _folders(folder: Path) -> list[Path]:
    """List the sub-folders that are not hidden, in natural order; none where there is no folder."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        found = [Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return sorted(found, key=natural_key)


def _contents(folder: Path, shown: int = 6) -> str:
    """Say what a folder holds: its first few entries and how many more."""
    names = [f"{child.name}/" for child in _folders(folder)]
    names += sorted(child.name for child in folder.iterdir() if child.is_file())
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more if names else "nothing"


LAYOUTS.register("mvtec")(
    Layout(
        "<product>/train/good, test/good, test/<defect>, ground_truth/<defect>/<image>_mask.png if known",
        depth=2,
        recognises=lambda folder: (folder / "train" / "good").is_dir(),
        read=lambda folder: _read_train_test(folder, good="good"),
    )
)
LAYOUTS.register("btad")(
    Layout(
        "<product>/train/ok, test/ok, test/ko, ground_truth/ko/<image>.png",
        depth=2,
        recognises=lambda folder: (folder / "train" / "ok").is_dir(),
        read=lambda folder: _read_train_test(folder, good="ok"),
    )
)
LAYOUTS.register("visa")(
    Layout(
        "<product>/Data/Images/Normal and Anomaly, with split_csv/1cls.csv beside the products",
        depth=2,
        recognises=lambda folder: (folder / "Data" / "Images" / "Normal").is_dir(),
        read=_read_visa,
    )
)
LAYOUTS.register("good-bad")(
    Layout(
        "<product>/good (or normal, or ok) and a folder for each kind of defect (bad, scratch, ...)",
        depth=1,
        recognises=_is_good_and_bad,
        read=_read_good_and_bad,
    )
)
LAYOUTS.register("images")(
    Layout(
        "images of one normal product, and no folders among them",
        depth=0,
        recognises=_is_images_only,
        read=_read_images_only,
    )
)
