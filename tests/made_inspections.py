"""Inspections to put into a history."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from continuad.station.history import NewInspection


def png(value: int = 128, size: tuple[int, int] = (12, 9)) -> bytes:
    """A grey picture of so many pixels in width and height."""
    stream = io.BytesIO()
    Image.new("L", size, value).save(stream, "PNG")
    return stream.getvalue()


PICTURE, MAP = png(), png(7)
NEW = NewInspection(
    label="normal",
    product="bolt",
    head="a" * 64,
    score=0.1,
    threshold=0.7,
    nearest="bolt",
    distance=1 / 3,
    source="api",
    reference="part 7",
    width=12,
    height=9,
    timings={"embed": 1.25, "total": 2.0004},
    data=PICTURE,
    suffix=".png",
    map=MAP,
    map_peak=0.7,
)
NOTHING: dict[str, Any] = dict.fromkeys(("product", "head", "score", "threshold", "map", "map_peak"))


def new(**changes: Any) -> NewInspection:
    """An inspection of a good bolt, but for the changes."""
    return replace(NEW, **changes)


def unknown(*embedding: float, **changes: Any) -> NewInspection:
    """An inspection of something unknown."""
    values = np.array(embedding or (0.0,), np.float32)
    return new(label="unknown", embedding=values, **{**NOTHING, **changes})
