from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from continuad.bench.table import Row, check_rows, columns, write_table
from continuad.errors import ContinuadError

ROWS: list[Row] = [{"name": "a, b", "score": 0.1}, {"score": 1, "note": None, "name": "ä"}]


def test_columns_stand_in_the_order_in_which_they_occur() -> None:
    assert columns(ROWS) == {"name": ["a, b", "ä"], "score": [0.1, 1], "note": [None, None]}
    assert columns([]) == {}


def test_csv(tmp_path: Path) -> None:
    write_table(ROWS, tmp_path / "new/t.csv")
    assert (tmp_path / "new/t.csv").read_bytes() == 'name,score,note\n"a, b",0.1,\nä,1,\n'.encode()
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["t.csv"]


def test_not_a_number_becomes_none() -> None:
    (row,) = check_rows([{"a": math.nan, "b": np.float64(0.5), "c": np.float64("nan"), "d": "nan"}])
    assert row == {"a": None, "b": 0.5, "c": None, "d": "nan"}
    assert type(row["b"]) is float


@pytest.mark.parametrize("value", [np.float32(1), np.int64(1), [1], {"a": 1}, b"x", 1j])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=f"x is a {type(value).__name__}, not"):
        check_rows([{"x": value}])


def test_infinity_and_taken_names_are_refused() -> None:
    with pytest.raises(ValueError, match="x is infinite"):
        check_rows([{"x": -math.inf}])
    with pytest.raises(ValueError, match="'x' is taken"):
        check_rows([{"x": 1}], reserved={"x"})


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ContinuadError, match=r"t\.csv cannot be written"):
        write_table(ROWS, tmp_path / "file/t.csv")


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ContinuadError, match=r"pyarrow is not installed.*Give a file that ends in \.csv, or"):
        write_table(ROWS, tmp_path / "t.parquet")
    assert not any(tmp_path.iterdir())


def test_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write_table(ROWS, tmp_path / "t.parquet")
    assert parquet.read_table(tmp_path / "t.parquet").to_pydict() == columns(ROWS)
    with pytest.raises(ContinuadError, match="column 'x' mixes kinds of values"):
        write_table([{"x": 1}, {"x": "a"}], tmp_path / "t.parquet")
