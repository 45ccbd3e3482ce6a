"""The report of a study: figures as files, and one HTML page that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from continuad import __version__, plotting
from continuad.analysis.selected import Uses
from continuad.detectors.importance import ImportanceSettings
from continuad.durable import write_whole
from continuad.needs import needed
from continuad.plotting import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass
class Section:
    """A part of the page: figures with a word about them."""

    name: str
    title: str
    text: str
    drawings: list[Drawing] = field(default_factory=list)


class Figures:
    """Takes figures, writes each as SVG and PNG into a folder, and keeps what the page needs of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def add(self, section: Section, name: str, caption: str, figure: Figure) -> None:
        """Write a figure, either file whole or not at all, and append it to a section."""
        svg = plotting.svg(figure, caption)
        figure.set_layout_engine("none")  # it stays as it was laid out
        write_whole(self._folder / f"{name}.svg", svg.encode())
        write_whole(self._folder / f"{name}.png", plotting.png(figure))
        is_wide = float(figure.get_size_inches()[0]) > plotting.WIDTH
        section.drawings.append(Drawing(caption, svg, is_wide))


def write_page(
    path: Path,
    *,
    title: str,
    uses: Uses,
    images: Mapping[str, int],
    settings: ImportanceSettings,
    findings: Sequence[str],
    sections: Sequence[Section],
    facts: Mapping[str, str],
    command: str,
) -> None:
    """Write the page whole or not at all; the same study gives the same bytes.

    Args:
        path: of the HTML file.
        title: what was looked at.
        uses: by product and layer.
        images: how many, by product.
        settings: how importance was found.
        findings: sentences.
        sections: those without figures are left out.
        facts: what it depends on, by name.
        command: what repeats it; empty where it was no command.

    Raises:
        ContinuadError: jinja2 is not installed.
    """
    jinja2 = needed("jinja2")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    page = environment.from_string(files("continuad.analysis").joinpath("report.html").read_text("utf-8"))
    text = page.render(
        title=title,
        version=__version__,
        findings=findings,
        layers={layer: len(use.mask) for layer, use in next(iter(uses.values())).items()},
        products=[
            (name, images[name], [(use.components, use.exact) for use in layers.values()])
            for name, layers in uses.items()
        ],
        variance=settings.variance,
        share=settings.share,
        percentile=settings.percentile,
        sections=[section for section in sections if section.drawings],
        facts=facts,
        command=command,
    )
    write_whole(path, text.encode())
