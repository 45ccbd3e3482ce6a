"""A circuit board's drawing: copper under solder mask, pads, chips and passives."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from continuad.datasets.demo.canvas import Point, Pose
from continuad.datasets.demo.lettering import stamp

RGB = tuple[int, int, int]
TIN: RGB = (196, 196, 190)
GOLD: RGB = (206, 172, 96)
INK: RGB = (222, 226, 218)
POUR: RGB = (22, 92, 58)
GAP: RGB = (10, 58, 38)
TRACE: RGB = (36, 116, 74)
BLACK: RGB = (40, 41, 43)


class Board:
    """Three pictures drawn at once: colour, height (0..255 is 0..0.12) and shine (0..255)."""

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.colour = Image.new("RGB", (pixels, pixels), POUR)
        self.height = Image.new("L", (pixels, pixels), 8)
        self.shine = Image.new("L", (pixels, pixels), 60)
        self._pens = [ImageDraw.Draw(layer) for layer in (self.colour, self.height, self.shine)]

    def _at(self, pose: Pose, u: float, v: float) -> Point:
        x, y = pose.place(u, v)
        return (x + 1) * self.pixels / 2, (y + 1) * self.pixels / 2

    def polygon(self, pose: Pose, points: list[Point], ink: RGB, height: int, shine: int) -> None:
        """Fill a polygon given in the pose's coordinates."""
        corners = [self._at(pose, u, v) for u, v in points]
        fills: tuple[RGB | int, ...] = (ink, height, shine)
        for pen, fill in zip(self._pens, fills, strict=True):
            pen.polygon(corners, fill=fill)

    def rectangle(self, pose: Pose, at: Point, sides: Point, ink: RGB, height: int, shine: int = 40) -> None:
        """Fill a rectangle of these sides around a point of the pose."""
        (u, v), (wide, high) = at, (sides[0] / 2, sides[1] / 2)
        corners = [(u - wide, v - high), (u + wide, v - high), (u + wide, v + high), (u - wide, v + high)]
        self.polygon(pose, corners, ink, height, shine)

    def disc(self, pose: Pose, at: Point, radius: float, ink: RGB, height: int, shine: int = 40) -> None:
        """Fill a disc around a point of the pose."""
        x, y = self._at(pose, *at)
        reach = radius * pose.scale * self.pixels / 2
        fills: tuple[RGB | int, ...] = (ink, height, shine)
        for pen, fill in zip(self._pens, fills, strict=True):
            pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill=fill)

    def line(
        self, pose: Pose, points: list[Point], width: float, ink: RGB, height: int | None = None
    ) -> None:
        """Draw a line through points of the pose, raised where a height is given."""
        corners = [self._at(pose, u, v) for u, v in points]
        pixels = max(round(width * pose.scale * self.pixels / 2), 1)
        self._pens[0].line(corners, fill=ink, width=pixels, joint="curve")
        if height is not None:
            self._pens[1].line(corners, fill=height, width=pixels)

    def text(self, pose: Pose, at: Point, words: str, size: float, ink: RGB = INK) -> None:
        """Print a line centred on a point of the pose."""
        mask, corner = stamp(words, height=size, pose=pose.at(*at), pixels=self.pixels)
        self.colour.paste(ink, corner, mask)


def copper(board: Board, pose: Pose) -> None:
    """Traces under the mask, vias, the header's holes and a mounting hole."""
    traces: list[list[Point]] = []
    for k in range(9):
        y = -0.32 + 0.05 * k
        traces.append([(-0.36, y), (-0.44, y), (-0.62 + 0.02 * k, y - 0.10), (-1.1, y - 0.10)])
        traces.append([(0.2, y), (0.26, y), (0.36, y - 0.08), (0.46 - 0.02 * (k % 3), y - 0.08)])
        x = -0.28 + 0.05 * k
        traces.append([(x, 0.16), (x, 0.22 + 0.01 * k), (x + 0.16, 0.38 + 0.01 * k), (x + 0.16, 0.80)])
        traces.append([(x, -0.40), (x, -0.48), (x * 2.1 + 0.02, -0.58), (x * 2.1 + 0.02, -1.1)])
    for k in range(8):
        y = 0.11 + 0.071 * k
        traces.append([(0.80, y), (0.88, y), (1.1, y - 0.2)])
        traces.append(
            [
                (0.52, y),
                (0.24 + 0.03 * k, y),
                (0.21 + 0.03 * k, y + 0.03),
                (0.21 + 0.03 * k, 0.72),
                (0.25 + 0.03 * k, 0.76),
            ]
        )
    for trace in traces:
        board.line(pose, trace, 0.034, GAP)
    for trace in traces:
        board.line(pose, trace, 0.016, TRACE, 12)
    for u, v in (
        (-0.47, 0.02),
        (0.33, 0.18),
        (0.36, -0.56),
        (0.02, 0.66),
        (-0.33, 0.7),
        (-0.9, 0.05),
        (0.88, -0.1),
        (-0.5, -0.5),
    ):
        board.disc(pose, (u, v), 0.03, GAP, 4)
        board.disc(pose, (u, v), 0.024, TIN, 14, 200)
        board.disc(pose, (u, v), 0.011, (12, 14, 14), 0, 0)
    board.disc(pose, (0.80, -0.80), 0.125, GOLD, 14, 220)
    board.disc(pose, (0.80, -0.80), 0.082, (16, 18, 19), 0, 0)
    for k in range(10):
        board.disc(pose, (-0.32 + 0.13 * k, 0.88), 0.047, GOLD, 16, 230)
        board.disc(pose, (-0.32 + 0.13 * k, 0.88), 0.024, (14, 15, 15), 0, 0)
    board.text(pose, (-0.72, 0.93), "CN-88", 0.11)
    board.text(pose, (0.44, -0.90), "REV C", 0.09)


