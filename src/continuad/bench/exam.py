"""The test of a learner on a task."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from continuad.continual.learners import Learner
from continuad.continual.routed import Inspection
from continuad.datasets import Task
from continuad.drawing import overlay
from continuad.images import ImageSource, load_mask, load_stack, resize_mask
from continuad.metrics import PixelMetrics, image_scores


class Exam:
    """A task's test images in memory, to be inspected as often as a stream asks for it.

    Args:
        task: with its test images.
        image_size: side that they are resized to, in pixels.
        device: where they are inspected.
    """

    def __init__(self, task: Task, image_size: int, device: str = "cpu") -> None:
        self._task = task
        self._size = image_size
        self._images = load_images([sample.image for sample in task.test], image_size)
        self._device = device
        self._defective = np.array([sample.is_anomalous for sample in task.test], np.bool_)
        self._masks = [
            None if sample.mask is None else resize_mask(load_mask(sample.mask), image_size)
            for sample in task.test
        ]

    def take(self, learner: Learner, *, pictures: Path) -> dict[str, float]:
        """Measure a learner: metrics, `routing_accuracy` (NaN without routing) and `ms_per_image`.

        Args:
            learner: inspects the images in batches.
            pictures: folder that gets `examples`, named after the task.
        """
        started = time.perf_counter()
        found = learner.inspect(self._images.to(self._device), task=self._task.name)
        seconds = time.perf_counter() - started
        pixels = PixelMetrics()
        for each, is_defective, mask in zip(found, self._defective, self._masks, strict=True):
            if not is_defective:
                pixels.update(_map(each)[None], np.zeros((1, self._size, self._size), np.bool_))
            elif mask is not None:
                pixels.update(_map(each)[None], mask[None])
        routed = [each.product == self._task.name for each in found if each.product is not None]
        self._draw(found, pictures)
        return {
            **vars(image_scores([each.score for each in found], self._defective)),
            **vars(pixels.compute()),
            "routing_accuracy": float(np.mean(routed)) if routed else float("nan"),
            "ms_per_image": 1000 * seconds / max(len(found), 1),
        }

    def _draw(self, found: Sequence[Inspection], folder: Path) -> None:
        """Write a photo, the ground truth and the heatmap of the task's first defect that has a mask."""
        normal = [each.score for each, bad in zip(found, self._defective, strict=True) if not bad]
        masks = [(i, mask) for i, mask in enumerate(self._masks) if mask is not None and mask.any()]
        if not masks or not normal:
            return
        shown, mask = masks[0]
        folder.mkdir(parents=True, exist_ok=True)
        photo = np.ascontiguousarray(self._images[shown].permute(1, 2, 0).numpy())
        truth = np.repeat(np.where(mask, 255, 0).astype(np.uint8)[..., None], 3, axis=2)
        usual = max(float(np.median(normal)), 1e-30)  # positive, for a map that is zero
        heat = overlay(photo, _map(found[shown]), usual)
        for what, pixels in (("photo", photo), ("truth", truth), ("map", heat)):
            Image.fromarray(pixels).save(folder / f"{self._task.name} {what}.png")


def examples(folder: Path, task: str) -> dict[str, Path]:
    """The pictures that `Exam.take` left of a task, by what they show: photo, truth and map.

    The map lies over the photo; its heat is tied to the median score of the task's normal test images.
    """
    paths = {what: folder / f"{task} {what}.png" for what in ("photo", "truth", "map")}
    return {what: path for what, path in paths.items() if path.exists()}


def load_images(sources: Sequence[ImageSource], size: int) -> Tensor:
    """Return images (N, 3, size, size) uint8."""
    return torch.from_numpy(load_stack(sources, size))


def _map(found: Inspection) -> NDArray[np.float32]:
    assert found.anomaly_map is not None  # noqa: S101 - learners reject nothing
    return found.anomaly_map
