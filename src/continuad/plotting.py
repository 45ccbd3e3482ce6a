"""The style of all figures, and figures as files; matplotlib is loaded when one is drawn."""

from __future__ import annotations

import functools
import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from continuad.needs import needed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which every kind of colour vision tells apart, without their yellow: it is too pale
# for lines on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#4d4d4d")
INK, MUTED, GRID = "#24292f", "#6e757c", "#e4e5e7"
WIDTH, WIDE = 5.6, 11.6
"""Inches: half of a page, and all of it."""

PRINT = 200
"""Dots per inch of a figure that is no vector graphic."""

_DASHES, _MARKERS = ("-", "--", ":", "-."), "os^D"
_RC = {
    **dict.fromkeys(("axes.labelcolor", "text.color", "xtick.labelcolor", "ytick.labelcolor"), INK),
    **dict.fromkeys(("axes.edgecolor", "xtick.color", "ytick.color"), MUTED),
    **dict.fromkeys(("axes.spines.right", "axes.spines.top", "text.parse_math"), False),
    **dict.fromkeys(("axes.linewidth", "grid.linewidth"), 0.7),
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlesize": 9,
    "font.family": ["DejaVu Sans"],
    "font.size": 7.5,
    "grid.color": GRID,
    "svg.fonttype": "none",
    "svg.hashsalt": "continuad",
}

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True)
class Drawing:
    """A figure on a page.

    Attributes:
        caption: what it shows.
        svg: markup, to be put into the page as it is.
        is_wide: whether it takes the whole width.
    """

    caption: str
    svg: str
    is_wide: bool


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Let a function draw in the style of all figures, whatever this machine's own style is."""

    @functools.wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        matplotlib = needed("matplotlib")
        default = {name: value for name, value in matplotlib.rcParamsDefault.items() if "backend" not in name}
        with matplotlib.rc_context({**default, **_RC}):
            return draw(*args, **kwargs)

    return drawn


@dataclass(frozen=True)
class Style:
    """How a group looks in every figure."""

    colour: str
    dash: str
    marker: str


def styles(count: int) -> list[Style]:
    """Return a style for each group; colours repeat with other dashes and markers."""
    turns = [divmod(number, len(COLOURS)) for number in range(count)]
    return [Style(COLOURS[i], _DASHES[turn % 4], _MARKERS[turn % 4]) for turn, i in turns]


def new_figure(*, height: float, width: float = WIDTH) -> Figure:
    """Return an empty figure of so many inches."""
    made: Figure = needed("matplotlib.figure").Figure(figsize=(width, height), layout="constrained")
    return made


@styled
def svg(figure: Figure, description: str) -> str:
    """Return a figure as an SVG element to be put into a page; text stays text."""
    stream = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    text = stream.getvalue()
    element = text[text.index("<svg") :]
    element = re.sub(r' width="[\d.]+pt"| height="[\d.]+pt"', "", element, count=2)
    element = re.sub(r'(<\w+) id="[\w.]+_\d+"', r"\1", element)  # of groups: not unique in a page
    said = f'<svg role="img" aria-label="{html.escape(description)}"'
    return element.replace("<svg", said, 1).strip()


@styled
def png(figure: Figure) -> bytes:
    """Return a figure as a PNG file on white, fit to be printed."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=PRINT, metadata={"Software": None})
    return stream.getvalue()
