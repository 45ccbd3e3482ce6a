"""Context regression: what is normal at a position is predicted from the patches around it.

The head is fitted in closed form, without gradients: a ridge regression from the four patches at some
distance, and random features of them (Huang et al. 2006, "Extreme learning machine"; Rahimi and Recht 2007),
to the patch between them. What the surroundings cannot explain is whitened and measured. Inside an image no
patch takes part in its own prediction, so that a defect cannot explain itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from continuad.backbones import Backbone
from continuad.detectors.base import METHODS, Method
from continuad.detectors.embedding import as_vectors, from_vectors
from continuad.detectors.judged import JudgedPatches, JudgedSettings
from continuad.errors import SettingsError
from continuad.progress import Progress, part, silent

EXAMPLES = 48_000
"""Patches, with their surroundings, that the regression is fitted to, equally many of each image."""

WATCHED = 256
"""Normal images, at most, that say how long the remainders at a position are."""

AT_A_TIME = 2_048
"""Patches whose features are held at a time."""

SHRINKAGE = 0.01
"""Share of the remainders' mean variance that is added to each direction's."""

SIDES = 4
LEAST = 1e-6

LEAST_VARIANCE = 1e-8
"""Of remainders, after scaling: the metric stays within what float16 holds."""


@dataclass(frozen=True, kw_only=True)
class ContextSettings(JudgedSettings):
    """How context regression predicts patches.

    Attributes:
        distance: from a patch to those that predict it, in positions of the finest tap.
        hidden: random features; 0 makes the prediction linear.
        ridge: is added to the inputs' second moments, which are about 1.
    """

    distance: int = 4
    hidden: int = 1024
    ridge: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.distance < 1:
            raise SettingsError(f"distance is {self.distance}.", "Set distance to 1 or more.")
        if self.hidden < 0:
            raise SettingsError(f"hidden is {self.hidden}.", "Set hidden to 0 (linear) or more.")
        if not self.ridge > 0:
            raise SettingsError(f"ridge is {self.ridge}.", "Set ridge above 0.")


class ContextRegression(JudgedPatches):
    """A regression from F features of the surroundings to patches of D channels.

    Attributes:
        middle: (D,) float32, the mean patch.
        scale: () float32, root mean square of a patch's channels about `middle`.
        weights: (F, D) int8, the regression; features are the surroundings, random ones of these, and a 1.
        steps: (D,) float32, what one level of a weight is worth, for each output.
        metric: (D, D) float16, whitens the remainders.
    """

    settings: ContextSettings
    middle: Tensor
    scale: Tensor
    weights: Tensor
    steps: Tensor
    metric: Tensor

    def __init__(self, backbone: Backbone, settings: ContextSettings) -> None:
        super().__init__(backbone, settings)
        inputs = SIDES * self.dimensions + settings.hidden + 1
        self.register_buffer("middle", torch.zeros(self.dimensions))
        self.register_buffer("scale", torch.tensor(1.0))
        self.register_buffer("weights", torch.zeros(inputs, self.dimensions, dtype=torch.int8))
        self.register_buffer("steps", torch.ones(self.dimensions))
        self.register_buffer("metric", torch.eye(self.dimensions, dtype=torch.float16))

    def fit(
        self,
        images: Tensor,
        *,
        seed: int = 0,
        progress: Progress = silent,
        checkpoints: Path | None = None,  # noqa: ARG002 - a pass is short
    ) -> None:
        """Learn from normal images (N, 3, S, S) uint8, in one pass through the backbone."""
        rng = np.random.default_rng(seed)
        quota = min(self.grid(images.shape[-1]), max(1, EXAMPLES // len(images)))
        watched = set(rng.permutation(len(images))[:WATCHED].tolist())
        whole: list[Tensor] = []
        joint = self.dimensions * (1 + SIDES)
        examples = torch.empty(len(images), quota, joint, dtype=torch.float16, device=images.device)
        embeddings = self.embeddings(images, part(progress, 0, 60, 100))
        for number, embedding in enumerate(embeddings):
            around = surroundings(embedding[None], self.settings.distance)
            vectors = as_vectors(torch.cat([embedding[None], around], 1))
            examples[number] = vectors[torch.from_numpy(rng.permutation(len(vectors))[:quota])]
            if number in watched:
                whole.append(embedding.half())
        self._regress(examples.flatten(0, 1))
        self._watch(whole, part(progress, 60, 100, 100))

    def _regress(self, examples: Tensor) -> None:
        """Fit to patches and their surroundings (N, 5 D) by the normal equations."""
        dimensions, inputs = self.dimensions, len(self.weights)
        patches = examples[:, :dimensions].float()
        self.middle = patches.mean(0)
        self.scale = (patches - self.middle).square().mean().sqrt().clamp(min=LEAST)
        moments = torch.zeros(inputs + dimensions, inputs + dimensions, dtype=torch.float64)
        for some in torch.split(examples, AT_A_TIME):
            vectors = (some.float() - self.middle.repeat(1 + SIDES)) / self.scale
            joint = torch.cat([self._features(vectors[:, dimensions:]), vectors[:, :dimensions]], 1)
            moments += (joint.T @ joint).cpu()
        moments /= len(examples)
        inner, products, outer = (
            moments[:inputs, :inputs],
            moments[:inputs, inputs:],
            moments[inputs:, inputs:],
        )
        ridged = inner + self.settings.ridge * torch.eye(inputs, dtype=torch.float64)
        solution = torch.cholesky_solve(products, torch.linalg.cholesky(ridged))
        steps = (solution.abs().amax(0) / 127).clamp(min=LEAST)
        codes = (solution / steps).round()
        self.steps = steps.float().to(examples.device)
        self.weights = codes.to(torch.int8).to(examples.device)
        # of the rounded regression, so that what rounding costs counts as usual
        rounded = codes * steps
        crossed = rounded.T @ products
        covariance = outer - crossed - crossed.T + rounded.T @ inner @ rounded
        self.metric = whitening(covariance).half().to(examples.device)

    def _features(self, around: Tensor) -> Tensor:
        """Inputs of the regression (N, F) for scaled surroundings (N, 4 D)."""
        hidden = self.settings.hidden
        signs = random_signs(around.shape[1], hidden).to(around.device)
        biases = torch.linspace(-0.5, 0.5, hidden, device=around.device)
        random = torch.relu(torch.addmm(biases, around, signs, alpha=around.shape[1] ** -0.5))
        return torch.cat([around, random, around.new_ones(len(around), 1)], 1)

    def remainders(self, embedding: Tensor) -> Tensor:
        """What the surroundings do not explain of patches (B, D, H, W), whitened: (B, D, H, W)."""
        scaled = (embedding - self.middle.view(1, -1, 1, 1)) / self.scale
        features = self._features(as_vectors(surroundings(scaled, self.settings.distance)))
        predicted = features @ self.weights.float() * self.steps
        rest = (as_vectors(scaled) - predicted) @ self.metric.float()
        return from_vectors(rest, embedding.shape)

    def _watch(self, embeddings: Sequence[Tensor], progress: Progress) -> None:
        """Note how long remainders of normal images (D, H, W) are."""
        found = []
        for number, embedding in enumerate(embeddings):
            progress(number, len(embeddings), "watching normal images")
            found.append(self.lengths(self.remainders(embedding[None].float())))
        progress(len(embeddings), len(embeddings), "watching normal images")
        self.watch(torch.cat(found))


def surroundings(embedding: Tensor, distance: int) -> Tensor:
    """Stack, for each position, the patches above, below, left and right of it at a distance.

    Where there is none, the outermost in that direction stands in: what a border does to its patches, it
    does to those of the surroundings, too.

    Args:
        embedding: (B, D, H, W).
        distance: in positions.

    Returns:
        (B, 4 D, H, W).
    """
    height, width = embedding.shape[-2:]
    padded = F.pad(embedding, [distance] * 4, mode="replicate")
    rows, columns = slice(distance, distance + height), slice(distance, distance + width)
    return torch.cat(
        [
            padded[:, :, :height, columns],
            padded[:, :, 2 * distance :, columns],
            padded[:, :, rows, :width],
            padded[:, :, rows, 2 * distance :],
        ],
        1,
    )


@lru_cache(maxsize=2)
def random_signs(rows: int, columns: int) -> Tensor:
    """Ones and minus ones, (rows, columns) float32: the same ever, so that no product has to keep them."""
    words = np.random.PCG64(0).random_raw(-(-rows * columns // 64))
    bits = np.unpackbits(words.astype("<u8").view(np.uint8))[: rows * columns]
    return torch.from_numpy(bits.reshape(rows, columns)).float() * 2 - 1


def whitening(covariance: Tensor) -> Tensor:
    """W with |W^T x| the Mahalanobis length of x, a little shrunk: (D, D) float32 for (D, D) float64."""
    variances, directions = np.linalg.eigh(covariance.numpy())
    floor = max(SHRINKAGE * float(variances.mean()), LEAST_VARIANCE)
    whitened = directions / np.sqrt(np.maximum(variances, 0) + floor)
    return torch.from_numpy(whitened.astype(np.float32))


METHODS.register("context")(
    Method(
        "Context regression: patches against what those around them predict, in closed form.",
        ContextRegression,
        ContextSettings(),
    )
)
