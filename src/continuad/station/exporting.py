"""The history as files for other programs, in constant memory however long it is."""

from __future__ import annotations

import csv
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import PurePosixPath
from typing import Any, BinaryIO, TextIO, TypeAlias, TypeVar, cast

from continuad.errors import StationError
from continuad.needs import needed
from continuad.station.database import as_text, now
from continuad.station.history import Inspection
from continuad.station.pictures import Pictures

COLUMNS = {
    "id": "int64",
    "time": "time",
    "label": "string",
    "product": "string",
    "score": "double",
    "threshold": "double",
    "nearest": "string",
    "distance": "double",
    "source": "string",
    "reference": "string",
    "width": "int32",
    "height": "int32",
    "picture": "string",
    "map_peak": "double",
    "truth": "string",
    "corrected": "time",
    "settled": "bool",
    "timings_ms": "timings",
}
"""And what they hold. `picture` is the picture's name in `zip_stream`'s file."""

LINES = 500
"""Of a CSV file: written at once."""

GROUP = 10_000
"""Rows of a Parquet file's group, in memory at once."""

IN_MEMORY = 2**20
"""Bytes of the table of a ZIP file; more of it waits on the disk."""

PIECE = 2**16
"""Bytes of the table that are packed at once."""

BYTE_ORDER_MARK = "\ufeff".encode()

FIRST = datetime(1980, 1, 1, tzinfo=UTC)
"""No file in a ZIP file can be older."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""How a formula begins, for one spreadsheet or another; the last four are full-width = + - @."""

T = TypeVar("T")
Listed: TypeAlias = tuple[Inspection, str | None]
"""An inspection, and its picture's name in the ZIP file."""


def write_csv(inspections: Iterable[Inspection], stream: TextIO) -> None:
    """Write a table: a header and a row per inspection, ISO times, timings as JSON.

    A text that a spreadsheet would take for a formula gets an apostrophe in front.

    Args:
        inspections: in the order of the rows.
        stream: opened with newline="".
    """
    for text in _csv_texts(map(_listed, inspections)):
        stream.write(text)


def csv_stream(inspections: Iterable[Inspection]) -> Iterator[bytes]:
    """What `write_csv` writes, piece by piece: UTF-8 behind the mark by which spreadsheets know it."""
    yield BYTE_ORDER_MARK
    for text in _csv_texts(map(_listed, inspections)):
        yield text.encode()


def write_parquet(inspections: Iterable[Inspection], stream: BinaryIO) -> None:
    """Write a Parquet file: `write_csv`'s columns; times in microseconds, UTC, and timings as a map.

    Raises:
        MissingError: pyarrow is not installed.
    """
    for _ in _parquet_groups(inspections, stream):
        pass


def parquet_stream(inspections: Iterable[Inspection]) -> Iterator[bytes]:
    """What `write_parquet` writes, piece by piece.

    Raises:
        MissingError: pyarrow is not installed.
    """
    return _streamed(lambda stream: _parquet_groups(inspections, stream))


def zip_stream(inspections: Iterable[Inspection], pictures: Pictures) -> Iterator[bytes]:
    """A ZIP file, piece by piece: pictures/<id>.<suffix>, as they came, and the table history.csv."""
    return _streamed(lambda stream: _zip_entries(inspections, pictures, stream))


