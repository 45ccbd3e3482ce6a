"""The station's database: its tables, and how they are read and written without losing what was acknowledged.

SQLite by default, PostgreSQL by URL. A transaction that has been committed survives a power cut: SQLite runs
in WAL mode with `synchronous=FULL`.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from continuad.errors import StationError

VERSION = 1
"""Of the tables; grows when they change."""

BUSY_SECONDS = 15
POSTGRESQL_DISK_FULL = "53100"

_metadata = MetaData()
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up an INTEGER only
_Time = BigInteger  # microseconds since 1970, UTC

schema = Table(
    "schema",
    _metadata,
    Column("version", Integer, nullable=False),
    Column("owner", String(32), nullable=False),  # the station's identity, which its folder knows, too
)

inspections = Table(
    "inspections",
    _metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("time", _Time, nullable=False),
    Column("label", String(10), nullable=False),  # normal, anomalous, unknown
    Column("product", String(80)),
    Column("head", String(64)),  # sha256 of the head's file: scores of one head can be compared
    Column("score", Float),
    Column("threshold", Float),
    Column("nearest", String(80)),
    Column("distance", Float),
    Column("source", String(20), nullable=False),  # page, api, watch
    Column("reference", String(200), nullable=False, default=""),  # the caller's name for the part
    Column("origin", Text),  # a watched file
    Column("origin_mtime_ns", BigInteger),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("timings", Text, nullable=False),  # JSON
    Column("picture", String(80)),  # its file below the folder of pictures; NULL once retention removed it
    Column("picture_bytes", BigInteger, nullable=False, default=0),
    Column("map", LargeBinary),  # 8-bit PNG of the anomaly map
    Column("map_peak", Float),  # what its 255 stands for
    Column("embedding", LargeBinary),  # float32, little endian; of unknown images
    Column("settled", Boolean, nullable=False, default=False),  # an unknown image that was dealt with
    Column("truth", String(10)),  # good, bad; what a human said
    Column("corrected", _Time),
)
Index(  # holds all that is counted of a product
    "inspections_by_product",
    *(inspections.c[name] for name in ("product", "id", "label", "truth", "time")),
)
Index("inspections_by_label", inspections.c.label, inspections.c.id)
Index("inspections_by_time", inspections.c.time)
Index("inspections_by_origin", inspections.c.origin)
for _name, _columns, _which in (  # of the few rows that retention or a human's word concerns
    ("inspections_kept", ("label", "truth", "id", "settled", "picture_bytes"), inspections.c.picture),
    ("inspections_by_truth", ("truth", "id"), inspections.c.truth),
):
    Index(
        _name,
        *(inspections.c[name] for name in _columns),
        sqlite_where=_which.is_not(None),
        postgresql_where=_which.is_not(None),
    )

deliveries = Table(  # what waits for a broker or a web hook; written in the inspection's own transaction
    "deliveries",
    _metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("target", String(20), nullable=False),
    Column("payload", Text, nullable=False),
    Column("created", _Time, nullable=False),
)
Index("deliveries_by_target", deliveries.c.target, deliveries.c.id)

photo_sets = Table(
    "photo_sets",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("created", _Time, nullable=False),
)

photos = Table(
    "photos",
    _metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("photo_set", String(32), nullable=False),
    Column("name", String(200), nullable=False),
    Column("file", String(80), nullable=False),  # below the folder of photo sets
    Column("sha256", String(64), nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("traits", LargeBinary),  # what the check of photos needs; NULL until it was examined
)
Index("photos_by_set", photos.c.photo_set, photos.c.id)

jobs = Table(
    "jobs",
    _metadata,
    Column("id", String(32), primary_key=True),
    Column("kind", String(20), nullable=False),
    Column("state", String(12), nullable=False),  # queued, running, succeeded, failed, cancelled
    Column("product", String(80), nullable=False),
    Column("request", Text, nullable=False),  # JSON
    Column("created", _Time, nullable=False),
    Column("started", _Time),
    Column("finished", _Time),
    Column("attempts", Integer, nullable=False, default=0),
    Column("problem", Text),
    Column("remedy", Text),
)

audit = Table(
    "audit",
    _metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("time", _Time, nullable=False),
    Column("actor", String(80), nullable=False),
    Column("action", String(40), nullable=False),
    Column("subject", String(200), nullable=False),
    Column("detail", Text, nullable=False),  # JSON
)

requests = Table(  # by Idempotency-Key: what it has made
    "requests",
    _metadata,
    Column("key", String(200), primary_key=True),
    Column("fingerprint", String(64), nullable=False),
    Column("kind", String(20), nullable=False),
    Column("made", String(40), nullable=False),  # the id of the resource
    Column("created", _Time, nullable=False),
)

renames = Table(  # a rename that the bank may have made and the history not yet
    "renames",
    _metadata,
    Column("old", String(80), primary_key=True),
    Column("new", String(80), nullable=False),
)


def now() -> int:
    """The time as it is stored: microseconds since 1970, UTC."""
    return time.time_ns() // 1000


def as_text(microseconds: int) -> str:
    """A stored time as ISO 8601 with milliseconds, UTC."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).isoformat(timespec="milliseconds")


