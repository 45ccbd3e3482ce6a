"""A published table with measured values beside the published ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column of a published table.

    Attributes:
        quantity: its name in `quantities`, or in `DERIVED`.
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
