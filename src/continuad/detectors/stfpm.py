"""STFPM and PaSTe: a student learns a teacher's features of normal images, and fails at anything else.

Wang et al., "Student-Teacher Feature Pyramid Matching for Anomaly Detection", BMVC 2021; PaSTe, whose student
shares the teacher's first blocks, is the same class with `shares_prefix`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from continuad.backbones import Backbone
from continuad.detectors.base import METHODS, Method
from continuad.detectors.frozen import FrozenFeatures
from continuad.detectors.matching import Fusion, alignment_loss, fuse, smooth, squared_differences
from continuad.detectors.samples import Samples
from continuad.detectors.trained import Matching, Phase, TrainedDetector
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError

THESIS = TrainingSettings(
    epochs=10,
    batch_size=8,
    drop_last=True,
    learning_rate=0.4,
    final_learning_rate=0.4,
    momentum=0.9,
    weight_decay=1e-4,
)


@dataclass(frozen=True)
class STFPMSettings:
    """How STFPM and PaSTe are built and trained; the defaults are those of the thesis for STFPM.

    Attributes:
        group: the backbone's group of layers to match.
        layers: blocks by name, instead of `group`.
        shares_prefix: the student begins behind the block before the first layer; what comes before is the
            teacher's own (PaSTe).
        reduction: of the squared distances over a batch: "sum", halved (thesis), or "mean" (STFPM, and the
            baseline of AdapTS); the learning rate belongs to it.
        fusion: how the layers' maps are combined.
        smoothing: standard deviation in pixels of a Gaussian over the fused map; 0 for none (thesis).
        norm_axis: what features are normalised over for anomaly maps; "height" repeats a defect of published
            code, to see what it does to results.
        training: the schedule.
    """

    group: str = "stfpm"
    layers: tuple[str, ...] = ()
    shares_prefix: bool = False
    reduction: Literal["sum", "mean"] = "sum"
    fusion: Fusion = "product"
    smoothing: float = 0.0
    norm_axis: Literal["channels", "height"] = "channels"
    training: TrainingSettings = field(default_factory=lambda: THESIS)

    def __post_init__(self) -> None:
        for name, choices in (
            ("reduction", ("sum", "mean")),
            ("fusion", ("product", "sum")),
            ("norm_axis", ("channels", "height")),
        ):
            if getattr(self, name) not in choices:
                known = " or ".join(map(repr, choices))
                raise SettingsError(f"{name} is {getattr(self, name)!r}.", f"Set it to {known}.")
        if not self.smoothing >= 0:
            raise SettingsError(f"smoothing is {self.smoothing}.", "Set smoothing to 0 or more.")


class STFPM(TrainedDetector):
    """A student of the backbone's own architecture that matches some of its blocks.

    Attributes:
        layers: the blocks that are matched.
        split: the last block that the student shares with the teacher; None where it shares none.
        student: the blocks behind the split, up to the last layer.
    """

    def __init__(self, backbone: Backbone, settings: STFPMSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.layers = backbone.order(settings.layers or backbone.group(settings.group))
        self.split = backbone.before(self.layers[0]) if settings.shares_prefix else None
        if settings.shares_prefix and self.split is None:
            raise SettingsError(
                f"There is nothing to share before {self.layers[0]!r}.", "Choose later layers."
            )
        self.taps = backbone.order(self.layers if self.split is None else [self.split, *self.layers])
        self.student = self._new_student().eval().requires_grad_(False)

    @property
    def looks_at_images(self) -> bool:
        """Whether the student shares no block with the backbone."""
        return self.split is None

    def _new_student(self) -> Backbone:
        return self.backbone.student(self.layers[-1], behind=self.split)

    @torch.no_grad()
    def anomaly_maps(
        self,
        images: Tensor,
        features: Mapping[str, Tensor] | None = None,
        *,
        selected: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Fuse the differences of all layers into maps (B, S, S).

        Args:
            images: (B, 3, S, S) uint8.
            features: see `Detector`.
            selected: by layer, (C, H, W) bool: the features that count; None if all do.
        """
        teacher = self.teacher_features(images, features)
        student = self.student.features(
            images if self.split is None else teacher[self.split], self.layers, start=self.split
        )
        dim = 1 if self.settings.norm_axis == "channels" else 2
        differences = self._differences(teacher, student, selected, dim=dim)
        return smooth(fuse(differences, images.shape[-2:], self.settings.fusion), self.settings.smoothing)

    def _differences(
        self,
        teacher: Mapping[str, Tensor],
        student: Mapping[str, Tensor],
        selected: Mapping[str, Tensor] | None,
        *,
        dim: int = 1,
    ) -> list[Tensor]:
        """Squared differences of each layer, of the selected features alone if there is a selection."""
        pairs = [(teacher[tap], student[tap]) for tap in self.layers]
        if selected is not None:
            pairs = [
                (ours * selected[tap], theirs * selected[tap])
                for tap, (ours, theirs) in zip(self.layers, pairs, strict=True)
            ]
        return [squared_differences(ours, theirs, dim=dim) for ours, theirs in pairs]

    def phases(self, samples: Samples, *, seed: int, warm: bool = False) -> Iterator[Phase]:  # noqa: ARG002
        """Train a student."""
        student = copy.deepcopy(self.student) if warm else self._new_student()
        student.to(samples.device).requires_grad_(True)
        teacher = FrozenFeatures(self.backbone, self.taps, samples)

        def outputs(model: nn.Module, indices: Tensor) -> list[Tensor]:
            student = cast(Backbone, model)
            x = samples.images[indices] if self.split is None else teacher(indices.tolist())[self.split]
            return [*student.features(x, self.layers, start=self.split).values()]

        def compare(found: list[Tensor], indices: Tensor) -> dict[str, Tensor]:
            rows = indices.tolist()
            selected = None if samples.selected is None else samples.selected(rows)
            student = dict(zip(self.layers, found, strict=True))
            loss = alignment_loss(self._differences(teacher(rows), student, selected))
            return {"matching": loss if self.settings.reduction == "sum" else 2 * loss / len(indices)}

        matching = Matching(outputs, compare)
        losses = matching.losses(student)
        yield Phase("student", student, losses, self.settings.training, matching=matching)
        self.student = student.requires_grad_(False)


