"""Backbone and heads as graphs of ONNX operators."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxscript.optimizer import optimize
from torch import Tensor, nn
from torch.func import functional_call

from continuad.backbones import Backbone
from continuad.continual.routing import RoutingSettings, pool
from continuad.detectors import Detector
from continuad.detectors.fitted import FittedDetector
from continuad.export.operators import TRANSLATIONS

Pixels = NDArray[np.uint8]

ANY_SIZE = 2**40


class _Backbone(nn.Module):
    """Maps an image (1, S, S, 3) uint8 to its embedding (1, D) and the features at the taps."""

    def __init__(self, backbone: Backbone, routing: RoutingSettings, taps: Sequence[str]) -> None:
        super().__init__()
        self.backbone, self.routing, self.taps = backbone, routing, taps

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.backbone.features(images.permute(0, 3, 1, 2), {*self.taps, self.routing.tap})
        embedding = pool(features[self.routing.tap], self.routing.statistic)
        return embedding, *(features[tap] for tap in self.taps)


class _Head(nn.Module):
    """Maps an image (1, S, S, 3) uint8 and its features at the taps to its map (1, S, S)."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor, *features: Tensor) -> Tensor:
        known = dict(zip(self.detector.taps, features, strict=True))
        return self.detector.anomaly_maps(images.permute(0, 3, 1, 2), known)


class _Kind(nn.Module):
    """A head whose state comes in with the image, after the features."""

    def __init__(self, head: _Head, names: Sequence[str]) -> None:
        super().__init__()
        self.head, self.names = head, names

    def forward(self, images: Tensor, *rest: Tensor) -> Tensor:
        features = rest[: len(self.head.detector.taps)]
        state = dict(zip(self.names, rest[len(features) :], strict=True))
        found: Tensor = functional_call(self.head, state, (images, *features))
        return found


def backbone_graph(
    backbone: Backbone, routing: RoutingSettings, taps: Sequence[str], *, image_size: int
) -> onnx.ModelProto:
    """The backbone up to the last block used: "images" in; "embedding", and each tap by its name, out."""
    model = _Backbone(backbone, routing, taps).eval()
    return _graph(model, {"images": _blank(image_size)}, ["embedding", *taps], fold=True)


def head_graph(detector: Detector, *, image_size: int) -> onnx.ModelProto:
    """A head: each of its taps by its name in, and "images" if it looks at them; "map" out.

    What was fitted, and not trained, comes in as well (`head_state`): one graph serves all heads of a kind.
    """
    images = _blank(image_size)
    with torch.no_grad():
        features = detector.backbone.features(images.permute(0, 3, 1, 2), detector.taps)
    inputs = {"images": images, **{tap: features[tap] for tap in detector.taps}}
    model: nn.Module = _Head(detector)
    if state := _fitted(detector):
        model = _Kind(_Head(detector), [f"detector.{name}" for name in state])
        inputs |= {f"state.{name}": tensor for name, tensor in state.items()}
    return _graph(model.eval(), inputs, ["map"])


def head_state(detector: Detector) -> dict[str, NDArray[Any]]:
    """What a head of a kind differs by from others, by the names of the graph's inputs; none if trained."""
    return {f"state.{name}": tensor.cpu().numpy() for name, tensor in _fitted(detector).items()}


def _fitted(detector: Detector) -> dict[str, Tensor]:
    return dict(detector.named_buffers()) if isinstance(detector, FittedDetector) else {}


def _blank(size: int) -> Tensor:
    return torch.zeros(1, size, size, 3, dtype=torch.uint8)


def _graph(
    model: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str], *, fold: bool = False
) -> onnx.ModelProto:
    """Trace a model with these inputs; those that it does not look at are left out.

    With `fold`, constants of any size are computed now: quantisers look for weights that are plain.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # about what torch itself does
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=list(outputs),
            custom_translation_table=TRANSLATIONS,
            verbose=False,
        )
    assert program is not None  # noqa: S101 - without a file name, there is one
    if fold:
        optimize(program.model, input_size_limit=ANY_SIZE, output_size_limit=ANY_SIZE)
    proto: onnx.ModelProto = program.model_proto
    used = {name for node in proto.graph.node for name in node.input}
    for unused in [each for each in proto.graph.input if each.name not in used]:
        proto.graph.input.remove(unused)
    return proto
