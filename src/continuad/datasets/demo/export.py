"""A task as files, in the folder layout of MVTec AD."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from continuad.datasets.task import Task
from continuad.errors import DatasetError
from continuad.images import load_image, load_mask


def write_mvtec(task: Task, folder: Path) -> None:
    """Write the task's images as PNG: train/good, test/<defect>, and ground_truth/<defect> for the masks.

    Args:
        task: its images may be anything `load_image` takes.
        folder: the product's folder; it is created, and must not hold anything yet.

    Raises:
        DatasetError: the folder is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DatasetError(f"{folder} exists already.", "Give a new or an empty folder.")
    try:
        for index, image in enumerate(task.train):
            _save(load_image(image), folder / "train" / "good" / f"{index:03}.png")
        numbers: Counter[str] = Counter()
        for sample in task.test:
            stem = f"{numbers[sample.defect]:03}"
            numbers[sample.defect] += 1
            _save(load_image(sample.image), folder / "test" / sample.defect / f"{stem}.png")
            if sample.mask is not None:
                levels = load_mask(sample.mask).astype(np.uint8) * np.uint8(255)
                _save(levels, folder / "ground_truth" / sample.defect / f"{stem}_mask.png")
    except OSError as error:
        raise DatasetError(
            f"{folder} cannot be written ({error.strerror}).", "Check its permissions and the free space."
        ) from error


def _save(pixels: NDArray[np.uint8], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