def pads(board: Board, pose: Pose, kind: str) -> None:
    """The tinned pads a component is soldered to, and its printed outline."""
    if kind == "processor":
        for side in range(4):
            turned = Pose(pose.x, pose.y, pose.turn + side * math.pi / 2, pose.scale)
            for k in range(9):
                board.rectangle(turned, (-0.2 + 0.05 * k, 0.275), (0.03, 0.09), TIN, 16, 190)
    elif kind == "driver":
        for k in range(8):
            for side in (-1, 1):
                board.rectangle(pose, (-0.25 + 0.071 * k, 0.145 * side), (0.042, 0.10), TIN, 16, 190)
    elif kind == "can":
        board.rectangle(pose, (0, 0), (0.46, 0.46), INK, 10)
        board.rectangle(pose, (0, 0), (0.44, 0.44), POUR, 8, 60)
        board.rectangle(pose, (0, 0), (0.10, 0.48), TIN, 16, 190)
    else:
        reach = 0.17 if kind == "crystal" else 0.082
        for side in (-1, 1):
            board.rectangle(pose, (reach * side, 0), (0.085, 0.115), GAP, 6)
            board.rectangle(pose, (reach * side, 0), (0.072, 0.102), TIN, 16, 190)


def body(board: Board, pose: Pose, kind: str) -> None:
    """The component itself."""
    if kind == "processor":
        for side in range(4):
            turned = Pose(pose.x, pose.y, pose.turn + side * math.pi / 2, pose.scale)
            for k in range(9):
                board.rectangle(turned, (-0.2 + 0.05 * k, 0.265), (0.022, 0.075), (208, 208, 204), 60, 230)
        board.rectangle(pose, (0, 0), (0.47, 0.47), BLACK, 130, 40)
        board.disc(pose, (-0.18, -0.18), 0.024, (30, 31, 32), 118, 60)
        for row, words in enumerate(("CN7031", "ARM-M4", "2447K")):
            board.text(pose, (0, -0.07 + 0.09 * row), words, 0.085, (148, 150, 150))
    elif kind == "driver":
        for k in range(8):
            for side in (-1, 1):
                board.rectangle(
                    pose, (-0.25 + 0.071 * k, 0.135 * side), (0.03, 0.08), (208, 208, 204), 60, 230
                )
        board.rectangle(pose, (0, 0), (0.60, 0.22), BLACK, 130, 40)
        board.disc(pose, (-0.25, 0.06), 0.022, (30, 31, 32), 118, 60)
        board.text(pose, (0.02, 0), "DRV824", 0.085, (148, 150, 150))
    elif kind == "can":
        board.disc(pose, (0, 0), 0.205, (126, 128, 130), 150, 90)
        board.disc(pose, (0, 0), 0.185, (190, 192, 194), 215, 160)
        arc = [(0.185 * math.cos(a), 0.185 * math.sin(a)) for a in np.linspace(2.2, 4.1, 16)]
        board.polygon(pose, arc, (38, 38, 42), 215, 100)
        board.text(pose, (0.04, -0.03), "100", 0.085, (60, 60, 64))
        board.text(pose, (0.04, 0.06), "16V", 0.085, (60, 60, 64))
    elif kind == "crystal":
        board.rectangle(pose, (0, 0), (0.33, 0.12), (176, 178, 180), 110, 230)
        board.rectangle(pose, (0, 0), (0.29, 0.085), (196, 198, 200), 125, 230)
        board.text(pose, (0, 0), "16.00", 0.07, (84, 86, 90))
    else:
        core: RGB = (34, 34, 36) if kind == "resistor" else (164, 128, 88)
        board.rectangle(pose, (0, 0), (0.20, 0.092), (204, 204, 200), 70, 230)
        board.rectangle(pose, (0, 0), (0.125, 0.092), core, 78, 50)
        if kind == "resistor":
            board.text(pose, (0, 0), "103", 0.068, (196, 198, 198))
