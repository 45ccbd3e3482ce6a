"""A study: what the features of a backbone's layers are for on each of some products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from continuad.analysis import kept
from continuad.backbones import Backbone, fingerprint
from continuad.datasets.task import Task
from continuad.detectors.importance import ImportanceSettings, LayerImportance, feature_importance
from continuad.errors import DatasetError, SettingsError
from continuad.images import ImageSource, load_stack
from continuad.progress import Progress, silent

_FORMAT = 1


@dataclass(frozen=True)
class StudySettings:
    """What is looked at.

    Attributes:
        layers: blocks of the backbone, by name.
        images: "train", as the thesis says, or "test", defects and all, as the code of one of its figures has
            it.
        image_size: pixels of the side to which images are scaled.
        percent: of the channels at each position, the most important ones, which are selected.
        seed: of all that is random.
        importance: how it is found.
    """

    layers: tuple[str, ...]
    images: str = "train"
    image_size: int = 256
    percent: float = 1.0
    seed: int = 0
    importance: ImportanceSettings = field(default_factory=ImportanceSettings)

    def __post_init__(self) -> None:
        if not self.layers:
            raise SettingsError("There is no layer to look at.", "Name one or more.")
        if self.images not in ("train", "test"):
            raise SettingsError(f"images is {self.images!r}.", "Choose train or test.")
        if not 0 < self.percent <= 100:
            raise SettingsError(f"percent is {self.percent}.", "Set percent above 0, up to 100.")


class Study:
    """The importances of each product's features, kept in a folder as soon as they are found.

    Only one product's are in memory at a time.

    Args:
        backbone: the teacher.
        tasks: the products.
        settings: what is looked at.
        folder: of the files, one for each product.

    Raises:
        SettingsError: the backbone has no such block.
        DatasetError: a product has not two images.
    """

    def __init__(
        self, backbone: Backbone, tasks: Sequence[Task], settings: StudySettings, folder: Path
    ) -> None:
        self.backbone, self.settings = backbone, settings
        self.layers = backbone.order(settings.layers)
        self.images: dict[str, list[ImageSource]] = {
            task.name: list(task.train)
            if settings.images == "train"
            else [sample.image for sample in task.test]
            for task in tasks
        }
        for name, images in self.images.items():
            if len(images) < 2:
                raise DatasetError(
                    f"{name!r} has {len(images) or 'no'} {settings.images} images, and features must vary.",
                    "Add images, leave the product out, or look at its other images.",
                )
        self._folder = folder

    def find(self, *, progress: Progress = silent, found: Callable[[str], None] | None = None) -> None:
        """Find what is not kept yet; interrupted, another call goes on with the product that it was at.

        Args:
            progress: told about each product's images and positions.
            found: called with the name of each product whose importances were not kept before.

        Raises:
            ImageError: an image cannot be read.
        """
        weights = fingerprint(self.backbone)
        for name, images in self.images.items():
            about = self._about(images, weights)
            if kept.is_kept(self._file(name), about):
                continue
            report = _of(name, progress)
            stack = load_stack(images, self.settings.image_size, progress=report)
            importance = feature_importance(
                self.backbone,
                torch.from_numpy(stack),
                self.layers,
                self.settings.importance,
                seed=self.settings.seed,
                progress=report,
            )
            kept.keep(self._file(name), importance, about)
            if found is not None:
                found(name)

    def importance(self, product: str) -> dict[str, LayerImportance]:
        """Return what was found, by layer, first to last."""
        return kept.load(self._file(product))

    def _file(self, product: str) -> Path:
        return self._folder / f"{product}.safetensors"

    def _about(self, images: Sequence[ImageSource], weights: str) -> dict[str, Any]:
        """What a product's importances depend on."""
        return {
            "format": _FORMAT,
            "backbone": self.backbone.name,
            "weights": weights,
            "layers": list(self.layers),
            "images": kept.digest(images),
            "image_size": self.settings.image_size,
            "seed": self.settings.seed,
            "importance": asdict(self.settings.importance),
        }


def _of(product: str, progress: Progress) -> Progress:
    """Say of which product what is reported is."""
    return lambda done, total, what, /: progress(done, total, f"{product}: {what}")
