"""The station put together: a bank, a history, and the threads that inspect, teach, deliver and tidy up."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sql
from filelock import FileLock, Timeout
from sqlalchemy.exc import SQLAlchemyError

from continuad import __version__
from continuad.durable import write_whole
from continuad.errors import ContinuadError, StationError
from continuad.inspector import Inspector
from continuad.station.audit import Audit
from continuad.station.catalogue import Catalogue
from continuad.station.classroom import Classroom
from continuad.station.database import Database
from continuad.station.deliveries import Deliveries, Target
from continuad.station.events import Events
from continuad.station.history import History, Inspection
from continuad.station.inspecting import Inspecting
from continuad.station.jobs import OVER, Job, Jobs
from continuad.station.live import Live
from continuad.station.metrics import Metrics
from continuad.station.mqtt_target import MqttTarget
from continuad.station.photo_sets import PhotoSets
from continuad.station.pictures import Pictures
from continuad.station.preparing import Preparing
from continuad.station.retention import RULE, Retention
from continuad.station.settings import StationSettings
from continuad.station.teaching import Teaching
from continuad.station.webhook import WebhookTarget

TIDY_SECONDS = 30.0
"""Between two looks at the disk budget."""

PHOTO_SET_SECONDS = 7 * 24 * 3600
"""How long photos stay that no product was taught from."""

Note = Callable[[str], None]


class Station:
    """Everything that a station consists of, but for how clients reach it.

    Args:
        settings: of the station.
        note: told what whoever runs it should know, from any thread.

    Raises:
        ContinuadError: the bank, the database, the source or an address cannot be used, or another station
            uses the folder.
    """

    def __init__(self, settings: StationSettings, *, note: Note) -> None:
        self.settings = settings
        self._lock = _lock(settings.place)
        try:
            self._open(settings, note)
        except BaseException:
            self._lock.release()
            raise

    def _open(self, settings: StationSettings, note: Note) -> None:
        path = settings.bank.absolute()
        exists = path.exists() and any(path.iterdir())
        self.inspector = Inspector.open(path) if exists else Inspector.create(path)
        place = settings.place
        self.database = Database(
            settings.database or place / "station.db",
            owner=_identity(place),
            may_be_new=not (place / "pictures").exists(),
        )
        self.pictures = Pictures(place / "pictures")
        self.photo_sets = PhotoSets(self.database, place / "photos")
        targets = _targets(settings)
        self.history = History(self.database, self.pictures, list(targets))
        self.audit = Audit(self.database)
        self.retention = Retention(self.database, self.pictures, settings.budget)
        self.deliveries = Deliveries(self.database, targets, note=note)
        self.catalogue = Catalogue(self.inspector, self.history, self.audit, self.database)
        self.events = Events()
        self.metrics = Metrics(self._gauges)
        self.jobs = Jobs(self.database)
        self.inspecting = Inspecting(
            self.inspector, self.history, limit=settings.limits.queue, report=self._inspected
        )
        self.preparing = Preparing(self.inspector.image_size, settings.limits)
        self.teaching = Teaching(
            path,
            self.inspector,
            self.jobs,
            files=self.photo_sets.files,
            report=self._job_changed,
            learnt=self._learnt,
        )
        self.classroom = Classroom(
            self.inspector,
            inspecting=self.inspecting,
            history=self.history,
            pictures=self.pictures,
            photo_sets=self.photo_sets,
            jobs=self.jobs,
            max_photos=settings.limits.photos,
            wake=self.teaching.wake,
        )
        self.live = self._live(settings)
        self._usage = (float("-inf"), self.retention.usage())
        self._note = note
        self._is_ending = threading.Event()
        self._tidying = threading.Thread(target=self._tidy, name="tidying", daemon=True)

    def _live(self, settings: StationSettings) -> Live | None:
        if settings.watch is None:
            return None
        return Live(
            settings.watch,
            every=settings.every,
            inspecting=self.inspecting,
            history=self.history,
            size=self.inspector.image_size,
            report=lambda: self.events.publish("status", {}),
        )

    def start(self) -> None:
        """Take up what was left unfinished, and begin."""
        self.catalogue.settle_renames()
        self.pictures.sweep(self.history.pictures_of)
        self.photo_sets.sweep()
        parts = (self.inspecting, self.classroom, self.teaching, self.deliveries, self._tidying, self.live)
        for part in parts:
            if part is not None:
                part.start()

    def stop(self) -> None:
        """Finish the inspections that wait, interrupt what can go on later, and close everything."""
        self._is_ending.set()
        for part in (self.live, self.teaching, self.inspecting, self.classroom, self.deliveries):
            if part is not None:
                part.stop()
        if self._tidying.ident:
            self._tidying.join()
        self.preparing.close()
        self.database.close()
        self._lock.release()

    def status(self) -> dict[str, Any]:
        """How the station is, as plain values for JSON."""
        manifest, limits = self.inspector.bank.manifest(), self.settings.limits
        return {
            "version": __version__,
            "bank": self.settings.bank.name,
            "backbone": manifest.backbone["name"],
            "image_size": manifest.image_size,
            "products": len(manifest.products),
            "queue": {"waiting": self.inspecting.waiting, "limit": limits.queue},
            "storage": {**vars(self.usage()), "rule": RULE},
            "deliveries": [vars(target) for target in self.deliveries.status()],
            "watch": self.live
            and {"source": self.live.name, "note": self.live.note, "inspected": self.live.inspected},
            "limits": {"bytes": limits.bytes, "pixels": limits.pixels, "photos": limits.photos},
            "needs_token": self.settings.token is not None,
        }

    def usage(self) -> Any:
        """What the pictures take, as of a few seconds ago."""
        then, usage = self._usage
        if time.monotonic() - then > 5:
            usage = self.retention.usage()
            self._usage = time.monotonic(), usage
        return usage

    def checks(self) -> dict[str, str]:
        """Whether the station can inspect: by part, "ok" or what is wrong."""
        return {
            "database": _checked(lambda: self._ask_database()),
            "bank": _checked(lambda: self.inspector.bank.manifest()),
            "inspection": "ok" if self.inspecting.is_alive else "The inspecting thread has ended.",
        }

    def _ask_database(self) -> None:
        with self.database.read() as connection:
            connection.execute(sql.select(1))

    def _inspected(self, inspections: Sequence[Inspection]) -> None:
        self.deliveries.wake()
        self.metrics.inspected(inspections)
        for inspection in inspections:
            self.events.publish("inspection", inspection.as_dict())

    def _job_changed(self, job: Job) -> None:
        self.events.publish("job", job.as_dict())
        if job.state in OVER:
            self.metrics.ended(job.state)

    def _learnt(self, job: Job) -> None:
        """Note that the bank knows a job's product; its photos are not needed any more."""
        self.history.settle(job.request["inspections"])
        self.photo_sets.discard(job.request["photo_set"])
        detail = {key: job.request[key] for key in ("false_alarm_rate", "replace", "photos")}
        actor = job.request["actor"]
        self.audit.record(None, actor=actor, action="teach", subject=job.product, detail=detail)
        self.events.publish("products", {})

    def _tidy(self) -> None:
        """Keep to the disk budget, and remove photos that nobody wants."""
        while not self._is_ending.is_set():
            try:
                self.retention.enforce()
                self.photo_sets.expire(PHOTO_SET_SECONDS)
            except (SQLAlchemyError, OSError) as error:
                self._note(f"The disk could not be tidied up: {error}")
            self._is_ending.wait(TIDY_SECONDS)

    def _gauges(self) -> Iterator[tuple[str, str, dict[str, str], float]]:
        usage, manifest = self.usage(), self.inspector.bank.manifest()
        yield "continuad_queue_waiting", "Images that wait for their inspection.", {}, self.inspecting.waiting
        yield "continuad_products", "Products.", {"state": "active"}, len(manifest.products)
        yield "continuad_products", "Products.", {"state": "archived"}, len(manifest.archived)
        yield "continuad_pictures_bytes", "What the pictures of the history take.", {}, usage.bytes
        yield "continuad_pictures_budget_bytes", "What they may take.", {}, usage.budget
        yield "continuad_disk_free_bytes", "What is free on their disk.", {}, usage.free
        for target in self.deliveries.status():
            name = {"target": target.target}
            yield "continuad_deliveries_waiting", "Verdicts that wait for delivery.", name, target.waiting
            yield "continuad_deliveries_dropped", "Verdicts that were dropped.", name, target.dropped


def _targets(settings: StationSettings) -> dict[str, Target]:
    found: dict[str, Target] = {}
    if settings.mqtt is not None:
        found["mqtt"] = MqttTarget(settings.mqtt)
    if settings.webhook is not None:
        found["webhook"] = WebhookTarget(settings.webhook, secret=settings.webhook_secret)
    return found


def _lock(folder: Path) -> FileLock:
    """Hold the station's folder for this process."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout as error:
        raise StationError(
            f"Another station uses {folder}.", "End it, or give this one a folder of its own."
        ) from error
    except OSError as error:
        raise StationError(
            f"{folder} cannot be written ({error.strerror}).", "Check the path and its permissions."
        ) from error
    return lock


def _identity(folder: Path) -> str:
    """What the database must know of this folder: pictures that a database does not name are removed."""
    file = folder / "identity"
    if not file.exists():
        write_whole(file, secrets.token_hex(16).encode())
    return file.read_text()


def _checked(call: Callable[[], object]) -> str:
    try:
        call()
    except (ContinuadError, SQLAlchemyError) as error:
        return str(error).splitlines()[0]
    return "ok"