class _Outlet(io.RawIOBase):
    """A stream that keeps what is written until somebody takes it."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._place = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._data += data
        self._place += len(data)
        return len(data)

    def tell(self) -> int:
        return self._place

    def take(self) -> bytes:
        data = bytes(self._data)
        self._data.clear()
        return data


def _streamed(write: Callable[[BinaryIO], Iterator[None]]) -> Iterator[bytes]:
    """What a writer writes, taken whenever it pauses and when it has ended."""
    outlet = _Outlet()
    for _ in write(cast(BinaryIO, outlet)):
        if data := outlet.take():
            yield data
    yield outlet.take()


def _csv_texts(listed: Iterable[Listed], *, at_once: int = LINES) -> Iterator[str]:
    """The lines of a table, so many at a time; the header comes first."""
    stream = io.StringIO(newline="")
    lines = csv.writer(stream)
    lines.writerow(COLUMNS)
    for chunk in _chunks(listed, at_once):
        lines.writerows(_cells(*each) for each in chunk)
        yield stream.getvalue()
        stream.seek(0)
        stream.truncate()
    yield stream.getvalue()


def _cells(inspection: Inspection, picture: str | None) -> list[object]:
    values = _values(inspection, picture)
    return [_cell(kind, values[column]) for column, kind in COLUMNS.items()]


def _cell(kind: str, value: Any) -> object:
    if value is None:
        return ""
    if kind == "string":
        return f"'{value}" if value.startswith(_FORMULA) else value
    if kind == "time":
        return as_text(value)
    if kind == "bool":
        return str(value).lower()
    return json.dumps(value) if kind == "timings" else value


def _parquet_groups(inspections: Iterable[Inspection], stream: BinaryIO) -> Iterator[None]:
    """Write a Parquet file; pause after each group of rows."""
    pyarrow, parquet = needed("pyarrow"), needed("pyarrow.parquet")
    kinds = {
        "time": pyarrow.timestamp("us", tz="UTC"),
        "timings": pyarrow.map_(pyarrow.string(), pyarrow.float64()),
    }
    schema = pyarrow.schema(
        [(name, kinds.get(kind) or pyarrow.type_for_alias(kind)) for name, kind in COLUMNS.items()]
    )
    with parquet.ParquetWriter(stream, schema) as writer:
        for chunk in _chunks(map(_listed, inspections), GROUP):
            rows = [_values(*each) for each in chunk]
            arrays = [
                pyarrow.array([row[field.name] for row in rows], type=field.type, from_pandas=False)
                for field in schema
            ]
            writer.write_table(pyarrow.Table.from_arrays(arrays, schema=schema), row_group_size=GROUP)
            yield


def _zip_entries(inspections: Iterable[Inspection], pictures: Pictures, stream: BinaryIO) -> Iterator[None]:
    """Write a ZIP file; pause after each picture and each piece of the table."""
    with zipfile.ZipFile(stream, "w") as archive, tempfile.SpooledTemporaryFile(IN_MEMORY) as table:
        table.write(BYTE_ORDER_MARK)
        for text in _csv_texts(_packed(archive, inspections, pictures), at_once=1):
            table.write(text.encode())
            yield
        table.seek(0)
        with archive.open(_entry("history.csv", now(), zipfile.ZIP_DEFLATED), "w", force_zip64=True) as entry:
            while piece := table.read(PIECE):
                entry.write(piece)
                yield


def _packed(
    archive: zipfile.ZipFile, inspections: Iterable[Inspection], pictures: Pictures
) -> Iterator[Listed]:
    """Put the picture of each inspection into the archive, unless retention was faster."""
    for inspection, name in map(_listed, inspections):
        if inspection.picture is None or name is None:
            yield inspection, None
            continue
        try:
            data = pictures.read(inspection.picture)
        except StationError:
            yield inspection, None
        else:
            archive.writestr(_entry(name, inspection.time, zipfile.ZIP_STORED), data)
            yield inspection, name


def _entry(name: str, moment: int, compression: int) -> zipfile.ZipInfo:
    """A file in the archive, readable and writable by its owner, as old as its inspection."""
    time = max(datetime.fromtimestamp(moment / 1e6, UTC), FIRST)
    entry = zipfile.ZipInfo(name, (time.year, time.month, time.day, time.hour, time.minute, time.second))
    entry.compress_type = compression
    entry.external_attr = 0o100644 << 16
    return entry


def _listed(inspection: Inspection) -> Listed:
    if inspection.picture is None:
        return inspection, None
    return inspection, f"pictures/{inspection.id}{PurePosixPath(inspection.picture).suffix}"


def _values(inspection: Inspection, picture: str | None) -> dict[str, Any]:
    """By column; times are numbers still."""
    return {
        **{column: getattr(inspection, column) for column in COLUMNS if hasattr(inspection, column)},
        "picture": picture,
        "timings_ms": inspection.timings,
    }


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, size)):
        yield chunk
