"""A zinc-plated pan-head screw seen from the side."""

from __future__ import annotations

import numpy as np

from continuad.datasets.demo.canvas import Array, Pose, Scene, colour, mix, path, ramp, tint
from continuad.datasets.demo.flaws import blotch, scratch
from continuad.datasets.demo.product import demo_product

TOP, NECK, THREADED, TIP = -0.76, -0.52, -0.34, 0.80
"""Where along the screw its head begins, the shank, the thread, and where it ends."""
HEAD, SHANK, CORE, PITCH = 0.34, 0.135, 0.108, 0.092
"""Radii of head, shank and thread root; the thread's pitch."""

_FACING = np.linspace(-1, 1, 512)
_ROOM = (
    0.10
    + 1.15 * np.exp(-(((_FACING - 0.40) / 0.17) ** 2))
    + 0.40 * np.exp(-(((_FACING + 0.62) / 0.13) ** 2))
    + 0.30 * np.exp(-(((_FACING + 0.02) / 0.30) ** 2))
).astype(np.float32)
"""What plated metal mirrors over the normal's component towards the lamp: softbox, window, ceiling."""


def _radius(scene: Scene, s: Array, t: Array, defect: str | None) -> Array:
    """Radius at `s` along the axis; the thread's helix also depends on `t`, the distance from the axis."""
    flaw = scene.flaw
    wave = s * np.float32(1 / PITCH) + t * np.float32(0.25 / SHANK) + np.float32(scene.part.uniform(0, 1))
    tooth = np.abs(wave - np.floor(wave) - np.float32(0.5)) * 2
    tooth = ramp(tooth, 0.25, 0.95)
    if defect == "flattened_thread":
        middle, half, side = flaw.uniform(0.0, 0.4), flaw.uniform(0.09, 0.15), flaw.choice([-1, 1])
        worn = 1 - ramp(np.abs(s - np.float32(middle)), half * 0.6, half)
        worn *= ramp(t * np.float32(side), -0.10, 0.02)
        tooth = tooth * (1 - worn) + np.float32(0.25) * worn
    cone = np.sqrt(np.clip((np.float32(TIP) - s) / np.float32(0.26), 0, 1))
    thread = cone * (np.float32(CORE) + np.float32(0.048) * tooth)
    bare = np.float32(SHANK - 0.012)
    shaft = bare + (thread - bare) * ramp(s, THREADED - 0.02, THREADED + 0.03)
    # The head: flat underneath, a dome on top.
    rise = np.clip((s - np.float32(TOP)) / np.float32(NECK - TOP), 0, 1)
    dome = np.float32(HEAD) * np.sqrt(np.clip(1 - np.square(1 - rise), 0, 1)) ** np.float32(0.7)
    radius: Array = np.where(s < np.float32(NECK), dome, shaft)
    return radius


@demo_product(
    "screw",
    "zinc-plated screw, any rotation",
    defects=("flattened_thread", "broken_tip", "scratched_head", "rust"),
)
def screw(scene: Scene, defect: str | None) -> Array:
    """Draw the screw on a light table."""
    part, flaw = scene.part, scene.flaw
    pose = scene.pose(shift=0.04, turn=180, grow=0.02)
    s, t = scene.coordinates(pose)
    radius = _radius(scene, s, t, defect)
    end: Array = np.full((1, 1), TIP, dtype=np.float32)
    if defect == "broken_tip":
        end = end - np.float32(flaw.uniform(0.12, 0.26)) + np.float32(0.015) * scene.noise(flaw, 24)
    outline = np.maximum(np.maximum(np.abs(t) - radius, s - end), np.float32(TOP) - s)
    cover = scene.fill(outline)
    plating = scene.noise(part, scene.pixels / 5)
    height = np.sqrt(np.maximum(np.square(radius) - np.square(t), 0)) + np.float32(0.0004) * plating
    height += np.float32(0.0005) * scene.noise(part, 30)

    patch, cover_patch = _blemish(scene, pose, defect)
    if defect == "scratched_head":
        height = height - np.float32(0.012) * cover_patch
    gx, gy = scene.slopes(height)
    facing = -(gx * np.float32(scene.light.x) + gy * np.float32(scene.light.y)) / np.sqrt(
        1 + gx * gx + gy * gy
    )
    mirrored = _ROOM.take(np.clip((facing * np.float32(1.3) + 1) * 256, 0, 511).astype(np.intp))
    mirrored *= 1 + np.float32(0.05) * plating
    metal = tint(part, colour(212, 210, 202), 0.04) * mirrored
    if patch is not None:
        metal = mix(metal, patch * (np.float32(0.4) + np.float32(0.6) * mirrored), cover_patch)
    table = (
        1
        + np.float32(0.02) * scene.noise(part, scene.pixels / 2.5)
        + np.float32(0.015) * scene.noise(part, 6)
    )
    table *= 1 - np.maximum(
        scene.shadow(cover, height=0.10, softness=0.08) * np.float32(0.5),
        scene.shadow(cover, height=0.03, softness=0.03) * np.float32(0.75),
    )
    return mix(tint(part, colour(172, 176, 178), 0.06) * table, metal, cover)


def _blemish(scene: Scene, pose: Pose, defect: str | None) -> tuple[Array | None, Array]:
    """Colour and coverage of what lies on the metal: a scratch on the head, rust on the shank, or nothing."""
    flaw = scene.flaw
    if defect == "scratched_head":
        middle = pose.place(NECK - 0.10, flaw.uniform(-0.14, 0.14))
        distance = path(scene, scratch(scene, length=(0.22, 0.4), bend=0.04, at=middle), 0.05)
        return colour(250, 250, 245), np.float32(0.85) * scene.fill(distance - np.float32(0.010))
    if defect == "rust":
        middle = pose.place(flaw.uniform(-0.35, 0.45), flaw.uniform(-0.05, 0.05))
        pits = scene.noise(flaw, 60)
        distance = blotch(scene, middle, radius=flaw.uniform(0.08, 0.14), rough=0.4, cells=16)
        rust = mix(colour(150, 80, 34), colour(86, 42, 24), ramp(pits, -0.8, 0.9))
        return rust, np.float32(0.9) * ramp(-distance + np.float32(0.02) * pits, -0.02, 0.04)
    return None, np.zeros((1, 1), dtype=np.float32)
