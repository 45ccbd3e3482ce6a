"""The station as a web application."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from continuad import __version__
from continuad.station.api import inspections, products, system, teaching
from continuad.station.api.common import FAILURES, add_failures
from continuad.station.metrics import Metrics
from continuad.station.security import Guard, Inflow
from continuad.station.station import Station

ABOUT = """Teach products from normal photos and inspect images.

Errors are JSON: what is wrong (`problem`) and what to do about it (`remedy`).
Where a token is needed, give it as `Authorization: Bearer TOKEN`."""


def create_app(station: Station) -> ASGIApp:
    """The application; it starts the station when it starts, and stops it when it stops."""

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        station.events.open()
        station.start()
        try:
            yield
        finally:
            station.events.close()
            station.stop()

    app = FastAPI(
        title="continuad station",
        version=__version__,
        description=ABOUT,
        openapi_url="/api/openapi.json",
        docs_url=None,  # it would fetch its scripts from the network
        redoc_url=None,
        lifespan=running,
        responses=FAILURES,
    )
    guarded = Guard(_Measured(app, station.metrics), station.settings)
    app.state.station, app.state.guard = station, guarded
    app.state.inflow = Inflow(station.settings.limits)
    app.include_router(system.health)
    versioned = APIRouter(prefix="/api/v1")
    for part in (system, inspections, products, teaching):
        versioned.include_router(part.router)
    app.include_router(versioned)
    add_failures(app)
    _add_page(app)
    return guarded


def _add_page(app: FastAPI) -> None:
    """Serve the web page from the package."""
    folder = str(files("continuad.station") / "page")
    app.mount("/page", StaticFiles(directory=folder), name="page")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(f"{folder}/index.html", headers={"Cache-Control": "no-cache"})

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> FileResponse:
        return FileResponse(f"{folder}/icon.svg", media_type="image/svg+xml")


class _Measured:
    """Tells the metrics how long answers take, by route; keeps browsers from storing what changes."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()

        async def send_measured(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = getattr(scope.get("route"), "path", "other")
                seconds = time.perf_counter() - started
                self._metrics.answered(scope["method"], route, message["status"], seconds)
                headers = MutableHeaders(scope=message)
                if scope["path"].startswith("/api/") and "cache-control" not in headers:
                    headers["cache-control"] = "no-store"
            await send(message)

        await self._app(scope, receive, send_measured)
