"""The history: what was acknowledged is there, once, and comes back as it is asked for."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sql
from hypothesis import given, settings
from hypothesis import strategies as st

from continuad.errors import StationError
from continuad.station import history as module
from continuad.station.audit import Audit, Entry
from continuad.station.database import Database, as_text, deliveries, inspections, renames, requests
from continuad.station.history import Counts, Filter, History, Inspection, NewInspection, Scored
from continuad.station.pictures import Pictures
from made_inspections import MAP, PICTURE, new, unknown

pytest_plugins = ["databases"]


def files(pictures: Pictures) -> list[str]:
    return sorted(path.relative_to(pictures.folder).as_posix() for path in pictures.folder.rglob("*.*"))


def rows(database: Database, table: sql.Table = inspections) -> int:
    with database.read() as connection:
        return connection.execute(sql.select(sql.func.count()).select_from(table)).scalar_one()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the history's clock."""
    return lambda moment: monkeypatch.setattr(module, "now", lambda: moment)


# what goes in comes out


def test_an_inspection_comes_back_as_it_was_stored(
    history: History, pictures: Pictures, clock: Callable[[int], None]
) -> None:
    clock(1_795_305_845_678_901)  # 2026-11-22 00:04:05.678901 UTC
    [stored] = history.add([new()])
    assert history.get(stored.id) == stored == history.page()[0]
    assert stored.picture is not None
    assert stored.picture.startswith("2026-11-22/")
    assert pictures.read(stored.picture) == PICTURE
    assert history.map(stored.id) == MAP
    assert stored.picture_bytes == len(PICTURE) + len(MAP)
    assert (stored.head, stored.timings) == ("a" * 64, {"embed": 1.25, "total": 2.0004})
    assert stored.as_dict() == {
        "id": stored.id,
        "time": "2026-11-22T00:04:05.678+00:00",
        "label": "normal",
        "product": "bolt",
        "score": 0.1,
        "threshold": 0.7,
        "nearest": "bolt",
        "distance": 1 / 3,
        "source": "api",
        "reference": "part 7",
        "width": 12,
        "height": 9,
        "has_picture": True,
        "has_map": True,
        "map_peak": 0.7,
        "truth": None,
        "corrected": None,
        "settled": False,
        "timings_ms": {"embed": 1.25, "total": 2.0},
    }


def test_an_unknown_image_has_no_map_and_keeps_its_embedding(history: History) -> None:
    embedding = np.linspace(-1, 1, 1280)
    [stored] = history.add([unknown(*embedding, nearest=None, distance=None)])
    assert history.map(stored.id) is None
    values = stored.as_dict()
    assert [values[key] for key in ("product", "score", "threshold", "map_peak", "distance")] == [None] * 5
    assert (values["has_map"], values["has_picture"]) == (False, True)
    [(found, vector)] = history.unknowns()
    assert found == stored
    assert vector.dtype == np.float32
    assert np.array_equal(vector, embedding.astype(np.float32))


def test_a_batch_comes_back_in_its_order(history: History, pictures: Pictures) -> None:
    batch = [new(reference=f"part {index}", data=b"%d" % index, suffix=".jpg") for index in range(20)]
    stored = history.add(batch)
    assert [each.reference for each in stored] == [each.reference for each in batch]
    assert [each.id for each in stored] == sorted({each.id for each in stored})
    assert [pictures.read(each.picture or "") for each in stored] == [each.data for each in batch]
    assert history.page() == stored[::-1]
    assert history.add([]) == []


def test_what_is_not_there(history: History) -> None:
    for ask in (history.get, history.map, lambda number: history.set_truth(number, "good")):
        for number in (1, 0, -1, 2**63 - 1, 2**63, -(10**30)):
            with pytest.raises(StationError, match=f"There is no inspection {number}."):
                ask(number)
    assert history.page() == []
    assert history.page(before=10**30) == []
    assert list(history.walk()) == []
    assert history.counts() == {}


@pytest.mark.parametrize("field", ["reference", "key", "origin"])
def test_a_text_that_a_database_would_refuse_is_refused(field: str) -> None:
    for text in ("zero\0byte", "half a pair \ud83d"):
        with pytest.raises(StationError, match="has characters that cannot be stored"):
            new(**{field: text})
    with pytest.raises(StationError, match="has 5000 characters"):
        new(**{field: "x" * 5000})


