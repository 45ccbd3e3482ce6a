"""The queue of inspections: workers inspect, one thread stores what they find, and then it is answered."""

from __future__ import annotations

import io
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice, takewhile
from typing import TypeVar

import numpy as np
import torch
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

WORKERS = 8
BATCH = 8
"""Inspections that are stored together at most."""

UNSTORED = 16
"""Images that are inspected and not stored yet, at most; a slow disk holds the workers up."""

PATIENCE = 32
"""Inspections that an errand waits for at most."""

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


def suffix(data: bytes) -> str:
    """The file name suffix of an encoded picture that was decoded before."""
    return next(each for start, each in SUFFIXES.items() if data.startswith(start))


@dataclass(eq=False)
class _Task:
    """An order under way; it stays in its place until what became of it is stored."""

    order: Order
    future: Future[Inspection]
    began: float
    is_alone: bool
    is_over: bool = False
    news: NewInspection | None = None


class Inspecting:
    """Inspects what waits, in the order in which it came, as many images at a time as there are cores.

    An order is done when its inspection is in the history, on the disk: what was inspected is stored, all
    that there is together, while the next images are being inspected.

    An image that is alone has all cores; of several, each has one, since the cores do more for several images
    than for one, in a batch or not.

    Args:
        inspector: of the bank; used by the workers alone.
        history: where inspections go.
        limit: orders that wait at most.
        report: told what was stored, in the storing thread.
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
        self._cores = torch.get_num_threads()
        self._orders: deque[tuple[Order, Future[Inspection]]] = deque()
        self._tasks: deque[_Task] = deque()
        self._errands: deque[Callable[[Inspector], None]] = deque()
        self._changed = threading.Condition()
        self._is_ending = False
        self._patience = PATIENCE
        self._pace = 0.05  # seconds per image, smoothed
        self._threads = [threading.Thread(target=self._store, name="storing", daemon=True)]

    def start(self) -> None:
        """Begin to work."""
        inspectors = [self._inspector]
        while len(inspectors) < min(self._cores, WORKERS):
            inspectors.append(Inspector.open(self._inspector.bank.path))
        self._threads += [
            threading.Thread(target=self._work, args=(each,), name=f"inspecting {number}", daemon=True)
            for number, each in enumerate(inspectors)
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Inspect what waits, refuse what comes, and end."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.ident:
                thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the workers work."""
        return all(thread.is_alive() for thread in self._threads)

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
        """Call with an inspector when no inspection waits, or after a few; for short work."""
        future: Future[T] = Future()

        def run(inspector: Inspector) -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call(inspector))
                except BaseException as error:
                    future.set_exception(error)

        with self._changed:
            if self._is_ending:
                future.cancel()
            else:
                self._errands.append(run)
            self._changed.notify_all()
        return future

    def _work(self, inspector: Inspector) -> None:
        while (work := self._next()) is not None:
            if not isinstance(work, _Task):
                work(inspector)
                continue
            torch.set_num_threads(self._cores if work.is_alone else 1)  # of this thread
            try:
                work.news = _examine(inspector, work.order)
            except Exception as error:
                work.future.set_exception(error)
            with self._changed:
                work.is_over = True
                self._changed.notify_all()

    def _next(self) -> _Task | Callable[[Inspector], None] | None:
        """Wait for work; none comes when the workers have to end."""
        with self._changed:
            while True:
                if self._errands and (self._patience == 0 or not (self._orders or self._tasks)):
                    self._patience = PATIENCE
                    return self._errands.popleft()
                if self._orders and len(self._tasks) < UNSTORED:
                    self._patience -= bool(self._errands)
                    order, future = self._orders.popleft()
                    if future.set_running_or_notify_cancel():
                        is_alone = not self._orders and all(task.is_over for task in self._tasks)
                        self._tasks.append(_Task(order, future, time.perf_counter(), is_alone))
                        return self._tasks[-1]
                elif self._is_ending and not (self._orders or self._errands):
                    return None
                else:
                    self._changed.wait()

    def _store(self) -> None:
        """Store what was inspected, in the order in which it came, and answer."""
        last = 0.0
        while batch := self._inspected():
            if found := [task for task in batch if task.news]:
                self._keep(found)
            now = time.perf_counter()
            self._pace += 0.2 * ((now - max(last, batch[0].began)) / len(batch) - self._pace)
            last = now
            with self._changed:
                for _ in batch:
                    self._tasks.popleft()
                self._changed.notify_all()

    def _inspected(self) -> list[_Task]:
        """Wait for tasks that are over and have none before them that is not."""
        with self._changed:
            while not (self._tasks and self._tasks[0].is_over):
                if self._is_ending and not (self._tasks or self._orders):
                    return []
                self._changed.wait()
            return list(takewhile(lambda task: task.is_over, islice(self._tasks, BATCH)))

    def _keep(self, tasks: list[_Task]) -> None:
        """Store inspections and answer; one that uses another's key must not take the others along."""
        try:
            stored = self._history.add([task.news for task in tasks if task.news])
        except ConflictError as error:
            if len(tasks) == 1:
                tasks[0].future.set_exception(error)
            else:
                for task in tasks:
                    self._keep([task])
        except Exception as error:
            for task in tasks:
                task.future.set_exception(error)
        else:
            for inspection, task in zip(stored, tasks, strict=True):
                task.future.set_result(inspection)
            self._report(stored)


def _examine(inspector: Inspector, order: Order) -> NewInspection:
    """Inspect an image."""
    image: ImageSource = order.picture.small
    verdict = inspector.inspect(image, product=order.product, reject_unknown=order.reject_unknown)
    product = inspector.products.get(verdict.product or "")
    embedding = inspector.embed([image])[0] if verdict.product is None else None  # tells unknown ones apart
    return _as_news(order, verdict, None if product is None else product.sha256, embedding)


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
