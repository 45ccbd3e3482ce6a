"""A populated circuit board."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from PIL import ImageFilter

from continuad.datasets.demo.board import Board, body, copper, pads
from continuad.datasets.demo.canvas import Array, Pose, Scene, colour, mix, path, tint
from continuad.datasets.demo.flaws import blotch, scratch
from continuad.datasets.demo.product import demo_product


@dataclass(frozen=True)
class Component:
    """A part on the board: its kind, its place, its designator."""

    kind: str
    x: float
    y: float
    turn: float
    label: str


LAYOUT = (
    Component("processor", -0.08, -0.12, 0, "U1"),
    Component("driver", 0.66, 0.36, 90, "U2"),
    Component("can", -0.66, 0.58, 0, "C8"),
    Component("crystal", -0.70, -0.20, 90, "Y1"),
    *(Component("resistor", -0.42 + 0.23 * k, -0.72, 90, f"R{k + 1}") for k in range(5)),
    *(Component("capacitor", -0.28 + 0.22 * k, 0.46, 90, f"C{k + 1}") for k in range(3)),
    *(Component("resistor", 0.56, -0.44 + 0.18 * k, 0, f"R{k + 6}") for k in range(3)),
    Component("capacitor", 0.86, -0.42, 90, "C4"),
    Component("capacitor", -0.72, -0.60, 0, "C5"),
)
CLEAR = ((-0.46, 0.26), (0.04, 0.70), (0.36, -0.20), (-0.62, -0.42), (0.40, 0.72), (0.36, 0.20))
"""Places without components."""
SMALL = tuple(index for index, part in enumerate(LAYOUT) if part.kind in {"resistor", "capacitor", "crystal"})


def _damaged(
    parts: list[Component], rng: np.random.Generator, defect: str | None
) -> tuple[list[Component], int]:
    """Move or choose a component; returns the parts and the index of the one to leave out (-1: none)."""
    if defect == "missing_component":
        return parts, int(rng.choice(SMALL))
    if defect == "misplaced_component":
        index = int(rng.choice(SMALL))
        dx, dy = rng.uniform(0.015, 0.05, 2) * rng.choice([-1, 1], 2)
        turn = rng.uniform(12, 50) * rng.choice([-1, 1])
        old = parts[index]
        parts[index] = replace(old, x=old.x + float(dx), y=old.y + float(dy), turn=old.turn + float(turn))
    return parts, -1


@demo_product(
    "circuit",
    "populated circuit board",
    defects=("missing_component", "misplaced_component", "solder_bridge", "scratch"),
)
def circuit(scene: Scene, defect: str | None) -> Array:
    """Draw the board; it reaches beyond the picture."""
    part, flaw = scene.part, scene.flaw
    pose = scene.pose(shift=0.025, turn=1.5, grow=0.01)
    board = Board(scene.pixels)
    copper(board, pose)

    def seat(component: Component) -> Pose:
        return pose.at(component.x, component.y, math.radians(component.turn))

    for component in LAYOUT:
        pads(board, seat(component), component.kind)
        if component.kind in {"resistor", "capacitor"}:
            upright = component.turn == 90
            at = (component.x, component.y + 0.17) if upright else (component.x + 0.19, component.y)
            board.text(pose, at, component.label, 0.075)
    jitter = part.uniform(-1, 1, (len(LAYOUT), 3))
    loose = [
        replace(c, x=c.x + 0.006 * dx, y=c.y + 0.006 * dy, turn=c.turn + 2 * turn)
        for c, (dx, dy, turn) in zip(LAYOUT, jitter.tolist(), strict=True)
    ]
    placed, left_out = _damaged(loose, flaw, defect)
    for index, component in enumerate(placed):
        if index != left_out:
            body(board, seat(component), component.kind)

    weave = scene.fractal(part, scene.pixels / 6, octaves=2)
    raised = np.asarray(board.height, dtype=np.float32)
    bevelled = np.asarray(board.height.filter(ImageFilter.GaussianBlur(scene.pixels / 400)), dtype=np.float32)
    height = bevelled * np.float32(0.12 / 255) + np.float32(0.0003) * weave
    tone = tint(part, np.ones((3, 1, 1), dtype=np.float32), 0.06) / np.float32(255**2)
    albedo = np.square(np.asarray(board.colour, dtype=np.float32).transpose(2, 0, 1)) * tone
    gloss = np.asarray(board.shine, dtype=np.float32) * np.float32(0.55 / 255)

    if defect == "solder_bridge":
        side, pin = int(flaw.integers(4)), int(flaw.integers(8))
        chip = pose.at(LAYOUT[0].x, LAYOUT[0].y, side * math.pi / 2)
        distance = blotch(
            scene, chip.place(-0.175 + 0.05 * pin, 0.29), radius=flaw.uniform(0.042, 0.055), rough=0.12
        )
        blob = scene.fill(distance)
        bead = np.float32(0.02) + np.float32(0.05) * np.sqrt(np.clip(distance * np.float32(-20), 0, 1))
        height = mix(height, bead, blob)
        albedo = mix(albedo, colour(188, 190, 190), blob)
        gloss = gloss + (np.float32(0.9) - gloss) * blob
    elif defect == "scratch":
        at = CLEAR[int(flaw.integers(len(CLEAR)))]
        distance = path(scene, scratch(scene, length=(0.4, 0.8), bend=0.04, at=at), 0.05)
        cut = scene.fill(distance - np.float32(flaw.uniform(0.009, 0.013))) * (raised < 20)
        albedo = mix(albedo, colour(206, 150, 100), np.float32(0.9) * cut)
        gloss = gloss + (np.float32(0.5) - gloss) * cut
    view = scene.shade(albedo, height, gloss=gloss, hardness=5, ambient=0.4)
    tall = np.clip((raised - 40) / np.float32(40), 0, 1)
    cast = scene.shadow(tall, height=0.035, softness=0.02)
    view *= 1 - np.float32(0.62) * cast * (1 - tall)
    return view
