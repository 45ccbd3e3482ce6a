"""Graphs as files of a runtime, in float32 or quantised to int8."""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import onnx

from continuad.export.graphs import Pixels
from continuad.runtime.engines import keep_private
from continuad.runtime.folder import SUFFIXES, Target

SPARED = 3
"""The first convolutions stay in floats: rounding them costs several times the error of all others together
(EfficientNet-Lite0: 0.37 of a feature's spread rather than 0.08), and a fifth of what int8 gains."""

CONVOLUTIONS = ("Convolution", "GroupConvolution")


def convert(graph: onnx.ModelProto, target: Target, *, samples: Pixels | None = None) -> dict[str, bytes]:
    """Turn a graph into the files of a runtime, by suffix.

    Args:
        graph: what `graphs` made.
        target: the runtime's.
        samples: images (N, S, S, 3) uint8 for the input "images": quantise the graph to int8, with ranges
            that cover what they bring about.
    """
    keep_private()
    with tempfile.TemporaryDirectory() as folder, _quiet():
        place = Path(folder) / f"program{SUFFIXES[target][0]}"
        if target == "openvino":
            _save_openvino(graph, place, samples)
        else:
            _save_onnx(graph, place, samples)
        return {suffix: place.with_suffix(suffix).read_bytes() for suffix in SUFFIXES[target]}


def _save_openvino(graph: onnx.ModelProto, place: Path, samples: Pixels | None) -> None:
    import openvino

    data = graph.SerializeToString()
    if samples is None:
        model = openvino.Core().read_model(data)
    else:
        import nncf

        model = openvino.convert_model(BytesIO(data))  # which tidies up what is to be quantised
        operations = model.get_ordered_ops()
        convolutions = [each for each in operations if each.get_type_name() in CONVOLUTIONS]
        model = nncf.quantize(
            model,
            nncf.Dataset([{"images": sample[np.newaxis]} for sample in samples]),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(samples),
            fast_bias_correction=False,
            ignored_scope=nncf.IgnoredScope(
                names=[each.get_friendly_name() for each in convolutions[:SPARED]]
            ),
        )
    openvino.save_model(model, place, compress_to_fp16=False)


def _save_onnx(graph: onnx.ModelProto, place: Path, samples: Pixels | None) -> None:
    if samples is None:
        onnx.save(graph, place)
        return
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    convolutions = [node.name for node in graph.graph.node if node.op_type == "Conv"]
    quantize_static(
        graph,
        place,
        _Samples(samples),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        nodes_to_exclude=convolutions[:SPARED],
    )


class _Samples:
    """Images one after another, as ONNX Runtime's quantiser wants them."""

    def __init__(self, images: Pixels) -> None:
        self._images = iter(images)

    def get_next(self) -> dict[str, Pixels] | None:
        image = next(self._images, None)
        return None if image is None else {"images": image[np.newaxis]}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing of what the converters say through: they speak of their own progress, and of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(StringIO()), contextlib.redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)
