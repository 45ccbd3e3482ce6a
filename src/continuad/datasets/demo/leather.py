"""Grained leather: warped cells with creases between them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from continuad.datasets.demo.canvas import Array, Scene, colour, mix, path, ramp, tint
from continuad.datasets.demo.flaws import blotch, scratch, spot
from continuad.datasets.demo.product import demo_product

CELLS = 30


def _cells(scene: Scene, rng: np.random.Generator) -> Array:
    """Difference of the distances to the nearest two seeds of a jittered grid: 0 in the creases."""
    n = scene.pixels // 2
    warp = [scene.fractal(rng, 7, octaves=3)[::2, ::2] * np.float32(0.42) for _ in range(2)]
    axis = (np.arange(n, dtype=np.float32) + 0.5) * np.float32(CELLS / n) + 2
    x, y = axis[None, :] + warp[0], axis[:, None] * np.float32(0.85) + warp[1]
    column, row = np.floor(x).astype(np.int32), np.floor(y).astype(np.int32)
    x, y = x - column, y - row
    jitter = rng.uniform(0.08, 0.92, (2, CELLS + 6, CELLS + 6)).astype(np.float32)
    first = np.full((n, n), 9, dtype=np.float32)
    second = first.copy()
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            seed = (row + dy) * (CELLS + 6) + column + dx
            distance = np.square(jitter[0].take(seed) + (dx - x)) + np.square(jitter[1].take(seed) + (dy - y))
            np.minimum(second, np.maximum(first, distance), out=second)
            np.minimum(first, distance, out=first)
    gap = np.sqrt(second) - np.sqrt(first)
    image = Image.fromarray(gap).resize((scene.pixels, scene.pixels), Image.Resampling.BICUBIC)
    return np.asarray(image, dtype=np.float32)


@demo_product("leather", "brown grained leather", defects=("cut", "puncture", "scuff", "glue"))
def leather(scene: Scene, defect: str | None) -> Array:
    """Draw the leather."""
    part, flaw = scene.part, scene.flaw
    gap = _cells(scene, part)
    soft = scene.fractal(part, 3, octaves=3)
    pores = scene.noise(part, scene.pixels / 4)
    dome = 1 - np.square(1 - ramp(gap, -0.25, 0.42))
    height = np.float32(0.017) * dome + np.float32(0.003) * scene.noise(part, 40) + np.float32(0.02) * soft
    height += np.float32(0.0009) * pores
    base = tint(part, colour(133, 78, 43), 0.08)
    tone = (np.float32(0.55) + np.float32(0.45) * dome) * (
        1 + np.float32(0.10) * soft + np.float32(0.05) * pores
    )
    gloss: Array = np.float32(0.10) * (np.float32(0.3) + np.float32(0.7) * dome)
    albedo = base * tone

    if defect == "cut":
        line = scratch(scene, length=(0.45, 0.9), bend=0.05, reach=0.45)
        distance = path(scene, line, 0.1) + np.float32(0.004) * pores
        width = flaw.uniform(0.008, 0.016)
        lip, open_ = ramp(-distance, -0.06, -width), scene.fill(distance - np.float32(width))
        height = height + np.float32(0.02) * lip
        height = height - np.float32(0.05) * open_
        albedo = mix(mix(albedo, colour(186, 140, 96), 0.35 * lip), colour(26, 14, 9), 0.92 * open_)
        gloss = gloss * (1 - open_)
    elif defect == "puncture":
        x, y = spot(scene, reach=0.75)
        distance = blotch(scene, (x, y), radius=flaw.uniform(0.03, 0.05), rough=0.12)
        rim, hole = ramp(-distance, -0.05, 0), ramp(-distance, -0.006, 0.008)
        height = height + np.float32(0.022) * rim - np.float32(0.05) * hole
        albedo = mix(albedo, colour(16, 10, 8), hole)
        gloss = gloss * (1 - hole)
    elif defect == "scuff":
        distance = blotch(scene, spot(scene, reach=0.6), radius=flaw.uniform(0.13, 0.22), rough=0.3, cells=9)
        streaks = scene.noise(flaw, 90, 9) + np.float32(0.5) * scene.noise(flaw, 60)
        worn = ramp(-distance, -0.03, 0.09) * ramp(streaks + dome, 0.1, 1.3)
        albedo = mix(albedo, colour(190, 145, 104) * tone, np.float32(0.75) * worn)
        gloss = gloss * (1 - worn)
    elif defect == "glue":
        distance = blotch(scene, spot(scene, reach=0.65), radius=flaw.uniform(0.06, 0.13), rough=0.3, cells=8)
        film = ramp(-distance, 0.0, 0.012)
        bead = np.sqrt(np.clip(-distance / np.float32(0.05), 0, 1))
        height = mix(
            height,
            np.float32(0.02) + np.float32(0.03) * bead + np.float32(0.02) * soft,
            np.float32(0.85) * film,
        )
        albedo = mix(albedo, albedo * np.float32(0.45) + colour(205, 190, 150) * np.float32(0.30), film)
        gloss = gloss + np.float32(0.5) * film
    return scene.shade(albedo, height, gloss=gloss, hardness=4, ambient=0.3)
