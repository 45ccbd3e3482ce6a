"""Tidy tables: rows of plain values, written as CSV or Parquet."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from continuad.durable import write_whole
from continuad.errors import ContinuadError, MissingError
from continuad.needs import install, needed

Value: TypeAlias = str | int | float | None
Row: TypeAlias = dict[str, Value]


def check_rows(rows: Sequence[Mapping[str, Any]], *, reserved: Collection[str] = ()) -> list[Row]:
    """Return the rows with None for NaN.

    Raises:
        TypeError: a value is not of type str, int, float or None.
        ValueError: a number is infinite, or a column has a reserved name.
    """
    return [{name: _checked(name, value, reserved) for name, value in row.items()} for row in rows]


def columns(rows: Sequence[Row]) -> dict[str, list[Value]]:
    """Turn rows into columns, in the order in which their names first occur; None fills the gaps."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def write_table(rows: Sequence[Row], path: Path) -> None:
    """Write rows into a file whole or not at all: Parquet if it ends in ".parquet", else CSV.

    Raises:
        ContinuadError: the file cannot be written, or as Parquet: pyarrow is not installed, a column mixes
            text and numbers.
    """
    data = _parquet(rows) if path.suffix.lower() == ".parquet" else _csv(rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        raise ContinuadError(
            f"{path} cannot be written ({error.strerror}).", "Check free space and permissions."
        ) from error


def _checked(name: str, value: Any, reserved: Collection[str]) -> Value:
    if name in reserved:
        raise ValueError(f"the column name {name!r} is taken by the run's own facts")
    if value is None or isinstance(value, str | int):
        return value
    if not isinstance(value, float):
        raise TypeError(f"{name} is a {type(value).__name__}, not str, int, float or None")
    if math.isinf(value):
        raise ValueError(f"{name} is infinite")
    return None if math.isnan(value) else float(value)


def _csv(rows: Sequence[Row]) -> bytes:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, list(columns(rows)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue().encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    try:
        pyarrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    except MissingError as error:
        remedy = f"Give a file that ends in .csv, or run: {install('scale')}"
        raise MissingError(error.problem, remedy) from error
    arrays = {}
    for name, values in columns(rows).items():
        try:
            arrays[name] = pyarrow.array(values)
        except pyarrow.ArrowException as error:
            raise ContinuadError(
                f"The column {name!r} mixes kinds of values, which Parquet cannot hold.",
                "Write a file that ends in .csv.",
            ) from error
    stream = io.BytesIO()
    parquet.write_table(pyarrow.table(arrays), stream)
    return stream.getvalue()
