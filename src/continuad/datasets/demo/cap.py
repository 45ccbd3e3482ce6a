"""A printed crown cap seen from above: fluted skirt, domed top, lacquer."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from continuad.datasets.demo.canvas import Array, Pose, Scene, colour, mix, path, ramp, tint
from continuad.datasets.demo.flaws import blotch, scratch
from continuad.datasets.demo.lettering import around, stamp
from continuad.datasets.demo.product import demo_product

RADIUS, FLUTES = 0.80, 21
LEGEND = "CONTINUAD * BREWERY * "


def _print(scene: Scene, pose: Pose) -> Array:
    """Coverage of the white print: a mountain in a ring, a legend around it."""
    image = Image.new("L", (scene.pixels, scene.pixels))
    draw = ImageDraw.Draw(image)

    def pixels(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        placed = [pose.place(u, v) for u, v in points]
        return [((x + 1) * scene.pixels / 2, (y + 1) * scene.pixels / 2) for x, y in placed]

    def circle(radius: float, ink: int) -> None:
        draw.polygon(
            pixels([(radius * math.cos(a), radius * math.sin(a)) for a in np.linspace(0, math.tau, 90)]), ink
        )

    circle(0.362, 255)
    circle(0.338, 0)
    draw.polygon(pixels([(-0.27, 0.13), (-0.06, -0.20), (0.04, -0.05), (0.10, -0.13), (0.27, 0.13)]), 255)
    draw.polygon(
        pixels([(-0.115, -0.06), (-0.06, -0.145), (-0.01, -0.07), (-0.05, -0.09), (-0.075, -0.05)]), 0
    )
    draw.polygon(pixels([(-0.20, 0.17), (0.20, 0.17), (0.16, 0.205), (-0.16, 0.205)]), 255)
    draw.polygon(pixels([(-0.12, 0.24), (0.12, 0.24), (0.08, 0.27), (-0.08, 0.27)]), 255)
    for letter, place in around(LEGEND, radius=0.455, pose=pose):
        ink, corner = stamp(letter, height=0.125, pose=place, pixels=scene.pixels)
        image.paste(255, corner, ink)
    return np.asarray(image, dtype=np.float32) / np.float32(255)


@demo_product("cap", "printed crown cap", defects=("misprint", "scratch", "dent", "bent_flute"))
def cap(scene: Scene, defect: str | None) -> Array:
    """Draw the cap on a grey belt."""
    part, flaw = scene.part, scene.flaw
    pose = scene.pose(shift=0.05, turn=180, grow=0.02)
    x, y = scene.coordinates(pose)
    radius, angle = np.sqrt(x * x + y * y), np.arctan2(y, x)
    flute = np.cos(FLUTES * angle)
    edge: Array = np.full_like(radius, RADIUS)
    if defect == "bent_flute":
        away = np.abs(
            np.mod(angle - np.float32(flaw.uniform(0, math.tau)) + np.float32(math.pi), math.tau) - math.pi
        )
        bent = (1 - ramp(away, 0.16, 0.32)).astype(np.float32)
        flute = flute * (1 - bent) + np.float32(0.2) * bent
        edge = edge - np.float32(flaw.uniform(0.07, 0.11)) * bent
    skirt = ramp(radius, 0.60, 0.76)
    outline = radius - edge - np.float32(0.028) * flute
    height = np.float32(0.30) * np.sqrt(np.clip(1 - np.square(radius / np.float32(0.98)), 0.02, 1))
    height = height + np.float32(0.034) * flute * skirt - np.float32(0.10) * skirt * skirt
    height = height - np.float32(0.012) * np.exp(-np.square((radius - np.float32(0.565)) / np.float32(0.012)))
    lacquer = scene.fractal(part, 30, octaves=2)
    height = height + np.float32(0.0006) * lacquer

    wobble = part.uniform(-0.008, 0.008, 2)
    place = pose.at(float(wobble[0]), float(wobble[1]))
    if defect == "misprint":
        away_x, away_y = flaw.uniform(0.05, 0.10, 2) * flaw.choice([-1, 1], 2)
        place = Pose(place.x + float(away_x), place.y + float(away_y), place.turn, place.scale)
    ink = _print(scene, place) * (1 - np.float32(0.05) * np.abs(lacquer))
    red, white = tint(part, colour(168, 26, 34), 0.08), tint(part, colour(240, 236, 226), 0.03)
    paint = mix(red, white, ink)
    ring = np.exp(-np.square((radius - np.float32(0.60)) / np.float32(0.012)))
    paint = mix(paint, colour(214, 178, 96), np.clip(ring * np.float32(1.4), 0, 1))
    gloss: Array = np.full_like(radius, 0.55)

    if defect in {"scratch", "dent"}:
        turn, at = flaw.uniform(0, math.tau), math.sqrt(flaw.uniform(0.0, 0.18))
        middle = pose.place(at * math.cos(turn), at * math.sin(turn))
        if defect == "scratch":
            line = scratch(scene, length=(0.4, 0.8), bend=0.05, at=middle)
            distance = path(scene, line, 0.05) + np.float32(0.0015) * scene.noise(flaw, 60)
            bare = scene.fill(distance - np.float32(flaw.uniform(0.007, 0.012))) * (radius < np.float32(0.7))
            paint = mix(paint, colour(196, 198, 200), np.float32(0.9) * bare)
            height = height - np.float32(0.006) * bare
        else:
            distance = blotch(scene, middle, radius=flaw.uniform(0.10, 0.15), rough=0.10, cells=6)
            height = height - np.float32(0.05) * ramp(-distance, -0.07, 0.10)
    body = scene.shade(paint, height, gloss=gloss, hardness=5, ambient=0.28)

    cover = scene.fill(outline)
    belt = tint(part, colour(128, 130, 131), 0.06) * (
        1 + np.float32(0.05) * scene.noise(part, scene.pixels / 3)
    )
    belt = belt * (1 + np.float32(0.02) * scene.noise(part, 60, 3))
    dark = np.maximum(
        scene.shadow(cover, height=0.10, softness=0.09) * np.float32(0.6),
        scene.shadow(cover, height=0.025, softness=0.03) * np.float32(0.8),
    )
    return mix(belt * (1 - dark), body, cover)
