"""The queue of inspections: one worker takes them in batches, and answers when they are stored."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from continuad.errors import StationError
from continuad.images import ImageSource
from continuad.inspector import Inspector
from continuad.station.faults import ConflictError
from continuad.station.history import History, Inspection, NewInspection
from continuad.station.preparing import Prepared
from continuad.station.records import check_text
from continuad.verdict import Verdict

BATCH = 8
PATIENCE = 4
"""Batches that an errand waits for at most."""

MAP_SIDE = 256
SUFFIXES = {
    b"\x89PNG": ".png",
    b"\xff\xd8\xff": ".jpg",
    b"BM": ".bmp",
    b"II": ".tif",
    b"MM": ".tif",
    b"RIFF": ".webp",
    b"P": ".ppm",
}

T = TypeVar("T")


class QueueFullError(StationError):
    """More inspections wait than the station takes.

    Args:
        seconds: after which it is worth trying again.
    """

    def __init__(self, seconds: int) -> None:
        super().__init__("More images wait than can be inspected in time.", f"Try again in {seconds} s.")
        self.seconds = seconds


@dataclass(frozen=True, eq=False)
class Order:
    """One image that is to be inspected.

    Attributes:
        picture: the image.
        product: inspect as this product; None to recognise it.
        reject_unknown: give what looks like no product no verdict.
        source: "page", "api" or "watch".
        reference: the caller's name for the part.
        origin: the watched file.
        origin_mtime_ns: its time of modification.
        key: tells a repeated request from a new one.
        fingerprint: of the request.

    Raises:
        StationError: a text is too long, or cannot be stored; in a batch, it would take others along.
    """

    picture: Prepared
    product: str | None = None
    reject_unknown: bool = True
    source: str = "api"
    reference: str = ""
    origin: str | None = None
    origin_mtime_ns: int | None = None
    key: str | None = None
    fingerprint: str = ""

    def __post_init__(self) -> None:
        check_text("reference", self.reference, 200)
        check_text("idempotency key", self.key or "", 200)
        check_text("file's path", self.origin or "", 4096)

    @property
    def manner(self) -> tuple[str, bool]:
        """What images of one batch share."""
        return self.product or "", self.reject_unknown


def suffix(data: bytes) -> str:
    """The file name suffix of an encoded picture that was decoded before."""
    return next(each for start, each in SUFFIXES.items() if data.startswith(start))


class Inspecting:
    """Inspects what waits, in the order in which it came, up to 8 images at a time.

    An order is done when its inspection is in the history, on the disk.

    Args:
        inspector: of the bank; used by the worker alone.
        history: where inspections go.
        limit: orders that wait at most.
        report: told what was stored, in the worker's thread.
    """

    def __init__(
        self,
        inspector: Inspector,
        history: History,
        *,
        limit: int,
        report: Callable[[Sequence[Inspection]], None],
    ) -> None:
        self._inspector, self._history, self._report = inspector, history, report
        self.limit = limit
        self._orders: deque[tuple[Order, Future[Inspection]]] = deque()
        self._errands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._is_ending = False
        self._patience = PATIENCE
        self._pace = 0.05  # seconds per image, smoothed
        self._thread = threading.Thread(target=self._work, name="inspecting", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def stop(self) -> None:
        """Inspect what waits, refuse what comes, and end."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        if self._thread.ident:
            self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the worker works."""
        return self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """Orders that wait."""
        return len(self._orders)

    def submit(self, order: Order) -> Future[Inspection]:
        """Queue an order.

        Raises:
            QueueFullError: too many wait.
        """
        future: Future[Inspection] = Future()
        with self._changed:
            self.check_room()
            self._orders.append((order, future))
            self._changed.notify_all()
        return future

    def check_room(self) -> None:
        """Raise a `QueueFullError` if an order would be refused now."""
        if len(self._orders) >= self.limit or self._is_ending:
            raise QueueFullError(max(1, round(self._pace * len(self._orders))))

    def when_idle(self, call: Callable[[Inspector], T]) -> Future[T]:
        """Call with the inspector when no inspection waits, or after a few batches; for short work."""
        future: Future[T] = Future()

        def run() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(self._inspector))
                except BaseException as error:
                    future.set_exception(error)

        with self._changed:
            if self._is_ending:
                future.cancel()
            else:
                self._errands.append(run)
            self._changed.notify_all()
        return future

    def _work(self) -> None:
        while True:
            batch, errand = self._next()
            if batch:
                self._inspect(batch)
            elif errand:
                errand()
            else:
                return

    def _next(self) -> tuple[list[tuple[Order, Future[Inspection]]], Callable[[], None] | None]:
        """Wait for work; none comes when the worker has to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._orders or self._errands or self._is_ending)
            self._patience = PATIENCE if not self._errands else self._patience - bool(self._orders)
            if self._orders and self._patience:
                return [self._orders.popleft() for _ in range(min(BATCH, len(self._orders)))], None
            self._patience = PATIENCE
            return [], self._errands.popleft() if self._errands else None

    def _inspect(self, batch: list[tuple[Order, Future[Inspection]]]) -> None:
        """Inspect a batch, store it, answer; what goes wrong is an answer, too."""
        started = time.perf_counter()
        batch = [(order, future) for order, future in batch if future.set_running_or_notify_cancel()]
        found: list[tuple[NewInspection, Future[Inspection]]] = []
        for _, group in groupby(sorted(batch, key=lambda each: each[0].manner), lambda each: each[0].manner):
            alike = list(group)
            try:
                news = self._examine([order for order, _ in alike])
                found += zip(news, (future for _, future in alike), strict=True)
            except Exception as error:
                _refuse([future for _, future in alike], error)
        if not found:
            return
        self._store(found)
        self._pace += 0.2 * ((time.perf_counter() - started) / len(batch) - self._pace)

    def _store(self, found: list[tuple[NewInspection, Future[Inspection]]]) -> None:
        """Store inspections and answer; one that uses another's key must not take the others along."""
        try:
            stored = self._history.add([new for new, _ in found])
        except ConflictError as error:
            if len(found) == 1:
                _refuse([found[0][1]], error)
            else:
                for each in found:
                    self._store([each])
        except Exception as error:
            _refuse([future for _, future in found], error)
        else:
            for inspection, (_, future) in zip(stored, found, strict=True):
                future.set_result(inspection)
            self._report(stored)

    def _examine(self, orders: Sequence[Order]) -> list[NewInspection]:
        """Inspect images that are to be inspected in the same manner."""
        product, reject_unknown = orders[0].product, orders[0].reject_unknown
        heads = {each.name: each.sha256 for each in self._inspector.products.values()}
        images: list[ImageSource] = [order.picture.small for order in orders]
        verdicts = self._inspector.inspect(images, product=product, reject_unknown=reject_unknown)
        return [
            _as_news(order, verdict, heads.get(verdict.product or ""), self._embedding(order, verdict))
            for order, verdict in zip(orders, verdicts, strict=True)
        ]

    def _embedding(self, order: Order, verdict: Verdict) -> NDArray[np.float32] | None:
        """What tells one unknown image from another."""
        return self._inspector.embed([order.picture.small])[0] if verdict.product is None else None


