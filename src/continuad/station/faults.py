"""Failures that the API answers with a status of their own."""

from __future__ import annotations

from continuad.errors import StationError


class NotFoundError(StationError):
    """There is no such thing: 404."""


class GoneError(StationError):
    """It was there once: 410."""


class ConflictError(StationError):
    """It does not fit what the station knows already: 409."""
