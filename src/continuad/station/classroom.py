"""From photos to a job: photos are examined as they come, and a lesson is checked before it is queued."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from continuad.errors import ContinuadError, ImageError
from continuad.images import load_image
from continuad.inspector import ADVISED_IMAGES, MIN_IMAGES, Inspector
from continuad.inspector.calibration import check_false_alarm_rate
from continuad.inspector.product import check_name
from continuad.station.database import as_text
from continuad.station.faults import ConflictError
from continuad.station.grouping import group
from continuad.station.history import History
from continuad.station.inspecting import Inspecting
from continuad.station.jobs import Job, Jobs
from continuad.station.photo_sets import PhotoSets
from continuad.station.pictures import Pictures
from continuad.station.preparing import Prepared
from continuad.station.quality import check
from continuad.station.traits import examine

SHOWN = 200
"""Images of one unknown group that are named."""


@dataclass(frozen=True)
class Lesson:
    """What is to be taught.

    Attributes:
        name: of the product.
        photo_set: the photos; or
        inspections: pictures of the history.
        false_alarm_rate: share of good parts that may be called anomalous.
        replace: teach a known product anew.
        actor: who wants it.
    """

    name: str
    photo_set: str | None
    inspections: tuple[int, ...]
    false_alarm_rate: float
    replace: bool
    actor: str


class Classroom:
    """Collects what products will be taught from.

    Args:
        inspector: of the bank; asked what it knows, and by the worker for embeddings.
        inspecting: the worker, which looks at photos when no inspection waits.
        history: whose pictures may be taught from.
        pictures: of the history.
        photo_sets: the photos.
        jobs: where lessons are queued.
        max_photos: of one set.
        wake: tells the teaching thread that there is a job.
    """

    def __init__(
        self,
        inspector: Inspector,
        *,
        inspecting: Inspecting,
        history: History,
        pictures: Pictures,
        photo_sets: PhotoSets,
        jobs: Jobs,
        max_photos: int,
        wake: Callable[[], None],
    ) -> None:
        self._inspector, self._inspecting = inspector, inspecting
        self._history, self._pictures = history, pictures
        self._photo_sets, self._jobs = photo_sets, jobs
        self._max_photos, self._wake = max_photos, wake
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="examining")

    def start(self) -> None:
        """Examine what was not examined when the station ended."""
        for photo_set, photo in self._photo_sets.unexamined():
            self._pool.submit(self._examine, photo_set, photo)

    def stop(self) -> None:
        """Leave what was not examined for the next start."""
        self._pool.shutdown(cancel_futures=True)

    def add(self, photo_set: str, picture: Prepared, name: str) -> dict[str, Any]:
        """Add a photo to a set; it is examined soon.

        Raises:
            StationError: there is no such set, or it is full.
        """
        photo = self._photo_sets.add(photo_set, picture.data, name, max_photos=self._max_photos)
        if photo.traits is None:
            self._pool.submit(self._examine, photo_set, photo.id)
        values = ("id", "name", "width", "height", "bytes")
        return {each: getattr(photo, each) for each in values}

    def _examine(self, photo_set: str, photo: int) -> None:
        """Measure a photo; one that was removed meanwhile does not matter."""
        try:
            image = load_image(self._photo_sets.picture(photo_set, photo))
            embed = self._inspecting.when_idle(lambda inspector: inspector.embed([image])[0])
            traits = examine(image, embed.result())
            self._photo_sets.keep_traits(photo_set, photo, traits.to_bytes())
        except (ContinuadError, CancelledError):
            return

    def describe(self, photo_set: str) -> dict[str, Any]:
        """A photo set as plain values for JSON, with what may be wrong with its photos.

        Raises:
            StationError: there is none.
        """
        found = self._photo_sets.get(photo_set)
        bank = self._inspector.bank
        learnt = {
            product.name: (bank.prototype(product), product.limit)
            for product in bank.manifest().products.values()
        }
        report = check(found.photos, learnt)
        return {
            "id": found.id,
            "created": as_text(found.created),
            "photos": [
                {
                    **{each: getattr(photo, each) for each in ("id", "name", "width", "height", "bytes")},
                    "warnings": [vars(warning) for warning in report.photos.get(photo.id, ())],
                }
                for photo in found.photos
            ],
            "warnings": [vars(warning) for warning in report.warnings],
            "examined": report.examined,
            "minimum": MIN_IMAGES,
            "advised": ADVISED_IMAGES,
            "ready": len(found.photos) >= MIN_IMAGES,
        }

    def teach(self, lesson: Lesson, *, key: str | None, fingerprint: str) -> Job:
        """Queue a lesson.

        Raises:
            ContinuadError: the name cannot be used, or there are too few photos.
        """
        if key is not None and (earlier := self._jobs.made_by(key, fingerprint)):
            return earlier
        name = check_name(lesson.name)
        check_false_alarm_rate(lesson.false_alarm_rate)
        manifest = self._inspector.bank.manifest()
        if name in manifest.archived:
            raise ConflictError(f"{name!r} is archived.", "Restore it, or choose another name.")
        known = manifest.products.get(name)
        if known is not None and not lesson.replace:
            raise ConflictError(
                f"There is a product {name!r} already.", "Choose another name, or replace it."
            )
        photo_set, photos = self._collect(lesson)
        request = {
            "photo_set": photo_set,
            "inspections": list(lesson.inspections),
            "photos": photos,
            "false_alarm_rate": lesson.false_alarm_rate,
            "replace": lesson.replace,
            "replaces": None if known is None else known.sha256,
            "actor": lesson.actor,
        }
        job = self._jobs.create(kind="teach", product=name, request=request, key=key, fingerprint=fingerprint)
        self._wake()
        return job

    def _collect(self, lesson: Lesson) -> tuple[str, int]:
        """The photo set of a lesson, made of pictures of the history if need be, and how many there are."""
        if (lesson.photo_set is None) == (not lesson.inspections):
            raise ConflictError(
                "A product is taught from a photo set, or from inspections.", "Give one of the two."
            )
        if lesson.photo_set is not None:
            count = len(self._photo_sets.get(lesson.photo_set).photos)
            _check_enough(count)
            return lesson.photo_set, count
        found = [self._history.get(each) for each in dict.fromkeys(lesson.inspections)]
        kept = [each for each in found if each.picture is not None]
        _check_enough(len(kept), gone=len(found) - len(kept))
        photo_set = self._photo_sets.create()
        try:
            for each in kept:
                data = self._pictures.read(each.picture or "")
                self._photo_sets.add(photo_set, data, f"inspection {each.id}", max_photos=self._max_photos)
        except BaseException:
            self._photo_sets.discard(photo_set)
            raise
        return photo_set, len(kept)

    def unknown(self) -> dict[str, Any]:
        """Unknown images by similarity, as plain values for JSON; the largest group first."""
        found = self._history.unknowns()
        if not found:
            return {"total": 0, "groups": []}
        groups = group(np.stack([embedding for _, embedding in found]))
        shown = []
        for members in groups:
            alike = [found[index][0] for index in members]
            nearest = Counter(each.nearest for each in alike).most_common(1)[0][0]
            ids = sorted((each.id for each in alike), reverse=True)[:SHOWN]
            shown.append({"size": len(members), "nearest": nearest, "inspections": ids})
        return {"total": self._history.unknown_count(), "groups": shown}


def _check_enough(count: int, *, gone: int = 0) -> None:
    if count < MIN_IMAGES:
        lost = f"; {gone} more were removed to save space" if gone else ""
        raise ImageError(
            f"{count} photos are too few to teach a product{lost}.",
            f"Give at least {MIN_IMAGES}, better {ADVISED_IMAGES}.",
        )
