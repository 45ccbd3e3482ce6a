"""Exports: the history as CSV, Parquet and ZIP, whole, harmless, and in constant memory."""

from __future__ import annotations

import csv
import io
import json
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from weakref import WeakValueDictionary

import pytest
from hypothesis import given
from hypothesis import strategies as st

from continuad.station.exporting import (
    COLUMNS,
    csv_stream,
    parquet_stream,
    write_csv,
    write_parquet,
    zip_stream,
)
from continuad.station.history import Filter, History, Inspection
from continuad.station.pictures import Pictures
from made_inspections import PICTURE, new, unknown

pytest_plugins = ["databases"]

ONE = Inspection(
    id=7,
    time=1_795_305_845_678_901,
    label="anomalous",
    product="bolt",
    head="a" * 64,
    score=-0.25,
    threshold=0.1,
    nearest="=nut",
    distance=1 / 3,
    source="api",
    reference='+1,"two"\nlines',
    width=640,
    height=480,
    timings={"embed": 1.5},
    picture="2026-11-22/" + "a" * 32 + ".jpg",
    picture_bytes=1,
    map_peak=0.5,
    truth="bad",
    corrected=1_795_305_845_000_000,
    settled=False,
)
EMPTY = replace(
    ONE, product=None, score=None, threshold=None, nearest=None, distance=None, picture=None, map_peak=None
)
EMPTY = replace(
    EMPTY, id=8, label="unknown", truth=None, corrected=None, settled=True, timings={}, reference=""
)


def written(*inspections: Inspection) -> str:
    stream = io.StringIO(newline="")
    write_csv(inspections, stream)
    return stream.getvalue()


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_csv_file_to_the_letter() -> None:
    assert written(ONE, EMPTY) == (
        "id,time,label,product,score,threshold,nearest,distance,source,reference,width,height,picture,"
        "map_peak,truth,corrected,settled,timings_ms\r\n"
        "7,2026-11-22T00:04:05.678+00:00,anomalous,bolt,-0.25,0.1,'=nut,0.3333333333333333,api,"
        '"\'+1,""two""\nlines",640,480,pictures/7.jpg,'
        '0.5,bad,2026-11-22T00:04:05.000+00:00,false,"{""embed"": 1.5}"\r\n'
        "8,2026-11-22T00:04:05.678+00:00,unknown,,,,,,api,,640,480,,,,,true,{}\r\n"
    )


def test_the_stream_is_the_file_in_utf_8_with_its_mark() -> None:
    one = replace(ONE, reference="prüfung 部品")
    assert b"".join(csv_stream([one])).decode("utf-8-sig") == written(one)
    assert next(csv_stream([])) == b"\xef\xbb\xbf"
    assert b"".join(csv_stream([])).decode("utf-8-sig") == ",".join(COLUMNS) + "\r\n"


@given(st.text(alphabet=st.sampled_from("=+-@\t\r\n＝＋－＠'\" ,;ab1")))  # noqa: RUF001
def test_no_cell_is_a_formula_and_no_text_is_lost(text: str) -> None:
    [row] = table(written(replace(ONE, reference=text, product=text, nearest=text)))
    for cell in (row["reference"], row["product"], row["nearest"]):
        assert cell in (text, f"'{text}")
        assert not cell.startswith(tuple("=+-@\t\r\n＝＋－＠"))  # noqa: RUF001
        assert (cell == text) == (not text.startswith(tuple("=+-@\t\r\n＝＋－＠")))  # noqa: RUF001
    assert float(row["score"]) == -0.25  # a number may begin with a minus


def test_a_table_reads_back(history: History) -> None:
    stored = history.add([new(reference=f"part {index}") for index in range(5)] + [unknown()])
    [bad] = [history.set_truth(stored[2].id, "bad")]
    rows = table(b"".join(csv_stream(history.walk())).decode("utf-8-sig"))
    assert [int(row["id"]) for row in rows] == [each.id for each in reversed(stored)]
    for row, each in zip(rows, history.walk(), strict=True):
        assert row["time"] == each.as_dict()["time"]
        assert (float(row["score"]) if row["score"] else None) == each.score
        assert json.loads(row["timings_ms"]) == each.timings
    assert [row["id"] for row in table(written(*history.walk(Filter(truth="any"))))] == [str(bad.id)]


