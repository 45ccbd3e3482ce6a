"""Vectors as int8 codes, and exact search among codes by integer arithmetic.

To an export both are operators of their own, which it may express as the target does best.
"""

from __future__ import annotations

import torch
from torch import Tensor

AT_A_TIME = 384
"""Queries whose products with the bank are held at a time."""

FOLDS = 11

HAS_INT8_PRODUCTS: bool = getattr(torch.cpu, "_is_vnni_supported", lambda: False)()
"""Whether the processor multiplies int8 quickly. Where it does not, PyTorch's product is slower than that of
floats, and saturates in some releases (pytorch issue 136746)."""


def encode(vectors: Tensor, step: Tensor) -> Tensor:
    """Round vectors (N, D) to multiples of `step`, at most 127 of them: (N, D) int8."""
    if torch.compiler.is_compiling():
        codes: Tensor = _encode(vectors, step)
        return codes
    return (vectors / step).round().clamp(-127, 127).to(torch.int8)


def decode(codes: Tensor, step: Tensor) -> Tensor:
    """Return codes * step, float32."""
    return codes.float() * step


def nearest_codes(queries: Tensor, bank: Tensor, *, count: int) -> Tensor:
    """Find the nearest codes by Euclidean distance, exactly: every number is an integer.

    Args:
        queries: (Q, D) int8.
        bank: (M, D) int8, M at least `count`, D at most 1,000.
        count: how many neighbours of each query.

    Returns:
        Positions in the bank (Q, count) int64, the nearest first.
    """
    if torch.compiler.is_compiling():
        places: Tensor = _nearest_codes(queries, bank, count=count)
        return places
    norms = bank.int().square().sum(1, dtype=torch.int32)
    columns = bank.T.clone(memory_format=torch.contiguous_format)
    block = norms.new_empty(min(AT_A_TIME, len(queries)), len(bank))  # one for all: new memory costs more
    found = []
    for part in torch.split(queries, AT_A_TIME):
        products = _products(part, columns, out=block[: len(part)])
        # of |q - b|^2 = |q|^2 + |b|^2 - 2 q.b the first term is the same for all of the bank
        found.append(_smallest(torch.sub(norms, products, alpha=2, out=products), count))
    return torch.cat(found)


_encode = torch.library.custom_op("continuad::encode", encode, mutates_args=())
_nearest_codes = torch.library.custom_op("continuad::nearest_codes", nearest_codes, mutates_args=())


@_encode.register_fake
def _(vectors: Tensor, step: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(vectors, dtype=torch.int8)


@_nearest_codes.register_fake
def _(queries: Tensor, bank: Tensor, *, count: int) -> Tensor:  # noqa: ARG001
    return queries.new_empty((len(queries), count), dtype=torch.int64)


def _products(codes: Tensor, columns: Tensor, *, out: Tensor) -> Tensor:
    """Matrix product of int8 (Q, D) and (D, M), into `out` (Q, M) int32."""
    if codes.device.type == "cpu" and HAS_INT8_PRODUCTS:
        return torch._int_mm(codes, columns, out=out)
    return out.copy_(codes.float() @ columns.float())  # exact below 2^24


def _smallest(values: Tensor, count: int) -> Tensor:
    """Positions of the `count` smallest of each row (Q, M), ascending.

    A row is folded first, and only the columns whose minima are among the smallest are sorted: `topk` over
    whole rows takes longer than their products.
    """
    width = values.shape[1] // FOLDS
    if width <= FOLDS * count:
        return values.topk(count, largest=False).indices
    folded = values[:, : FOLDS * width].view(-1, FOLDS, width)
    columns = folded.amin(1).topk(count, largest=False).indices
    kept = folded.gather(2, columns[:, None].expand(-1, FOLDS, -1)).flatten(1)
    rows = torch.arange(FOLDS, device=values.device)[:, None] * width
    places = (columns[:, None] + rows).flatten(1)
    rest = values[:, FOLDS * width :]
    if rest.shape[1]:
        ends = torch.arange(FOLDS * width, values.shape[1], device=values.device)
        kept = torch.cat([kept, rest], 1)
        places = torch.cat([places, ends.expand(len(values), -1)], 1)
    return places.gather(1, kept.topk(count, largest=False).indices)
