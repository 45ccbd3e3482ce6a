"""A twill fabric: two sets of yarns that pass over and under each other."""

from __future__ import annotations

import math

import numpy as np

from continuad.datasets.demo.canvas import Array, Scene, colour, mix, path, ramp, tint
from continuad.datasets.demo.flaws import blotch, scratch, spot
from continuad.datasets.demo.product import demo_product

YARNS = 14.0
"""Yarns per unit of length, in both directions."""

_THIRD = np.float32(2 * math.pi / 3)


def _yarns(rng: np.random.Generator, across: Array, along: Array, lift: Array) -> tuple[Array, Array]:
    """One set of yarns, a unit apart: their height in yarn widths, and their tone, about 1."""
    count = int(4 * YARNS) + 12
    index = np.rint(across)
    yarn = index.astype(np.intp)
    wide = rng.normal(2.08, 0.10, count).astype(np.float32)
    tone = rng.normal(1, 0.08, count).astype(np.float32)
    offset = (across - index) * wide.take(yarn)
    profile = np.sqrt(np.maximum(1 - offset * offset, 0))
    twist = np.sin(np.float32(2 * math.pi) * (np.float32(1.5) * along + np.float32(0.8) * offset))
    height = np.float32(0.45) * profile + np.float32(0.24) * lift - (profile <= 0)
    return height + np.float32(0.03) * twist, tone.take(yarn) * (1 + np.float32(0.09) * twist)


@demo_product(
    "fabric", "blue twill, seen close", defects=("hole", "missing_yarn", "loose_thread", "oil_stain")
)
def fabric(scene: Scene, defect: str | None) -> Array:
    """Draw the fabric: warp runs down at whole u, weft across at whole v; warp lies over two of three."""
    part, flaw = scene.part, scene.flaw
    x, y = scene.coordinates(scene.pose(shift=0.05, turn=4, grow=0.03))
    start = part.uniform(3, 5, 2)
    u, v = (
        np.float32(YARNS) * (axis + np.float32(1.5))
        + np.float32(first)
        + np.float32(0.15) * scene.fractal(part, 5, octaves=2)
        for axis, first in zip((x, y), start, strict=True)
    )
    column, row = np.rint(u), np.rint(v)
    warp, warp_tone = _yarns(part, u, v, np.cos(_THIRD * (v + column)) + np.float32(0.35))
    weft, weft_tone = _yarns(part, v, u, -np.cos(_THIRD * (u + row)) - np.float32(0.35))
    if defect == "missing_yarn":
        gone = np.rint(YARNS * (1.5 + flaw.uniform(-0.6, 0.6)) + start[1])
        middle, half = flaw.uniform(-0.5, 0.5), flaw.uniform(0.25, 0.6)
        weft[(row == np.float32(gone)) & (np.abs(x - np.float32(middle)) < half)] = -1
    top = warp > weft
    fibre = scene.noise(part, scene.pixels / 3)
    height = np.maximum(np.where(top, warp, weft), np.float32(-0.6)) + np.float32(0.04) * fibre
    tone = np.where(top, warp_tone, weft_tone) + np.float32(0.12) * fibre
    tone *= (1 + np.float32(0.06) * scene.noise(part, 4)) * (
        np.float32(0.16) + np.float32(0.84) * ramp(height, -0.35, 0.5)
    )
    dark, pale = tint(part, colour(44, 66, 112), 0.08), tint(part, colour(160, 172, 188), 0.08)

    if defect == "hole":
        torn = blotch(scene, spot(scene, reach=0.65), radius=flaw.uniform(0.08, 0.15), rough=0.4, cells=18)
        torn = torn + np.float32(0.02) * np.where(top, warp, weft) + np.float32(0.012) * fibre
        open_ = ramp(-torn, -0.008, 0.012)
        height = height - np.float32(1.4) * open_
        tone = tone * (1 - np.float32(0.93) * open_) * (1 - np.float32(0.3) * ramp(-torn, -0.06, 0))
    cloth = np.where(top, dark, pale) * tone
    if defect == "oil_stain":
        edge = blotch(scene, spot(scene, reach=0.55), radius=flaw.uniform(0.14, 0.26), rough=0.25, cells=6)
        soaked = ramp(-edge, -0.05, 0.06) * np.float32(flaw.uniform(0.5, 0.85))
        cloth = mix(cloth, cloth * colour(160, 140, 110), soaked)
    elif defect == "loose_thread":
        line = scratch(scene, length=(0.7, 1.2), bend=0.22, reach=0.35)
        width = np.float32(flaw.uniform(0.017, 0.024))
        distance = path(scene, line, 0.1)
        cast = path(scene, [(px + 0.02, py + 0.028) for px, py in line], 0.1)
        thread, bulge = scene.fill(distance - width), np.sqrt(np.maximum(1 - np.square(distance / width), 0))
        cloth = cloth * (1 - np.float32(0.6) * ramp(-cast, -0.05, -0.01))
        cloth = mix(
            cloth, pale * (np.float32(0.7) + np.float32(0.5) * bulge + np.float32(0.12) * fibre), thread
        )
        height = mix(height, np.float32(1) + bulge * width * np.float32(YARNS), thread)
    return scene.shade(cloth, height * np.float32(0.85 / YARNS), gloss=0.03, hardness=3, ambient=0.42)
