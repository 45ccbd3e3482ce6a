"""Small synthetic defects, as products have them: they tell which detector will see real ones.

`synthetic.PerlinAnomalies` is what the papers train on: large, loud anomalies that any detector finds. These
are small and often faint, and lie where the product has structure.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from continuad.datasets.synthetic import perlin_noise

Float = NDArray[np.floating[Any]]
Image = NDArray[np.float32]
Mask = NDArray[np.bool_]

VISIBLE = 6.0
"""Grey levels by which a pixel must have changed to belong to a defect."""

TRIES = 8


class SyntheticDefects:
    """Draws one defect into a normal image: a spot, a scratch, a misplaced piece, a dent or a stain.

    Args:
        scale: sizes are multiplied by this; 1 gives defects of about 2 to 20 % of the image's side.
    """

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, image: NDArray[np.uint8], rng: np.random.Generator) -> tuple[NDArray[np.uint8], Mask]:
        """Return a damaged copy of `image` (3, S, S) uint8, and the mask (S, S) of what has visibly changed.

        The mask is empty if the image offers no place where a defect would show.
        """
        original = image.astype(np.float32)
        structure = _structure(original)
        for _ in range(TRIES):
            kind = KINDS[int(rng.integers(len(KINDS)))]
            row, column = _place(structure, rng)
            damaged = kind(original, row, column, self.scale * image.shape[-1], rng)
            result = np.clip(np.rint(damaged), 0, 255).astype(np.uint8)
            mask = np.abs(result.astype(np.float32) - original).max(0) > VISIBLE
            if mask.sum() >= 4:
                return result, mask
        return image.copy(), np.zeros(image.shape[1:], bool)


def _structure(image: Image) -> Float:
    """Where an image has edges, or lies near one: a density (S, S)."""
    grey = image.mean(0)
    edges = np.hypot(ndimage.sobel(grey, 0), ndimage.sobel(grey, 1))
    density: Float = ndimage.gaussian_filter(np.minimum(edges, np.quantile(edges, 0.95)), grey.shape[0] / 32)
    density += 0.1 * density.mean() + 1e-6
    density /= density.sum()
    return density


def _place(density: Float, rng: np.random.Generator) -> tuple[int, int]:
    place = np.searchsorted(density.cumsum(), rng.uniform(0, 1 - 1e-6))
    row, column = np.unravel_index(min(int(place), density.size - 1), density.shape)
    return int(row), int(column)


def _spot(image: Image, row: int, column: int, size: float, rng: np.random.Generator) -> Image:
    """An ellipse that is darker, brighter or of another colour, with a soft edge."""
    shape = _ellipse(image.shape[-1], row, column, size * rng.uniform(0.008, 0.04, 2), rng)
    return image + shape * _tint(rng)


def _scratch(image: Image, row: int, column: int, size: float, rng: np.random.Generator) -> Image:
    """A thin, slightly bent line."""
    along = np.linspace(-0.5, 0.5, 64)
    angle, length, bend = rng.uniform(0, np.pi), size * rng.uniform(0.05, 0.2), rng.normal(0, 0.6)
    x, y = along * length, bend * length * (along**2 - 0.08)
    points = np.stack(
        [row + np.sin(angle) * x + np.cos(angle) * y, column + np.cos(angle) * x - np.sin(angle) * y], 1
    )
    side = image.shape[-1]
    canvas = np.zeros((side, side), np.float32)
    at = np.rint(points).astype(int)
    at = at[((at >= 0) & (at < side)).all(1)]
    canvas[at[:, 0], at[:, 1]] = 1
    width = size * rng.uniform(0.001, 0.004)
    line = ndimage.gaussian_filter(canvas, max(width, 0.4))
    return image + line / max(float(line.max()), 1e-6) * _tint(rng)


def _piece(image: Image, row: int, column: int, size: float, rng: np.random.Generator) -> Image:
    """A piece of the same image, turned, in a wrong place."""
    shape = _ellipse(image.shape[-1], row, column, size * rng.uniform(0.015, 0.06, 2), rng)
    turned = np.rot90(image, int(rng.integers(4)), (1, 2))
    shift = tuple(int(s) for s in rng.normal(0, 0.06 * size, 2))
    return image + shape * (np.roll(turned if rng.random() < 0.5 else image, shift, (1, 2)) - image)


def _dent(image: Image, row: int, column: int, size: float, rng: np.random.Generator) -> Image:
    """The surface moved to one side, as if pressed."""
    shape = _ellipse(image.shape[-1], row, column, size * rng.uniform(0.015, 0.05, 2), rng)
    angle, depth = rng.uniform(0, 2 * np.pi), size * rng.uniform(0.008, 0.03)
    grid = np.mgrid[: image.shape[1], : image.shape[2]].astype(np.float32)
    grid[0] += shape * np.float32(depth * np.sin(angle))
    grid[1] += shape * np.float32(depth * np.cos(angle))
    moved: Image = np.stack(
        [ndimage.map_coordinates(channel, grid, order=1, mode="nearest") for channel in image]
    )
    return moved


def _stain(image: Image, row: int, column: int, size: float, rng: np.random.Generator) -> Image:
    """An uneven patch, more or less transparent."""
    side = image.shape[-1]
    cells = int(2 ** rng.integers(3, 6))
    noise = perlin_noise(rng, side, (cells, cells), rng.uniform(0, np.pi))
    shape = _ellipse(side, row, column, size * rng.uniform(0.02, 0.08, 2), rng)
    stained: Image = image + shape * np.clip(noise * 2 + 0.5, 0, 1) * _tint(rng)
    return stained


KINDS: tuple[Callable[[Image, int, int, float, np.random.Generator], Image], ...] = (
    _spot,
    _scratch,
    _piece,
    _dent,
    _stain,
)


def _tint(rng: np.random.Generator) -> Image:
    """A change of colour (3, 1, 1): mostly of brightness, from faint to strong."""
    strength = rng.uniform(15, 90) * rng.choice([-1, 1])
    colour: Image = (strength * (1 + rng.normal(0, 0.3, (3, 1, 1)))).astype(np.float32)
    return colour


def _ellipse(side: int, row: int, column: int, radii: Float, rng: np.random.Generator) -> Image:
    """A rotated ellipse with a soft edge: (side, side) in 0..1."""
    angle = rng.uniform(0, np.pi)
    y = np.arange(side, dtype=np.float32)[:, None] - row
    x = np.arange(side, dtype=np.float32)[None, :] - column
    a, b = np.maximum(radii, 1.0)
    distance = np.hypot(
        (np.cos(angle) * y + np.sin(angle) * x) / a, (np.cos(angle) * x - np.sin(angle) * y) / b
    )
    shape: Image = np.clip((1.2 - distance) / 0.4, 0, 1).astype(np.float32)
    return shape
