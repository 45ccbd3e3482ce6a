"""The automatic head: what suits a product, judged by normal images and synthetic defects alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.datasets.defects import SyntheticDefects
from continuad.detectors import Detector
from continuad.detectors.compact import CompactBank
from continuad.progress import Progress, silent

Scores = NDArray[np.float64]

AUTO = "auto"

EXAMINED = 32
"""Normal images, at most, that the choice rests on; each also with a synthetic defect."""

CERTAINTY = 0.95
"""Share of the bootstrap's samples in which another candidate must beat the first to be taken."""

SAMPLES = 500


@dataclass(frozen=True)
class Candidate:
    """A way to make scores of what the head has learnt.

    Attributes:
        says: what it does, to go on from "it".
        changes: to the head's settings.
    """

    says: str
    changes: Mapping[str, Any]


CANDIDATES = (
    Candidate("judges each position by what is usual there", {}),
    Candidate("judges all positions alike", {"by_position": False}),
    Candidate("judges each position by what is usual there, and the worst spot alone", {"worst": 0.001}),
    Candidate("judges all positions alike, and the worst spot alone", {"by_position": False, "worst": 0.001}),
)

CHOSEN = frozenset(name for each in CANDIDATES for name in each.changes)
"""The settings that are chosen."""


def method_of(head: str) -> str:
    """Return the method that a head is learnt with; "auto" is the compact memory bank, tuned afterwards."""
    return "compact" if head == AUTO else head


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        changes: to the head's settings.
        reason: why, in a sentence or two.
    """

    changes: Mapping[str, Any]
    reason: str


def choose(
    head: Detector, held_out: Tensor, *, fixed: Collection[str], seed: int, progress: Progress = silent
) -> Choice:
    """Choose how a head scores: so that it tells held-out images from copies with a small synthetic defect.

    Args:
        head: a `CompactBank`, fitted to other normal images.
        held_out: normal images, (N, 3, S, S) uint8, at least one.
        fixed: names of settings that are not up for choice.
        seed: of the defects.
        progress: told about the images.
    """
    assert isinstance(head, CompactBank)  # noqa: S101 - see `method_of`
    candidates = [each for each in CANDIDATES if not each.changes.keys() & set(fixed)]
    normal = held_out[:EXAMINED]
    images = torch.cat([normal, _damaged(normal, seed)])
    scores = _scores(head, candidates, images, progress)
    ranked = _ranked(scores[: len(normal)], scores[len(normal) :])
    aurocs = ranked.mean((0, 1))
    best = int(aurocs.argmax())
    if _chance(ranked[..., 0], ranked[..., best], seed) > 1 - CERTAINTY:
        best = 0
    tried = [f"{each.says}: {auroc:.3f}" for each, auroc in zip(candidates, aurocs, strict=True)]
    reason = (
        f"It {candidates[best].says}. AUROC between {len(normal)} held-out photos and as many "
        f"with a synthetic defect, if it {'; '.join(tried)}."
    )
    return Choice(candidates[best].changes, reason)


def _ranked(normal: Scores, damaged: Scores) -> Scores:
    """How each pair of a normal and a damaged image is ranked (N, M, candidates): 1 is right, 0.5 a tie."""
    difference = damaged[None] - normal[:, None]
    return (np.sign(difference) + 1) / 2


def _chance(first: Scores, other: Scores, seed: int) -> float:
    """The share of bootstrap samples of the images in which the first is no worse than the other."""
    rng = np.random.default_rng(seed)
    gain = other - first
    picks = rng.integers(0, len(gain), (SAMPLES, len(gain)))
    return float(np.mean([gain[np.ix_(pick, pick)].mean() <= 0 for pick in picks]))


def _damaged(images: Tensor, seed: int) -> Tensor:
    """Copies (N, 3, S, S) of images with a defect each."""
    damage = SyntheticDefects()
    copies = [
        damage(image, np.random.default_rng([seed, number]))[0]
        for number, image in enumerate(images.cpu().numpy())
    ]
    return torch.from_numpy(np.stack(copies)).to(images.device)


def _scores(head: CompactBank, candidates: Sequence[Candidate], images: Tensor, progress: Progress) -> Scores:
    """Image scores (images, candidates); distances are the same for all candidates."""
    chosen = head.settings
    rows = []
    for number, image in enumerate(images):
        progress(number, len(images), "trying synthetic defects")
        distances = head.distances(image[None])
        row = []
        for candidate in candidates:
            head.settings = replace(chosen, **candidate.changes)
            row.append(float(head.image_scores(head.standardised(distances, image.shape[-2:]))))
        rows.append(row)
    head.settings = chosen
    return np.array(rows)
