"""What the router sees of an image: the mean of a block's features over all positions (AdapTS sec. 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from continuad.backbones import Backbone
from continuad.errors import SettingsError
from continuad.router import Vectors


@dataclass(frozen=True)
class RoutingSettings:
    """Where prototypes are taken from.

    Attributes:
        tap: the block whose output is pooled; "avgpool" is the paper's.
        statistic: "mean" over positions (paper), or "mean_std" to append the standard deviation, which tells
            textures apart when the block is an early one.
    """

    tap: str
    statistic: Literal["mean", "mean_std"] = "mean"

    def __post_init__(self) -> None:
        if self.statistic not in ("mean", "mean_std"):
            raise SettingsError(f"The statistic is {self.statistic!r}.", "Use 'mean' or 'mean_std'.")


def pool(features: Tensor, statistic: str) -> Tensor:
    """Pool a feature map (B, C, H, W) over positions to (B, C) float32, or (B, 2 C) for "mean_std"."""
    mean = features.mean((2, 3))
    if statistic == "mean_std":
        mean = torch.cat([mean, features.std((2, 3), correction=0)], 1)
    return mean.float()


def embed(features: Tensor, statistic: str) -> Vectors:
    """What the router compares: the pooled features as an array."""
    vectors: Vectors = pool(features, statistic).cpu().numpy()
    return vectors


def routing_cost(backbone: Backbone, settings: RoutingSettings) -> int:
    """Bytes of one float32 prototype."""
    return 4 * backbone.block(settings.tap).channels * (2 if settings.statistic == "mean_std" else 1)
