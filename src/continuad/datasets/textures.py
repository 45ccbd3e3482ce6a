"""Texture sources for synthetic anomalies: drawn by code, or images of a folder such as DTD."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from continuad.files import find_images
from continuad.images import load_image, resize

Float = NDArray[np.float32]


class TextureSource(Protocol):
    """Draws a random texture: (3, size, size) float32 on the 0..255 scale."""

    def __call__(self, rng: np.random.Generator, size: int, /) -> Float:
        """Draw a texture with this generator."""


class FolderTextures:
    """Random images of a folder, for example the Describable Textures Dataset that the papers use."""

    def __init__(self, folder: str | Path) -> None:
        self.paths = find_images(folder)

    def __call__(self, rng: np.random.Generator, size: int, /) -> Float:
        """Pick an image and resize it."""
        path = self.paths[int(rng.integers(len(self.paths)))]
        return resize(load_image(path), size).transpose(2, 0, 1).astype(np.float32)


class ProceduralTextures:
    """Random grains, stripes, cells, weaves and plain colours between two random colours."""

    def __call__(self, rng: np.random.Generator, size: int, /) -> Float:
        """Draw a pattern, colour it and add speckle."""
        patterns = (_grain, _stripes, _cells, _weave, _plain)
        pattern = patterns[int(rng.integers(len(patterns)))](rng, size)
        low, high = rng.uniform(0, 255, (2, 3, 1, 1)).astype(np.float32)
        speckle = rng.normal(0, rng.uniform(0, 12), (size, size)).astype(np.float32)
        texture: Float = np.clip(low + (high - low) * pattern + speckle, 0, 255)
        return texture


def _unit(field: Float) -> Float:
    low, high = float(field.min()), float(field.max())
    return (field - np.float32(low)) / np.float32(max(high - low, 1e-6))


def _grain(rng: np.random.Generator, size: int) -> Float:
    """Smoothed noise of one scale, more or less stretched: from clouds to brushed metal."""
    sigma = rng.uniform(0.5, 8) * rng.uniform(0.2, 3, 2)
    return _unit(
        ndimage.gaussian_filter(rng.normal(size=(size, size)).astype(np.float32), sigma, mode="wrap")
    )


def _wave(rng: np.random.Generator, size: int, angle: float) -> Float:
    y, x = np.mgrid[:size, :size].astype(np.float32)
    along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
    period = np.float32(np.exp(rng.uniform(np.log(4), np.log(64))) * size / 256)
    wave: Float = 0.5 + 0.5 * np.sin(2 * np.float32(np.pi) * (along / period + np.float32(rng.uniform())))
    return wave


def _stripes(rng: np.random.Generator, size: int) -> Float:
    wave = _wave(rng, size, rng.uniform(0, np.pi))
    return (wave > rng.uniform(0.3, 0.7)).astype(np.float32) if rng.random() < 0.5 else wave


def _weave(rng: np.random.Generator, size: int) -> Float:
    angle = rng.uniform(0, np.pi)
    return _wave(rng, size, angle) * _wave(rng, size, angle + np.pi / 2)


def _cells(rng: np.random.Generator, size: int) -> Float:
    """Distance to the nearest of some random points: pebbles, scales, foam."""
    seeds = np.ones((size, size), dtype=bool)
    points = rng.integers(0, size, (int(rng.integers(10, 400)), 2))
    seeds[points[:, 0], points[:, 1]] = False
    return _unit(ndimage.distance_transform_edt(seeds).astype(np.float32))


def _plain(rng: np.random.Generator, size: int) -> Float:
    return np.full((size, size), rng.random(), dtype=np.float32)
