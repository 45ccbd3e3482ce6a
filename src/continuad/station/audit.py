"""The audit trail: who changed what, and when."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy import Connection

from continuad.station.database import Database, as_text, audit, now
from continuad.station.records import BIGGEST


@dataclass(frozen=True)
class Entry:
    """One change.

    Attributes:
        id: larger than those of all before it.
        time: in microseconds.
        actor: who made it.
        action: in a word, such as "rename".
        subject: what was changed.
        detail: how.
    """

    id: int
    time: int
    actor: str
    action: str
    subject: str
    detail: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.id,
            "time": as_text(self.time),
            "actor": self.actor,
            "action": self.action,
            "subject": self.subject,
            "detail": self.detail,
        }


class Audit:
    """The changes that were made to a station; none is ever removed."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def record(
        self,
        connection: Connection | None,
        *,
        actor: str,
        action: str,
        subject: str,
        detail: Mapping[str, Any],
    ) -> None:
        """Write down a change: in the transaction that makes it, or without one in its own."""
        entry = audit.insert().values(
            time=now(),
            actor=_clipped(actor, 80),
            action=action,
            subject=_clipped(subject, 200),
            detail=json.dumps(dict(detail)),
        )
        if connection is not None:
            connection.execute(entry)
            return
        with self._database.write() as own:
            own.execute(entry)

    def page(self, before: int | None = None, limit: int = 50) -> list[Entry]:
        """The newest entries of those with an id below `before`, newest first."""
        query = sql.select(audit).order_by(audit.c.id.desc()).limit(limit)
        if before is not None:
            query = query.where(audit.c.id < min(before, BIGGEST))
        with self._database.read() as connection:
            rows = connection.execute(query).all()
        return [
            Entry(row.id, row.time, row.actor, row.action, row.subject, json.loads(row.detail))
            for row in rows
        ]


def _clipped(text: str, most: int) -> str:
    """What a client calls itself must not keep its deed from being written down."""
    readable = text.encode("utf-8", "replace").decode().replace("\0", "")
    return readable if len(readable) <= most else f"{readable[: most - 1]}…"
