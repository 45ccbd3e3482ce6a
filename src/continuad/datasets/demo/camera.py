"""From linear light to a photograph: lens, sensor, tone curve; and what a defect visibly changed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from continuad.datasets.demo.canvas import Array, Scene

VISIBLE = 5.0
"""The smallest change that counts as visible, in grey levels of 255, before sensor noise."""

_STEPS = 4096
_WHITE = 2.0
_TONE = (1 - np.exp(-1.35 * np.linspace(0, _WHITE, _STEPS) ** 1.05)) / (1 - np.exp(-1.35 * _WHITE**1.05))
_TONE = (255 * _TONE ** (1 / 2.2)).astype(np.float32)
"""Grey level over linear light: a soft shoulder, then the display's gamma."""


def expose(scene: Scene, light: Array) -> Array:
    """Take the picture: uneven light, lens and tone curve.

    Returns:
        Grey levels 0..255 without noise, float32 (3, N / 2, N / 2): the scene is rendered at twice the size.
    """
    small = light[:, ::2, ::2] + light[:, 1::2, ::2] + light[:, ::2, 1::2] + light[:, 1::2, 1::2]
    for axis in (1, 2):
        small = 0.8 * small + 0.1 * (np.roll(small, 1, axis) + np.roll(small, -1, axis))
    x, y = scene.x[:, ::2], scene.y[::2]
    tilt = np.float32(0.09) * (scene.light.x * x + scene.light.y * y)
    vignette = 1 - np.float32(0.09) * (x * x + y * y)
    tone = (1 + scene.part.uniform(-0.02, 0.02, (3, 1, 1))) * (1 + scene.part.uniform(-0.06, 0.06))
    small *= (1 + tilt) * vignette
    small *= (tone * (0.25 * (_STEPS - 1) / _WHITE)).astype(np.float32)
    levels: Array = _TONE.take(np.clip(small, 0, _STEPS - 1).astype(np.intp))
    return levels


def sense(rng: np.random.Generator, levels: Array) -> NDArray[np.uint8]:
    """Add the sensor's noise and quantise: float32 (3, H, W) to uint8 (H, W, 3)."""
    noise = rng.standard_normal(levels.shape, dtype=np.float32)
    noise += rng.standard_normal(levels.shape[1:], dtype=np.float32)
    noisy = levels + noise * (np.float32(0.9) + np.float32(0.04) * np.sqrt(levels))
    return np.ascontiguousarray(np.clip(noisy + 0.5, 0, 255).astype(np.uint8).transpose(1, 2, 0))


def visible_change(normal: Array, flawed: Array) -> NDArray[np.bool_]:
    """Mask (H, W) of the pixels that differ visibly between two exposures, gaps of a pixel or two closed."""
    changed = np.abs(normal - flawed).max(axis=0) > VISIBLE
    padded = np.pad(changed, 2, mode="edge")
    closed = ndimage.binary_closing(padded, ndimage.generate_binary_structure(2, 1), iterations=2)
    return np.asarray(closed[2:-2, 2:-2] | changed)
