"""Our own operators, and some of PyTorch's, in terms of ONNX.

Runtimes recognise an int8 product by the dequantisation of both its factors, and then compute it in integers:
what stands here as floats is exact, for every number is an integer below 2^24.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnxscript import ir
from onnxscript import opset20 as op

import continuad.detectors.codes  # noqa: F401 - registers the operators

AT_A_TIME = 256
"""Queries whose products with the bank are held at a time: they stay in the cache."""

FOLDS = 16

LANES = 16
"""Floats in a vector register."""

FAR = 2.0**30
"""Above every squared distance between codes."""


def encode(vectors: Any, step: Any) -> Any:
    """See `codes.encode`."""
    levels = op.Clip(op.Div(vectors, step), _float(-127), _float(127))
    return op.QuantizeLinear(levels, _float(1), _zero())


def nearest_codes(queries: Any, bank: Any, count: int) -> Any:
    """See `codes.nearest_codes`: rows are folded, and only the columns of the smallest minima looked into.

    The bank is filled up with vectors far from all to a size that folds, and suits vector registers.
    """
    number, vectors = queries.shape[0], bank.shape[0]
    width = -(-vectors // (FOLDS * LANES)) * LANES
    extra = FOLDS * width - vectors
    known = op.DequantizeLinear(queries, _float(1), _zero())
    # of |q - b|^2 = |q|^2 - 2 q.b + |b|^2 the first term is the same for all of the bank
    filled = op.Pad(bank, _ints(0, 0, extra, 0), _zero())
    columns = op.Transpose(op.DequantizeLinear(filled, _float(-2), _zero()), perm=[1, 0])
    floats: Any = op.Cast(bank, to=onnx.TensorProto.FLOAT)
    squares: Any = op.ReduceSum(op.Mul(floats, floats), _ints(1))
    norms = op.Transpose(op.Pad(squares, _ints(0, 0, extra, 0), _float(FAR)), perm=[1, 0])
    found = []
    for first in range(0, number, AT_A_TIME):
        rows = min(AT_A_TIME, number - first)
        part = known if rows == number else op.Slice(known, _ints(first), _ints(first + rows), _ints(0))
        distances = op.Reshape(op.Add(op.MatMul(part, columns), norms), _ints(rows, FOLDS, width))
        found.append(_smallest(distances, rows, width, count))
    return found[0] if len(found) == 1 else op.Concat(*found, axis=0)


def _smallest(folded: Any, rows: int, width: int, count: int) -> Any:
    """Positions of the `count` smallest of each folded row (rows, FOLDS, width), ascending: (rows, count)."""
    kept = min(count, width)
    best = op.TopK(op.ReduceMin(folded, _ints(1), keepdims=0), _ints(kept), largest=0)[1]
    spread = op.Expand(op.Unsqueeze(best, _ints(1)), _ints(rows, FOLDS, kept))
    values = op.Reshape(op.GatherElements(folded, spread, axis=2), _ints(rows, FOLDS * kept))
    starts = _constant((np.arange(FOLDS) * width).reshape(1, FOLDS, 1))
    places = op.Reshape(op.Add(spread, starts), _ints(rows, FOLDS * kept))
    return op.GatherElements(places, op.TopK(values, _ints(count), largest=0)[1], axis=1)


def int8_product(left: Any, right: Any) -> Any:
    """See `torch._int_mm`: (N, D) and (D, M) int8 to (N, M) int32."""
    product = op.MatMul(
        op.DequantizeLinear(left, _float(1), _zero()), op.DequantizeLinear(right, _float(1), _zero())
    )
    return op.Cast(product, to=onnx.TensorProto.INT32)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.continuad.encode.default: encode,
    torch.ops.continuad.nearest_codes.default: nearest_codes,
    torch.ops.aten._int_mm.default: int8_product,
}


def _constant(values: np.ndarray[Any, Any]) -> Any:
    tensor: Any = ir.tensor(values)
    return op.Constant(value=tensor)


def _ints(*values: int) -> Any:
    return op.Constant(value_ints=list(values))


def _float(value: float) -> Any:
    return op.Constant(value_float=float(value))


def _zero() -> Any:
    """The zero point that stands for int8 codes."""
    return _constant(np.zeros((), np.int8))
