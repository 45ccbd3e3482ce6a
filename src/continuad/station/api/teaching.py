"""Teaching: photo sets, the jobs that learn from them, and unknown images that may become a product."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from continuad.station.api import models
from continuad.station.api.common import (
    IMAGE_BODY,
    Actor,
    Key,
    Route,
    StationHere,
    Width,
    in_thread,
    uploaded,
)
from continuad.station.classroom import Lesson
from continuad.station.security import fingerprint

router = APIRouter(tags=["teaching"], route_class=Route)

SetId = Annotated[str, Path(pattern="^[0-9a-f]{16,32}$")]
PhotoId = Annotated[int, Path(ge=1, lt=2**63)]
JobId = Annotated[str, Path(pattern="^[0-9a-f]{16,32}$")]


@router.post("/photo-sets", status_code=201, response_model=models.PhotoSet)
def create_set(station: StationHere) -> dict[str, Any]:
    """Begin a set of photos of one product."""
    return station.classroom.describe(station.photo_sets.create())


@router.get("/photo-sets/{photo_set}", response_model=models.PhotoSet)
def read_set(station: StationHere, photo_set: SetId) -> dict[str, Any]:
    """The photos of a set, and what may be wrong with them as far as they were examined."""
    return station.classroom.describe(photo_set)


@router.delete("/photo-sets/{photo_set}", status_code=204)
def discard_set(station: StationHere, photo_set: SetId) -> None:
    """Remove a set and its photos."""
    station.photo_sets.discard(photo_set)


@router.post(
    "/photo-sets/{photo_set}/photos",
    status_code=201,
    response_model=models.Photo,
    openapi_extra=IMAGE_BODY,
)
async def add_photo(
    request: Request,
    station: StationHere,
    photo_set: SetId,
    called: Annotated[
        str, Query(alias="name", max_length=200, description="The file's name, to speak of it.")
    ] = "",
) -> dict[str, Any]:
    """Add a photo; the same photo of the same name is added once, however often it is sent."""
    async with uploaded(request) as data:
        picture = await station.preparing.prepare(data)
        return await in_thread(station.classroom.add, photo_set, picture, called)


@router.delete("/photo-sets/{photo_set}/photos/{photo}", status_code=204)
def remove_photo(station: StationHere, photo_set: SetId, photo: PhotoId) -> None:
    """Take a photo out of its set."""
    station.photo_sets.remove(photo_set, photo)


@router.get(
    "/photo-sets/{photo_set}/photos/{photo}/picture",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}}},
)
def photo_picture(station: StationHere, photo_set: SetId, photo: PhotoId, width: Width = None) -> Response:
    """A photo, as any browser shows it."""
    data = station.photo_sets.thumbnail(photo_set, photo, width)
    return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=86400"})


@router.post("/teachings", status_code=202, response_model=models.Job)
def teach(station: StationHere, wish: models.Teaching, actor: Actor, key: Key = None) -> dict[str, Any]:
    """Teach a product from a photo set, or from pictures of the history; other products are not touched."""
    lesson = Lesson(
        name=wish.name,
        photo_set=wish.photo_set,
        inspections=tuple(wish.inspections or ()),
        false_alarm_rate=wish.false_alarm_rate,
        replace=wish.replace,
        actor=actor,
    )
    mark = fingerprint("teach", wish.model_dump_json())
    return station.classroom.teach(lesson, key=key, fingerprint=mark).as_dict()


@router.get("/jobs", response_model=models.Jobs)
def jobs(station: StationHere) -> dict[str, Any]:
    """The latest jobs, newest first."""
    return {"items": [job.as_dict() for job in station.jobs.latest()]}


@router.get("/jobs/{job}", response_model=models.Job)
def read_job(station: StationHere, job: JobId) -> dict[str, Any]:
    """How far a job is."""
    return station.jobs.get(job).as_dict()


@router.post("/jobs/{job}/cancel", response_model=models.Job)
def cancel(station: StationHere, job: JobId) -> dict[str, Any]:
    """End a job that waits or runs; one that is over stays as it is."""
    return station.teaching.cancel(job).as_dict()


@router.get("/unknown", response_model=models.Unknown)
def unknown(station: StationHere) -> dict[str, Any]:
    """Images that match no product, those that look alike together."""
    return station.classroom.unknown()


@router.post("/unknown/dismiss", status_code=204)
def dismiss(station: StationHere, wish: models.Dismissal, actor: Actor) -> None:
    """Unknown images that need no product."""
    station.history.settle(wish.inspections)
    station.audit.record(
        None, actor=actor, action="dismiss", subject="unknown", detail={"inspections": wish.inspections}
    )
    station.events.publish("status", {})
