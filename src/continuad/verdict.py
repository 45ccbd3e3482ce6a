"""The one result type: what continuad says about an image."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Verdict:
    """What continuad says about one image.

    Attributes:
        product: the product that the image was inspected as; None if it is of no known product.
        score: the raw image score, higher is more anomalous; NaN for an unknown product.
        threshold: scores above it are anomalous; NaN for an unknown product.
        is_anomalous: the verdict; None for an unknown product.
        anomaly_map: (H, W) float32 at the size of the image, on the scale of `score`; None for an unknown
            product.
        nearest: the product that looks most alike; None if the caller named the product.
        distance: how far the image lies from `nearest`; above 1 it is unknown; NaN if the caller named the
            product.
        timings: milliseconds per stage; in a batch, this image's share.
    """

    product: str | None
    score: float
    threshold: float
    is_anomalous: bool | None
    anomaly_map: NDArray[np.float32] | None = field(repr=False)
    nearest: str | None = None
    distance: float = float("nan")
    timings: dict[str, float] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        unknown = self.product is None
        if unknown != (self.is_anomalous is None) or unknown != (self.anomaly_map is None):
            raise ValueError("a verdict has a product, a map and a decision, or none of them")

    @property
    def label(self) -> Literal["normal", "anomalous", "unknown"]:
        """The verdict in one word."""
        if self.is_anomalous is None:
            return "unknown"
        return "anomalous" if self.is_anomalous else "normal"

    def as_dict(self) -> dict[str, Any]:
        """Everything but the map as plain values for JSON; NaN becomes None."""
        values = {
            "label": self.label,
            "product": self.product,
            "score": self.score,
            "threshold": self.threshold,
            "is_anomalous": self.is_anomalous,
            "nearest": self.nearest,
            "distance": self.distance,
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
        }
        return {key: None if value != value else value for key, value in values.items()}
