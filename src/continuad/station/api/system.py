"""How the station is, for people and for machines."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from continuad.inspector import ADVISED_IMAGES, MIN_IMAGES
from continuad.station.api import models
from continuad.station.api.common import Before, Limit, Route, StationHere
from continuad.station.security import COOKIE, Guard, cookie_for

router = APIRouter(tags=["station"], route_class=Route)
health = APIRouter(tags=["health"])


@health.get("/healthz", response_model=models.Alive)
async def alive() -> models.Alive:
    """Whether the process answers."""
    return models.Alive()


@health.get("/readyz", response_model=models.Ready, responses={503: {"model": models.Ready}})
def ready(station: StationHere) -> JSONResponse:
    """Whether the station can inspect."""
    checks = station.checks()
    is_ready = all(check == "ok" for check in checks.values())
    return JSONResponse({"ready": is_ready, "checks": checks}, 200 if is_ready else 503)


@health.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(station: StationHere) -> Response:
    """Everything that Prometheus collects."""
    return Response(station.metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")


@router.get("/status", response_model=models.Status)
def status(station: StationHere) -> dict[str, Any]:
    """How the station is."""
    return {**station.status(), "minimum_photos": MIN_IMAGES, "advised_photos": ADVISED_IMAGES}


@router.get("/events", response_class=Response, responses={200: {"content": {"text/event-stream": {}}}})
async def events(station: StationHere) -> StreamingResponse:
    """News as server-sent events: `job`, `inspection`, `products` and `status`."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(station.events.listen(), media_type="text/event-stream", headers=headers)


@router.post("/session", status_code=204)
def sign_in(request: Request, response: Response, station: StationHere, given: models.Token) -> None:
    """Let a browser in that knows the token, with a cookie that scripts cannot read."""
    guard: Guard = request.app.state.guard
    guard.check_token(given.token, request.client.host if request.client else "")
    if station.settings.token is not None:
        is_secure = request.url.scheme == "https"
        response.set_cookie(
            COOKIE,
            cookie_for(station.settings.token),
            max_age=30 * 24 * 3600,
            httponly=True,
            samesite="strict",
            secure=is_secure,
        )


@router.delete("/session", status_code=204)
def sign_out(response: Response) -> None:
    """Forget the cookie."""
    response.delete_cookie(COOKIE)


@router.get("/audit", response_model=models.AuditLog)
def audit(station: StationHere, before: Before = None, limit: Limit = 50) -> dict[str, Any]:
    """Who changed what, newest first."""
    found = station.audit.page(before, limit)
    return {
        "items": [entry.as_dict() for entry in found],
        "next": found[-1].id if len(found) == limit else None,
    }
