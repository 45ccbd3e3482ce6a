"""Adapters: small residual modules that turn a frozen teacher into its own student (AdapTS Eq. 2)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from continuad.errors import SettingsError

ADAPTER_KINDS: dict[str, float] = {"linear": 1.0, "expansion": 2.0, "bottleneck50": 0.5, "bottleneck25": 0.25}
"""Latent channels per input channel. The bottlenecks carry a second batch norm, as in the published code."""


class Adapter(nn.Module):
    """y = x + W2 relu(BN(W1 x + b1)) + b2, with 1x1 convolutions and orthogonal initial weights.

    Args:
        channels: channels of the feature map that it is attached to.
        kind: one of `ADAPTER_KINDS`.
    """

    def __init__(self, channels: int, kind: str = "linear") -> None:
        super().__init__()
        if kind not in ADAPTER_KINDS:
            raise SettingsError(
                f"There is no adapter kind {kind!r}.", f"Choose one of: {', '.join(ADAPTER_KINDS)}."
            )
        latent = max(1, int(channels * ADAPTER_KINDS[kind]))
        self.conv1 = nn.Conv2d(channels, latent, 1)
        self.norm1 = nn.BatchNorm2d(latent)
        self.conv2 = nn.Conv2d(latent, channels, 1)
        self.norm2 = nn.BatchNorm2d(channels) if kind.startswith("bottleneck") else None
        for conv in (self.conv1, self.conv2):
            nn.init.orthogonal_(conv.weight)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def hidden(self, x: Tensor) -> Tensor:
        """The latent activation, (B, latent, H, W), non-negative."""
        hidden: Tensor = F.relu(self.norm1(self.conv1(x)))
        return hidden

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        residual: Tensor = self.conv2(self.hidden(x))
        if self.norm2 is not None:
            residual = self.norm2(residual)
        return x + residual