class Database:
    """The tables, opened.

    Args:
        url: as SQLAlchemy reads it, such as postgresql+psycopg://user@host/name; or the path of a SQLite
            file, which is created.
        owner: the identity of the station; a new database belongs to it from now on.
        may_be_new: whether a database without tables will do.

    Raises:
        StationError: it cannot be opened, belongs to another station, or a newer continuad has written it.
    """

    def __init__(self, url: str | Path, *, owner: str = "", may_be_new: bool = True) -> None:
        self._is_sqlite = isinstance(url, Path) or url.startswith("sqlite")
        if isinstance(url, Path):
            url = f"sqlite:///{url}"
        try:
            self.engine: Engine = sql.create_engine(url, pool_pre_ping=True, **self._options())
            self._begin = "BEGIN IMMEDIATE" if self._is_sqlite else None
            if self._is_sqlite:
                sql.event.listen(self.engine, "connect", _prepare_sqlite)
            with self.write() as connection:
                _metadata.create_all(connection)
                found = connection.execute(sql.select(schema)).first()
                if found is None and not may_be_new:
                    raise StationError(
                        "The database does not know the history that belongs to this folder's pictures.",
                        "Give the database that belongs to them, or another folder.",
                    )
                if found is None:
                    connection.execute(schema.insert().values(version=VERSION, owner=owner))
        except (SQLAlchemyError, ImportError) as error:
            raise StationError(
                f"The database cannot be opened ({_cause(error)}).",
                "Check its address, that it runs, and that its user may create tables.",
            ) from error
        if found is not None and found.version > VERSION:
            raise StationError(
                f"The database has tables of version {found.version}; this continuad knows {VERSION}.",
                "Upgrade continuad.",
            )
        if found is not None and found.owner != owner:
            raise StationError(
                "The database belongs to another station, or to another folder.",
                "Give the folder that belongs to it, or an empty database.",
            )

    def _options(self) -> dict[str, Any]:
        if self._is_sqlite:
            return {"connect_args": {"timeout": BUSY_SECONDS, "check_same_thread": False}}
        return {"pool_size": 10, "max_overflow": 10}

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection that sees one state of the tables and changes nothing."""
        with self.engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction: committed and on the disk when the block ends, undone if it raises.

        Raises:
            OSError: the disk is full.
        """
        try:
            with self.engine.connect() as connection:
                if self._begin:
                    connection.exec_driver_sql(self._begin)
                yield connection
                connection.commit()
        except DBAPIError as error:
            if _is_disk_full(error):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            raise

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}")


def _cause(error: Exception) -> str:
    """The first line of what the driver says; it holds no password."""
    inner = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    return (str(inner).splitlines() or [type(inner).__name__])[0]


def _is_disk_full(error: DBAPIError) -> bool:
    cause = error.orig
    return (
        getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
        or getattr(cause, "sqlstate", None) == POSTGRESQL_DISK_FULL
    )