def test_a_parquet_file_reads_back() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    stream = io.BytesIO()
    write_parquet([ONE, EMPTY], stream)
    assert b"".join(parquet_stream([ONE, EMPTY])) == stream.getvalue()
    read = parquet.read_table(stream)
    assert read.column_names == list(COLUMNS)
    first, second = read.to_pylist()
    moment = datetime(2026, 11, 22, 0, 4, 5, tzinfo=UTC)
    assert first == {
        "id": 7,
        "time": moment + timedelta(microseconds=678_901),
        "label": "anomalous",
        "product": "bolt",
        "score": -0.25,
        "threshold": 0.1,
        "nearest": "=nut",
        "distance": 1 / 3,
        "source": "api",
        "reference": ONE.reference,
        "width": 640,
        "height": 480,
        "picture": "pictures/7.jpg",
        "map_peak": 0.5,
        "truth": "bad",
        "corrected": moment,
        "settled": False,
        "timings_ms": [("embed", 1.5)],
    }
    empty = {column for column, value in second.items() if value is None}
    assert empty == {
        *("product", "score", "threshold", "nearest", "distance"),
        *("picture", "map_peak", "truth", "corrected"),
    }


def test_a_parquet_file_of_nothing_has_its_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    empty = parquet.read_table(io.BytesIO(b"".join(parquet_stream([]))))
    assert (empty.num_rows, empty.column_names) == (0, list(COLUMNS))
    monkeypatch.setattr("continuad.station.exporting.GROUP", 2)
    several = parquet.ParquetFile(io.BytesIO(b"".join(parquet_stream([ONE] * 5))))
    assert (several.num_row_groups, several.metadata.num_rows) == (3, 5)
    assert several.schema_arrow == empty.schema


def test_a_zip_file_has_the_pictures_and_the_table(history: History, pictures: Pictures) -> None:
    stored = history.add(
        [new(data=PICTURE), unknown(data=b"\xff\xd8\xff", suffix=".jpg"), new(reference="=1")]
    )
    pictures.remove([stored[2].picture or ""])  # retention was faster
    archive = zipfile.ZipFile(io.BytesIO(b"".join(zip_stream(history.walk(), pictures))))
    assert archive.testzip() is None
    first, second, third = (each.id for each in stored)
    assert archive.namelist() == [f"pictures/{second}.jpg", f"pictures/{first}.png", "history.csv"]
    assert archive.read(f"pictures/{first}.png") == PICTURE
    assert archive.read(f"pictures/{second}.jpg") == b"\xff\xd8\xff"
    rows = table(archive.read("history.csv").decode("utf-8-sig"))
    assert [(int(row["id"]), row["picture"]) for row in rows] == [
        (third, ""),
        (second, f"pictures/{second}.jpg"),
        (first, f"pictures/{first}.png"),
    ]
    assert rows[0]["reference"] == "'=1"
    moment = datetime.fromtimestamp(stored[0].time / 1e6, UTC)
    written_at = datetime(*archive.getinfo(f"pictures/{first}.png").date_time, tzinfo=UTC)
    assert timedelta(0) <= moment - written_at <= timedelta(seconds=2)


def test_a_zip_file_of_nothing_and_of_a_machine_without_a_clock(pictures: Pictures) -> None:
    archive = zipfile.ZipFile(io.BytesIO(b"".join(zip_stream([], pictures))))
    assert archive.namelist() == ["history.csv"]
    assert table(archive.read("history.csv").decode("utf-8-sig")) == []
    early = replace(ONE, time=0, picture=pictures.save(PICTURE, ".png", time=0))
    archive = zipfile.ZipFile(io.BytesIO(b"".join(zip_stream([early], pictures))))
    assert archive.getinfo("pictures/7.png").date_time == (1980, 1, 1, 0, 0, 0)


@pytest.mark.parametrize(
    ("kind", "rows", "piece"), [("csv", 1000, 200_000), ("parquet", 200, 30_000), ("zip", 2, 66_000)]
)
def test_no_export_holds_more_than_a_piece(
    pictures: Pictures, kind: str, rows: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "parquet":
        pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("continuad.station.exporting.GROUP", 100)
    monkeypatch.setattr("continuad.station.exporting.IN_MEMORY", 20_000)
    name = pictures.save(bytes(30_000), ".png")
    alive: WeakValueDictionary[int, Inspection] = WeakValueDictionary()
    most = 0

    def many() -> Iterator[Inspection]:
        nonlocal most
        for number in range(1500):
            inspection = replace(ONE, id=number, picture=name, reference=f"{number} " * 20)
            alive[number] = inspection
            most = max(most, len(alive))
            yield inspection

    streams = {
        "csv": lambda: csv_stream(many()),
        "parquet": lambda: parquet_stream(many()),
        "zip": lambda: zip_stream(many(), pictures),
    }
    sizes = [len(data) for data in streams[kind]()]
    assert most <= rows
    assert max(sizes[:-1]) <= piece < sum(sizes)  # the last of a ZIP file lists what is in it


def test_an_export_that_is_given_up_leaves_nothing_open(history: History, pictures: Pictures) -> None:
    history.add([new(), new()])
    stream = zip_stream(history.walk(), pictures)
    assert next(stream).startswith(b"PK")
    stream.close()  # type: ignore[attr-defined]
    assert list(stream) == []
