"""A published table with measured values beside the published ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from continuad.backbones import BACKBONES
from continuad.bench.summary import Group
from continuad.detectors import METHODS
from continuad.metrics.costs import MB, MIB, state_bytes

UNITS: Mapping[str, float] = {
    "1": 1,
    "KiB": 2**10,
    "MiB": MIB,
    "MB": MB,
    "MMACs": 1e6,
    "GMACs": 1e9,
    "GFLOPs": 5e8,
    "s": 1,
}
"""What 1 of a column is: bytes, multiply-accumulates (two FLOPs each), seconds, or a plain number."""


@dataclass(frozen=True)
class Column:
    """A column of a published table.

    Attributes:
        quantity: its name in `quantities`, or in `DERIVED`; or a metric as in "p_f1max@3.1", which is that of
            task 1 after task 3 (the first is 0).
        title: as published, with the unit.
        unit: what 1 in the column is, a name in `UNITS`.
        digits: behind the point.
    """

    quantity: str
    title: str
    unit: str
    digits: int


@dataclass(frozen=True)
class Cell:
    """A value twice, in the column's unit; None where there is none.

    Attributes:
        published: what the document says.
        measured: mean over the seeds.
        deviation: sample standard deviation over the seeds; None for a single one.
    """

    published: float | None
    measured: float | None
    deviation: float | None


@dataclass(frozen=True)
class ComparedRow:
    """A row of a table.

    Attributes:
        section: heading that it stands under; empty if there are none.
        label: what it is, as published.
        cells: one for each column.
    """

    section: str
    label: str
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Comparison:
    """A published table with what was measured here.

    Attributes:
        name: as in `--table`.
        title: which document and table.
        columns: without that of the labels.
        rows: all published rows, measured or not.
        remarks: sentences on where the measurement differs: a subset of the products, other settings, rows
            that cannot be measured.
    """

    name: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[ComparedRow]
    remarks: Sequence[str]


def measured_cell(published: float | None, group: Group | None, column: Column) -> Cell:
    """Put beside a published value what the runs of a group came to; nothing if there is no group."""
    if group is None:
        return Cell(published, None, None)
    # seed by seed: the deviation of a derived quantity does not follow from those of its parts
    values = np.array([_value(Group([run]), column.quantity) for run in group.runs]) / UNITS[column.unit]
    deviation = _known(np.std(values, ddof=1)) if len(values) > 1 else None
    return Cell(published, _known(np.mean(values)), deviation)


def _value(group: Group, quantity: str) -> float:
    if "@" in quantity:
        metric, _, place = quantity.partition("@")
        after, task = map(int, place.split("."))
        return float(group.scores(metric)[after, task]) if after < len(group.tasks) else float("nan")
    return DERIVED[quantity](group) if quantity in DERIVED else group.mean(quantity)


def _known(value: np.floating) -> float | None:
    return None if math.isnan(value) else float(value)


def _added_bytes(group: Group) -> float:
    return group.mean("model_bytes") + group.mean("memory_bytes")


def _arch_bytes(group: Group) -> float:
    return group.mean("backbone_bytes") + group.mean("model_bytes")


def _int8_bytes(group: Group) -> float:
    settings = {**group.spec.settings, "int8": True}
    with torch.device("meta"):
        detector = METHODS[group.spec.method].build(BACKBONES[group.spec.backbone](), settings)
    return state_bytes(detector).total


def _with_one_head(peak: str) -> Callable[[Group], float]:
    def memory(group: Group) -> float:
        heads = len(group.tasks) if group.spec.strategy == "routed" and group.is_stream else 1
        return group.mean("backbone_bytes") + group.mean("model_bytes") / heads + group.mean(peak)

    return memory


DERIVED: Mapping[str, Callable[[Group], float]] = {
    "added_bytes": _added_bytes,
    "arch_bytes": _arch_bytes,
    "int8_bytes": _int8_bytes,
    "inspection_memory_bytes": _with_one_head("inspection_peak_bytes"),
    "training_memory_bytes": _with_one_head("training_peak_bytes"),
}
"""Quantities that follow from those of a run: all but the backbone; all but what the strategy keeps; an
AdapTS head of the same settings in INT8; memory at its peak, the backbone and one head included."""
