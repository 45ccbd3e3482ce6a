"""What every demo product is drawn with: coordinates, noise, signed distances, light and shadow.

A picture spans -1..1 in x (to the right) and y (downwards); lengths, distances and heights share that unit,
so a product looks alike at every size. Fields are float32 (N, N), colours are linear light, float32 (3, N, N)
or (3, 1, 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float32]
Point = tuple[float, float]


@dataclass(frozen=True)
class Light:
    """A distant lamp: the unit vector towards it (z points at the camera)."""

    x: float
    y: float
    z: float

    @classmethod
    def at(cls, azimuth: float, elevation: float) -> Light:
        """Place a lamp by its direction in the picture and its height above it, both in degrees."""
        turn, rise = math.radians(azimuth), math.radians(elevation)
        return cls(math.cos(turn) * math.cos(rise), math.sin(turn) * math.cos(rise), math.sin(rise))

    @property
    def half(self) -> tuple[float, float, float]:
        """The unit vector halfway between lamp and camera."""
        length = math.sqrt(2 + 2 * self.z)
        return self.x / length, self.y / length, (self.z + 1) / length


@dataclass(frozen=True)
class Pose:
    """Where a part lies: its centre, its rotation in radians, and its scale."""

    x: float = 0.0
    y: float = 0.0
    turn: float = 0.0
    scale: float = 1.0

    def at(self, u: float, v: float, turn: float = 0.0) -> Pose:
        """Return the pose of something attached to the part at a point, turned by `turn` radians."""
        return Pose(*self.place(u, v), self.turn + turn, self.scale)

    def place(self, u: float, v: float) -> Point:
        """Return the picture point of a point of the part."""
        c, s = math.cos(self.turn) * self.scale, math.sin(self.turn) * self.scale
        return self.x + c * u - s * v, self.y + s * u + c * v


def _spline(rows: Array, *, start: float, span: float, count: int) -> Array:
    """Resample the first axis with quadratic B-splines: `count` rows, from `start` over `span` old ones."""
    position = start + span * (np.arange(count) + 0.5) / count
    index = np.floor(position).astype(np.intp)
    t = (position - index).astype(np.float32)[:, None]
    result = rows[index]
    result *= np.float32(0.5) * np.square(1 - t)
    for shift, weight in (
        (1, np.float32(0.75) - np.square(t - np.float32(0.5))),
        (2, np.float32(0.5) * t * t),
    ):
        term = rows[index + shift]
        term *= weight
        result += term
    return result


class Scene:
    """One photograph in the making.

    `part` decides everything about the part, the lamp and the camera, `flaw` everything about the defect: a
    picture draws the same numbers from `part` with and without its defect.
    """

    def __init__(self, pixels: int, *, part: np.random.Generator, flaw: np.random.Generator) -> None:
        self.pixels = pixels
        self.pixel = 2.0 / pixels
        self.part = part
        self.flaw = flaw
        axis = ((np.arange(pixels, dtype=np.float32) + 0.5) * self.pixel - 1).astype(np.float32)
        self.x: Array = axis[None, :]
        self.y: Array = axis[:, None]
        self.light = Light.at(-125 + part.uniform(-12, 12), 48 + part.uniform(-5, 5))

    def pose(self, *, shift: float, turn: float, grow: float = 0.02) -> Pose:
        """Draw a pose: shifted by up to `shift`, turned by up to `turn` degrees, scaled by 1 +- `grow`."""
        x, y, angle, scale = self.part.uniform(-1, 1, 4)
        return Pose(shift * x, shift * y, math.radians(turn * angle), 1 + grow * scale)

    def coordinates(self, pose: Pose) -> tuple[Array, Array]:
        """Return every pixel's position in the part's own coordinates."""
        c, s = math.cos(pose.turn) / pose.scale, math.sin(pose.turn) / pose.scale
        x, y = self.x - np.float32(pose.x), self.y - np.float32(pose.y)
        return np.float32(c) * x + np.float32(s) * y, np.float32(c) * y - np.float32(s) * x

    def span(self, low: float, high: float) -> slice:
        """Return the pixels between two coordinates."""
        first, last = (int((min(max(edge, -1.0), 1.0) + 1) / self.pixel) for edge in (low, high))
        return slice(first, last)

    def noise(self, rng: np.random.Generator, cells: float, along: float | None = None) -> Array:
        """Smooth noise of mean 0 and deviation about 0.7: `cells` bumps across, `along` (or as many) down."""
        wide, high = (min(float(c), self.pixels / 2) for c in (cells, along if along is not None else cells))
        grid = rng.standard_normal((math.ceil(high) + 4, math.ceil(wide) + 4), dtype=np.float32)
        left, top = rng.uniform(0, 1, 2)
        grid *= np.float32(1.3)
        across = _spline(grid.T, start=left, span=wide, count=self.pixels)
        return _spline(np.ascontiguousarray(across.T), start=top, span=high, count=self.pixels)

    def fractal(
        self, rng: np.random.Generator, cells: float, *, octaves: int = 4, gain: float = 0.5
    ) -> Array:
        """Sum of noises from `cells` on, each twice as fine and `gain` times as strong as the one before."""
        total = self.noise(rng, cells)
        for octave in range(1, octaves):
            total = total + np.float32(gain**octave) * self.noise(rng, cells * 2**octave)
        return total

    def fill(self, distance: Array) -> Array:
        """Coverage 0..1 of a shape given its signed distance (negative inside)."""
        cover: Array = np.float32(0.5) - distance * np.float32(1 / self.pixel)
        return np.clip(cover, 0, 1, out=cover)

    def blur(self, field: Array, radius: float) -> Array:
        """Blur by roughly `radius`, through a small copy of the field."""
        small = max(4, round(2 / radius))
        if small >= self.pixels:
            return field
        image = Image.fromarray(np.ascontiguousarray(field, dtype=np.float32))
        image = image.resize((small, small), Image.Resampling.HAMMING, reducing_gap=2.0)
        return np.asarray(
            image.resize((self.pixels, self.pixels), Image.Resampling.BICUBIC), dtype=np.float32
        )

    def shadow(self, coverage: Array, *, height: float, softness: float) -> Array:
        """Darkness 0..1 that a part of this coverage and height casts, away from the lamp."""
        reach = height / max(self.light.z, 0.3)
        dx, dy = (round(-axis * reach / self.pixel) for axis in (self.light.x, self.light.y))
        return np.clip(self.blur(np.roll(coverage, (dy, dx), (0, 1)), softness), 0, 1)

    def slopes(self, height: Array) -> tuple[Array, Array]:
        """Height's derivatives in x and y."""
        scale = np.float32(0.5 / self.pixel)
        gx, gy = np.zeros_like(height), np.zeros_like(height)
        np.subtract(height[:, 2:], height[:, :-2], out=gx[:, 1:-1])
        np.subtract(height[2:], height[:-2], out=gy[1:-1])
        gx *= scale
        gy *= scale
        return gx, gy

    def shade(
        self,
        albedo: Array,
        height: Array,
        *,
        gloss: Array | float = 0.0,
        hardness: int = 4,
        ambient: float = 0.35,
    ) -> Array:
        """Light a height field: Lambert plus a Blinn highlight of exponent 2 ** `hardness`."""
        gx, gy = self.slopes(height)
        light, (hx, hy, hz) = self.light, self.light.half
        shrink = gx * gx
        shrink += gy * gy
        shrink += 1
        np.sqrt(shrink, out=shrink)
        np.reciprocal(shrink, out=shrink)
        diffuse = _facing(gx, gy, shrink, light.x, light.y, light.z)
        diffuse *= np.float32((1 - ambient) / light.z)
        diffuse += np.float32(ambient)
        lit = albedo * diffuse
        if isinstance(gloss, float) and gloss == 0.0:
            return lit
        shine = _facing(gx, gy, shrink, hx, hy, hz)
        for _ in range(hardness):
            shine *= shine
        shine *= gloss
        lit += shine
        return lit


