"""Feature-selective learning: one detector, which compares only the features that matter for a task.

Chapter 4 of the thesis: PCA feature importance selects them. There, the tasks to come are known when
conflicts between selections are settled, and the true task when an image is inspected; here, neither need be.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.continual.learners import BATCH, Build, OneDetector
from continuad.continual.routed import Inspection
from continuad.continual.routing import embed
from continuad.detectors.importance import LayerImportance, feature_importance
from continuad.detectors.samples import Samples
from continuad.detectors.selection import Mask, most_important, without_disjoint, without_shared
from continuad.detectors.stfpm import STFPM
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent
from continuad.router import PrototypeRouter

Conflicts = Literal["keep", "drop", "drop-disjoint"]


class FeatureSelective(OneDetector):
    """Fine-tuning, or joint training, of a student on the features that matter for each task.

    Args:
        build: gives the detector, an `STFPM` (PaSTe is one).
        percent: of the channels at each position, the most important ones, are selected.
        training: whether the student is trained on them, too, or on all features.
        conflicts: what becomes of features that several tasks select: "drop" them for all, "drop-disjoint"
            unless two tasks agree on their range, or "keep" them.
        joint: train anew on the images of all tasks so far, instead of further on each.
        foresight: settle conflicts with tasks to come as well, as the thesis does.
        oracle: select by the true task of an image, as the thesis does, instead of by the nearest prototype.

    Raises:
        SettingsError: the detector does not match features by layer, or a setting cannot be.
    """

    def __init__(
        self,
        build: Build,
        *,
        percent: float = 20.0,
        training: bool = True,
        conflicts: Conflicts = "keep",
        joint: bool = False,
        foresight: bool = False,
        oracle: bool = False,
    ) -> None:
        super().__init__(build)
        if not isinstance(self.detector, STFPM):
            raise SettingsError(
                f"{type(self.detector).__name__} does not match features layer by layer.",
                "Use feature selection with STFPM or PaSTe.",
            )
        if conflicts not in ("keep", "drop", "drop-disjoint"):
            raise SettingsError(f"conflicts is {conflicts!r}.", "Use 'keep', 'drop' or 'drop-disjoint'.")
        if not 0 < percent <= 100:
            raise SettingsError(f"percent is {percent}.", "Set percent above 0, up to 100.")
        self.percent = percent
        self.training = training
        self.conflicts: Conflicts = conflicts
        self.joint = joint
        self.foresight = foresight
        self.oracle = oracle
        self._student = self.detector
        self._images: list[Tensor] = []
        self._important: dict[str, dict[str, _Important]] = {}  # by task and layer
        self._components: dict[str, list[int]] = {}  # by task, for each layer
        self._selected: dict[str, dict[str, Tensor]] = {}  # by task and layer, (C, H, W) bool
        self._prototypes: dict[str, Tensor] = {}
        self._tap = self.detector.backbone.stage(16)
        self._router = PrototypeRouter()

    def foresee(self, tasks: Iterable[tuple[str, Tensor]]) -> None:
        """Find out what matters for tasks to come, if the settings want that."""
        if self.foresight:
            for task, images in tasks:
                self._look_at(task, images, silent)

    def learn(self, task: str, images: Tensor, *, seed: int = 0, progress: Progress = silent) -> None:
        """Select features for the task, settle conflicts with others, and train."""
        self._look_at(task, images, part(progress, 0, 25, 100))
        self._settle()
        embeddings = [self._embed(batch) for batch in torch.split(images, BATCH)]
        self._add(task, torch.from_numpy(np.concatenate(embeddings).mean(0)))
        if self.joint:
            self._images.append(images)
        super().learn(task, images, seed=seed, progress=part(progress, 25, 100, 100))

    def train(self, images: Tensor, *, seed: int, progress: Progress) -> None:
        """Train on the selected features of these images, or of all so far."""
        parts = self._images if self.joint else [images]
        names = [*self._prototypes][-len(parts) :]  # the current task is the last
        owners = [name for name, part in zip(names, parts, strict=True) for _ in part]
        together = torch.cat(parts)

        def selected(numbers: Sequence[int]) -> dict[str, Tensor]:
            return self._selection([owners[number] for number in numbers])

        self.detector.train_on(
            Samples(together, selected=selected if self.training else None),
            count=len(together),
            seed=seed,
            warm=bool(self.tasks) and not self.joint,
            progress=progress,
        )

    def inspect(self, images: Tensor, *, task: str | None = None) -> list[Inspection]:
        """Compare the features selected for each image's task; all of them if that was not learnt."""
        found: list[Inspection] = []
        for batch in torch.split(images, BATCH):
            routes = [None] * len(batch) if self.oracle else self._router.route(self._embed(batch))
            names = [task if route is None else route.nearest for route in routes]
            maps = self._student.anomaly_maps(batch, selected=self._selection(names))
            scores = self._student.image_scores(maps).tolist()
            for route, anomaly_map, score in zip(routes, maps.cpu().numpy(), scores, strict=True):
                product = None if route is None else route.nearest
                found.append(Inspection(product, route, anomaly_map, score))
        return found

    def _look_at(self, task: str, images: Tensor, progress: Progress) -> None:
        """Find out what matters for a task."""
        if task not in self._important:
            layers = self._student.layers
            found = feature_importance(self._student.backbone, images, layers, progress=progress)
            self._components[task] = [layer.components for layer in found.values()]
            self._important[task] = {
                name: _Important.of(layer, self.percent) for name, layer in found.items()
            }

    def _settle(self) -> None:
        """Select features, as far as conflicts between all tasks that are known allow it."""
        self._selected = {task: {} for task in self._important}
        for layer in self._student.layers:
            known = {task: important[layer] for task, important in self._important.items()}
            masks = {task: each.mask for task, each in known.items()}
            if self.conflicts == "drop":
                masks = without_shared(masks)
            elif self.conflicts == "drop-disjoint":
                masks = without_disjoint(
                    masks,
                    means={task: each.mean for task, each in known.items()},
                    stds={task: each.std for task, each in known.items()},
                )
            for task, mask in masks.items():
                self._selected[task][layer] = torch.from_numpy(mask)

    def _selection(self, tasks: Sequence[str | None]) -> dict[str, Tensor]:
        """The selections of some tasks by layer, (B, C, H, W) bool; of an unknown one, all features."""
        device = self._student.backbone.mean.device
        some = next(iter(self._selected.values()))
        everything = {layer: torch.ones_like(mask) for layer, mask in some.items()}
        rows = [everything if task is None else self._selected.get(task, everything) for task in tasks]
        return {layer: torch.stack([row[layer] for row in rows]).to(device) for layer in some}

    def _embed(self, images: Tensor) -> NDArray[np.float32]:
        with torch.no_grad():
            return embed(self._student.backbone.features(images, [self._tap])[self._tap], "mean")

    def _add(self, task: str, prototype: Tensor) -> None:
        self._prototypes[task] = prototype
        self._router.add(task, prototype.numpy(), np.inf)

    @property
    def memory_bytes(self) -> int:
        """Selections, prototypes where they are needed, and the images of joint training."""
        masks = [mask for selected in self._selected.values() for mask in selected.values()]
        prototypes = [] if self.oracle else [*self._prototypes.values()]
        return sum(tensor.nbytes for tensor in (*masks, *prototypes, *self._images))

    @property
    def memory_items(self) -> int:
        """All images so far, in joint training."""
        return sum(map(len, self._images))

    @property
    def facts(self) -> dict[str, float]:
        """How many principal components make up the importance in each layer, the first being 1."""
        counts = self._components.get(self.tasks[-1], [])
        return {f"components_{number}": count for number, count in enumerate(counts, start=1)}

    def tensors(self) -> dict[str, Tensor]:
        """The detector, what matters for the tasks learnt, their prototypes and stored images."""
        found = super().tensors()
        for number, (task, prototype) in enumerate(self._prototypes.items()):
            found[f"{number}.prototype"] = prototype
            for layer, important in self._important[task].items():
                for name, values in vars(important).items():
                    found[f"{number}.{name}.{layer}"] = torch.from_numpy(values)
        return found | {f"images.{number}": images for number, images in enumerate(self._images)}

    def restore(self, tasks: Sequence[str], tensors: Mapping[str, Tensor]) -> None:
        """Load all of that; what was foreseen is to be foreseen again."""
        super().restore(tasks, tensors)
        for number, task in enumerate(tasks):
            self._important[task] = {
                layer: _Important(
                    *(tensors[f"{number}.{field.name}.{layer}"].numpy() for field in fields(_Important))
                )
                for layer in self._student.layers
            }
            self._add(task, tensors[f"{number}.prototype"])
        self._settle()
        self._images = [tensors[f"images.{number}"] for number in range(len(tasks))] if self.joint else []


@dataclass(frozen=True)
class _Important:
    """What of a layer matters for a task.

    Attributes:
        mask: (C, H, W), the most important features.
        mean: (C, H, W) of all features over the task's images.
        std: likewise.
    """

    mask: Mask
    mean: NDArray[np.float32]
    std: NDArray[np.float32]

    @classmethod
    def of(cls, layer: LayerImportance, percent: float) -> _Important:
        return cls(most_important(layer.importance, percent), layer.mean, layer.std)
