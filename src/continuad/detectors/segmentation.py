"""Segmentation-guided training: a head as simple as can be, and its two losses (AdapTS sec. 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SegmentationHead(nn.Module):
    """A 1x1 convolution to one channel over the concatenated discrepancies of all layers.

    It only guides training and is dropped afterwards.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 1, 1)

    def forward(self, discrepancies: Sequence[Tensor]) -> Tensor:
        """Map discrepancies (B, C_l, H_l, W_l) to logits (B, H_1, W_1) at the first layer's size."""
        size = discrepancies[0].shape[-2:]
        resized = [F.interpolate(d, size, mode="bilinear", align_corners=False) for d in discrepancies]
        logits: Tensor = self.conv(torch.cat(resized, 1)).squeeze(1)
        return logits


def resize_masks(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Shrink masks (B, H, W) to float32 zeros and ones at `size`: bilinear, then more than a half."""
    resized = F.interpolate(masks[:, None].float(), list(size), mode="bilinear", align_corners=False)
    return (resized.squeeze(1) > 0.5).float()


def focal_loss(logits: Tensor, target: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p)^gamma log p, where p is the probability given to the right class (Eq. 3)."""
    wrong = torch.where(target > 0.5, -logits, logits)  # logit of 1 - p
    return (wrong.sigmoid() ** gamma * F.softplus(wrong)).mean()


def l1_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean absolute difference between the predicted probability and the mask (Eq. 3)."""
    return (logits.sigmoid() - target).abs().mean()