PASTE = STFPMSettings(group="paste", shares_prefix=True)
BASELINE = STFPMSettings(
    reduction="mean", training=replace(THESIS, epochs=30, batch_size=32, momentum=0.0, weight_decay=0.0)
)
MICRONET = replace(THESIS, learning_rate=0.04, final_learning_rate=0.04)

TUNED = replace(THESIS, min_steps=1000)
"""The thesis's ten epochs add up over a stream of ten tasks; of one product alone they are too few."""

METHODS.register("stfpm")(
    Method("STFPM: a student matches three layers.", STFPM, STFPMSettings(training=TUNED))
)
METHODS.register("paste")(
    Method("PaSTe: STFPM whose student shares the first blocks.", STFPM, replace(PASTE, training=TUNED))
)
METHODS.register("stfpm-wrn50")(
    Method("STFPM as AdapTS is compared with it.", STFPM, BASELINE, backbone="wide_resnet50_2")
)
for _short, _name in {
    "resnet18": "resnet18",
    "mobilenetv2": "mobilenet_v2",
    "mcunet": "mcunet_in3",
    "phinet": "phinet",
    "micronet": "micronet_m1",
}.items():
    _training = MICRONET if _short == "micronet" else THESIS
    METHODS.register(f"stfpm-{_short}")(
        Method(
            f"STFPM on {_name}, trained as in the thesis.",
            STFPM,
            STFPMSettings(training=_training),
            backbone=_name,
        )
    )
    if _short != "resnet18":
        METHODS.register(f"paste-{_short}")(
            Method(
                f"PaSTe on {_name}, trained as in the thesis.",
                STFPM,
                replace(PASTE, training=_training),
                backbone=_name,
            )
        )
