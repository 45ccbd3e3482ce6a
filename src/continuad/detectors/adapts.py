"""AdapTS: one frozen backbone is the teacher and, with small adapters in its path, also the student.

Barusco et al., "AdapTS: Lightweight Teacher-Student Approach for Multi-Class and Continual Visual Anomaly
Detection", arXiv 2603.17530.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor, nn

from continuad.backbones import Backbone
from continuad.datasets.synthetic import PerlinAnomalies
from continuad.datasets.textures import FolderTextures, ProceduralTextures
from continuad.detectors.adapters import Adapter
from continuad.detectors.base import METHODS, Method
from continuad.detectors.corrupted import CorruptedFeatures
from continuad.detectors.frozen import BATCH, FrozenFeatures
from continuad.detectors.matching import Fusion, alignment_loss, fuse, smooth, squared_differences
from continuad.detectors.quantization import AdapterObserver, QuantizedAdapter
from continuad.detectors.samples import Samples
from continuad.detectors.segmentation import SegmentationHead, focal_loss, l1_loss
from continuad.detectors.trained import Phase, TrainedDetector
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError


@dataclass(frozen=True)
class AdapTSSettings:
    """How AdapTS is built and trained; the defaults are those of the paper and its published code.

    The methods `adapts-l`, `adapts-m` and `adapts-s` differ from them in what `TUNED` says.

    Attributes:
        strides: adapters sit on the last block of each of these strides (8, 16: ResNet's layers 2, 3).
        min_channels: a stage with fewer channels is passed over for the next one, if there is one: on the 40
            channels that EfficientNet-Lite0 has at stride 8, an adapter has too little to work with.
        taps: blocks by name, instead of `strides`.
        adapter: one of `ADAPTER_KINDS`.
        passes: what the next block is fed with: 1, the adapter's output (paper); 2, the adapter applied to
            that once more (published code).
        int8: quantise the trained adapters.
        segmentation: guide training by synthetic anomalies and a segmentation head.
        focal_gamma: of the focal loss.
        textures: folder of texture images for synthetic anomalies; None draws textures by code.
        variants: synthetic anomalies per image, which the epochs take in turn, so that the backbone sees each
            only once; 0 draws a new one in each epoch (paper).
        fusion: how the layers' maps are combined.
        smoothing: standard deviation in pixels of a Gaussian over the fused map; 0 for none (paper).
        training: the schedule.
    """

    strides: tuple[int, ...] = (8, 16)
    min_channels: int = 0
    taps: tuple[str, ...] = ()
    adapter: str = "linear"
    passes: Literal[1, 2] = 1
    int8: bool = False
    segmentation: bool = True
    focal_gamma: float = 4.0
    textures: str | None = None
    variants: int = 0
    fusion: Fusion = "product"
    smoothing: float = 0.0
    training: TrainingSettings = field(default_factory=TrainingSettings)

    def __post_init__(self) -> None:
        if not (self.strides or self.taps):
            raise SettingsError("AdapTS has no block to put an adapter on.", "Give strides or taps.")
        if self.passes not in (1, 2):
            raise SettingsError(f"passes is {self.passes}.", "Set it to 1 (paper) or 2 (published code).")
        if self.fusion not in ("product", "sum"):
            raise SettingsError(f"fusion is {self.fusion!r}.", "Set it to 'product' or 'sum'.")
        for name in ("min_channels", "focal_gamma", "variants", "smoothing"):
            if not getattr(self, name) >= 0:
                raise SettingsError(f"{name} is {getattr(self, name)}.", f"Set {name} to 0 or more.")


class AdapTS(TrainedDetector):
    """Adapters behind some blocks of the backbone, trained to leave normal features as they are.

    Attributes:
        adapters: one per tap; `Adapter`, or `QuantizedAdapter` where the settings say int8.
    """

    def __init__(self, backbone: Backbone, settings: AdapTSSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(
            settings.taps
            or [wide_stage(backbone, stride, settings.min_channels) for stride in settings.strides]
        )
        adapters: list[nn.Module] = [*self._new_adapters()]
        if settings.int8:
            adapters = [
                QuantizedAdapter(a.conv1.in_channels, a.conv1.out_channels) for a in self._new_adapters()
            ]
        self.adapters = nn.ModuleList(adapters).eval().requires_grad_(False)

    def _new_adapters(self) -> list[Adapter]:
        return [Adapter(self.backbone.block(tap).channels, self.settings.adapter) for tap in self.taps]

    def student_features(
        self, shared: Tensor, adapters: Sequence[Callable[[Tensor], Tensor]]
    ) -> dict[str, Tensor]:
        """Run the student from the first tap's output (B, C, H, W), which it shares with the teacher."""
        features: dict[str, Tensor] = {}
        x = shared
        for tap, adapter, following in zip(self.taps, adapters, (*self.taps[1:], None), strict=True):
            features[tap] = adapter(x)
            if following is not None:
                x = features[tap] if self.settings.passes == 1 else adapter(features[tap])
                x = self.backbone.features(x, [following], start=tap)[following]
        return features

    def differences(
        self, teacher: Mapping[str, Tensor], adapters: Sequence[Callable[[Tensor], Tensor]]
    ) -> list[Tensor]:
        """Squared differences between teacher and student, (B, C_l, H_l, W_l) for each tap."""
        student = self.student_features(teacher[self.taps[0]], adapters)
        return [squared_differences(teacher[tap], student[tap]) for tap in self.taps]

    @torch.no_grad()
    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Fuse the differences of all layers into maps (B, S, S)."""
        teacher = self.teacher_features(images, features)
        differences = self.differences(teacher, list(self.adapters))
        return smooth(fuse(differences, images.shape[-2:], self.settings.fusion), self.settings.smoothing)

    def phases(self, samples: Samples, *, seed: int, warm: bool = False) -> Iterator[Phase]:
        """Train adapters, and a segmentation head that is dropped."""
        images = samples.images
        adapters = self._new_adapters()
        if warm:
            self._copy_into(adapters)
        head = SegmentationHead(sum(adapter.conv1.in_channels for adapter in adapters))
        trained = nn.ModuleList(adapters)
        model = nn.ModuleList([trained, head] if self.settings.segmentation else [trained]).to(images.device)
        clean = FrozenFeatures(self.backbone, self.taps, samples)
        corrupted = self._corrupted(images, clean([0])[self.taps[0]].shape[-2:], seed)

        def losses(indices: Tensor, epoch: int) -> dict[str, Tensor]:
            rows = indices.tolist()
            terms = {"alignment": alignment_loss(self.differences(clean(rows), adapters))}
            if self.settings.segmentation:
                features, masks = corrupted(rows, epoch)
                logits = head(self.differences(features, adapters))
                terms["focal"] = focal_loss(logits, masks, self.settings.focal_gamma)
                terms["l1"] = l1_loss(logits, masks)
            return terms

        yield Phase("adapters", model, losses, self.settings.training)
        trained.requires_grad_(False)
        self.adapters = self._quantized(adapters, clean, len(images)) if self.settings.int8 else trained

    def _copy_into(self, adapters: Sequence[Adapter]) -> None:
        """Give adapters the weights of those that the detector has."""
        for new, old in zip(adapters, self.adapters, strict=True):
            if not isinstance(old, Adapter):
                raise SettingsError("INT8 adapters cannot be trained further.", "Train with int8=false.")
            new.load_state_dict(old.state_dict())

    def _corrupted(self, images: Tensor, mask_size: Sequence[int], seed: int) -> CorruptedFeatures:
        folder = self.settings.textures
        anomalies = PerlinAnomalies(FolderTextures(folder) if folder else ProceduralTextures())
        return CorruptedFeatures(
            self.backbone,
            self.taps,
            images,
            anomalies,
            variants=self.settings.variants,
            mask_size=mask_size,
            seed=seed,
        )

    @torch.no_grad()
    def _quantized(self, adapters: Sequence[Adapter], clean: FrozenFeatures, count: int) -> nn.ModuleList:
        """Calibrate on all clean training images; an adapter sees what its float predecessors give."""
        observers = [AdapterObserver(adapter) for adapter in adapters]
        for start in range(0, count, BATCH):
            features = clean(range(start, min(start + BATCH, count)))
            self.student_features(features[self.taps[0]], observers)
        return nn.ModuleList(observer.quantized() for observer in observers)


def wide_stage(backbone: Backbone, stride: int, min_channels: int) -> str:
    """The last block of the first stage from `stride` on that has enough channels, or of the last stage."""
    strides = sorted({block.stride for block in backbone.blocks if block.stride > stride})
    names = [backbone.stage(each) for each in (stride, *strides)]
    wide = (name for name in names if backbone.block(name).channels >= min_channels)
    return next(wide, names[-1])


TUNED = AdapTSSettings(
    variants=4,
    fusion="sum",
    smoothing=4.0,
    training=TrainingSettings(
        min_steps=200, optimiser="adam", learning_rate=0.001, final_learning_rate=0.00001
    ),
)
"""SGD with the paper's rate hardly moves the adapters of a small backbone, least of all with few images."""

METHODS.register("adapts-l")(Method("AdapTS-L: float adapters at strides 8 and 16.", AdapTS, TUNED))
METHODS.register("adapts-m")(
    Method("AdapTS-M: AdapTS-L in INT8, a quarter of its size.", AdapTS, replace(TUNED, int8=True))
)
METHODS.register("adapts-s")(
    Method(
        "AdapTS-S: one INT8 adapter, at the first wide stage from stride 8 on; the smallest.",
        AdapTS,
        replace(TUNED, strides=(8,), min_channels=96, int8=True),
    )
)
