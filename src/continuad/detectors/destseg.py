"""DeSTSeg: a student that denoises, and a segmentation network that reads its differences from the teacher.

Zhang et al., "DeSTSeg: Segmentation Guided Denoising Student-Teacher for Anomaly Detection", CVPR 2023.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from continuad.backbones import Backbone
from continuad.datasets.synthetic import PerlinAnomalies
from continuad.datasets.textures import FolderTextures, ProceduralTextures
from continuad.detectors.base import METHODS, Method
from continuad.detectors.corrupted import CorruptedImages
from continuad.detectors.destseg_networks import DenoisingStudent, SegmentationNetwork, similarities
from continuad.detectors.frozen import FrozenFeatures
from continuad.detectors.matching import alignment_loss, squared_differences
from continuad.detectors.samples import Samples
from continuad.detectors.segmentation import focal_loss, l1_loss
from continuad.detectors.trained import Phase, TrainedDetector
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError

STUDENT = TrainingSettings(
    steps=1000,
    batch_size=32,
    drop_last=True,
    learning_rate=0.4,
    final_learning_rate=0.4,
    momentum=0.9,
    weight_decay=1e-4,
)
SEGMENTATION = replace(STUDENT, learning_rate=0.1, final_learning_rate=0.1)


@dataclass(frozen=True)
class DeSTSegSettings:
    """How DeSTSeg is built and trained.

    The defaults are those of the paper, with as many steps as the AdapTS paper grants it. The method
    `destseg` differs from them in what `TUNED` says.

    Attributes:
        group: the backbone's group of layers to compare.
        layers: blocks by name, instead of `group`.
        width: channels of the segmentation network.
        focal_gamma: of the focal loss.
        textures: folder of texture images for synthetic anomalies; None draws textures by code.
        variants: synthetic anomalies per image, drawn once, which the epochs take in turn; 0 draws a new one
            in each epoch (paper).
        top: an image's score is the mean of so many of its highest pixels.
        student: the schedule of the student, which comes first.
        segmentation: the schedule of the segmentation network, whose residual blocks have this learning rate.
        head_learning_rate: of the rest of the segmentation network, with the same schedule.
    """

    group: str = "stfpm"
    layers: tuple[str, ...] = ()
    width: int = 256
    focal_gamma: float = 4.0
    textures: str | None = None
    variants: int = 0
    top: int = 100
    student: TrainingSettings = field(default_factory=lambda: STUDENT)
    segmentation: TrainingSettings = field(default_factory=lambda: SEGMENTATION)
    head_learning_rate: float = 0.01

    def __post_init__(self) -> None:
        for name in ("width", "top", "head_learning_rate"):
            if not getattr(self, name) > 0:  # NaN is not
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to more than 0.")
        for name in ("focal_gamma", "variants"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to 0 or more.")


class DeSTSeg(TrainedDetector):
    """A student sees corrupted images and is to answer as the teacher does to the clean ones.

    Where it fails to, on which channels and layers, tells a segmentation network what is anomalous.

    Attributes:
        student: the denoising encoder and decoder.
        segmentation: the segmentation network.
    """

    settings: DeSTSegSettings

    def __init__(self, backbone: Backbone, settings: DeSTSegSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(settings.layers or backbone.group(settings.group))
        self.student = self._new_student().requires_grad_(False)
        self.segmentation = self._new_segmentation().requires_grad_(False)

    def _new_student(self) -> DenoisingStudent:
        return DenoisingStudent(self.backbone, self.taps).eval()

    def _new_segmentation(self) -> SegmentationNetwork:
        channels = sum(self.backbone.block(tap).channels for tap in self.taps)
        return SegmentationNetwork(channels, self.settings.width).eval()

    @torch.no_grad()
    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Give the probability that a pixel is anomalous, (B, S, S)."""
        teacher = self.teacher_features(images, features)
        logits = self.segmentation(similarities(teacher, self.student(images)))
        maps = F.interpolate(
            logits.sigmoid()[:, None], images.shape[-2:], mode="bilinear", align_corners=False
        )
        return maps.squeeze(1)

    def scored_pixels(self, pixels: int) -> int:
        """The `top` ones."""
        return min(self.settings.top, pixels)

    def phases(self, samples: Samples, *, seed: int, warm: bool = False) -> Iterator[Phase]:
        """Train a student, then a segmentation network."""
        images = samples.images
        student = copy.deepcopy(self.student) if warm else self._new_student()
        segmentation = copy.deepcopy(self.segmentation) if warm else self._new_segmentation()
        student.to(images.device).requires_grad_(True)
        segmentation.to(images.device).requires_grad_(True)
        clean = FrozenFeatures(self.backbone, self.taps, samples)
        folder = self.settings.textures
        corrupted = CorruptedImages(
            images,
            PerlinAnomalies(FolderTextures(folder) if folder else ProceduralTextures()),
            variants=self.settings.variants,
            mask_size=clean([0])[self.taps[0]].shape[-2:],
            seed=seed,
        )

        def student_losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
            damaged, _ = corrupted(indices.tolist(), epoch)
            denoised, teacher = student(damaged), clean(indices.tolist())
            differences = [squared_differences(teacher[tap], denoised[tap]) for tap in self.taps]
            return {"matching": alignment_loss(differences)}

        def segmentation_losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
            damaged, masks = corrupted(indices.tolist(), epoch)
            with torch.no_grad():
                compared = similarities(self.teacher_features(damaged, None), student(damaged))
            logits = segmentation(compared)
            return {
                "focal": focal_loss(logits, masks, self.settings.focal_gamma),
                "l1": l1_loss(logits, masks),
            }

        yield Phase("student", student, student_losses, self.settings.student)
        schedule = self.settings.segmentation
        yield Phase(
            "segmentation",
            segmentation,
            segmentation_losses,
            schedule,
            learning_rates=(
                (segmentation.residual, schedule.learning_rate),
                (segmentation.head, self.settings.head_learning_rate),
            ),
        )
        self.student = student.requires_grad_(False)
        self.segmentation = segmentation.requires_grad_(False)


TUNED = DeSTSegSettings(
    width=64,
    variants=4,
    student=replace(STUDENT, steps=200, batch_size=8),
    segmentation=replace(SEGMENTATION, steps=200, batch_size=8),
)
"""As many steps as two cores can bear, and a segmentation network of a sixteenth of the published work."""

METHODS.register("destseg")(
    Method("DeSTSeg: a denoising student and a segmentation network, for a CPU.", DeSTSeg, TUNED)
)
METHODS.register("destseg-resnet18")(
    Method("DeSTSeg on resnet18.", DeSTSeg, DeSTSegSettings(), backbone="resnet18")
)
METHODS.register("destseg-wrn50")(
    Method("DeSTSeg as AdapTS is compared with it.", DeSTSeg, DeSTSegSettings(), backbone="wide_resnet50_2")
)
