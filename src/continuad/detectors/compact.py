"""The compact memory bank: a few hundred kilobytes per product, learnt in one pass.

What makes up for the small bank, measured part by part by `benchmarks/compact.toml`:

- distances are taken in a metric in which it counts little how equal patches of different images differ
  (within-class whitening, as in linear discriminant analysis);
- vectors are kept as int8 codes, and searched as such;
- a patch is compared with the affine hull of its nearest vectors, not with the nearest alone, so that few
  vectors cover what lies between them (local subspaces; Saul and Roweis 2003);
- what remains of a patch counts more where its neighbours leave the same remainder: defects are coherent,
  noise is not;
- a position is judged by how far normal images are from the bank there;
- an image is judged by its worst positions together, not by the single worst.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.base import METHODS, Method
from continuad.detectors.codes import decode, encode, nearest_codes
from continuad.detectors.coreset import greedy_coreset
from continuad.detectors.embedding import as_vectors, draw, patch_features, resize_maps
from continuad.detectors.fitted import FittedDetector
from continuad.detectors.hull import hull_residuals
from continuad.detectors.matching import smooth
from continuad.detectors.metric import within_class_metric
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent

CANDIDATES = 120_000
"""Patches that the bank is chosen from, equally many of each image."""

WATCHED = 64
"""Normal images, at most, that say how far from the bank a position is."""

MIN_VECTORS = 16
LEAST_SPREAD = 1e-3


@dataclass(frozen=True)
class CompactSettings:
    """How the compact memory bank describes, keeps and compares patches.

    Attributes:
        budget: KiB that it may take, all told.
        strides: patches are described by the last blocks of these strides.
        taps: blocks by name, instead of `strides`.
        pool: side of the neighbourhood that features are averaged over, odd.
        shrinkage: of the metric towards the plain one: share of the mean variance that is added to each
            direction's.
        neighbours: vectors that span the hull.
        coherence: weight of the remainders' average over 3x3 positions beside the remainder itself.
        by_position: whether positions are judged by what is normal there.
        worst: share of the map, from its highest values down, whose mean is the image's score.
    """

    budget: int = 504
    strides: tuple[int, ...] = (8, 16)
    taps: tuple[str, ...] = ()
    pool: int = 3
    shrinkage: float = 0.3
    neighbours: int = 3
    coherence: float = 3.0
    by_position: bool = True
    worst: float = 0.015

    def __post_init__(self) -> None:
        if not (self.strides or self.taps):
            raise SettingsError("The compact bank has no block to look at.", "Give strides or taps.")
        if self.pool < 1 or self.pool % 2 == 0:
            raise SettingsError(f"pool is {self.pool}.", "Set pool to an odd number.")
        if not self.shrinkage > 0:
            raise SettingsError(f"shrinkage is {self.shrinkage}.", "Set shrinkage above 0.")
        if self.neighbours < 1:
            raise SettingsError(f"neighbours is {self.neighbours}.", "Set neighbours to 1 or more.")
        if not self.coherence >= 0:
            raise SettingsError(f"coherence is {self.coherence}.", "Set coherence to 0 or more.")
        if not 0 <= self.worst <= 1:
            raise SettingsError(f"worst is {self.worst}.", "Set worst to 0 (the maximum alone) to 1.")


class CompactBank(FittedDetector):
    """A memory bank of int8 codes, and what it takes to compare patches with them.

    Attributes:
        metric: (D, D) float16; distances are Euclidean after multiplication with it.
        codes: (M, D) int8, the vectors of the bank, after that multiplication.
        middle: (D,) float32, where the codes are zero.
        step: () float32, what one level of a code is worth.
        usual: (2, H, W) float16, mean and spread of a normal image's distances at each position.
    """

    metric: Tensor
    codes: Tensor
    middle: Tensor
    step: Tensor
    usual: Tensor

    def __init__(self, backbone: Backbone, settings: CompactSettings) -> None:
        super().__init__(backbone)
        self.settings = settings
        self.taps = backbone.order(settings.taps or [backbone.stage(stride) for stride in settings.strides])
        dimensions = sum(backbone.block(tap).channels for tap in self.taps)
        self.register_buffer("metric", torch.eye(dimensions, dtype=torch.float16))
        self.register_buffer("codes", torch.zeros(1, dimensions, dtype=torch.int8))
        self.register_buffer("middle", torch.zeros(dimensions))
        self.register_buffer("step", torch.tensor(1.0))
        self.register_buffer("usual", torch.tensor([0.0, 1.0], dtype=torch.float16).view(2, 1, 1))

    def fit(
        self,
        images: Tensor,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoints: Path | None = None,  # noqa: ARG002 - a pass is short
    ) -> None:
        """Learn from normal images (N, 3, S, S) uint8, in one pass through the backbone.

        Raises:
            SettingsError: the budget is too small for this backbone and image size.
        """
        size = images.shape[-1]
        count = self._count(size)
        rng = np.random.default_rng(seed)
        quota = min(self.grid(size), max(1, CANDIDATES // len(images)))
        owners = torch.arange(len(images)).repeat_interleave(quota)
        vectors = torch.empty(len(owners), len(self.metric), device=images.device)
        watched = set(rng.permutation(len(images))[:WATCHED].tolist())
        whole: dict[int, Tensor] = {}
        embeddings = (
            each
            for features in self.batches(images, part(progress, 0, 60, 100))
            for each in patch_features(features, self.taps, pool=self.settings.pool)
        )
        for number, embedding in enumerate(embeddings):
            vectors[owners == number] = draw(as_vectors(embedding[None]), quota, rng)
            if number in watched:
                whole[number] = embedding.half()
        metric = within_class_metric(vectors, owners, shrinkage=self.settings.shrinkage, seed=seed)
        self.metric = metric.half()
        vectors = vectors @ self.metric.float()
        self.middle = vectors.mean(0)
        vectors -= self.middle
        chosen = greedy_coreset(vectors, count, seed=seed, progress=part(progress, 60, 90, 100))
        self.step = (vectors[chosen].abs().max() / 127).clamp(min=torch.finfo(torch.float32).tiny)
        self.codes = encode(vectors[chosen], self.step)
        self._watch(whole, owners[chosen], part(progress, 90, 100, 100))

    def _count(self, image_size: int) -> int:
        """How many vectors fit into the budget."""
        dimensions = len(self.metric)
        taken = self.metric.nbytes + self.middle.nbytes + self.step.nbytes + 2 * 2 * self.grid(image_size)
        free = 1024 * self.settings.budget - taken
        if free < MIN_VECTORS * dimensions:
            least = -(-(1024 * self.settings.budget - free + MIN_VECTORS * dimensions) // 1024)
            raise SettingsError(
                f"{self.settings.budget} KiB are too few for the compact bank here.",
                f"Set budget to {least} or more.",
            )
        return int(free // dimensions)

    def _watch(self, embeddings: Mapping[int, Tensor], owners: Tensor, progress: Progress) -> None:
        """Note how far normal images (D, H, W) are from what the others of them have put into the bank.

        Leaving out an image's own vectors is what makes them comparable with images to come.
        """
        found = []
        for number, (image, embedding) in enumerate(embeddings.items()):
            progress(number, len(embeddings), "watching normal images")
            others = self.codes[owners != image]
            found.append(self._distances(embedding[None].float(), others if len(others) else self.codes))
        progress(len(embeddings), len(embeddings), "watching normal images")
        distances = torch.cat(found)
        mean, spread = distances.mean(0, keepdim=True), distances.std(0, correction=0, keepdim=True)
        usual = torch.cat([smooth(mean, 1.0), smooth(spread, 1.0)])
        self.usual = usual.half()

    def _distances(self, embedding: Tensor, codes: Tensor) -> Tensor:
        """How long the remainders of an embedding (B, D, H, W) are: (B, H, W)."""
        batch, dimensions, height, width = embedding.shape
        vectors = as_vectors(embedding) @ self.metric.float() - self.middle
        count = min(self.settings.neighbours, len(codes))
        found = nearest_codes(encode(vectors, self.step), codes, count=count)
        rest = hull_residuals(vectors, decode(codes[found], self.step))
        rest = rest.view(batch, height, width, dimensions).permute(0, 3, 1, 2)
        squares = rest.square().sum(1)
        if self.settings.coherence:
            around = F.avg_pool2d(rest, 3, stride=1, padding=1, count_include_pad=False)
            squares = squares + self.settings.coherence * around.square().sum(1)
        return squares.sqrt()

    def reserve(self, images: int, image_size: int) -> None:
        """Hold as many vectors as so many images give."""
        side = -(-image_size // self.backbone.block(self.taps[0]).stride)
        patches = images * min(self.grid(image_size), max(1, CANDIDATES // images))
        self.codes = self.codes.new_zeros(min(self._count(image_size), patches), len(self.metric))
        self.usual = self.usual.new_ones(2, side, side)

    @torch.no_grad()
    def distances(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """How far each position of images (B, 3, S, S) is from the bank: (B, H, W)."""
        embedding = patch_features(
            self.teacher_features(images, features), self.taps, pool=self.settings.pool
        )
        return self._distances(embedding, self.codes)

    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Standardised distances from the bank as maps (B, S, S): about 0 where an image is as usual."""
        return self.standardised(self.distances(images, features), images.shape[-2:])

    def standardised(self, distances: Tensor, size: Sequence[int]) -> Tensor:
        """Turn distances (B, H, W) into maps (B, *size)."""
        mean, spread = self._usual(distances.shape[-2:])
        return resize_maps((distances - mean) / spread, size)

    def _usual(self, size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and spread of a normal image's distances: for each position (H, W), or for all ()."""
        mean, spread = self.usual.float()
        if not self.settings.by_position:
            overall = (spread.square().mean() + mean.var(correction=0)).sqrt()
            return mean.mean(), overall.clamp(min=LEAST_SPREAD)
        # of few images, the spread at one position is vague: the mean one keeps it from being too small
        usual = torch.stack([mean, (spread + spread.mean()).clamp(min=LEAST_SPREAD)])
        if mean.shape != tuple(size):
            usual = F.interpolate(usual[None], list(size), mode="bilinear", align_corners=False)[0]
        return usual[0], usual[1]

    def image_scores(self, maps: Tensor) -> Tensor:
        """Reduce maps (B, S, S) to one score per image (B,): the mean of the `worst` share of its pixels."""
        values = maps.flatten(1)
        count = max(1, round(self.settings.worst * values.shape[1]))
        return values.topk(count, dim=1, sorted=False).values.mean(1)


METHODS.register("compact")(
    Method(
        "Compact memory bank: distance to the hulls of int8 patches, within a budget of bytes.",
        CompactBank,
        CompactSettings(),
    )
)