def _facing(gx: Array, gy: Array, shrink: Array, x: float, y: float, z: float) -> Array:
    """How far a surface of these slopes faces a unit vector: the cosine, at least 0."""
    cosine = gx * np.float32(-x)
    cosine -= gy * np.float32(y)
    cosine += np.float32(z)
    cosine *= shrink
    np.maximum(cosine, 0, out=cosine)
    return cosine


def colour(red: float, green: float, blue: float) -> Array:
    """A colour given as it looks on a screen (0..255), as linear light (3, 1, 1)."""
    return (np.asarray([red, green, blue], dtype=np.float32)[:, None, None] / np.float32(255)) ** np.float32(
        2.2
    )


def tint(rng: np.random.Generator, base: Array, amount: float) -> Array:
    """The colour, its channels and its brightness varied by up to a share `amount`."""
    change = rng.uniform(-amount, amount, (3, 1, 1)) * 0.4 + rng.uniform(-amount, amount)
    return (base * (1 + change)).astype(np.float32)


def mix(below: Array, above: Array, cover: Array) -> Array:
    """Lay `above` over `below` where `cover` is 1."""
    change: Array = (above - below) * cover
    change += below
    return change


def ramp(field: Array, low: float, high: float) -> Array:
    """Rise smoothly from 0 at `low` to 1 at `high`."""
    t = field - np.float32(low)
    t *= np.float32(1 / (high - low))
    np.clip(t, 0, 1, out=t)
    smooth = np.float32(3) - 2 * t
    smooth *= t
    smooth *= t
    return smooth


def disc(x: Array, y: Array, radius: float) -> Array:
    """Signed distance to a disc around the origin."""
    return np.sqrt(x * x + y * y) - np.float32(radius)


def box(x: Array, y: Array, wide: float, high: float, corner: float = 0.0) -> Array:
    """Signed distance to a rectangle of these half sides around the origin, its corners rounded."""
    dx, dy = np.abs(x) - np.float32(wide - corner), np.abs(y) - np.float32(high - corner)
    outside = np.sqrt(np.square(np.maximum(dx, 0)) + np.square(np.maximum(dy, 0)))
    distance: Array = outside + np.minimum(np.maximum(dx, dy), 0) - np.float32(corner)
    return distance


def path(scene: Scene, points: Sequence[Point], reach: float) -> Array:
    """Distance to the line through the points, up to `reach` (further away: `reach`)."""
    field = np.full((scene.pixels, scene.pixels), reach, dtype=np.float32)
    for (ax, ay), (bx, by) in pairwise(points):
        columns = scene.span(min(ax, bx) - reach, max(ax, bx) + reach)
        rows = scene.span(min(ay, by) - reach, max(ay, by) + reach)
        x, y = scene.x[:, columns] - np.float32(ax), scene.y[rows] - np.float32(ay)
        dx, dy = np.float32(bx - ax), np.float32(by - ay)
        t = np.clip((x * dx + y * dy) / max(dx * dx + dy * dy, np.float32(1e-9)), 0, 1)
        distance = np.sqrt(np.square(x - t * dx) + np.square(y - t * dy))
        field[rows, columns] = np.minimum(field[rows, columns], distance)
    return field
