"""Printed letters, in PIL's own font so that every machine prints the same."""

from __future__ import annotations

import math
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from continuad.datasets.demo.canvas import Pose


@lru_cache(maxsize=64)
def _ink(text: str, pixels: int) -> Image.Image:
    font = ImageFont.load_default(size=pixels)
    left, top, right, bottom = (round(edge) for edge in font.getbbox(text))
    ink = Image.new("L", (max(right - left, 1) + 2, max(bottom - top, 1) + 2))
    ImageDraw.Draw(ink).text((1 - left, 1 - top), text, fill=255, font=font)
    return ink


def stamp(text: str, *, height: float, pose: Pose, pixels: int) -> tuple[Image.Image, tuple[int, int]]:
    """Print a text centred on the pose.

    Args:
        text: one line.
        height: font size in picture units, before the pose's scale.
        pose: centre, rotation and scale in the picture.
        pixels: the picture's side.

    Returns:
        The coverage ("L") and the pixel of its upper left corner.
    """
    ink = _ink(text, max(round(height * pose.scale * pixels / 2), 4))
    turned = ink.rotate(-math.degrees(pose.turn), resample=Image.Resampling.BICUBIC, expand=True)
    x, y = ((axis + 1) * pixels / 2 for axis in (pose.x, pose.y))
    return turned, (round(x - turned.width / 2), round(y - turned.height / 2))


def around(text: str, *, radius: float, pose: Pose) -> list[tuple[str, Pose]]:
    """Place the letters of a text evenly on a circle around the pose, their feet towards its centre."""
    letters = []
    for index, letter in enumerate(text):
        turn = math.tau * index / len(text)
        if letter != " ":
            letters.append((letter, pose.at(radius * math.sin(turn), -radius * math.cos(turn), turn)))
    return letters
