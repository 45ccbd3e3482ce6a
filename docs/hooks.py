"""Pages that are made when the site is built: results, the command line, and what there is to choose from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from inspect import getdoc
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from continuad.backbones import BACKBONES
from continuad.bench.published import TABLES, load_published
from continuad.bench.runner import ENGINES
from continuad.bench.scenario import SCENARIOS
from continuad.cli import app
from continuad.continual.codecs import CODECS
from continuad.continual.strategies import STRATEGIES
from continuad.datasets import LAYOUTS
from continuad.datasets.demo import DEMO_PRODUCTS
from continuad.detectors import METHODS

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PICTURES = ROOT / "docs" / "station"

WIDTH = 100
"""Characters of a line of help."""

Page = Callable[[], str]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every page of results into the navigation."""
    for section in config.nav or []:
        if "Results" in section:
            section["Results"] = [f"results/{path.name}" for path in _results()]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    made = {f"results/{path.name}": _result(path) for path in _results()}
    made |= {name: page() for name, page in PAGES.items()}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in `<!-- made: NAME -->`."""
    return re.sub(r"<!-- made: ([\w-]+) -->", lambda match: PARTS[match[1]](), markdown)


def _results() -> list[Path]:
    return sorted(RESULTS.glob("*.md"))


def _result(path: Path) -> str:
    """A page of results as it lies there, and where that is."""
    return f"{path.read_text()}\n\n*From `{path.relative_to(ROOT)}`, as it was written by the measurement.*\n"


def command_line() -> str:
    """What `--help` says of all commands."""
    group: Any = typer.main.get_command(app)
    parts = ["# Command line", "What `--help` says.", _help(group, "continuad")]
    for name, command in group.commands.items():
        parts += [f"## continuad {name}", _help(command, f"continuad {name}")]
    return "\n\n".join(parts)


def _help(command: Any, name: str) -> str:
    context = command.context_class(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    return f"```text\n{command.get_help(context)}\n```"


def choices() -> str:
    """Everything that has a name: methods with their settings, backbones, strategies, codecs and so on."""
    parts = [
        "# Names and settings",
        "What commands, grids and Python take by name, from the registries themselves.",
    ]
    parts += ["## Methods", "As `--head` or `--method`; `auto` is the compact bank or context regression."]
    for name, method in METHODS.items():
        backbone = f" Only for `{method.backbone}`." if method.backbone else ""
        settings = [(f"`{key}`", f"`{value}`") for key, value in _flat(asdict(method.settings))]
        parts += [f"### {name}", method.summary + backbone, _table(("setting", "default"), settings)]
    firsts = {name: (getdoc(entry) or "").partition("\n")[0] for name, entry in BACKBONES.items()}
    parts += ["## Backbones", _table(("name", ""), [(f"`{name}`", text) for name, text in firsts.items()])]
    strategies = [
        (f"`{name}`", each.summary, ", ".join(f"`{key}={value}`" for key, value in each.settings.items()))
        for name, each in STRATEGIES.items()
    ]
    parts += ["## Strategies", _table(("name", "", "settings"), strategies)]
    parts += [
        "## Codecs",
        _table(("name", "stores"), [(f"`{name}`", f"`{each}`") for name, each in CODECS.items()]),
    ]
    scenarios = [(f"`{name}`", getdoc(each) or "") for name, each in SCENARIOS.items()]
    parts += ["## Scenarios", _table(("name", ""), scenarios)]
    layouts = [(f"`{name}`", _escaped(each.looks_like)) for name, each in LAYOUTS.items()]
    parts += ["## Dataset layouts", _table(("name", "looks like"), layouts)]
    parts += ["## Engines of a bench", ", ".join(f"`{name}`" for name in ENGINES) + "."]
    parts += ["## Demo products", ", ".join(f"`{name}`" for name in DEMO_PRODUCTS) + "."]
    return "\n\n".join(parts)


def published_tables() -> str:
    """The tables of the documents that `continuad bench --table` measures."""
    parts = []
    for name in TABLES:
        table = load_published(name)
        measured = [row for row in table.rows if row.run is not None]
        runs = list(dict.fromkeys(row.run.strategy for row in measured if row.run))
        scenarios = list(dict.fromkeys(row.run.scenario for row in measured if row.run))
        columns = ", ".join(column.title for column in table.columns)
        how = f"scenario {' and '.join(scenarios)}; strategies: {', '.join(runs)}"
        facts = f"{len(measured)} of its {len(table.rows)} rows; {how}; images of {table.image_size} pixels."
        parts += [
            f"## {name}",
            f"*{table.title}.*",
            f"Measures {_escaped(columns)} of {len(table.products)} products. {facts}",
        ]
    return "\n\n".join(parts)


def station_pictures() -> str:
    """The pictures of the station's pages, as many as there are."""
    found = sorted([*PICTURES.glob("*.jpg"), *PICTURES.glob("*.png")])
    return "\n\n".join(f"![{path.stem.replace('_', ' ')}](../station/{path.name})" for path in found)


def station_figures() -> str:
    """Where it says how fast the station is, once that was measured."""
    is_measured = (RESULTS / "station.md").exists()
    return "How many images a second: [results](../results/station.md)." if is_measured else ""


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _escaped(text: str) -> str:
    return text.replace("<", "&lt;").replace("|", "\\|")


def _table(titles: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [titles, ("---",) * len(titles), *rows]
    return "\n".join("| " + " | ".join(cell.replace("\n", " ") for cell in line) + " |" for line in lines)


PAGES: dict[str, Page] = {
    "reference/cli.md": command_line,
    "reference/choices.md": choices,
    "reference/changelog.md": lambda: (ROOT / "CHANGELOG.md").read_text(),
}
PARTS: dict[str, Page] = {
    "tables": published_tables,
    "station-pictures": station_pictures,
    "station-figures": station_figures,
}
