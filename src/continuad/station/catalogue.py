"""The products as the station shows and changes them: the bank's entries beside what the history says."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sql
from PIL import Image

from continuad.errors import ProductError
from continuad.inspector import Inspector, Product
from continuad.inspector.calibration import check_false_alarm_rate, threshold
from continuad.inspector.product import check_name, file_stem
from continuad.station.audit import Audit
from continuad.station.database import Database, as_text, renames
from continuad.station.faults import ConflictError, NotFoundError
from continuad.station.history import Counts, History, Scored

RECENT = 500
"""Inspections that show what a threshold does."""

RATES = np.geomspace(0.001, 0.2, 24)


@dataclass(frozen=True)
class Entry:
    """A product of the bank, and whether it is archived."""

    product: Product
    is_archived: bool

    @property
    def id(self) -> str:
        """For addresses."""
        return file_stem(self.product.name)


class Catalogue:
    """The products of the station.

    Args:
        inspector: of the bank; only its entries are read and changed here.
        history: what was inspected.
        audit: told who changed what.
        database: remembers a rename until the bank and the history have both made it.
    """

    def __init__(self, inspector: Inspector, history: History, audit: Audit, database: Database) -> None:
        self._inspector, self._history, self._audit = inspector, history, audit
        self._database = database
        self._counted: dict[str, int] = {}

    def entries(self) -> list[Entry]:
        """All products, archived ones last."""
        manifest = self._inspector.bank.manifest()
        active = [Entry(product, False) for product in manifest.products.values()]
        return active + [Entry(product, True) for product in manifest.archived.values()]

    def entry(self, product: str) -> Entry:
        """Find a product by its id or its name.

        Raises:
            NotFoundError: there is none.
        """
        for entry in self.entries():
            if product in (entry.product.name, entry.id):
                return entry
        raise NotFoundError(f"The station knows no product {product!r}.", "List the products.")

    def describe(self, entries: Sequence[Entry]) -> list[dict[str, Any]]:
        """Products as plain values for JSON."""
        counts = self._history.counts()
        return [_describe(entry, counts, self._samples(entry.product)) for entry in entries]

    def sample(self, entry: Entry, index: int) -> bytes:
        """One of a product's photos as JPEG.

        Raises:
            NotFoundError: it has fewer.
        """
        photos = self._inspector.bank.samples(entry.product) if entry.product.samples else ()
        if not 0 <= index < len(photos):
            raise NotFoundError(f"{entry.product.name!r} has no photo {index}.", "Look at its sample count.")
        stream = io.BytesIO()
        Image.fromarray(photos[index]).save(stream, "JPEG", quality=88)
        return stream.getvalue()

    def _samples(self, product: Product) -> int:
        """How many photos the bank keeps of a product; its files never change."""
        if product.samples not in self._counted:
            kept = len(self._inspector.bank.samples(product)) if product.samples else 0
            self._counted[product.samples] = kept
        return self._counted[product.samples]

    def rename(self, entry: Entry, name: str, *, actor: str) -> Entry:
        """Give a product another name, in the history, too.

        Raises:
            ConflictError: the name is taken, or the product is archived.
            ProductError: it cannot be used.
        """
        old, name = entry.product.name, check_name(name)
        if name == old:
            return entry
        if entry.is_archived:
            raise ConflictError(f"{old!r} is archived.", "Restore it first.")
        if any(other.product.name == name for other in self.entries()):
            raise ConflictError(f"There is a product {name!r} already.", "Choose another name.")
        with self._database.write() as connection:
            connection.execute(renames.delete().where(renames.c.old == old))
            connection.execute(renames.insert().values(old=old, new=name))
        self._inspector.rename(old, name)
        self.settle_renames()
        self._audit.record(None, actor=actor, action="rename", subject=name, detail={"from": old})
        return self.entry(name)

    def settle_renames(self) -> None:
        """Bring the history in line with renames that the bank has made; after a crash, too."""
        with self._database.read() as connection:
            pending = connection.execute(sql.select(renames)).all()
        for row in pending:
            if any(entry.product.name == row.new for entry in self.entries()):
                self._history.rename(row.old, row.new)
            with self._database.write() as connection:
                connection.execute(renames.delete().where(renames.c.old == row.old))

    def archive(self, entry: Entry, archived: bool, *, actor: str) -> Entry:
        """Put a product aside, or take it back."""
        name = entry.product.name
        if archived != entry.is_archived:
            (self._inspector.archive if archived else self._inspector.restore)(name)
            action = "archive" if archived else "restore"
            self._audit.record(None, actor=actor, action=action, subject=name, detail={})
        return self.entry(name)

    def forget(self, entry: Entry, *, actor: str) -> None:
        """Remove a product; its inspections stay in the history."""
        self._inspector.forget(entry.product.name)
        detail = {"learnt": entry.product.learnt, "images": entry.product.images}
        self._audit.record(None, actor=actor, action="forget", subject=entry.product.name, detail=detail)

    def calibration(self, entry: Entry, rate: float | None, *, use_corrections: bool) -> dict[str, Any]:
        """What a false-alarm rate would do, beside what holds now; nothing is changed.

        Args:
            entry: the product.
            rate: None for the one that holds.
            use_corrections: add the scores of parts that were confirmed good.
        """
        calibration = entry.product.calibration
        rate = check_false_alarm_rate(calibration.false_alarm_rate if rate is None else rate)
        recent = self._history.scores(entry.product.name, entry.product.sha256, limit=RECENT)
        good, bad = _confirmed(recent, "good"), _confirmed(recent, "bad")
        normal = _with(calibration.scores, good if use_corrections else ())
        now, then = calibration.threshold, threshold(normal, rate)
        return {
            "false_alarm_rate": rate,
            "threshold": now,
            "proposed_threshold": then,
            "held_out": list(calibration.scores),
            "confirmed_good": good,
            "confirmed_bad": bad,
            "recent": [{"id": each.id, "score": each.score, "truth": each.truth} for each in recent],
            "alarms_now": sum(each.score > now for each in recent),
            "alarms_then": sum(each.score > then for each in recent),
            "missed_now": sum(score <= now for score in bad),
            "missed_then": sum(score <= then for score in bad),
            "curve": [
                {"false_alarm_rate": float(r), "threshold": threshold(normal, float(r))} for r in RATES
            ],
        }

    def recalibrate(self, entry: Entry, rate: float | None, *, use_corrections: bool, actor: str) -> Entry:
        """Set a product's threshold anew.

        Raises:
            ConflictError: it is archived.
        """
        before = entry.product.calibration
        if entry.is_archived:
            raise ConflictError(f"{entry.product.name!r} is archived.", "Restore it first.")
        name, scores = entry.product.name, before.scores
        if use_corrections:
            recent = self._history.scores(name, entry.product.sha256, limit=RECENT)
            scores = _with(scores, _confirmed(recent, "good"))
        after = self._inspector.recalibrate(name, false_alarm_rate=rate, scores=scores).calibration
        detail = {
            "false_alarm_rate": [before.false_alarm_rate, after.false_alarm_rate],
            "threshold": [before.threshold, after.threshold],
            "scores": [len(before.scores), len(after.scores)],
        }
        self._audit.record(None, actor=actor, action="recalibrate", subject=name, detail=detail)
        return self.entry(name)

    def named(self, product: str | None) -> str | None:
        """The name of an active product that a client names by its id or its name.

        Raises:
            ProductError: it is archived.
            NotFoundError: there is none.
        """
        if product is None:
            return None
        entry = self.entry(product)
        if entry.is_archived:
            raise ProductError(f"{entry.product.name!r} is archived.", "Restore it, or name another product.")
        return entry.product.name


def _confirmed(recent: Sequence[Scored], truth: str) -> list[float]:
    return [each.score for each in recent if each.truth == truth]


def _with(scores: Sequence[float], more: Sequence[float]) -> tuple[float, ...]:
    """Scores and more of them, each inspection's once although it may have been added before."""
    return (*scores, *(score for score in more if score not in scores))


def _describe(entry: Entry, counts: Mapping[str, Counts], samples: int) -> dict[str, Any]:
    product, counted = entry.product, counts.get(entry.product.name)
    return {
        "id": entry.id,
        "name": product.name,
        "state": "archived" if entry.is_archived else "active",
        "method": product.method,
        "reason": product.reason,
        "images": product.images + len(product.calibration.scores),
        "bytes": product.bytes,
        "learnt": product.learnt,
        "seconds": product.seconds,
        "false_alarm_rate": product.calibration.false_alarm_rate,
        "threshold": product.calibration.threshold,
        "samples": samples,
        "counts": {each: getattr(counted, each, 0) for each in ("normal", "anomalous", "good", "bad")},
        "last_inspected": as_text(counted.last) if counted and counted.last else None,
    }
