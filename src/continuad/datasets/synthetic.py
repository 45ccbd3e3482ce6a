"""Synthetic anomalies: a random texture blended into a normal image where Perlin noise is high.

As in AdapTS sec. 3.3, which takes them from DeSTSeg and DRAEM.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from continuad.datasets.textures import ProceduralTextures, TextureSource

Float = NDArray[np.floating[Any]]


def perlin_noise(rng: np.random.Generator, size: int, cells: tuple[int, int], angle: float) -> Float:
    """Gradient noise (Perlin 1985) on a rotated lattice.

    Args:
        rng: draws the lattice gradients.
        size: side of the result in pixels.
        cells: lattice cells along y and x.
        angle: rotation of the lattice in radians.

    Returns:
        (size, size) float32, zero on the lattice points, scaled to about [-1, 1].
    """
    unit = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    y = (cos * unit[:, None] + sin * unit[None, :]) * np.float32(cells[0])
    x = (cos * unit[None, :] - sin * unit[:, None]) * np.float32(cells[1])
    row, column = np.floor(y).astype(np.int32), np.floor(x).astype(np.int32)
    y, x = (y - row).astype(np.float32), (x - column).astype(np.float32)
    row, column = row - row.min(), column - column.min()
    phase = rng.uniform(0, 2 * np.pi, (int(row.max()) + 2, int(column.max()) + 2)).astype(np.float32)
    gradient_y, gradient_x = np.sin(phase), np.cos(phase)

    def corner(down: int, right: int) -> Float:
        at = (row + down, column + right)
        ramp: Float = gradient_y[at] * (y - down) + gradient_x[at] * (x - right)
        return ramp

    fade_y, fade_x = _fade(y), _fade(x)
    top = corner(0, 0) + fade_x * (corner(0, 1) - corner(0, 0))
    bottom = corner(1, 0) + fade_x * (corner(1, 1) - corner(1, 0))
    noise: Float = np.float32(np.sqrt(2)) * (top + fade_y * (bottom - top))
    return noise


def _fade(t: Float) -> Float:
    return t * t * t * (t * (t * np.float32(6) - np.float32(15)) + np.float32(10))


@dataclass(frozen=True)
class PerlinAnomalies:
    """Corrupts normal images.

    Attributes:
        textures: what is blended in.
        max_log2_cells: the lattice has 2**a x 2**b cells with a, b uniform in 0..max_log2_cells.
        threshold: the mask is where the noise exceeds it; a mask may come out empty.
        max_opacity_loss: the share of the original that stays visible is uniform below this.
    """

    textures: TextureSource = field(default_factory=ProceduralTextures)
    max_log2_cells: int = 5
    threshold: float = 0.5
    max_opacity_loss: float = 0.8

    def __call__(
        self, image: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return a corrupted copy of `image` (3, S, S) uint8 and its mask (S, S); equal outside the mask."""
        size = image.shape[-1]
        rows, columns = 2 ** rng.integers(0, self.max_log2_cells + 1, 2)
        noise = perlin_noise(rng, size, (int(rows), int(columns)), rng.uniform(-np.pi / 2, np.pi / 2))
        mask = noise > self.threshold
        kept = np.float32(rng.uniform(0, self.max_opacity_loss))
        texture = self.textures(rng, size)
        corrupted = image.copy()
        blend = (1 - kept) * texture[:, mask] + kept * image[:, mask]
        corrupted[:, mask] = np.clip(np.rint(blend), 0, 255).astype(np.uint8)
        return corrupted, mask
