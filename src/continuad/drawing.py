"""Verdicts as pictures: a heatmap over the photo, one photo with its verdict, a sheet of many."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from continuad.verdict import Verdict

Pixels = NDArray[np.uint8]

# Octaves above the threshold, and there red, green, blue and opacity: lightness grows all the way and the hue
# runs from violet to yellow, which every kind of colour vision tells apart.
_OCTAVES = (-1.0, 0.0, 1.0, 2.0)
_HEAT = np.array(
    [[88, 24, 160, 0.0], [214, 30, 140, 0.6], [255, 130, 50, 0.8], [255, 244, 150, 0.85]], dtype=np.float64
)

PAPER = (250, 250, 248)
INK = (31, 35, 40)
MUTED = (110, 117, 125)
SHADE = (228, 229, 231)
WHITE = (255, 255, 255)
TRUTH = (0, 214, 255)
LABEL_COLOURS = {"normal": (11, 115, 88), "anomalous": (196, 62, 24), "unknown": (107, 114, 128)}
RIGHT, WRONG = LABEL_COLOURS["normal"], LABEL_COLOURS["anomalous"]


def overlay(image: Pixels, anomaly_map: NDArray[np.float32], threshold: float) -> Pixels:
    """Lay a heatmap over a photo, on a scale tied to the threshold.

    Up to half of the threshold the photo is untouched; violet then grows to magenta at the threshold, orange
    at twice and yellow at four times the threshold. A thin white line runs along the inside of every region
    above the threshold.

    Args:
        image: uint8 (H, W, 3).
        anomaly_map: (H, W), any scale.
        threshold: on the scale of the map, positive.

    Returns:
        uint8 (H, W, 3); the arguments are left as they are.

    Raises:
        ValueError: the sizes differ, or the threshold is not a positive number.
    """
    if image.shape != (*anomaly_map.shape, 3):
        raise ValueError(
            f"image and map must be (H, W, 3) and (H, W), not {image.shape}, {anomaly_map.shape}"
        )
    if not 0 < threshold < math.inf:
        raise ValueError(f"the threshold must be a positive number, not {threshold}")
    out = image.copy()
    values = anomaly_map.astype(np.float64)
    warm = values > threshold / 2
    octaves = np.log2(values[warm]) - math.log2(threshold)
    red, green, blue, opacity = (np.interp(octaves, _OCTAVES, channel) for channel in _HEAT.T)
    photo, heat = out[warm].astype(np.float64), np.stack([red, green, blue], axis=1)
    out[warm] = np.rint(photo + opacity[:, None] * (heat - photo)).astype(np.uint8)
    out[_rim(values > threshold, _line_width(out))] = WHITE
    return out


def annotated(image: Pixels, verdict: Verdict, *, caption: str | None = None) -> Pixels:
    """Draw a verdict: the overlay above a strip with label, product, score and threshold.

    A small photo is enlarged so that the strip can be read. An unknown product has a grey strip and no
    heatmap.

    Args:
        image: uint8 (H, W, 3), as it was inspected.
        verdict: what was said about it.
        caption: a further line, such as the file's name.
    """
    height, width = (side * math.ceil(320 / image.shape[1]) for side in image.shape[:2])
    picture = _scaled(image, width, height)
    if verdict.anomaly_map is not None:
        picture = overlay(picture, _scaled_map(verdict.anomaly_map, width, height), verdict.threshold)

    size = max(16, width // 32)
    title, text = ImageFont.load_default(size), ImageFont.load_default(0.8 * size)
    lines = [caption] if caption else []
    name = verdict.label if verdict.product is None else f"{verdict.label} · {verdict.product}"
    if verdict.product is not None:
        lines.insert(0, f"score {verdict.score:.4g} · threshold {verdict.threshold:.4g}")
    strip = Image.new("RGB", (width, round((2.2 + 1.3 * len(lines)) * size)), LABEL_COLOURS[verdict.label])
    draw = ImageDraw.Draw(strip)
    ratio = "" if verdict.product is None else f"{_times(verdict)} threshold"
    room = width - 2 * size - draw.textlength(ratio, title)
    draw.text((size, 1.1 * size), _fit(name, title, room - size), WHITE, title, anchor="lm")
    draw.text((width - size, 1.1 * size), ratio, WHITE, title, anchor="rm")
    for index, line in enumerate(lines):
        place = (size, (2.4 + 1.3 * index) * size)
        draw.text(place, _fit(line, text, width - 2 * size), WHITE, text, anchor="lm")
    return np.vstack([picture, np.asarray(strip)])


def describe(verdict: Verdict) -> str:
    """The verdict in a few words: "anomalous 1.8x" says how many times the threshold the score is."""
    return verdict.label if verdict.product is None else f"{verdict.label} {_times(verdict)}"


@dataclass(frozen=True, eq=False)
class SheetCell:
    """One image on a contact sheet.

    Attributes:
        image: uint8 (H, W, 3).
        verdict: what was said about it.
        label: the line below it.
        is_correct: whether the verdict is right.
        mask: bool (H, W), the true defect; None if there is none or it is not known.
    """

    image: Pixels
    verdict: Verdict
    label: str
    is_correct: bool
    mask: NDArray[np.bool_] | None = None


@dataclass(frozen=True, eq=False)
class SheetRow:
    """One product on a contact sheet; `note` may have several lines."""

    title: str
    cells: Sequence[SheetCell]
    note: str = ""


def contact_sheet(rows: Sequence[SheetRow], *, tile: int, heading: str = "") -> Pixels:
    """Lay out images in rows, each as three tiles: the photo, the true defect, the heatmap.

    A tick marks correct verdicts; wrong ones have a cross and a frame.

    Args:
        rows: their cells may differ in number and in size.
        tile: side of a tile in pixels, at least 48.
        heading: the line at the top.

    Returns:
        uint8 (H, W, 3).

    Raises:
        ValueError: the tiles are too small, or there is no row.
    """
    if tile < 48 or not rows:
        raise ValueError(f"a sheet needs rows and tiles of at least 48 pixels, not {len(rows)} and {tile}")
    sheet = _Sheet(tile, columns=max(len(row.cells) for row in rows), rows=len(rows))
    sheet.header(heading)
    for index, row in enumerate(rows):
        sheet.row(index, row)
    return np.array(sheet.picture)


class _Sheet:
    """The measures of a contact sheet, and the pen that fills it."""

    def __init__(self, tile: int, *, columns: int, rows: int) -> None:
        self.tile, self.columns = tile, columns
        self.gap = max(2, tile // 40)
        self.margin = tile // 4
        self.titles = round(1.3 * tile)
        self.top = round(0.85 * tile)
        self.line = max(10, tile // 10)
        self.cell = 3 * tile + 2 * self.gap
        self.pitch = tile + 3 * self.line
        width = (
            2 * self.margin + self.titles + columns * (self.cell + self.margin) - self.margin * bool(columns)
        )
        height = self.top + rows * self.pitch + self.margin - self.line
        self.picture = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.picture)

    def header(self, heading: str) -> None:
        """Write the heading, the legend and what the tiles of a cell are."""
        large, small = ImageFont.load_default(1.5 * self.line), ImageFont.load_default(0.8 * self.line)
        middle, right = self.top // 3 + self.gap, self.picture.width - self.margin
        bar = overlay(
            np.full((self.line, 2 * self.tile, 3), 150, np.uint8),
            np.tile(np.geomspace(0.35, 5.6, 2 * self.tile, dtype=np.float32), (self.line, 1)),
            1.0,
        )
        left = right - bar.shape[1]
        self.picture.paste(Image.fromarray(bar), (left, middle - self.line // 2))
        for octave, name in zip(_OCTAVES, ("0.5x", "threshold", "2x", "4x"), strict=True):
            x = left + (octave - math.log2(0.35)) / 4 * bar.shape[1]
            self.draw.text((x, middle + 0.7 * self.line), name, MUTED, small, anchor="mt")
        title = _fit(heading, large, left - 2 * self.margin)
        self.draw.text((self.margin, middle), title, INK, large, anchor="lm")
        for column in range(self.columns):
            for index, name in enumerate(("photo", "true defect", "heatmap")):
                place = (self._x(column) + index * (self.tile + self.gap), self.top - 3 * self.gap)
                self.draw.text(place, name, MUTED, small, anchor="ls")

    def row(self, index: int, row: SheetRow) -> None:
        """Draw one product."""
        y = self.top + index * self.pitch
        title, small = ImageFont.load_default(1.25 * self.line), ImageFont.load_default(0.85 * self.line)
        room = self.titles - self.line
        self.draw.text((self.margin, y - self.gap), _fit(row.title, title, room), INK, title, anchor="la")
        for number, line in enumerate(row.note.splitlines()):
            place = (self.margin, y + (1.6 + 1.25 * number) * self.line)
            self.draw.text(place, _fit(line, small, room), MUTED, small, anchor="la")
        for column, cell in enumerate(row.cells):
            self._cell(self._x(column), y, cell)

    def _x(self, column: int) -> int:
        return self.margin + self.titles + column * (self.cell + self.margin)

    def _cell(self, x: int, y: int, cell: SheetCell) -> None:
        for index, picture in enumerate(_triple(cell, self.tile)):
            place = (x + index * (self.tile + self.gap), y)
            self.picture.paste(SHADE, (*place, place[0] + self.tile, place[1] + self.tile))
            offset = [(self.tile - side) // 2 for side in picture.shape[1::-1]]
            self.picture.paste(Image.fromarray(picture), (place[0] + offset[0], place[1] + offset[1]))
        colour, stroke = RIGHT if cell.is_correct else WRONG, max(2, self.line // 7)
        if not cell.is_correct:
            frame = (x - 2 * stroke, y - 2 * stroke, x + self.cell + 2 * stroke, y + self.tile + 2 * stroke)
            self.draw.rectangle(frame, outline=colour, width=stroke)
        a, middle = 0.35 * self.line, y + self.tile + 1.1 * self.line
        left = x + a
        if cell.is_correct:
            tick = [(left - a, middle), (left - 0.2 * a, middle + a), (left + 1.2 * a, middle - a)]
            self.draw.line(tick, colour, stroke, joint="curve")
        else:
            self.draw.line((left - a, middle - a, left + a, middle + a), colour, stroke)
            self.draw.line((left - a, middle + a, left + a, middle - a), colour, stroke)
        font = ImageFont.load_default(self.line)
        text = _fit(cell.label, font, self.cell - 1.5 * self.line)
        ink = INK if cell.is_correct else colour
        self.draw.text((x + 1.3 * self.line, middle), text, ink, font, anchor="lm")


def _triple(cell: SheetCell, tile: int) -> tuple[Pixels, Pixels, Pixels]:
    """The photo, the true defect on a pale photo, and the heatmap, each as large as fits into a tile."""
    longest = max(cell.image.shape[:2])
    height, width = (max(1, round(side * tile / longest)) for side in cell.image.shape[:2])
    photo = _scaled(cell.image, width, height)
    pale = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2)
    truth = np.rint(0.75 * pale + 40).astype(np.uint8)
    if cell.mask is not None:
        level = _scaled_map(cell.mask.astype(np.float32), width, height)
        defect = Image.fromarray((level > 0.3).astype(np.uint8))
        around = np.array(defect.filter(ImageFilter.MaxFilter(3)), dtype=np.bool_)
        inside = np.array(defect, dtype=np.bool_)
        truth[around], truth[inside] = TRUTH, photo[inside]
    verdict = cell.verdict
    if verdict.anomaly_map is None:
        heat = Image.new("RGB", (width, height), LABEL_COLOURS["unknown"])
        font = ImageFont.load_default(tile / 2)
        ImageDraw.Draw(heat).text((width / 2, height / 2), "?", WHITE, font, anchor="mm")
        return photo, truth, np.array(heat)
    scores = _scaled_map(verdict.anomaly_map, width, height)
    return photo, truth, overlay(photo, scores, verdict.threshold)


def _rim(region: NDArray[np.bool_], thickness: int) -> NDArray[np.bool_]:
    """The pixels (H, W) of a region that lie at its edge, or at the edge of the picture."""
    inside = region
    for _ in range(thickness):
        padded = np.pad(inside, 1)
        inside = inside & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return region & ~inside


def _line_width(image: Pixels) -> int:
    shorter: int = min(image.shape[:2])
    return max(1, round(shorter / 400))


def _times(verdict: Verdict) -> str:
    """How many times the threshold the score is, with more digits where the decision was close."""
    ratio = verdict.score / verdict.threshold
    digits = 2 if 0.95 <= ratio < 1.05 else 1 if ratio < 9.95 else 0
    return f"{ratio:.{digits}f}x"


def _scaled(image: Pixels, width: int, height: int) -> Pixels:
    return np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def _scaled_map(anomaly_map: NDArray[np.float32], width: int, height: int) -> NDArray[np.float32]:
    return np.array(Image.fromarray(anomaly_map).resize((width, height), Image.Resampling.BILINEAR))


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """Shorten a text to so many pixels; accents, which the font does not have, are dropped."""
    decomposed = unicodedata.normalize("NFKD", text)
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter))
    shown = plain
    while shown and font.getlength(shown) > room:
        plain = plain[:-1]
        shown = f"{plain.rstrip()}…" if plain else ""
    return shown
