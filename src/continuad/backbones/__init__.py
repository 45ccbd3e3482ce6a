"""Backbones: frozen, pretrained networks seen as ordered lists of named blocks."""

from __future__ import annotations

import torch

# each architecture registers itself in BACKBONES when its module is imported; the first is the default
from continuad.backbones import efficientnet_lite, mcunet, micronet, mobilenet_v2, phinet, resnet, tiny  # noqa: F401
from continuad.backbones.base import BACKBONES, Backbone, Block
from continuad.backbones.weights import checkpoint, fingerprint, load_weights
from continuad.progress import Progress, silent

__all__ = [
    "BACKBONES",
    "Backbone",
    "Block",
    "checkpoint",
    "create_backbone",
    "fingerprint",
    "load_weights",
]


def create_backbone(name: str, *, weights: str = "auto", progress: Progress = silent) -> Backbone:
    """Build the backbone called `name` and load its weights.

    Args:
        name: a key of `BACKBONES`.
        weights: "auto" (the architecture's published ImageNet weights), "random" (the same on every call),
            a file or a URL; see `load_weights`.
        progress: told about a download.

    Raises:
        SettingsError: there is no such backbone.
        WeightsError: the weights cannot be had or do not fit.
    """
    architecture = BACKBONES[name]
    with torch.random.fork_rng(devices=[]):  # the caller's random state stays untouched
        torch.manual_seed(0)
        backbone = architecture()
    load_weights(backbone, weights, progress=progress)
    # halves the time of depthwise convolutions on a CPU
    backbone.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return backbone
