"""What every part of the API shares: how it reaches the station, receives images and says what went wrong."""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

from fastapi import Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as NoConnectionError
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Message

from continuad.errors import BankError, ContinuadError, ImageError, ProductError, SettingsError, StationError
from continuad.station.api.models import Problem
from continuad.station.faults import ConflictError, GoneError, NotFoundError
from continuad.station.inspecting import QueueFullError
from continuad.station.records import Filter
from continuad.station.security import Inflow, RefusedRequestError, actor
from continuad.station.station import Station

AWAY_SECONDS = 2
"""After which a database that is away is worth another try."""

JSON_BYTES = 2**20
"""Far more than any request needs that is no upload."""

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The request cannot be understood.",
        401: "A token is needed.",
        403: "Another web page has sent this.",
        404: "There is no such thing.",
        408: "The request took too long to arrive.",
        409: "It does not fit what the station knows.",
        413: "The request is too large.",
        421: "This address is not the station's.",
        422: "A value cannot be used.",
        429: "Too many requests; see Retry-After.",
        500: "A fault of the station.",
        503: "Not now; see Retry-After.",
        507: "The disk is full.",
    }.items()
}
IMAGE_BODY = {
    "requestBody": {
        "required": True,
        "description": "The image as a file: PNG, JPEG, BMP, TIFF, WebP or PPM.",
        "content": {
            kind: {"schema": {"type": "string", "format": "binary"}}
            for kind in ("application/octet-stream", "image/*")
        },
    }
}

T = TypeVar("T")


def station_of(request: Request) -> Station:
    """The station that a request came to."""
    found: Station = request.app.state.station
    return found


def actor_of(request: Request) -> str:
    """Whom the audit log names."""
    return actor(request.headers, request.client.host if request.client else None)


StationHere = Annotated[Station, Depends(station_of)]
Actor = Annotated[str, Depends(actor_of)]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="A request that is repeated with the same key has one effect.",
    ),
]
Before = Annotated[int | None, Query(ge=1, lt=2**63, description="Only what is older than this id.")]
Limit = Annotated[int, Query(ge=1, le=200)]
Width = Annotated[int | None, Query(ge=16, le=4096, description="Scaled down to this many pixels.")]


@asynccontextmanager
async def uploaded(request: Request, *, most: int | None = None) -> AsyncIterator[bytes]:
    """The body of a request, of `most` bytes or as much as an image; counted as held until the block ends.

    Raises:
        RefusedRequestError: it is too large or too slow, or too much is held already.
    """
    inflow: Inflow = request.app.state.inflow
    async with inflow.receive(request.headers, request.stream(), most=most) as data:
        yield data


class Route(APIRoute):
    """Takes no JSON that is larger or slower than it has to be."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle

        async def handle_small(request: Request) -> Response:
            async with uploaded(request, most=JSON_BYTES) as data:

                async def receive() -> Message:
                    return {"type": "http.request", "body": data, "more_body": False}

                return await handle(Request(request.scope, receive))

        return handle_small


def filter_of(
    product: Annotated[str | None, Query(max_length=80)] = None,
    label: Annotated[str | None, Query(pattern="^(normal|anomalous|unknown)$")] = None,
    truth: Annotated[str | None, Query(pattern="^(good|bad|any|none)$")] = None,
    since: Annotated[datetime | None, Query(description="Not before this time.")] = None,
    until: Annotated[datetime | None, Query(description="Before this time.")] = None,
) -> Filter:
    """Which inspections are asked for."""
    return Filter(product, label, truth, _microseconds(since), _microseconds(until))


Wanted = Annotated[Filter, Depends(filter_of)]


def _microseconds(moment: datetime | None) -> int | None:
    """A time as it is stored; without a time zone it is UTC."""
    if moment is None:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    epoch = datetime(1970, 1, 1, tzinfo=UTC)
    return int((moment - epoch).total_seconds() * 1e6)


async def in_thread(call: Callable[..., T], *args: Any, **options: Any) -> T:
    """Call what waits for a disk or a database, without holding up others."""
    return await run_in_threadpool(call, *args, **options)


def add_failures(app: FastAPI) -> None:
    """Answer each failure with its status, what is wrong, and what to do."""

    async def known(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ContinuadError)  # noqa: S101  -- registered for it
        seconds = error.seconds if isinstance(error, QueueFullError | RefusedRequestError) else None
        return _answer(_status(error), error.problem, error.remedy, seconds)

    async def invalid(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        return _answer(422, f"{place}: {first['msg']}.", "See /api/openapi.json for what is expected.")

    async def unrouted(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        answer = _answer(error.status_code, f"{error.detail}.", "See /api/openapi.json for what there is.")
        answer.headers.update(error.headers or {})
        return answer

    async def disk(_request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, OSError)  # noqa: S101
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _answer(507, "The disk is full; nothing was stored.", "Free some space, and try again.")
        return _answer(500, f"The disk does not work ({error.strerror}).", "Look at the station's machine.")

    async def database(_request: Request, _error: Exception) -> JSONResponse:
        return _answer(
            503, "The database cannot be reached; nothing was stored.", "Try again soon.", AWAY_SECONDS
        )

    async def gone(_request: Request, _error: Exception) -> Response:
        return Response(status_code=400)  # nobody hears it

    async def fault(_request: Request, _error: Exception) -> JSONResponse:
        return _answer(500, "The station has a fault.", "Its log says more; please report it.")

    app.add_exception_handler(ContinuadError, known)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, unrouted)
    app.add_exception_handler(OSError, disk)
    app.add_exception_handler(ClientDisconnect, gone)
    for away in (OperationalError, InterfaceError, NoConnectionError):
        app.add_exception_handler(away, database)
    app.add_exception_handler(Exception, fault)


def _status(error: ContinuadError) -> int:
    """The HTTP status that fits a failure."""
    if isinstance(error, RefusedRequestError):
        return error.status
    for kind, status in (
        (QueueFullError, 503),
        (NotFoundError, 404),
        (GoneError, 410),
        (ConflictError, 409),
        (ProductError, 409),
        (BankError, 409),
        (ImageError, 422),
        (SettingsError, 422),
        (StationError, 422),
    ):
        if isinstance(error, kind):
            return status
    return 500


def _answer(status: int, problem: str, remedy: str, seconds: float | None = None) -> JSONResponse:
    headers = {} if seconds is None else {"Retry-After": str(math.ceil(seconds))}
    return JSONResponse({"problem": problem, "remedy": remedy}, status, headers)
