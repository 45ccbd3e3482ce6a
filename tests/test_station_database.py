"""The station's database: whose it is, and what a transaction keeps."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy")

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from continuad.errors import StationError
from continuad.station.database import BUSY_SECONDS, Database, as_text, audit, now, schema

pytest_plugins = ["databases"]


@pytest.fixture
def entry() -> dict[str, object]:
    return {"time": now(), "actor": "me", "action": "try", "subject": "it", "detail": "{}"}


def count(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(sql.select(sql.func.count()).select_from(audit)).scalar_one()


def test_a_transaction_is_kept_whole_or_not_at_all(database: Database, entry: dict[str, object]) -> None:
    with database.write() as connection:
        connection.execute(audit.insert().values(**entry))
    entries = [entry, {**entry, "actor": None}]
    with pytest.raises(IntegrityError), database.write() as connection:
        [connection.execute(audit.insert().values(**each)) for each in entries]
    assert count(database) == 1


def test_it_belongs_to_the_station_that_made_it(address: str | Path, entry: dict[str, object]) -> None:
    first = Database(address, owner="one")
    with first.write() as connection:
        connection.execute(audit.insert().values(**entry))
    first.close()
    with pytest.raises(StationError, match="belongs to another"):
        Database(address, owner="other")
    again = Database(address, owner="one", may_be_new=False)
    assert count(again) == 1
    again.close()


def test_a_new_one_is_refused_where_there_must_be_a_history(address: str | Path) -> None:
    for _ in range(2):  # the first refusal leaves nothing behind that the second could take for a history
        with pytest.raises(StationError, match="does not know the history"):
            Database(address, owner="one", may_be_new=False)
    Database(address, owner="two").close()


def test_tables_of_a_newer_version_are_left_alone(database: Database, address: str | Path) -> None:
    with database.write() as connection:
        connection.execute(schema.update().values(version=99))
    with pytest.raises(StationError, match="Upgrade"):
        Database(address)


@pytest.mark.parametrize(
    "url",
    ["postgresql+psycopg://me:topsecret@127.0.0.1:1/none", "nonsense", "sqlite:////no/such/folder/a.db"],
)
def test_what_cannot_be_opened_says_so_without_secrets(url: str) -> None:
    with pytest.raises(StationError) as refused:
        Database(url)
    assert "topsecret" not in str(refused.value)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Database]:
    """A SQLite database that may not grow any more."""
    opened = Database(tmp_path / "station.db")

    def bound(connection: object, _record: object) -> None:
        connection.execute("PRAGMA max_page_count=1")  # type: ignore[attr-defined]  -- clipped to its size

    sql.event.listen(opened.engine, "connect", bound)
    opened.engine.dispose()
    yield opened
    opened.close()


def test_a_full_disk_is_an_os_error(small: Database, entry: dict[str, object]) -> None:
    with pytest.raises(OSError, match="space") as full, small.write() as connection:
        connection.execute(audit.insert().values(**{**entry, "detail": "x" * 1_000_000}))
    assert full.value.errno == errno.ENOSPC
    assert count(small) == 0


def test_sqlite_is_as_safe_as_it_can_be(tmp_path: Path) -> None:
    database = Database(tmp_path / "station.db")
    with database.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 1000 * BUSY_SECONDS
    database.close()


def test_a_query_that_is_wrong_is_not_hidden(database: Database) -> None:
    with pytest.raises(SQLAlchemyError), database.write() as connection:
        connection.exec_driver_sql("SELECT nothing FROM nowhere")


def test_times_are_written_with_milliseconds_and_their_zone() -> None:
    assert as_text(1_000_000) == "1970-01-01T00:00:01.000+00:00"
    assert as_text(1_700_000_000_123_456) == "2023-11-14T22:13:20.123+00:00"
