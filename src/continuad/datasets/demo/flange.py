"""A turned steel flange with six bolt holes: grooves around the centre and their bow-tie highlight."""

from __future__ import annotations

import math

import numpy as np

from continuad.datasets.demo.canvas import Array, Pose, Scene, colour, disc, mix, path, ramp, tint
from continuad.datasets.demo.flaws import blotch, scratch
from continuad.datasets.demo.product import demo_product

OUTER, HUB, BORE = 0.80, 0.44, 0.24
"""Radii of the rim, the raised hub and the bore."""
HOLES, CIRCLE, BOLT = 6, 0.62, 0.082
"""Number of bolt holes, radius of the circle they lie on, and their own."""


def _grooves(rng: np.random.Generator, radius: Array) -> Array:
    """Noise that depends on the radius alone, as a lathe leaves it."""
    fine, coarse = rng.standard_normal(700), np.repeat(rng.standard_normal(70), 10)
    return (fine + 0.6 * coarse).astype(np.float32).take(np.minimum(radius * 640, 699).astype(np.intp))


def _to_hole(x: Array, y: Array, missing: int) -> Array:
    """Signed distance to the nearest bolt hole; the one of number `missing` was never drilled."""
    squared = np.full_like(x, 9)
    for index in range(HOLES):
        if index != missing:
            angle = math.tau * index / HOLES
            dx, dy = x - np.float32(CIRCLE * math.cos(angle)), y - np.float32(CIRCLE * math.sin(angle))
            np.minimum(squared, dx * dx + dy * dy, out=squared)
    distance: Array = np.sqrt(squared) - np.float32(BOLT)
    return distance


def _profile(radius: Array, hole: Array) -> Array:
    """Height of the flat face with chamfered rim, raised hub, and chamfered bore and holes."""
    height = np.float32(0.05) * ramp(radius, OUTER, OUTER - 0.035)
    height += np.float32(0.05) * ramp(radius, HUB + 0.03, HUB)
    height -= np.float32(0.06) * ramp(radius, BORE + 0.035, BORE)
    height -= np.float32(0.03) * ramp(hole, 0.022, 0.0)
    return height


def _bow_tie(scene: Scene, pose: Pose, radius: Array) -> Array:
    """Light scattered by the grooves, across themselves: bright where they run at right angles to a lamp."""
    x, y = scene.x - np.float32(pose.x), scene.y - np.float32(pose.y)
    inverse = np.float32(pose.scale) / np.maximum(radius, np.float32(0.02))
    shine = np.zeros_like(radius)
    for dx, dy, width, power in (
        (scene.light.x, scene.light.y, 0.18, 1.0),
        (-scene.light.y, 0.8 * scene.light.x, 0.10, 0.4),
    ):
        tangent = (np.float32(dx / width) * y - np.float32(dy / width) * x) * inverse
        shine += np.float32(power) / (1 + tangent * tangent)
    return shine


@demo_product("flange", "turned steel flange", defects=("scratch", "dent", "rust", "missing_hole"))
def flange(scene: Scene, defect: str | None) -> Array:
    """Draw the flange on a dark rubber mat."""
    part, flaw = scene.part, scene.flaw
    pose = scene.pose(shift=0.04, turn=180, grow=0.015)
    x, y = scene.coordinates(pose)
    radius = np.sqrt(x * x + y * y)
    hole = _to_hole(x, y, int(flaw.integers(HOLES)) if defect == "missing_hole" else -1)
    rings = _grooves(part, radius)
    height = _profile(radius, hole) + np.float32(0.0009) * rings
    shine = _bow_tie(scene, pose, radius)
    shine *= 1 + np.float32(0.10) * rings + np.float32(0.06) * scene.fractal(part, 5, octaves=2)
    steel = tint(part, colour(150, 152, 156), 0.04) * (np.float32(0.38) + shine + np.float32(0.02) * rings)
    gloss: Array = np.full_like(radius, 0.22)

    between = int(flaw.integers(HOLES)) + flaw.uniform(0.28, 0.72)
    angle, out = math.tau * between / HOLES, flaw.uniform(0.5, 0.72)
    spot = pose.place(out * math.cos(angle), out * math.sin(angle))
    if defect == "scratch":
        distance = path(scene, scratch(scene, length=(0.3, 0.6), bend=0.03, at=spot), 0.05)
        cut = scene.fill(distance - np.float32(flaw.uniform(0.008, 0.012)))
        height = height - np.float32(0.025) * ramp(distance, 0.018, 0)
        steel = mix(steel, colour(70, 72, 76), np.float32(0.75) * cut)
    elif defect == "dent":
        distance = blotch(scene, spot, radius=flaw.uniform(0.05, 0.085), rough=0.12)
        pit = ramp(distance, 0.03, -0.05)
        height = height - np.float32(0.06) * pit
        steel = mix(steel, steel * np.float32(0.65), pit)
        gloss = gloss + np.float32(0.4) * pit
    elif defect == "rust":
        pits = scene.noise(flaw, 60)
        distance = blotch(scene, spot, radius=flaw.uniform(0.07, 0.15), rough=0.55, cells=16)
        bloom = ramp(distance - np.float32(0.02) * pits, 0.03, -0.05)
        rust = mix(colour(146, 78, 34), colour(92, 44, 24), ramp(pits, -0.8, 0.9))
        steel = mix(steel, rust * np.float32(0.75), np.float32(0.92) * bloom)
        gloss = gloss * (1 - bloom)
        height = height + np.float32(0.002) * pits * bloom
    metal = scene.shade(steel, height, gloss=gloss, hardness=5, ambient=0.3)

    solid = np.maximum(np.maximum(radius - np.float32(OUTER), np.float32(BORE) - radius), -hole)
    cast = scene.shadow(scene.fill(disc(x, y, OUTER)), height=0.07, softness=0.05)
    depth = np.maximum(ramp(radius, BORE + 0.05, BORE), ramp(hole, 0.05, 0))
    mat = 1 + np.float32(0.16) * scene.noise(part, scene.pixels / 3)
    mat *= 1 - np.float32(0.8) * np.maximum(cast, np.float32(0.6) * depth)
    return mix(tint(part, colour(56, 58, 61), 0.1) * mat, metal, scene.fill(solid))
