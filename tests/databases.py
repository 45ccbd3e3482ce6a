"""The station's databases to test against: SQLite, and a real PostgreSQL that the tests start themselves.

Use with `pytest_plugins = ["databases"]`: the fixtures `address`, `database` and `history` run a test on each
of them.
"""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import sqlalchemy as sql

from continuad.station.database import Database
from continuad.station.history import History
from continuad.station.pictures import Pictures

USERS = ("postgres", "nobody")  # PostgreSQL refuses to run as root
_numbers = itertools.count()


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str | Path]:
    """Where an empty database is."""
    if request.param == "sqlite":
        yield tmp_path / "station.db"
        return
    server = request.getfixturevalue("postgresql")
    name = f"test_{next(_numbers)}"
    engine = sql.create_engine(server)
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    yield f"{server}?options=-csearch_path%3D{name}"
    with engine.begin() as connection:
        connection.exec_driver_sql(f"DROP SCHEMA {name} CASCADE")
    engine.dispose()


@pytest.fixture
def database(address: str | Path) -> Iterator[Database]:
    """An empty database."""
    opened = Database(address)
    yield opened
    opened.close()


@pytest.fixture
def pictures(tmp_path: Path) -> Pictures:
    return Pictures(tmp_path / "pictures")


@pytest.fixture
def history(database: Database, pictures: Pictures) -> History:
    """An empty history."""
    return History(database, pictures)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """The address of a server that listens to this machine only."""
    pytest.importorskip("psycopg")
    binaries = _binaries()
    folder = Path(tempfile.mkdtemp(prefix="continuad-postgresql-"))
    data, log, start = folder / "data", folder / "log", _unprivileged(folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = f"-h 127.0.0.1 -p {port} -k '' -c fsync=off"
    control = [*start, str(binaries / "pg_ctl"), "-D", str(data), "-w", "-t", "60"]
    try:
        _run(
            [*start, str(binaries / "initdb"), "-D", str(data), "-U", "station", "-A", "trust", "-E", "UTF8"]
        )
        _run([*control, "-l", str(log), "-o", options, "start"])
        try:
            yield f"postgresql+psycopg://station@127.0.0.1:{port}/postgres"
        finally:
            _run([*control, "-m", "immediate", "stop"])
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _binaries() -> Path:
    """The folder of PostgreSQL's programs, the newest where there are several."""
    known = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which("initdb", path=os.pathsep.join([*map(str, reversed(known)), os.environ["PATH"]]))
    if found is None:
        pytest.skip("PostgreSQL is not installed: no initdb on PATH or in /usr/lib/postgresql/*/bin")
    return Path(found).resolve().parent


def _unprivileged(folder: Path) -> Sequence[str]:
    """What runs a command as a user that PostgreSQL accepts; the folder becomes that user's."""
    if os.geteuid() != 0:
        return []
    runner = shutil.which("runuser")
    if runner is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser to become somebody else")
    import pwd

    known = {each.pw_name for each in pwd.getpwall()}
    user = next((user for user in USERS if user in known), None)
    if user is None:
        pytest.skip(f"PostgreSQL does not run as root, and there is no user {' or '.join(USERS)}")
    shutil.chown(folder, user)
    return [runner, "-u", user, "--"]


def _run(command: Sequence[str]) -> None:
    """Run a command; what it says is shown if it fails."""
    with tempfile.TemporaryFile("w+") as said:  # no pipe: a server would keep it open
        status = subprocess.run(command, stdout=said, stderr=said, cwd="/", timeout=120).returncode
        said.seek(0)
        assert status == 0, said.read()
