"""The history: every inspection that was acknowledged, and what a human said about it."""

from __future__ import annotations

import errno
import json
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import sqlalchemy as sql
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Row
from sqlalchemy.exc import IntegrityError

from continuad.errors import StationError
from continuad.station.database import Database, deliveries, inspections, now, renames, requests
from continuad.station.faults import ConflictError, NotFoundError
from continuad.station.pictures import Pictures
from continuad.station.records import (
    BIGGEST,
    COLUMNS,
    DAY,
    Counts,
    Filter,
    Inspection,
    NewInspection,
    Scored,
    day_start,
    inspection_of,
)

__all__ = ["Counts", "Filter", "History", "Inspection", "NewInspection", "Scored"]

CHUNK = 500
"""Rows that are read or changed at once where there may be millions."""

Slot: TypeAlias = "int | str"
"""An inspection's place in its batch: its key, or its index where it has none."""

_ALL = Filter()
_OPEN = sql.and_(
    inspections.c.label == "unknown",
    inspections.c.settled.is_(False),
    inspections.c.picture.is_not(None),
    inspections.c.embedding.is_not(None),
)


class History:
    """The inspections of a station. Safe to use from several threads.

    Args:
        database: where the rows are.
        pictures: where the pictures are.
        targets: each inspection is queued for delivery to these, in its own transaction.
    """

    def __init__(self, database: Database, pictures: Pictures, targets: Sequence[str] = ()) -> None:
        self._database, self._pictures, self._targets = database, pictures, tuple(targets)
        self._turn = threading.Lock()  # ids in the order of the commits: who pages or delivers misses none

    def add(self, batch: Sequence[NewInspection]) -> list[Inspection]:
        """Store inspections, all or none; when this returns, they and their pictures survive a power cut.

        What was stored under an idempotency key before is returned as it is now, and not stored again.

        Raises:
            ConflictError: a key was used for another request; nothing of the batch was stored.
            OSError: the disk is full or broken; nothing was stored.
        """
        slots: list[Slot] = [index if new.key is None else new.key for index, new in enumerate(batch)]
        wanted: dict[Slot, NewInspection] = {}
        for slot, new in zip(slots, batch, strict=True):
            if wanted.setdefault(slot, new).fingerprint != new.fingerprint:
                raise _key_taken(str(slot))
        made = self._made(wanted)
        while missing := {slot: new for slot, new in wanted.items() if slot not in made}:
            try:
                made |= self._store(missing)
            except IntegrityError:
                before, made = made, self._made(wanted)
                if made.keys() == before.keys():
                    raise
                # else another thread or process has used one of the keys meanwhile
        return [made[slot] for slot in slots]

    def made_by(self, key: str, fingerprint: str) -> Inspection | None:
        """The inspection that a request with this idempotency key has made.

        Raises:
            ConflictError: the key was used for another request.
        """
        return self._find_made({key: fingerprint}).get(key)

    def get(self, number: int) -> Inspection:
        """One inspection.

        Raises:
            NotFoundError: there is none of this number.
        """
        with self._database.read() as connection:
            row = connection.execute(sql.select(*COLUMNS).where(_is(number))).first()
        return inspection_of(_found(row, number))

    def map(self, number: int) -> bytes | None:
        """The anomaly map as 8-bit PNG; None if the inspection has none, or has it no longer.

        Raises:
            NotFoundError: there is no inspection of this number.
        """
        with self._database.read() as connection:
            row = connection.execute(sql.select(inspections.c.map).where(_is(number))).first()
        data: bytes | None = _found(row, number)[0]
        return data

    def page(self, wanted: Filter = _ALL, *, before: int | None = None, limit: int = 50) -> list[Inspection]:
        """The newest inspections of those with an id below `before`, newest first."""
        conditions = wanted.conditions()
        if before is not None:
            conditions.append(inspections.c.id < min(before, BIGGEST))
        query = sql.select(*COLUMNS).where(*conditions).order_by(inspections.c.id.desc()).limit(limit)
        with self._database.read() as connection:
            return [inspection_of(row) for row in connection.execute(query)]

    def walk(self, wanted: Filter = _ALL) -> Iterator[Inspection]:
        """All inspections there are now, newest first, in constant memory and no long transaction."""
        page = self.page(wanted, limit=CHUNK)
        while page:
            yield from page
            page = self.page(wanted, before=page[-1].id, limit=CHUNK)

    def set_truth(self, number: int, truth: str | None) -> Inspection:
        """Note what a human says ("good" or "bad"), or that it was a mistake (None).

        Raises:
            NotFoundError: there is no inspection of this number.
            StationError: there is no such truth.
        """
        if truth not in ("good", "bad", None):
            raise StationError(f"A part is not {truth!r}.", "Say good, bad, or nothing.")
        change = inspections.update().where(_is(number)).returning(*COLUMNS)
        with self._database.write() as connection:
            row = connection.execute(change.values(truth=truth, corrected=truth and now())).first()
        return inspection_of(_found(row, number))

    def counts(self) -> dict[str, Counts]:
        """How many inspections there are of each product, and when its last one was."""
        of, count = inspections.c, sql.func.count
        query = (
            sql.select(
                of.product,
                *(count().filter(of.label == label) for label in ("normal", "anomalous")),
                *(count().filter(of.truth == truth) for truth in ("good", "bad")),
                sql.func.max(of.time),
            )
            .where(of.product.is_not(None))
            .group_by(of.product)
        )
        with self._database.read() as connection:
            return {row[0]: Counts(*row[1:]) for row in connection.execute(query)}

    def unknown_count(self) -> int:
        """How many images of unknown products wait for somebody to look at them."""
        with self._database.read() as connection:
            return connection.execute(sql.select(sql.func.count()).where(_OPEN)).scalar_one()

    def unknowns(self, limit: int = 2000) -> list[tuple[Inspection, NDArray[np.float32]]]:
        """The newest images of unknown products that nobody has dealt with and whose pictures are there.

        Each with its embedding, float32 (D,).
        """
        query = sql.select(*COLUMNS, inspections.c.embedding).where(_OPEN)
        with self._database.read() as connection:
            rows = connection.execute(query.order_by(inspections.c.id.desc()).limit(limit)).all()
        return [(inspection_of(row), np.frombuffer(row.embedding, "<f4").astype(np.float32)) for row in rows]

    def settle(self, ids: Iterable[int]) -> None:
        """Note that these unknown images were dealt with."""
        ids = sorted(set(ids))
        with self._database.write() as connection:
            for start in range(0, len(ids), CHUNK):
                those = inspections.c.id.in_(ids[start : start + CHUNK])
                change = inspections.update().where(those, inspections.c.label == "unknown")
                connection.execute(change.values(settled=True))

    def scores(self, product: str, head: str, *, limit: int = 500) -> list[Scored]:
        """The newest scores of one head of a product, newest first."""
        of = inspections.c
        query = (
            sql.select(of.id, of.score, of.label, of.truth)
            .where(of.product == product, of.head == head, of.score.is_not(None))
            .order_by(of.id.desc())
            .limit(limit)
        )
        with self._database.read() as connection:
            return [Scored(*row) for row in connection.execute(query)]

    def rename(self, old: str, new: str) -> None:
        """Give a product's inspections its new name, and forget that this had to be done."""
        with self._database.write() as connection:
            for column in (inspections.c.product, inspections.c.nearest):
                connection.execute(inspections.update().where(column == old).values({column: new}))
            connection.execute(renames.delete().where(renames.c.old == old, renames.c.new == new))

    def seen(self, source: str) -> Iterator[tuple[str, int | None]]:
        """The files that were inspected for a source and their times of modification, oldest first."""
        of, last = inspections.c, 0
        query = sql.select(of.id, of.origin, of.origin_mtime_ns).order_by(of.id).limit(CHUNK)
        query = query.where(of.source == source, of.origin.is_not(None))
        while True:
            with self._database.read() as connection:
                rows = connection.execute(query.where(of.id > last)).all()
            if not rows:
                return
            yield from ((row.origin, row.origin_mtime_ns) for row in rows)
            last = rows[-1].id

    def pictures_of(self, day: str) -> set[str]:
        """The pictures of a day (UTC) that inspections name; for `Pictures.sweep`."""
        start = day_start(day)
        query = sql.select(inspections.c.picture).where(
            inspections.c.time >= start, inspections.c.time < start + DAY, inspections.c.picture.is_not(None)
        )
        with self._database.read() as connection:
            return set(connection.execute(query).scalars())

    def _made(self, wanted: Mapping[Slot, NewInspection]) -> dict[Slot, Inspection]:
        """What the keyed requests of a batch have made before."""
        found = self._find_made({new.key: new.fingerprint for new in wanted.values() if new.key is not None})
        return {slot: found[slot] for slot in wanted if isinstance(slot, str) and slot in found}

    def _find_made(self, keys: Mapping[str, str]) -> dict[str, Inspection]:
        """What requests have made, by key; `keys` maps to their fingerprints."""
        if not keys:
            return {}
        with self._database.read() as connection:
            found = connection.execute(sql.select(requests).where(requests.c.key.in_(keys))).all()
            for request in found:
                if (request.kind, request.fingerprint) != ("inspection", keys[request.key]):
                    raise _key_taken(request.key)
            of_ids = {int(request.made): str(request.key) for request in found}
            rows = connection.execute(sql.select(*COLUMNS).where(inspections.c.id.in_(of_ids)))
            return {of_ids[row.id]: inspection_of(row) for row in rows}

    def _store(self, missing: Mapping[Slot, NewInspection]) -> dict[Slot, Inspection]:
        """Pictures first, then one transaction; the pictures of one that failed go again."""
        moment, news = now(), list(missing.values())
        names = self._pictures.save_all([(new.data, new.suffix) for new in news], time=moment)
        is_committing = False
        try:
            with self._turn, self._database.write() as connection:
                stored = _insert(connection, news, names, moment)
                self._insert_others(connection, news, stored, moment)
                is_committing = True
        except BaseException as error:
            is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
            if is_full or not is_committing:  # else it may have been committed, and the sweep will know
                self._pictures.remove(names)
            raise
        return dict(zip(missing, stored, strict=True))

    def _insert_others(
        self, connection: Connection, news: list[NewInspection], stored: list[Inspection], moment: int
    ) -> None:
        """What goes with inspections: the keys of their requests, and their deliveries."""
        keys = [
            {"key": new.key, "fingerprint": new.fingerprint, "kind": "inspection", "made": str(each.id)}
            for new, each in zip(news, stored, strict=True)
            if new.key is not None
        ]
        if keys:  # sorted, lest two transactions wait for each other
            connection.execute(
                requests.insert().values(created=moment), sorted(keys, key=lambda each: str(each["key"]))
            )
        if self._targets:
            payloads = [json.dumps(each.as_dict(), allow_nan=False) for each in stored]
            waiting = [
                {"target": target, "payload": payload} for payload in payloads for target in self._targets
            ]
            connection.execute(deliveries.insert().values(created=moment), waiting)


def _insert(
    connection: Connection, news: Sequence[NewInspection], names: Sequence[str], moment: int
) -> list[Inspection]:
    rows: list[dict[str, Any]] = []
    for new, name in zip(news, names, strict=True):
        row = {**vars(new), "time": moment, "picture": name, "settled": False, "truth": None}
        row["picture_bytes"] = len(new.data) + len(new.map or b"")
        row["timings"] = json.dumps(new.timings, allow_nan=False)
        row["embedding"] = None if new.embedding is None else new.embedding.astype("<f4").tobytes()
        rows.append({column.name: row[column.name] for column in inspections.c if column.name in row})
    insert = inspections.insert().returning(*COLUMNS, sort_by_parameter_order=True)
    return [inspection_of(row) for row in connection.execute(insert, rows)]


def _is(number: int) -> ColumnElement[bool]:
    return inspections.c.id == number if abs(number) <= BIGGEST else sql.false()


def _found(row: Row[Any] | None, number: int) -> Row[Any]:
    if row is None:
        raise NotFoundError(f"There is no inspection {number}.", "Look for it in the history.")
    return row


def _key_taken(key: str) -> ConflictError:
    return ConflictError(
        f"The idempotency key {key!r} was used for another request.", "Give each request a key of its own."
    )