@pytest.mark.parametrize("reference", ["x" * 200, "prüfung 部品 🔩", "'; drop table inspections; --"])
def test_any_other_text_is_kept(history: History, reference: str) -> None:
    [stored] = history.add([new(reference=reference, key=reference)])
    assert history.get(stored.id).reference == reference
    assert history.made_by(reference, "") == stored


# idempotency keys


def test_a_repeated_request_makes_nothing_new(
    history: History, database: Database, pictures: Pictures
) -> None:
    first, other = history.add([new(key="k", fingerprint="f"), new(reference="other")])
    assert history.made_by("k", "f") == first
    assert history.made_by("unused", "f") is None
    marked = history.set_truth(first.id, "bad")
    again, third = history.add([new(key="k", fingerprint="f"), new(reference="third")])
    assert again == marked
    assert third.id > other.id
    assert (rows(database), rows(database, requests)) == (3, 1)
    assert files(pictures) == sorted(str(each.picture) for each in (first, other, third))


def test_a_key_of_another_request_is_refused_and_nothing_of_its_batch_stored(
    history: History, database: Database, pictures: Pictures
) -> None:
    history.add([new(key="k", fingerprint="f")])
    with pytest.raises(StationError, match="'k' was used for another request"):
        history.made_by("k", "g")
    for batch in (
        [new(), new(key="k", fingerprint="g")],
        [new(key="n", fingerprint="f"), new(key="n", fingerprint="g")],
    ):
        with pytest.raises(StationError, match="was used for another request"):
            history.add(batch)
    assert (rows(database), rows(database, requests), len(files(pictures))) == (1, 1, 1)


def test_a_key_that_made_something_else_is_refused(history: History, database: Database) -> None:
    with database.write() as connection:
        job = {"key": "k", "fingerprint": "f", "kind": "job", "made": "1", "created": 0}
        connection.execute(requests.insert().values(job))
    with pytest.raises(StationError, match="another request"):
        history.add([new(key="k", fingerprint="f")])


def test_a_key_twice_in_one_batch_is_one_inspection(history: History, database: Database) -> None:
    one, other, two = history.add([new(key="k"), new(key="l"), new(key="k")])
    assert one == two != other
    assert rows(database) == 2


def test_of_many_threads_and_processes_with_one_key_one_stores(
    address: str | Path, pictures: Pictures
) -> None:
    databases = [Database(address) for _ in range(2)]  # of which neither knows the other's locks
    histories = [History(each, pictures, ["mqtt"]) for each in databases]
    gate = threading.Barrier(4, timeout=30)

    def work(worker: int) -> list[list[int]]:
        made = []
        for turn in range(6):
            batch = [new(key=f"{turn} {letter}", reference=str(worker)) for letter in "abc"]
            gate.wait()
            stored = histories[worker % 2].add(batch[:: -1 if worker > 1 else 1])
            made.append(sorted(each.id for each in stored))
        return made

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(work, range(4)))
    assert made[0] == made[1] == made[2] == made[3]
    for table in (inspections, requests, deliveries):
        assert rows(databases[0], table) == 18
    assert files(pictures) == sorted(str(each.picture) for each in histories[0].page())
    for each in databases:
        each.close()


# all or nothing


def test_a_failed_transaction_leaves_nothing(database: Database, pictures: Pictures) -> None:
    history = History(database, pictures, ["mqtt"])
    with pytest.raises(ValueError, match="JSON"):  # in the payload, when the rows are written already
        history.add([new(), new(key="k", score=float("inf"))])
    assert [rows(database, table) for table in (inspections, requests, deliveries)] == [0, 0, 0]
    assert files(pictures) == []


