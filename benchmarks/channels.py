"""Which channels should a memory bank keep, if not all? PCA importance against variance and chance.

    python benchmarks/channels.py DATA [--products bottle,capsule,pill,screw]

The compact bank with half of the channels of each block, and about as many vectors as 504 KiB hold of all
channels; and with all channels at half the budget, which costs as many bytes. Channels are ranked by normal
images alone: by their PCA feature importance or their variance, averaged over positions. Writes
results/channels.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.datasets import Task, load_tasks
from continuad.detectors import METHODS
from continuad.detectors.compact import CompactBank, CompactSettings
from continuad.detectors.importance import LayerImportance, feature_importance
from continuad.images import load_mask, load_stack, resize_mask
from continuad.metrics import PixelMetrics, image_scores

RESULTS = Path(__file__).parent / "results"
SIZE = 384
WHOLE, HALF = 504, 256
VECTORS = 240
"""KiB that about as many vectors take as in the whole bank, with half of the channels."""
SEEDS = (0, 1, 2)
METRICS = {"i_auroc": "I-AUROC", "p_auroc": "P-AUROC", "p_ap": "P-AP", "aupro": "AUPRO"}


class Narrow(CompactBank):
    """A compact bank of some channels."""

    def __init__(self, backbone: Backbone, settings: CompactSettings, channels: NDArray[np.int64]) -> None:
        super().__init__(backbone, settings)
        self.dimensions = len(channels)
        self.metric = torch.eye(self.dimensions, dtype=torch.float16)
        self.middle = torch.zeros(self.dimensions)
        self._channels = torch.from_numpy(channels)

    def describe(self, features: dict[str, Tensor]) -> Tensor:
        return super().describe(features)[:, self._channels]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default=os.environ.get("CONTINUAD_DATA"))
    parser.add_argument("--products", default="bottle,capsule,pill,screw")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("name a dataset folder, or set CONTINUAD_DATA")
    backbone = create_backbone("efficientnet_lite0")
    tasks = load_tasks(arguments.data, products=arguments.products.split(","))
    found: dict[str, list[dict[str, float]]] = {}
    for task in tasks:
        images = torch.from_numpy(load_stack(task.train, SIZE))
        for name, bank in banks(backbone, images).items():
            bank.fit(images)
            scores = {"KiB": sum(t.nbytes for t in bank.state_dict().values()) / 1024, **test(bank, task)}
            found.setdefault(name.rstrip("012 "), []).append(scores)
            print(task.name, name, scores, flush=True)
    heads = ["", "KiB", *METRICS.values()]
    rows = [
        [name, f"{mean(scores, 'KiB'):.0f}", *(f"{mean(scores, metric):.3f}" for metric in METRICS)]
        for name, scores in found.items()
    ]
    lines = [
        "# Which channels a memory bank should keep",
        "",
        f"`python benchmarks/channels.py DATA --products {arguments.products}`",
        "",
        f"EfficientNet-Lite0, images of {SIZE} pixels; means over the products, pixel metrics over those",
        f"with masks, and chance over {len(SEEDS)} draws.",
        "",
        *("| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)),
    ]
    (RESULTS / "channels.md").write_text("\n".join(lines) + "\n")


def banks(backbone: Backbone, images: Tensor) -> dict[str, CompactBank]:
    settings = METHODS["compact"].configure({})
    taps = backbone.order([backbone.stage(stride) for stride in settings.strides])
    layers = [*feature_importance(backbone, images, taps).values()]
    importance = [layer.importance.mean((1, 2)) for layer in layers]
    variance = [(layer.std**2).mean((1, 2)) for layer in layers]
    ways = {
        "the most important half": importance,
        "the least important half": [-each for each in importance],
        "the half that varies most": variance,
        **{f"half, by chance {seed}": by_chance(layers, seed) for seed in SEEDS},
    }
    narrow = METHODS["compact"].configure({"budget": VECTORS})
    return {
        "all channels": METHODS["compact"].build(backbone, {"budget": WHOLE}),
        "all channels, fewer vectors": METHODS["compact"].build(backbone, {"budget": HALF}),
        **{name: Narrow(backbone, narrow, upper_half(ranks)) for name, ranks in ways.items()},
    }


def by_chance(layers: list[LayerImportance], seed: int) -> list[NDArray[np.float64]]:
    rng = np.random.default_rng(seed)
    return [rng.random(len(layer.importance)) for layer in layers]


def upper_half(ranks: list[NDArray[np.float64]]) -> NDArray[np.int64]:
    """The numbers of the channels in the upper half of each block, counted through all blocks."""
    starts = np.cumsum([0, *map(len, ranks)])
    chosen = [start + np.argsort(-each)[: len(each) // 2] for start, each in zip(starts, ranks, strict=False)]
    return np.sort(np.concatenate(chosen))


def test(bank: CompactBank, task: Task) -> dict[str, float]:
    scores, pixels = [], PixelMetrics()
    for sample in task.test:
        found = bank.anomaly_maps(torch.from_numpy(load_stack([sample.image], SIZE)))
        scores.append(float(bank.image_scores(found)))
        if not sample.is_anomalous:
            pixels.update(found.numpy(), np.zeros((1, SIZE, SIZE), np.bool_))
        elif sample.mask is not None:
            pixels.update(found.numpy(), resize_mask(load_mask(sample.mask), SIZE)[None])
    return {
        **vars(image_scores(scores, [sample.is_anomalous for sample in task.test])),
        **vars(pixels.compute()),
    }


def mean(scores: list[dict[str, float]], metric: str) -> float:
    return float(np.nanmean([np.nan if each[metric] is None else each[metric] for each in scores]))


if __name__ == "__main__":
    main()
