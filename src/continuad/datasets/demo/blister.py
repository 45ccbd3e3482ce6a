"""A blister pack: twelve tablets under clear domes on embossed foil."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from continuad.datasets.demo.canvas import Array, Pose, Scene, box, colour, mix, ramp, tint
from continuad.datasets.demo.flaws import blotch
from continuad.datasets.demo.product import demo_product

COLUMNS, ROWS = 3, 4
STEP_X, STEP_Y = 0.47, 0.41
POCKET, TABLET = 0.182, 0.145


@dataclass(frozen=True)
class Pockets:
    """Every pixel seen from its nearest pocket: the pocket's number, the position in it, the radius."""

    cell: NDArray[np.intp]
    x: Array
    y: Array
    radius: Array

    @classmethod
    def of(cls, x: Array, y: Array) -> Pockets:
        """Tell which pocket each point of the pack belongs to."""
        column = np.clip(np.rint(x * np.float32(1 / STEP_X) + 1), 0, COLUMNS - 1)
        row = np.clip(np.rint(y * np.float32(1 / STEP_Y) + np.float32(1.5)), 0, ROWS - 1)
        px, py = x - (column - 1) * np.float32(STEP_X), y - (row - np.float32(1.5)) * np.float32(STEP_Y)
        return cls((row * COLUMNS + column).astype(np.intp), px, py, np.sqrt(px * px + py * py))


def _foil(scene: Scene, x: Array, y: Array, pockets: Pockets) -> Array:
    """Foil embossed with small diamonds, pressed flat around and under the domes."""
    wave = np.float32(math.pi * 22)
    rim = pockets.radius - np.float32(POCKET)
    land = ramp(rim, 0.012, 0.03)
    emboss = np.abs(np.sin(wave * (x + y)))
    emboss += np.abs(np.sin(wave * (x - y)))
    height = np.float32(0.0075) * emboss + np.float32(0.03) * scene.fractal(scene.part, 5, octaves=3)
    height *= np.float32(0.22) + np.float32(0.78) * land
    height += np.float32(0.035) * (1 - ramp(rim, -0.03, 0.014))
    foil = tint(scene.part, colour(150, 154, 160), 0.04) * (
        1 - np.float32(0.55) * (1 - ramp(rim, -0.05, 0.0))
    )
    return scene.shade(foil, height, gloss=0.75, hardness=4, ambient=0.3)


def _tablets(scene: Scene, pockets: Pockets, defect: str | None) -> tuple[Array, Array]:
    """The tablets' light and coverage; each lies loosely in its pocket, turned its own way."""
    part, flaw = scene.part, scene.flaw
    count = COLUMNS * ROWS
    shift_x, shift_y = part.uniform(-0.018, 0.018, (2, count)).astype(np.float32)
    turn = part.uniform(0, math.tau, count)
    pigment = part.uniform(0.96, 1.03, count).astype(np.float32)
    powder = scene.noise(part, scene.pixels / 3)
    cell = pockets.cell
    x, y = pockets.x - shift_x.take(cell), pockets.y - shift_y.take(cell)
    radius = np.sqrt(x * x + y * y)
    edge = radius - np.float32(TABLET)
    along = x * np.cos(turn).astype(np.float32).take(cell) + y * np.sin(turn).astype(np.float32).take(cell)
    relief = np.float32(0.07) * np.sqrt(np.clip(1 - np.square(radius / np.float32(TABLET * 1.12)), 0, 1))
    relief -= np.float32(0.012) * (1 - ramp(np.abs(along), 0.004, 0.014))
    relief += np.float32(0.0012) * powder
    chalk: Array = pigment.take(cell) + np.float32(0.03) * powder
    coat = tint(part, colour(224, 217, 203), 0.03) * chalk

    here = cell == int(flaw.integers(count)) if defect is not None else np.False_
    if defect == "missing_tablet":
        edge = np.where(here, np.float32(1), edge)
    elif defect == "broken_tablet":
        heading = flaw.uniform(0, math.tau)
        broken = np.float32(math.cos(heading)) * x + np.float32(math.sin(heading)) * y
        broken = broken - np.float32(flaw.uniform(0.0, 0.07)) + np.float32(0.014) * scene.noise(flaw, 26)
        edge = np.where(here, np.maximum(edge, broken), edge)
        relief = np.where(here, relief - np.float32(0.05) * ramp(broken, -0.03, 0.0), relief)
    elif defect == "wrong_colour":
        dye = (colour(226, 178, 176), colour(190, 205, 216), colour(226, 205, 140))[int(flaw.integers(3))]
        coat = np.where(here, dye * chalk, coat)
    return scene.shade(coat, relief, gloss=0.05, hardness=3, ambient=0.4), scene.fill(edge)