def test_a_commit_whose_answer_is_lost_keeps_its_pictures(
    history: History, database: Database, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = database.write

    @contextmanager
    def losing() -> Iterator[sql.Connection]:
        with write() as connection:
            yield connection
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(database, "write", losing)
        with pytest.raises(ConnectionError):
            history.add([new(key="k")])
    [kept] = history.page()
    assert history.add([new(key="k")]) == [kept]
    assert pictures.read(kept.picture or "") == PICTURE
    assert files(pictures) == [kept.picture]


def test_a_full_disk_of_pictures(
    history: History, database: Database, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers, fsync = itertools.count(1), os.fsync

    def fill(descriptor: int) -> None:
        if next(numbers) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fill)
        with pytest.raises(OSError, match="No space left") as caught:
            history.add([new(), new(), new()])
    assert caught.value.errno == errno.ENOSPC
    assert (rows(database), files(pictures)) == (0, [])
    assert len(history.add([new()])) == 1


def test_a_full_disk_of_the_database(address: str | Path, history: History, pictures: Pictures) -> None:
    database = Database(address)
    if isinstance(address, Path):
        with database.engine.connect() as connection:  # the pool hands it out again
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    else:
        with database.write() as connection:
            connection.exec_driver_sql(
                "CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END $$"
            )
            connection.exec_driver_sql(
                "CREATE TRIGGER full_disk BEFORE INSERT ON inspections EXECUTE FUNCTION fill()"
            )
    with pytest.raises(OSError, match="No space left") as caught:
        History(database, pictures).add([new(map=b"m" * 100_000)])
    assert caught.value.errno == errno.ENOSPC
    assert history.page() == []
    assert files(pictures) == []
    database.close()


def test_deliveries_are_queued_with_the_inspection(database: Database, pictures: Pictures) -> None:
    stored = History(database, pictures, ["mqtt", "webhook"]).add([new(), unknown()])
    with database.read() as connection:
        queued = connection.execute(sql.select(deliveries).order_by(deliveries.c.id)).all()
    assert [(row.target, json.loads(row.payload)) for row in queued] == [
        (target, each.as_dict()) for each in stored for target in ("mqtt", "webhook")
    ]
    assert {row.created for row in queued} == {stored[0].time}


# pages and filters


def test_pages_are_stable_while_rows_are_added(history: History) -> None:
    old = [each.id for each in history.add([new() for _ in range(11)])]
    found, before = list[int](), None
    while page := history.page(before=before, limit=3):
        found += [each.id for each in page]
        before = page[-1].id
        history.add([new(), new()])
    assert found == old[::-1]


def test_a_walk_sees_what_was_there_when_it_began(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    old = [each.id for each in history.add([new() for _ in range(9)])]
    found = []
    for each in history.walk():
        found.append(each.id)
        history.add([new()])
        history.set_truth(each.id, "good")
    assert found == old[::-1]
    assert [each.id for each in history.walk(Filter(truth="good"))] == old[::-1]


def test_a_walk_holds_no_transaction_open(history: History, database: Database) -> None:
    history.add([new(), new()])
    walk = history.walk()
    next(walk)
    assert database.engine.pool.checkedout() == 0  # type: ignore[attr-defined]


def expected(all_: list[Inspection], wanted: Filter) -> list[Inspection]:
    """What a filter lets through, newest first, in plain Python."""
    truths: dict[str | None, tuple[str | None, ...]] = {
        None: (None, "good", "bad"),
        "any": ("good", "bad"),
        "none": (None,),
        "good": ("good",),
        "bad": ("bad",),
    }
    return [
        each
        for each in sorted(all_, key=lambda each: -each.id)
        if (wanted.product is None or each.product == wanted.product)
        and (wanted.label is None or each.label == wanted.label)
        and each.truth in truths[wanted.truth]
        and (wanted.since is None or each.time >= wanted.since)
        and (wanted.until is None or each.time < wanted.until)
    ]


def test_filters_do_what_plain_python_does(history: History, clock: Callable[[int], None]) -> None:
    choose = random.Random(0)
    for moment in range(12):
        clock(moment)
        kinds: list[NewInspection] = [
            new(),
            new(product="nut", label="anomalous"),
            new(product=""),
            unknown(),
        ]
        for each in history.add(choose.choices(kinds, k=5)):
            history.set_truth(each.id, choose.choice([None, None, "good", "bad"]))
    everything = [history.get(number) for number in (each.id for each in history.walk())]
    assert len(everything) == 60
    times = st.none() | st.integers(-2, 14) | st.sampled_from([-(10**40), 2**63, 10**40])
    filters = st.builds(
        Filter,
        product=st.sampled_from([None, "bolt", "nut", "", "Bolt", "bolt' OR 1=1"]),
        label=st.sampled_from([None, "normal", "anomalous", "unknown"]),
        truth=st.sampled_from([None, "good", "bad", "any", "none"]),
        since=times,
        until=times,
    )

    @settings(max_examples=150, deadline=None, database=None)
    @given(filters, st.none() | st.integers(-1, 70), st.integers(1, 70))
    def check(wanted: Filter, before: int | None, limit: int) -> None:
        found = expected(everything, wanted)
        assert list(history.walk(wanted)) == found
        below = [each for each in found if before is None or each.id < before]
        assert history.page(wanted, before=before, limit=limit) == below[:limit]

    check()


def test_a_filter_of_nothing_that_exists_is_refused() -> None:
    with pytest.raises(StationError, match=r"'fine' is no label. Give one of: normal, anomalous, unknown"):
        Filter(label="fine")
    with pytest.raises(StationError, match=r"'maybe' is no truth. Give one of: good, bad, any, none"):
        Filter(truth="maybe")
    with pytest.raises(StationError, match="cannot be stored"):
        Filter(product="a\0b")


# what a human says, and what is counted


def test_a_human_can_say_and_take_back(history: History, clock: Callable[[int], None]) -> None:
    [stored] = history.add([new()])
    clock(7_000_000)
    said = history.set_truth(stored.id, "bad")
    assert (said.truth, said.corrected) == ("bad", 7_000_000)
    assert said.as_dict()["corrected"] == as_text(7_000_000) == "1970-01-01T00:00:07.000+00:00"
    assert history.get(stored.id) == said
    assert history.set_truth(stored.id, None) == stored == history.get(stored.id)
    with pytest.raises(StationError, match="A part is not 'perfect'"):
        history.set_truth(stored.id, "perfect")


def test_counts(history: History, clock: Callable[[int], None]) -> None:
    clock(5)
    bolts = history.add([new(), new(), new(label="anomalous"), unknown(nearest="bolt")])
    clock(9)
    nuts = history.add([new(product="nut", label="anomalous")])
    for each, truth in zip([*bolts[:3], *nuts], ["good", "bad", "bad", "bad"], strict=True):
        history.set_truth(each.id, truth)
    assert history.counts() == {"bolt": Counts(2, 1, 1, 2, 5), "nut": Counts(0, 1, 0, 1, 9)}


def test_unknown_images_wait_until_they_are_settled(history: History) -> None:
    first, _, second, third = history.add([unknown(1), new(), unknown(2), unknown(3)])
    assert history.unknown_count() == 3
    assert [(each.id, vector.tolist()) for each, vector in history.unknowns(limit=2)] == [
        (third.id, [3.0]),
        (second.id, [2.0]),
    ]
    history.settle(each.id for each in (second, third))
    history.settle([])
    assert [each.id for each, _ in history.unknowns()] == [first.id]
    assert (history.unknown_count(), history.get(second.id).settled) == (1, True)


def test_only_what_is_unknown_is_settled(history: History) -> None:
    [known] = history.add([new()])
    history.settle([known.id, 10**6])
    assert not history.get(known.id).settled


def test_scores_are_of_one_head_newest_first(history: History) -> None:
    batch = [new(head=head, score=float(index)) for index, head in enumerate("aabaa")]
    stored = history.add([*batch, new(product="nut", head="a", score=9.0)])
    history.set_truth(stored[1].id, "bad")
    assert history.scores("bolt", "a", limit=3) == [
        Scored(stored[4].id, 4.0, "normal", None),
        Scored(stored[3].id, 3.0, "normal", None),
        Scored(stored[1].id, 1.0, "normal", "bad"),
    ]
    assert [each.score for each in history.scores("bolt", "a")] == [4.0, 3.0, 1.0, 0.0]
    assert history.scores("bolt", "c") == []


def test_a_rename_changes_every_row_and_is_done_then(history: History, database: Database) -> None:
    history.add([new(), new(product="nut", nearest="bolt"), unknown(nearest="bolt"), new(product="bolts")])
    with database.write() as connection:
        pending = [{"old": "bolt", "new": "screw"}, {"old": "x", "new": "y"}]
        connection.execute(renames.insert(), pending)
    history.rename("bolt", "screw")
    found = [(each.product, each.nearest) for each in history.page()]
    assert found == [("bolts", "screw"), (None, "screw"), ("nut", "screw"), ("screw", "screw")]
    with database.read() as connection:
        assert connection.execute(sql.select(renames.c.old)).scalars().all() == ["x"]


def test_a_rename_that_fails_changes_nothing(history: History, database: Database) -> None:
    history.add([new(), unknown(nearest="bolt")])

    def fail(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if statement.startswith("DELETE"):
            raise RuntimeError("no")

    sql.event.listen(database.engine, "before_cursor_execute", fail)
    with pytest.raises(RuntimeError):
        history.rename("bolt", "screw")
    assert [(each.product, each.nearest) for each in history.page()] == [(None, "bolt"), ("bolt", "bolt")]


def test_files_that_were_seen(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 2)
    stamps = [("a.png", 1), ("b.png", 2**62), ("a.png", 3), ("c.png", None), ("d.png", 5)]
    history.add([new(source="watch", origin=origin, origin_mtime_ns=time) for origin, time in stamps])
    history.add([new(source="watch"), new(source="api", origin="e.png")])
    assert list(history.seen("watch")) == stamps
    assert dict(history.seen("page")) == {}


def test_who_comes_second_waits_until_the_first_has_committed(
    history: History, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, reached, go = database.write, threading.Event(), threading.Event()

    @contextmanager
    def halting() -> Iterator[sql.Connection]:
        with write() as connection:
            yield connection
            monkeypatch.undo()
            reached.set()
            go.wait(timeout=10)

    monkeypatch.setattr(database, "write", halting)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(history.add, [new()])
        assert reached.wait(timeout=10)
        second = pool.submit(history.add, [new()])
        with pytest.raises(TimeoutError):
            second.result(timeout=0.2)
        assert history.page() == []
        go.set()
    assert history.page() == [*second.result(), *first.result()]


def test_keys_are_stored_in_one_order_lest_two_transactions_wait_for_each_other(
    history: History, database: Database
) -> None:
    history.add([new(key=key) for key in "bdac"])
    with database.read() as connection:
        query = "SELECT key FROM requests ORDER BY " + (
            "ctid" if database.engine.name != "sqlite" else "rowid"
        )
        assert connection.exec_driver_sql(query).scalars().all() == ["a", "b", "c", "d"]


# the audit trail


def test_the_audit_trail(database: Database) -> None:
    trail = Audit(database)
    for number in range(3):
        trail.record(None, actor="page", action="rename", subject=f"bolt {number}", detail={"to": "ü\0"})
    newest, *_ = page = trail.page(limit=2)
    assert [entry.subject for entry in page] == ["bolt 2", "bolt 1"]
    assert [entry.subject for entry in trail.page(before=page[-1].id)] == ["bolt 0"]
    assert newest == Entry(newest.id, newest.time, "page", "rename", "bolt 2", {"to": "ü\0"})
    assert newest.as_dict()["time"] == as_text(newest.time)


def test_an_audit_entry_belongs_to_the_transaction_that_it_is_about(database: Database) -> None:
    trail = Audit(database)

    def change(fails: bool) -> None:
        with database.write() as connection:
            trail.record(connection, actor="api", action="forget", subject="bolt", detail={})
            assert not fails

    with pytest.raises(AssertionError):
        change(fails=True)
    assert trail.page() == []
    change(fails=False)
    assert len(trail.page()) == 1


def test_no_name_keeps_a_deed_from_the_audit_trail(database: Database) -> None:
    trail = Audit(database)
    trail.record(None, actor="x" * 99, action="login", subject="\ud83d\0" + "y" * 300, detail={})
    [entry] = trail.page()
    assert (entry.actor, len(entry.subject)) == ("x" * 79 + "…", 200)
    assert entry.subject.startswith("?yyy")
