"""Steps of learning a product: the head that was chosen, and what it and the router make of images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from continuad import __version__
from continuad.continual import RoutedHeads
from continuad.continual.routing import embed
from continuad.detectors import METHODS, Detector
from continuad.detectors.base import settings_as_dict
from continuad.detectors.fitted import FittedDetector
from continuad.inspector.choice import FIRST, Choice
from continuad.progress import Progress
from continuad.router import Vectors

BATCH = 8


def training_key(method: str, detector: Detector, images: Tensor, *, seed: int, backbone: str) -> str:
    """Twelve hex digits that stand for all that a training's result depends on.

    Args:
        method: the detector's name in `METHODS`.
        detector: not yet fitted.
        images: all that there are, (N, 3, S, S) uint8.
        seed: of the training and of the held-out split.
        backbone: the checksum of its weights.
    """
    facts = [__version__, method, settings_as_dict(detector), seed, backbone]
    digest = hashlib.sha256(json.dumps([*facts, list(images.shape)]).encode())
    digest.update(images.cpu().numpy().data)
    return digest.hexdigest()[:12]


def chosen_head(
    choice: Choice, first: Detector, images: Tensor, *, seed: int, progress: Progress
) -> Detector:
    """The head that was chosen, fitted to the images (N, 3, S, S) that the first one was fitted to."""
    if choice.method == FIRST:
        first.settings = replace(first.settings, **choice.changes)
        return first
    detector = METHODS[choice.method].build(first.backbone, choice.changes).to(images.device)
    detector.fit(images, seed=seed, progress=progress)
    return detector


def embed_learnt(detector: Detector, images: Tensor, heads: RoutedHeads) -> Vectors:
    """Embeddings (N, D) of the images (N, 3, S, S) that a detector was just fitted to."""
    routing = heads.routing
    if isinstance(detector, FittedDetector) and routing.statistic == "mean" and routing.tap in detector.taps:
        return detector.tap_means[routing.tap].cpu().numpy()
    return np.concatenate([heads.embed(batch) for batch in torch.split(images, BATCH)])


@torch.no_grad()
def examine(detector: Detector, images: Tensor, heads: RoutedHeads) -> tuple[tuple[float, ...], Vectors]:
    """Scores by a detector, and embeddings (N, D), of images (N, 3, S, S)."""
    routing = heads.routing
    scores: list[float] = []
    embeddings = []
    for batch in torch.split(images, BATCH):
        features = detector.backbone.features(batch, {routing.tap, *detector.taps})
        scores += detector.image_scores(detector.anomaly_maps(batch, features)).tolist()
        embeddings.append(embed(features[routing.tap], routing.statistic))
    return tuple(scores), np.concatenate(embeddings)
