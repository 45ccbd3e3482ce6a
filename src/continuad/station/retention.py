"""Retention: the pictures of the history within their disk budget."""

from __future__ import annotations

import shutil
import threading
from dataclasses import dataclass

import sqlalchemy as sql

from continuad.station.database import Database, inspections
from continuad.station.pictures import Pictures

RULE = (
    "When the pictures need more room than they may take, the oldest go first, in this order: of good parts; "
    "of unknown parts that were dealt with; of defective parts; of other unknown parts; and last, those that "
    "somebody has corrected or confirmed. Every verdict stays in the history."
)

ENOUGH = 0.95
"""Of the budget: where the removal stops, so that it need not run for each new picture."""

CHUNK = 500

_of = inspections.c
_uncorrected = _of.truth.is_(None)
_ORDER = (
    sql.and_(_of.label == "normal", _uncorrected),
    sql.and_(_of.label == "unknown", _uncorrected, _of.settled.is_(True)),
    sql.and_(_of.label == "anomalous", _uncorrected),
    sql.and_(_of.label == "unknown", _uncorrected, _of.settled.is_(False)),
    _of.truth.is_not(None),
)
_KEPT = _of.picture.is_not(None)


@dataclass(frozen=True)
class Usage:
    """The room that pictures take.

    Attributes:
        pictures: how many there are.
        bytes: what they and their maps take.
        budget: bytes that they may take.
        free: bytes that are free on their disk.
        removed: how many there were that retention has removed.
    """

    pictures: int
    bytes: int
    budget: int
    free: int
    removed: int


class Retention:
    """Removes pictures (and their anomaly maps) when they exceed the budget; see `RULE`.

    Args:
        database: where the rows are.
        pictures: where the pictures are.
        budget: in bytes.
    """

    def __init__(self, database: Database, pictures: Pictures, budget: int) -> None:
        self._database, self._pictures, self._budget = database, pictures, budget
        self._turn = threading.Lock()

    def usage(self) -> Usage:
        """The room that pictures take now."""
        count = sql.func.count
        with self._database.read() as connection:
            pictures, size = connection.execute(
                sql.select(count(), sql.func.coalesce(sql.func.sum(_of.picture_bytes), 0)).where(_KEPT)
            ).one()
            rows = connection.execute(sql.select(count(_of.id))).scalar_one()
        free = shutil.disk_usage(self._pictures.folder).free
        return Usage(pictures, int(size), self._budget, free, rows - pictures)

    def enforce(self) -> int:
        """Remove pictures if they exceed the budget, until they take 95 % of it; returns how many went."""
        with self._turn:
            size, removed = self.usage().bytes, 0
            if size <= self._budget:
                return 0
            excess = size - int(self._budget * ENOUGH)
            for which in _ORDER:
                while excess > 0:
                    gone, freed = self._remove(which, excess)
                    if not gone:
                        break
                    removed += gone
                    excess -= freed
            return removed

    def _remove(self, which: sql.ColumnElement[bool], excess: int) -> tuple[int, int]:
        """Remove the oldest of a class, as many as are needed; returns how many, and their bytes.

        The rows let go first: a picture that nothing names is swept up later, a name of nothing is a lie.
        """
        oldest = sql.select(_of.id, _of.picture, _of.picture_bytes).where(_KEPT, which).order_by(_of.id)
        chosen: dict[int, str] = {}
        freed = 0
        with self._database.write() as connection:
            for row in connection.execute(oldest.limit(CHUNK).with_for_update()).all():
                if freed >= excess:
                    break
                chosen[row.id] = row.picture
                freed += row.picture_bytes
            gone = {"picture": None, "picture_bytes": 0, "map": None, "map_peak": None}
            those = _of.id.in_(chosen)
            connection.execute(inspections.update().where(those).values(gone))
        self._pictures.remove(chosen.values())
        return len(chosen), freed
