"""A varnished board: growth rings cut lengthwise, fibres and pores."""

from __future__ import annotations

import math

import numpy as np

from continuad.datasets.demo.canvas import Array, Scene, colour, mix, path, ramp, tint
from continuad.datasets.demo.flaws import blotch, scratch, spot, wander
from continuad.datasets.demo.product import demo_product


@demo_product("wood", "varnished oak board", defects=("scratch", "crack", "borehole", "ink_stain"))
def wood(scene: Scene, defect: str | None) -> Array:
    """Draw the board, its grain upright."""
    part, flaw = scene.part, scene.flaw
    x, y = scene.coordinates(scene.pose(shift=0.0, turn=3))
    centre, depth = part.uniform(-0.5, 0.5), part.uniform(0.45, 0.65)
    lean = part.uniform(-0.12, 0.12)
    sway = np.float32(0.09) * scene.noise(part, 2.5, 1.3) + np.float32(0.012) * scene.noise(part, 30, 4)
    across = x - np.float32(centre) + sway
    deep = np.float32(depth) + np.float32(lean) * y + np.float32(0.05) * scene.noise(part, 1.5, 1.2)
    rings = np.sqrt(across * across + deep * deep) * np.float32(part.uniform(15, 18))
    rings = rings + np.float32(0.15) * scene.noise(part, 12, 1.2)
    phase = rings - np.floor(rings)
    late = ramp(phase, 0.05, 0.85) * (1 - ramp(phase, 0.88, 1.0))
    fibre = scene.noise(part, scene.pixels / 3, 7)
    fine = scene.noise(part, scene.pixels / 2, 40)
    pores = ramp(scene.noise(part, scene.pixels / 2.6, 17) + np.float32(0.5) * (1 - late), 1.25, 1.9)
    tone = 1 - np.float32(0.62) * late + np.float32(0.15) * fibre + np.float32(0.05) * fine
    tone *= 1 + np.float32(0.07) * scene.noise(part, 3, 1.5)
    pale, dark = tint(part, colour(206, 160, 106), 0.06), tint(part, colour(150, 96, 52), 0.06)
    albedo = mix(dark, pale, np.clip(tone, 0, 1.15))
    albedo = albedo * (1 - np.float32(0.5) * pores)
    height = np.float32(0.0006) * fibre - np.float32(0.002) * pores - np.float32(0.0012) * late
    gloss: Array = np.full_like(height, 0.05)

    if defect == "scratch":
        line = scratch(scene, length=(0.5, 1.1), bend=0.02, reach=0.4)
        distance = path(scene, line, 0.06) + np.float32(0.002) * fine
        width = np.float32(flaw.uniform(0.007, 0.011))
        height = height - np.float32(0.012) * ramp(-distance, -0.014, 0.0)
        torn = scene.fill(distance - width) * ramp(scene.noise(flaw, 40), -1.3, -0.4)
        albedo = mix(albedo, colour(232, 205, 165), np.float32(0.7) * torn)
    elif defect == "crack":
        start = spot(scene, reach=0.55)
        length = flaw.uniform(0.5, 0.9)
        line = wander(scene, (start[0], start[1] - length / 2), heading=math.pi / 2, length=length, bend=0.05)
        reach = np.clip((scene.y - np.float32(start[1])) / np.float32(length / 2), -1, 1)
        width = np.float32(flaw.uniform(0.012, 0.02)) * (1 - np.square(reach))
        distance = path(scene, line, 0.08) + np.float32(0.003) * fibre
        split = scene.fill(distance - width)
        height = height - np.float32(0.02) * split
        albedo = mix(albedo, colour(38, 22, 12), np.float32(0.93) * split)
        gloss = gloss * (1 - split)
    elif defect == "borehole":
        for _ in range(int(flaw.integers(1, 4))):
            distance = blotch(scene, spot(scene, reach=0.7), radius=flaw.uniform(0.026, 0.042), rough=0.08)
            hole = ramp(-distance, -0.005, 0.006)
            height = height + np.float32(0.006) * ramp(-distance, -0.03, 0) - np.float32(0.04) * hole
            albedo = mix(albedo, colour(30, 17, 9), hole)
            gloss = gloss * (1 - hole)
    elif defect == "ink_stain":
        distance = blotch(scene, spot(scene, reach=0.6), radius=flaw.uniform(0.1, 0.2), rough=0.3, cells=7)
        soaked = ramp(-distance + np.float32(0.02) * fibre, -0.03, 0.05)
        rim = soaked * (1 - soaked) * 4
        albedo = albedo * (1 - soaked * (1 - colour(150, 152, 165))) * (1 - np.float32(0.25) * rim)
    return scene.shade(albedo, height, gloss=gloss, hardness=4, ambient=0.4)
