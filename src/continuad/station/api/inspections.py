"""Inspecting, and the history of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from continuad.station.api import models
from continuad.station.api.common import (
    IMAGE_BODY,
    Before,
    Key,
    Limit,
    Route,
    StationHere,
    Wanted,
    Width,
    in_thread,
    uploaded,
)
from continuad.station.exporting import csv_stream, parquet_stream, zip_stream
from continuad.station.faults import GoneError, NotFoundError
from continuad.station.inspecting import Order
from continuad.station.records import Filter, Inspection
from continuad.station.security import fingerprint
from continuad.station.station import Station

router = APIRouter(tags=["inspections"], route_class=Route)

InspectionId = Annotated[int, Path(ge=1, lt=2**63)]
GONE: dict[int | str, dict[str, Any]] = {
    410: {"model": models.Problem, "description": "Retention has removed the picture."}
}
SHOWN = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp", ".bmp": "image/bmp"}
PICTURE: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {"schema": {"type": "string", "format": "binary"}}}}
}
MAP: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/png": {"schema": {"type": "string", "format": "binary"}}}}
}


@router.post(
    "/inspections",
    status_code=201,
    response_model=models.Inspection,
    openapi_extra=IMAGE_BODY,
)
async def inspect(
    request: Request,
    station: StationHere,
    product: Annotated[
        str | None, Query(max_length=80, description="Id or name; by default it is recognised.")
    ] = None,
    nearest: Annotated[bool, Query(description="Inspect unknown images as the nearest product.")] = False,
    reference: Annotated[str, Query(max_length=200, description="Your name for the part.")] = "",
    source: Literal["api", "page"] = "api",
    key: Key = None,
) -> dict[str, Any]:
    """Inspect an image; the answer comes when the inspection is stored."""
    async with uploaded(request) as data:
        mark = await in_thread(fingerprint, data, product or "", str(nearest), reference, source)
        if key is not None and (made := await in_thread(station.history.made_by, key, mark)):
            return made.as_dict()
        station.inspecting.check_room()
        order = Order(
            await station.preparing.prepare(data),
            product=None if product is None else await in_thread(station.catalogue.named, product),
            reject_unknown=not nearest,
            source=source,
            reference=reference,
            key=key,
            fingerprint=mark,
        )
        inspection = await asyncio.wrap_future(station.inspecting.submit(order))
    return inspection.as_dict()


@router.get("/inspections", response_model=models.Inspections)
def history(station: StationHere, wanted: Wanted, before: Before = None, limit: Limit = 50) -> dict[str, Any]:
    """Inspections, newest first."""
    found = station.history.page(wanted, before=before, limit=limit)
    return {
        "items": [inspection.as_dict() for inspection in found],
        "next": found[-1].id if len(found) == limit else None,
    }


@router.get("/inspections/{number}", response_model=models.Inspection)
def inspection(station: StationHere, number: InspectionId) -> dict[str, Any]:
    """One inspection."""
    return station.history.get(number).as_dict()


@router.get("/inspections/{number}/picture", response_class=Response, responses={**PICTURE, **GONE})
def picture(
    station: StationHere,
    number: InspectionId,
    width: Width = None,
    original: Annotated[bool, Query(description="The bytes as they came.")] = False,
) -> Response:
    """The picture of an inspection, as any browser shows it."""
    name = _picture_of(station.history.get(number))
    suffix = name[name.rindex(".") :]
    if original or (width is None and suffix in SHOWN):
        kind = SHOWN.get(suffix, "application/octet-stream")
        return _unchanging(station.pictures.read(name), kind)
    return _unchanging(station.pictures.thumbnail(name, width), "image/jpeg")


@router.get(
    "/inspections/{number}/map",
    response_class=Response,
    responses={**MAP, **GONE},
)
def map_(station: StationHere, number: InspectionId) -> Response:
    """The anomaly map, 8-bit grey and square: to be stretched over the picture; 255 is `map_peak`."""
    found = station.history.get(number)
    if found.label == "unknown":
        raise NotFoundError("An image of no known product has no anomaly map.", "Look at its picture.")
    data = station.history.map(number)
    if data is None:
        raise GoneError("The anomaly map was removed to save space.", "Raise the disk budget to keep more.")
    return _unchanging(data, "image/png")


@router.put("/inspections/{number}/truth", response_model=models.Inspection)
def correct(station: StationHere, number: InspectionId, correction: models.Correction) -> dict[str, Any]:
    """Say what the part was, or take it back with null."""
    changed = station.history.set_truth(number, correction.truth).as_dict()
    station.events.publish("inspection", changed)
    return changed


@router.get("/history.csv", response_class=Response, responses={200: {"content": {"text/csv": {}}}})
def as_csv(station: StationHere, wanted: Wanted) -> StreamingResponse:
    """Inspections as a table."""
    return _download(csv_stream(station.history.walk(wanted)), "text/csv; charset=utf-8", "history.csv")


@router.get(
    "/history.parquet",
    response_class=Response,
    responses={200: {"content": {"application/vnd.apache.parquet": {}}}},
)
def as_parquet(station: StationHere, wanted: Wanted) -> StreamingResponse:
    """Inspections as a table for data frames."""
    stream = parquet_stream(station.history.walk(wanted))
    return _download(stream, "application/vnd.apache.parquet", "history.parquet")


@router.get("/history.zip", response_class=Response, responses={200: {"content": {"application/zip": {}}}})
def as_zip(station: StationHere, wanted: Wanted) -> StreamingResponse:
    """Inspections as a table, and their pictures."""
    return _download(_zipped(station, wanted), "application/zip", "history.zip")


def _zipped(station: Station, wanted: Filter) -> Iterator[bytes]:
    return zip_stream(station.history.walk(wanted), station.pictures)


def _picture_of(found: Inspection) -> str:
    if found.picture is None:
        raise GoneError("The picture was removed to save space.", "Raise the disk budget to keep more.")
    return found.picture


def _unchanging(data: bytes, kind: str) -> Response:
    """What a browser need not ask for again."""
    return Response(data, media_type=kind, headers={"Cache-Control": "private, max-age=86400, immutable"})


def _download(stream: Iterator[bytes], kind: str, name: str) -> StreamingResponse:
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(stream, media_type=kind, headers=headers)
