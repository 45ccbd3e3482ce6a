"""The automatic head: what suits a product, judged by normal images and synthetic defects alone."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.datasets.defects import SyntheticDefects
from continuad.detectors import METHODS, Detector
from continuad.detectors.judged import JudgedPatches
from continuad.progress import Progress, part, silent

Scores = NDArray[np.float64]

AUTO = "auto"

FIRST = "compact"
"""The method that "auto" begins with, and keeps unless another one is clearly better."""

TRIED = 64
"""Images, at most, that another method learns for its trial."""

EXAMINED = 32
"""Normal images, at most, that the choice rests on; each also with a synthetic defect."""

CERTAINTY = 0.95
"""Share of the bootstrap's samples in which another candidate must beat the first to be taken."""

SAMPLES = 500


@dataclass(frozen=True)
class Candidate:
    """A method, and a way to make scores of what it has learnt.

    Attributes:
        method: a name in `METHODS`.
        says: what it does, to go on from "it".
        changes: to the method's settings.
    """

    method: str
    says: str
    changes: Mapping[str, Any]


CANDIDATES = (
    Candidate(FIRST, "judges each position by what is usual there", {}),
    Candidate(FIRST, "judges all positions alike", {"by_position": False}),
    Candidate(
        FIRST, "judges each position by what is usual there, and the worst spot alone", {"worst": 0.001}
    ),
    Candidate(
        FIRST, "judges all positions alike, and the worst spot alone", {"by_position": False, "worst": 0.001}
    ),
    Candidate("context", "predicts each patch from those around it", {"hidden": 0}),
)

CHOSEN = frozenset(name for each in CANDIDATES if each.method == FIRST for name in each.changes)
"""The settings of the first method that are chosen."""


def method_of(head: str) -> str:
    """Return the method that a head is learnt with; that of "auto" may be another in the end."""
    return FIRST if head == AUTO else head


@dataclass(frozen=True)
class Choice:
    """What was chosen.

    Attributes:
        method: a name in `METHODS`.
        changes: to the method's settings.
        reason: why, in a sentence or two.
    """

    method: str
    changes: Mapping[str, Any]
    reason: str


def choose(
    head: Detector,
    learnt: Tensor,
    held_out: Tensor,
    *,
    fixed: Collection[str],
    seed: int,
    progress: Progress = silent,
) -> Choice:
    """Choose a method, and how it scores: what tells held-out images from copies with a small defect.

    Another method learns some of the images for its trial; it must be clearly better all the same.

    Args:
        head: of the method `FIRST`, fitted to the images.
        learnt: these images, normal ones, (N, 3, S, S) uint8.
        held_out: other normal images, likewise, at least one.
        fixed: names of the method's settings that are not up for choice; if there are any, nor is the method.
        seed: of the trial and the defects.
        progress: told about the images.
    """
    candidates = [
        each
        for each in CANDIDATES
        if (not each.changes.keys() & set(fixed) if each.method == FIRST else not fixed)
    ]
    heads = {FIRST: head}
    for each in candidates:
        if each.method not in heads:
            trial = METHODS[each.method].build(head.backbone, each.changes).to(learnt.device)
            trial.fit(learnt[:TRIED], seed=seed, progress=part(progress, 0, 50, 100))
            heads[each.method] = trial
    normal = held_out[:EXAMINED]
    images = torch.cat([normal, _damaged(normal, seed)])
    scores = _scores(heads, candidates, images, part(progress, 50, 100, 100))
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
    return Choice(candidates[best].method, candidates[best].changes, reason)


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


@torch.no_grad()
def _scores(
    heads: Mapping[str, Detector], candidates: Collection[Candidate], images: Tensor, progress: Progress
) -> Scores:
    """Image scores (images, candidates); distances are the same for all candidates of a method."""
    taps = {tap for head in heads.values() for tap in head.taps}
    backbone = next(iter(heads.values())).backbone
    rows = []
    for number, image in enumerate(images):
        progress(number, len(images), "trying synthetic defects")
        features = backbone.features(image[None], taps)
        distances = {name: _judged(head).distances(image[None], features) for name, head in heads.items()}
        row = []
        for candidate in candidates:
            head = _judged(heads[candidate.method])
            usual = head.settings
            head.settings = replace(usual, **candidate.changes)
            maps = head.standardised(distances[candidate.method], image.shape[-2:])
            row.append(float(head.image_scores(maps)))
            head.settings = usual
        rows.append(row)
    return np.array(rows)


def _judged(head: Detector) -> JudgedPatches:
    assert isinstance(head, JudgedPatches)  # noqa: S101 - all candidates are
    return head
