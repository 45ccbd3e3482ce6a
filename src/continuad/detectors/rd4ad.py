"""RD4AD: a decoder restores a teacher's features from a narrow embedding that only normal ones pass.

Deng and Li, "Anomaly Detection via Reverse Distillation from One-Class Embedding", CVPR 2022.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from continuad.backbones import Backbone
from continuad.detectors.base import METHODS, Method
from continuad.detectors.frozen import FrozenFeatures
from continuad.detectors.matching import fuse, smooth, squared_differences
from continuad.detectors.reverse import ReverseNetwork
from continuad.detectors.samples import Samples
from continuad.detectors.trained import Matching, Phase, TrainedDetector
from continuad.detectors.training import TrainingSettings
from continuad.errors import SettingsError

PUBLISHED = TrainingSettings(
    epochs=200,
    batch_size=16,
    optimiser="adam",
    learning_rate=0.005,
    final_learning_rate=0.005,
    betas=(0.5, 0.999),
)


@dataclass(frozen=True)
class RD4ADSettings:
    """How RD4AD is built and trained; the defaults are the published ones.

    Attributes:
        group: the backbone's group of layers to reconstruct.
        layers: blocks by name, instead of `group`.
        smoothing: standard deviation in pixels of a Gaussian over the map; 0 for none, which is what the
            code of AdapTS does.
        training: the schedule.
    """

    group: str = "stfpm"
    layers: tuple[str, ...] = ()
    smoothing: float = 4.0
    training: TrainingSettings = field(default_factory=lambda: PUBLISHED)

    def __post_init__(self) -> None:
        if not self.smoothing >= 0:
            raise SettingsError(f"smoothing is {self.smoothing}.", "Set smoothing to 0 or more.")


class RD4AD(TrainedDetector):
    """A bottleneck and a decoder behind the backbone, trained to give its features back.

    Attributes:
        network: the bottleneck and the decoder.
    """

    def __init__(self, backbone: Backbone, settings: RD4ADSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(settings.layers or backbone.group(settings.group))
        self.network = self._new_network().eval().requires_grad_(False)

    @property
    def looks_at_images(self) -> bool:
        """No: the decoder's input are features."""
        return False

    def _new_network(self) -> ReverseNetwork:
        return ReverseNetwork(self.backbone, self.taps)

    @torch.no_grad()
    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """One minus the cosine similarity of the layers' features, summed into maps (B, S, S)."""
        known = self.teacher_features(images, features)
        teacher = [known[tap] for tap in self.taps]
        student = self.network(teacher)
        differences = [squared_differences(t, s) for t, s in zip(teacher, student, strict=True)]
        maps = 0.5 * fuse(differences, images.shape[-2:], "sum", align_corners=True)  # halved: 1 - cos
        return smooth(maps, self.settings.smoothing)

    def phases(self, samples: Samples, *, seed: int, warm: bool = False) -> Iterator[Phase]:  # noqa: ARG002
        """Train a bottleneck and a decoder.

        Raises:
            SettingsError: the images are so small that of one the embedding is a single position, whose
                spread batch norm could not tell; or training diverged.
        """
        size, stride = samples.images.shape[-1], self.backbone.block(self.taps[-1]).stride
        if size <= 2 * stride:
            raise SettingsError(
                f"RD4AD embeds images of {size} pixels in a single position, behind {self.taps[-1]!r}.",
                f"Use images of more than {2 * stride} pixels, or earlier layers.",
            )
        network = copy.deepcopy(self.network) if warm else self._new_network()
        network.to(samples.device).requires_grad_(True)
        known = FrozenFeatures(self.backbone, self.taps, samples)

        def outputs(model: nn.Module, indices: Tensor) -> list[Tensor]:
            features = known(indices.tolist())
            found: list[Tensor] = model([features[tap] for tap in self.taps])
            return found

        def compare(found: list[Tensor], indices: Tensor) -> dict[str, Tensor]:
            features = known(indices.tolist())
            return {"reconstruction": reconstruction_loss([features[tap] for tap in self.taps], found)}

        matching = Matching(outputs, compare)
        losses = matching.losses(network)
        yield Phase("decoder", network, losses, self.settings.training, matching=matching)
        self.network = network.requires_grad_(False)


def reconstruction_loss(teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Tensor:
    """One minus the cosine similarity of whole maps (B, C_l, H_l, W_l): mean over images, sum over layers.

    The paper compares position by position; its code does this, and the learning rate belongs to it.
    """
    terms = [
        1 - F.cosine_similarity(t.flatten(1), s.flatten(1)) for t, s in zip(teacher, student, strict=True)
    ]
    return torch.stack(terms).mean(1).sum()


TUNED = RD4ADSettings(training=replace(PUBLISHED, epochs=20, min_steps=200))
"""A tenth of the published epochs, for a PC without a GPU."""

METHODS.register("rd4ad")(
    Method("RD4AD: a decoder restores the backbone's features from a narrow embedding.", RD4AD, TUNED)
)
for _short, _name in {"resnet18": "resnet18", "wrn50": "wide_resnet50_2"}.items():
    METHODS.register(f"rd4ad-{_short}")(
        Method(f"RD4AD on {_name}, trained as published.", RD4AD, RD4ADSettings(), backbone=_name)
    )
