"""Shapes of damage that several products share; all chance comes from `scene.flaw`."""

from __future__ import annotations

import math

import numpy as np

from continuad.datasets.demo.canvas import Array, Point, Scene


def spot(scene: Scene, *, reach: float) -> Point:
    """A point at most `reach` from the centre in x and in y."""
    x, y = scene.flaw.uniform(-reach, reach, 2)
    return float(x), float(y)


def blotch(scene: Scene, centre: Point, *, radius: float, rough: float = 0.35, cells: float = 14) -> Array:
    """Signed distance, roughly, to a patch: its edge within a share `rough` of an ellipse's."""
    turn, squeeze = scene.flaw.uniform(0, math.pi), scene.flaw.uniform(0.65, 1.0)
    c, s = np.float32(math.cos(turn)), np.float32(math.sin(turn))
    x, y = scene.x - np.float32(centre[0]), scene.y - np.float32(centre[1])
    u, v = c * x + s * y, (c * y - s * x) / np.float32(squeeze)
    edge = np.tanh(scene.fractal(scene.flaw, cells, octaves=3, gain=0.6))
    distance: Array = np.sqrt(u * u + v * v) - np.float32(radius) * (1 + np.float32(rough) * edge)
    return distance


def wander(
    scene: Scene, start: Point, *, heading: float, length: float, bend: float, steps: int = 14
) -> list[Point]:
    """Points of a line that starts here and changes its heading by about `bend` radians a step."""
    points = [start]
    turn = 0.0
    for _ in range(steps):
        turn = 0.6 * turn + float(scene.flaw.normal(0, bend))
        heading += turn
        x, y = points[-1]
        points.append((x + math.cos(heading) * length / steps, y + math.sin(heading) * length / steps))
    return points


def scratch(
    scene: Scene,
    *,
    length: tuple[float, float],
    bend: float = 0.04,
    reach: float = 0.5,
    at: Point | None = None,
) -> list[Point]:
    """Points of a line in any direction, its middle near `at` (or within `reach` of the centre)."""
    x, y = at if at is not None else spot(scene, reach=reach)
    heading, size = scene.flaw.uniform(0, 2 * math.pi), scene.flaw.uniform(*length)
    start = (x - math.cos(heading) * size / 2, y - math.sin(heading) * size / 2)
    return wander(scene, start, heading=heading, length=size, bend=bend)
