"""What a frozen backbone computes for a fixed image is computed once and reused."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from continuad.backbones import Backbone

BATCH = 16
BUDGET = 2**30


class FrozenFeatures:
    """The taps' features of numbered images, computed at first use and kept while they fit.

    Args:
        backbone: the frozen network.
        taps: blocks whose outputs are wanted.
        sample: called with a number, returns that image (3, S, S) uint8 and None, or what a block gives for
            it (C, H, W) and the block's name; always the same for the same number.
        budget: bytes to keep at most; the features of further images are computed anew each time.
    """

    def __init__(
        self,
        backbone: Backbone,
        taps: Sequence[str],
        sample: Callable[[int], tuple[Tensor, str | None]],
        *,
        budget: int = BUDGET,
    ) -> None:
        self.backbone = backbone
        self.taps = tuple(taps)
        self.sample = sample
        self.budget = budget
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __call__(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Return tap name to features (B, C, H, W) of these images."""
        found = {number: self._kept[number] for number in numbers if number in self._kept}
        absent = [number for number in dict.fromkeys(numbers) if number not in found]
        # in a batch a convolution rounds by what else is in it, which depends on what is kept: a resumed
        # training would differ; on a CPU, one by one takes no longer
        size = 1 if self.backbone.mean.device.type == "cpu" else BATCH
        for first in range(0, len(absent), size):
            inputs: dict[str | None, dict[int, Tensor]] = {}
            for number in absent[first : first + size]:
                x, block = self.sample(number)
                inputs.setdefault(block, {})[number] = x
            for block, samples in inputs.items():
                computed = self._compute(torch.stack([*samples.values()]), block)
                for row, number in enumerate(samples):
                    found[number] = {tap: computed[tap][row] for tap in self.taps}
                    self._keep(number, found[number])
        stacked = {tap: torch.stack([found[number][tap] for number in numbers]) for tap in self.taps}
        return {tap: f.contiguous(memory_format=torch.channels_last) for tap, f in stacked.items()}

    @torch.no_grad()
    def _compute(self, x: Tensor, block: str | None) -> dict[str, Tensor]:
        """Run a batch of images, or of a block's outputs, through the backbone; in full precision."""
        known = {} if block is None else {block: x}
        wanted = [tap for tap in self.taps if tap not in known]
        with torch.autocast(x.device.type, enabled=False):
            return {**known, **self.backbone.features(x, wanted, start=block)}

    def _keep(self, number: int, features: dict[str, Tensor]) -> None:
        size = sum(f.nbytes for f in features.values())
        if size <= self.budget:
            self.budget -= size
            self._kept[number] = {tap: f.clone() for tap, f in features.items()}
