"""Feature matching between a teacher and a student: what STFPM introduced and all its descendants share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Fusion = Literal["product", "sum"]


def squared_differences(teacher: Tensor, student: Tensor, *, dim: int = 1) -> Tensor:
    """Elementwise squared difference of the features (B, C, H, W), normalised over the channels.

    Summed over channels this is 2 (1 - cosine similarity), in [0, 4]. Another `dim` serves only to repeat a
    defect of published code.
    """
    return (F.normalize(teacher, dim=dim) - F.normalize(student, dim=dim)) ** 2


def alignment_loss(differences: Sequence[Tensor]) -> Tensor:
    """Half the squared difference, averaged over positions, summed over images and layers (AdapTS Eq. 1).

    The paper's equation is for one image; summing over the batch and the factor 1/2 are the published code's,
    and belong to its learning rate.
    """
    return torch.stack([0.5 * d.sum() / (d.shape[-2] * d.shape[-1]) for d in differences]).sum()


def fuse(
    differences: Sequence[Tensor], size: Sequence[int], fusion: Fusion, *, align_corners: bool = False
) -> Tensor:
    """Sum each layer's differences over channels, upsample, and combine the layers.

    Args:
        differences: (B, C_l, H_l, W_l) for each layer.
        size: height and width of the result.
        fusion: "product" or "sum" over the layers.
        align_corners: of the bilinear upsampling, as in PyTorch.

    Returns:
        (B, height, width).
    """
    layers = [d.sum(1, keepdim=True) for d in differences]
    upsampled = [F.interpolate(m, list(size), mode="bilinear", align_corners=align_corners) for m in layers]
    maps = torch.cat(upsampled, 1)
    return maps.prod(1) if fusion == "product" else maps.sum(1)


def smooth(maps: Tensor, sigma: float) -> Tensor:
    """Blur maps (B, H, W) with a Gaussian of standard deviation `sigma` pixels; 0 leaves them as they are."""
    if sigma == 0:
        return maps
    radius = int(4 * sigma + 0.5)
    offsets = torch.arange(-radius, radius + 1, dtype=maps.dtype, device=maps.device)
    kernel = torch.exp(-0.5 * (offsets / sigma) ** 2)
    kernel /= kernel.sum()
    padded = F.pad(maps[:, None], [radius] * 4, mode="replicate")
    rows = F.conv2d(padded, kernel.view(1, 1, -1, 1))
    return F.conv2d(rows, kernel.view(1, 1, 1, -1)).squeeze(1)
