"""Metrics: numpy in, numbers out; `costs` and `memory` stand apart because they need torch."""

from __future__ import annotations

from continuad.metrics.pixels import PixelMetrics, PixelScores
from continuad.metrics.ranking import auroc, average_precision, f1_max
from continuad.metrics.scores import ImageScores, binomial_interval, image_scores
from continuad.metrics.stream import StreamRow, StreamScores

__all__ = [
    "ImageScores",
    "PixelMetrics",
    "PixelScores",
    "StreamRow",
    "StreamScores",
    "auroc",
    "average_precision",
    "binomial_interval",
    "f1_max",
    "image_scores",
]
