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

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.base import METHODS, Method
from continuad.detectors.codes import decode, encode, nearest_codes
from continuad.detectors.coreset import greedy_coreset
from continuad.detectors.embedding import as_vectors, draw, from_vectors
from continuad.detectors.hull import hull_residuals
from continuad.detectors.judged import JudgedPatches, JudgedSettings
from continuad.detectors.metric import within_class_metric
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent

CANDIDATES = 120_000
"""Patches that the bank is chosen from, equally many of each image."""

WATCHED = 64
"""Normal images, at most, that say how far from the bank a position is."""

MIN_VECTORS = 16


@dataclass(frozen=True, kw_only=True)
class CompactSettings(JudgedSettings):
    """How the compact memory bank keeps and compares patches.

    Attributes:
        budget: KiB that it may take, all told.
        shrinkage: of the metric towards the plain one: share of the mean variance that is added to each
            direction's.
        neighbours: vectors that span the hull.
    """

    budget: int = 504
    shrinkage: float = 0.3
    neighbours: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.shrinkage > 0:
            raise SettingsError(f"shrinkage is {self.shrinkage}.", "Set shrinkage above 0.")
        if self.neighbours < 1:
            raise SettingsError(f"neighbours is {self.neighbours}.", "Set neighbours to 1 or more.")


class CompactBank(JudgedPatches):
    """A memory bank of int8 codes, and what it takes to compare patches with them.

    Attributes:
        metric: (D, D) float16; distances are Euclidean after multiplication with it.
        codes: (M, D) int8, the vectors of the bank, after that multiplication.
        middle: (D,) float32, where the codes are zero.
        step: () float32, what one level of a code is worth.
    """

    settings: CompactSettings
    metric: Tensor
    codes: Tensor
    middle: Tensor
    step: Tensor

    def __init__(self, backbone: Backbone, settings: CompactSettings) -> None:
        super().__init__(backbone, settings)
        self.register_buffer("metric", torch.eye(self.dimensions, dtype=torch.float16))
        self.register_buffer("codes", torch.zeros(1, self.dimensions, dtype=torch.int8))
        self.register_buffer("middle", torch.zeros(self.dimensions))
        self.register_buffer("step", torch.tensor(1.0))

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
        drawn = torch.empty(len(images), quota, self.dimensions, device=images.device)
        watched = set(rng.permutation(len(images))[:WATCHED].tolist())
        whole: dict[int, Tensor] = {}
        embeddings = self.embeddings(images, part(progress, 0, 60, 100))
        for number, embedding in enumerate(embeddings):
            drawn[number] = draw(as_vectors(embedding[None]), quota, rng)
            if number in watched:
                whole[number] = embedding.half()
        vectors, owners = drawn.flatten(0, 1), torch.arange(len(images)).repeat_interleave(quota)
        del drawn
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
        taken = self.metric.nbytes + self.middle.nbytes + self.step.nbytes + 2 * 2 * self.grid(image_size)
        free = 1024 * self.settings.budget - taken
        if free < MIN_VECTORS * self.dimensions:
            least = -(-(1024 * self.settings.budget - free + MIN_VECTORS * self.dimensions) // 1024)
            raise SettingsError(
                f"{self.settings.budget} KiB are too few for the compact bank here.",
                f"Set budget to {least} or more.",
            )
        return int(free // self.dimensions)

    def _watch(self, embeddings: Mapping[int, Tensor], owners: Tensor, progress: Progress) -> None:
        """Note how far normal images (D, H, W) are from what the others of them have put into the bank.

        Leaving out an image's own vectors is what makes them comparable with images to come.
        """
        found = []
        for number, (image, embedding) in enumerate(embeddings.items()):
            progress(number, len(embeddings), "watching normal images")
            others = self.codes[owners != image]
            codes = others if len(others) else self.codes
            found.append(self.lengths(self._remainders(embedding[None].float(), codes)))
        progress(len(embeddings), len(embeddings), "watching normal images")
        self.watch(torch.cat(found))

    def remainders(self, embedding: Tensor) -> Tensor:
        """What the hulls of the nearest codes leave of patches (B, D, H, W), in the metric: (B, D, H, W)."""
        return self._remainders(embedding, self.codes)

    def _remainders(self, embedding: Tensor, codes: Tensor) -> Tensor:
        vectors = as_vectors(embedding) @ self.metric.float() - self.middle
        count = min(self.settings.neighbours, len(codes))
        found = nearest_codes(encode(vectors, self.step), codes, count=count)
        rest = hull_residuals(vectors, decode(codes[found], self.step))
        return from_vectors(rest, embedding.shape)

    def reserve(self, images: int, image_size: int) -> None:
        """Hold as many vectors as so many images give."""
        super().reserve(images, image_size)
        patches = images * min(self.grid(image_size), max(1, CANDIDATES // images))
        self.codes = self.codes.new_zeros(min(self._count(image_size), patches), self.dimensions)


METHODS.register("compact")(
    Method(
        "Compact memory bank: distance to the hulls of int8 patches, within a budget of bytes.",
        CompactBank,
        CompactSettings(),
    )
)
