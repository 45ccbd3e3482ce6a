"""What the history holds: an inspection before and after it was stored, and how it is asked for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row

from continuad.errors import StationError
from continuad.station.database import as_text, inspections

BIGGEST = 2**63 - 1
"""What a column of ids or times can hold."""

DAY = 24 * 3600 * 1_000_000
"""In microseconds."""

_LABELS = ("normal", "anomalous", "unknown")
_TRUTHS = ("good", "bad", "any", "none")


@dataclass(frozen=True, eq=False)
class NewInspection:
    """An inspection that is to be stored.

    Attributes:
        label: normal, anomalous or unknown.
        product: None if the label is unknown; so are `head`, `score`, `threshold` and `map`.
        head: sha256 of the product's head.
        score: the raw image score; never NaN, and neither are `threshold` and `distance`.
        threshold: scores above it are anomalous.
        nearest: the product that looks most alike; None if the caller named the product.
        distance: from `nearest`.
        source: page, api or watch.
        reference: the caller's name for the part, at most 200 characters.
        width: of the picture in pixels.
        height: of the picture in pixels.
        timings: milliseconds per stage.
        data: the picture, encoded, as it came.
        suffix: of its kind, such as ".png".
        map: the anomaly map as 8-bit PNG.
        map_peak: what its 255 stands for.
        embedding: of an unknown image; floats (D,).
        origin: the watched file.
        origin_mtime_ns: its time of modification.
        key: the request's idempotency key, at most 200 characters.
        fingerprint: tells whether two requests with one key are the same.

    Raises:
        StationError: a text is too long, or cannot be stored.
    """

    label: str
    product: str | None
    head: str | None
    score: float | None
    threshold: float | None
    nearest: str | None
    distance: float | None
    source: str
    reference: str
    width: int
    height: int
    timings: dict[str, float]
    data: bytes = field(repr=False)
    suffix: str
    map: bytes | None = field(default=None, repr=False)
    map_peak: float | None = None
    embedding: NDArray[np.floating[Any]] | None = field(default=None, repr=False)
    origin: str | None = None
    origin_mtime_ns: int | None = None
    key: str | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_text("reference", self.reference, 200)
        check_text("idempotency key", self.key or "", 200)
        check_text("file's path", self.origin or "", 4096)


@dataclass(frozen=True)
class Inspection:
    """An inspection as the history has it.

    Attributes are `NewInspection`'s, and:
        id: larger than those of all before it.
        time: when it was stored, in microseconds.
        picture: its name; None once retention has removed it.
        picture_bytes: what picture and map take.
        map_peak: None if there is no map, or no longer one.
        truth: what a human said: good or bad.
        corrected: when that was, in microseconds.
        settled: whether somebody has dealt with an unknown image.
    """

    id: int
    time: int
    label: str
    product: str | None
    head: str | None
    score: float | None
    threshold: float | None
    nearest: str | None
    distance: float | None
    source: str
    reference: str
    width: int
    height: int
    timings: dict[str, float]
    picture: str | None
    picture_bytes: int
    map_peak: float | None
    truth: str | None
    corrected: int | None
    settled: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "id": self.id,
            "time": as_text(self.time),
            "label": self.label,
            "product": self.product,
            "score": self.score,
            "threshold": self.threshold,
            "nearest": self.nearest,
            "distance": self.distance,
            "source": self.source,
            "reference": self.reference,
            "width": self.width,
            "height": self.height,
            "has_picture": self.picture is not None,
            "has_map": self.map_peak is not None,
            "map_peak": self.map_peak,
            "truth": self.truth,
            "corrected": None if self.corrected is None else as_text(self.corrected),
            "settled": self.settled,
            "timings_ms": {stage: round(ms, 3) for stage, ms in self.timings.items()},
        }


COLUMNS = [inspections.c[each.name] for each in fields(Inspection)]


def inspection_of(row: Row[*tuple[Any, ...]]) -> Inspection:
    """A row that has `COLUMNS`, and perhaps more."""
    values = {column.name: row._mapping[column.name] for column in COLUMNS}
    return Inspection(**{**values, "timings": json.loads(values["timings"])})


@dataclass(frozen=True)
class Counts:
    """Inspections of one product.

    Attributes:
        normal: by the verdict.
        anomalous: by the verdict.
        good: as a human said.
        bad: as a human said.
        last: when the last one was, in microseconds.
    """

    normal: int
    anomalous: int
    good: int
    bad: int
    last: int | None


@dataclass(frozen=True)
class Scored:
    """What calibration looks at."""

    id: int
    score: float
    label: str
    truth: str | None


@dataclass(frozen=True)
class Filter:
    """Which inspections are asked for; None leaves the choice open.

    Attributes:
        product: inspected as this product.
        label: normal, anomalous or unknown.
        truth: what a human said: good, bad, any of both, or none.
        since: not before this time, in microseconds.
        until: before this time, in microseconds.

    Raises:
        StationError: there is no such label or truth.
    """

    product: str | None = None
    label: str | None = None
    truth: str | None = None
    since: int | None = None
    until: int | None = None

    def __post_init__(self) -> None:
        for what, value, known in (("label", self.label, _LABELS), ("truth", self.truth, _TRUTHS)):
            if value is not None and value not in known:
                raise StationError(f"{value!r} is no {what}.", f"Give one of: {', '.join(known)}.")
        check_text("product's name", self.product or "", 200)

    def conditions(self) -> list[ColumnElement[bool]]:
        """What a row must fulfil."""
        of, found = inspections.c, list[ColumnElement[bool]]()
        if self.product is not None:
            found.append(of.product == self.product)
        if self.label is not None:
            found.append(of.label == self.label)
        if self.truth == "none":
            found.append(of.truth.is_(None))
        elif self.truth is not None:
            found.append(of.truth.is_not(None) if self.truth == "any" else of.truth == self.truth)
        if self.since is not None:
            found.append(of.time >= _bounded(self.since))
        if self.until is not None:
            found.append(of.time < _bounded(self.until))
        return found


def check_text(what: str, text: str, most: int) -> None:
    """Refuse what a database would refuse.

    Raises:
        StationError: the text is too long, or has characters that are none.
    """
    if len(text) > most:
        raise StationError(f"The {what} has {len(text)} characters.", f"Give at most {most}.")
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise StationError(
            f"The {what} ({text!r}) has characters that cannot be stored.", "Leave them out, or rename it."
        )


def day_start(day: str) -> int:
    """The first microsecond of a day, such as "2026-11-22", UTC."""
    return int(datetime.fromisoformat(day).replace(tzinfo=UTC).timestamp()) * 1_000_000


def _bounded(number: int) -> int:
    return max(-BIGGEST, min(number, BIGGEST))