def _as_news(
    order: Order, verdict: Verdict, head: str | None, embedding: NDArray[np.float32] | None
) -> NewInspection:
    values = verdict.as_dict()
    picture, peak = (None, None) if verdict.anomaly_map is None else _encode(verdict)
    return NewInspection(
        label=verdict.label,
        product=verdict.product,
        head=head,
        score=values["score"],
        threshold=values["threshold"],
        nearest=verdict.nearest,
        distance=values["distance"],
        source=order.source,
        reference=order.reference,
        width=order.picture.width,
        height=order.picture.height,
        timings=values["timings_ms"],
        data=order.picture.data,
        suffix=suffix(order.picture.data),
        map=picture,
        map_peak=peak,
        embedding=embedding,
        origin=order.origin,
        origin_mtime_ns=order.origin_mtime_ns,
        key=order.key,
        fingerprint=order.fingerprint,
    )


def _encode(verdict: Verdict) -> tuple[bytes, float]:
    """The anomaly map as 8-bit PNG, and what its 255 stands for: the highest value, or the threshold."""
    assert verdict.anomaly_map is not None  # noqa: S101  -- an unknown product's verdict does not come here
    peak = max(float(verdict.anomaly_map.max()), verdict.threshold, 1e-12)
    values = Image.fromarray((verdict.anomaly_map * (255 / peak)).round().clip(0, 255).astype(np.uint8))
    if values.width > MAP_SIDE:
        values = values.resize((MAP_SIDE, MAP_SIDE), Image.Resampling.BOX)
    stream = io.BytesIO()
    values.save(stream, "PNG", compress_level=1)
    return stream.getvalue(), peak


def _refuse(futures: Sequence[Future[Any]], error: Exception) -> None:
    """Answer with a failure; what no user can cause says so."""
    for future in futures:
        future.set_exception(error)
