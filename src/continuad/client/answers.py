"""What a station answers with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Literal, TypeVar

from continuad.errors import StationError

T = TypeVar("T")


@dataclass(frozen=True)
class Inspection:
    """One inspected image, as the station has stored it.

    Attributes:
        id: larger than those of all before it.
        time: when it was stored.
        label: normal, anomalous or unknown.
        product: None if the label is unknown; so are `score` and `threshold`.
        score: the raw image score.
        threshold: scores above it are anomalous.
        nearest: the product that looks most alike; None if the caller named the product.
        distance: from `nearest`.
        source: page, api or watch.
        reference: the caller's name for the part.
        width: of the picture in pixels.
        height: of the picture in pixels.
        has_picture: whether the station still has it.
        has_map: whether the station has an anomaly map.
        map_peak: the largest value of the anomaly map.
        truth: what a human said: good or bad.
        corrected: when that was.
        settled: whether somebody has dealt with an unknown image.
        timings_ms: milliseconds per stage.
    """

    id: int
    time: datetime
    label: Literal["normal", "anomalous", "unknown"]
    product: str | None
    score: float | None
    threshold: float | None
    nearest: str | None
    distance: float | None
    source: str
    reference: str
    width: int
    height: int
    has_picture: bool
    has_map: bool
    map_peak: float | None
    truth: Literal["good", "bad"] | None
    corrected: datetime | None
    settled: bool
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class Product:
    """A product that the station knows.

    Attributes:
        id: for addresses; it changes when the product is renamed.
        name: what people call it.
        state: active or archived.
        method: what inspects it.
        reason: why this method.
        images: that it was learnt from.
        bytes: on the station's disk.
        learnt: when.
        seconds: that learning took.
        false_alarm_rate: the share of good parts that may be called anomalous.
        threshold: scores above it are anomalous.
        samples: photos that are kept of it.
        counts: of its inspections: normal, anomalous, good, bad.
        last_inspected: when; None if never.
    """

    id: str
    name: str
    state: Literal["active", "archived"]
    method: str
    reason: str
    images: int
    bytes: int
    learnt: datetime
    seconds: float
    false_alarm_rate: float
    threshold: float
    samples: int
    counts: Mapping[str, int]
    last_inspected: datetime | None


@dataclass(frozen=True)
class Job:
    """Long work of the station.

    Attributes:
        id: to ask for it again.
        kind: what it does.
        state: queued, running, succeeded, failed or cancelled.
        product: that is taught.
        step: what it is at.
        done: steps that are done.
        total: steps in all.
        created: when it was asked for.
        started: when it began last.
        finished: when it ended.
        attempts: how often it began.
        problem: why it failed.
        remedy: what to do about it.
    """

    id: str
    kind: str
    state: Literal["queued", "running", "succeeded", "failed", "cancelled"]
    product: str
    step: str
    done: int
    total: int
    created: datetime
    started: datetime | None
    finished: datetime | None
    attempts: int
    problem: str | None
    remedy: str | None


@dataclass(frozen=True)
class Event:
    """News from the station.

    Attributes:
        kind: "hello" at the beginning and after each interruption, when something may have been missed;
            "inspection", "job", "products" or "status".
        data: the inspection or job; plain values otherwise.
    """

    kind: str
    data: Inspection | Job | dict[str, Any]


def made(kind: type[T], data: Mapping[str, Any]) -> T:
    """One of the dataclasses, of its JSON; fields that only a newer station has are left out.

    Raises:
        StationError: something is missing.
    """
    values = {}
    try:
        for field in fields(kind):  # type: ignore[arg-type]
            value = data[field.name]
            is_time = str(field.type).startswith("datetime") and value is not None
            values[field.name] = datetime.fromisoformat(value) if is_time else value
    except (KeyError, TypeError, ValueError) as error:
        raise StationError(
            f"The station's answer cannot be understood ({error}).",
            "Use the continuad of the station's version here.",
        ) from error
    return kind(**values)


def made_event(kind: str, data: dict[str, Any]) -> Event:
    """An event, of its JSON."""
    if kind == "inspection":
        return Event(kind, made(Inspection, data))
    if kind == "job":
        return Event(kind, made(Job, data))
    return Event(kind, data)