def _domes(scene: Scene, pockets: Pockets) -> Array:
    """Light that the clear domes mirror: a window towards the lamp, the room opposite, the rim."""
    length = math.hypot(scene.light.x, scene.light.y)
    lx, ly = np.float32(scene.light.x / length), np.float32(scene.light.y / length)
    toward, aside = pockets.x * lx + pockets.y * ly, pockets.y * lx - pockets.x * ly
    arc = np.exp(-np.square((pockets.radius - np.float32(0.140)) * np.float32(1 / 0.013)))
    glint = np.float32(1.3) * ramp(toward, 0.07, 0.10) * ramp(np.abs(aside), 0.003, 0.009)
    glint += np.float32(0.22) * ramp(-toward, 0.09, 0.14)
    glint *= arc
    rim = np.exp(-np.square((pockets.radius - np.float32(POCKET)) * np.float32(1 / 0.008)))
    glint += rim * np.maximum(np.float32(0.12) + toward, 0)
    return glint


def _dirt(scene: Scene, pose: Pose, view: Array) -> Array:
    """A few dark crumbs in one pocket."""
    flaw = scene.flaw
    target = int(flaw.integers(COLUMNS * ROWS))
    u, v = (target % COLUMNS - 1) * STEP_X, (target // COLUMNS - 1.5) * STEP_Y
    x, y = pose.place(u + flaw.uniform(-0.08, 0.08), v + flaw.uniform(-0.08, 0.08))
    for _ in range(int(flaw.integers(2, 6))):
        centre = (x + float(flaw.normal(0, 0.04)), y + float(flaw.normal(0, 0.04)))
        crumb = ramp(-blotch(scene, centre, radius=flaw.uniform(0.018, 0.034), rough=0.35), -0.006, 0.006)
        view = mix(view, colour(56, 44, 36), np.float32(0.85) * crumb)
    return view


@demo_product(
    "blister",
    "blister pack of twelve tablets",
    defects=("missing_tablet", "broken_tablet", "wrong_colour", "contamination"),
)
def blister(scene: Scene, defect: str | None) -> Array:
    """Draw the pack on a blue table."""
    part = scene.part
    pose = scene.pose(shift=0.03, turn=3.5, grow=0.015)
    x, y = scene.coordinates(pose)
    pockets = Pockets.of(x, y)
    foil = _foil(scene, x, y, pockets)
    tablets, cover = _tablets(scene, pockets, defect)
    dark = np.maximum(
        scene.shadow(cover, height=0.05, softness=0.035), scene.blur(cover, 0.03) * np.float32(0.7)
    )
    view = mix(foil * (1 - np.float32(0.6) * dark), tablets, cover)
    if defect == "contamination":
        view = _dirt(scene, pose, view)
    outline = box(x, y, 0.76, 0.90, 0.09)
    lip = np.float32(0.25) * np.exp(-np.square((outline + np.float32(0.012)) * np.float32(1 / 0.008)))
    view += _domes(scene, pockets) + lip

    card = scene.fill(outline)
    table = 1 + np.float32(0.06) * scene.noise(part, scene.pixels / 3)
    table *= 1 - np.float32(0.6) * scene.shadow(card, height=0.03, softness=0.05)
    return mix(tint(part, colour(58, 74, 92), 0.06) * table, view, card)
