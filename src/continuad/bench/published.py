"""The published tables: what they say, the runs that measure it, and both side by side.

A table is a TOML file in `tables`: its columns, and rows of published values in their order, nan where there
is none. A row's `run` says what measures it; `run`, `settings` (by method) and `strategy_settings` (by
strategy) at the top of the file hold for all rows that do not say otherwise.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

from continuad.bench.comparison import Column, ComparedRow, Comparison, measured_cell
from continuad.bench.grid import RunSpec, flat_settings, merged
from continuad.bench.scenario import applicable
from continuad.bench.summary import Group
from continuad.errors import SettingsError
from continuad.registry import Registry

TABLES: Registry[str] = Registry("published table")
"""The published tables' files by name, in order."""

for _document, _numbers in {
    "adapts": ("1", "2", "3", "4"),
    "thesis": ("4.1", "4.2", "4.3", "5.1", "5.2", "5.3", "5.4", "5.5"),
}.items():
    for _number in _numbers:
        TABLES.register(f"{_document}-{_number}")(f"{_document}-{_number}.toml")


@dataclass(frozen=True, kw_only=True)
class PublishedRun:
    """What measures a row; names and settings as in `RunSpec`."""

    method: str
    backbone: str
    strategy: str
    scenario: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    strategy_settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PublishedRow:
    """A row of a published table.

    Attributes:
        section: heading that it stands under; empty if there are none.
        label: what it is.
        published: values by quantity, in the unit of their column; those that are not stated are not there.
        run: what measures it; None if nothing does.
        not_measured: why nothing does.
        task: the product that it is about; empty if it is about all of them.
    """

    section: str
    label: str
    published: Mapping[str, float]
    run: PublishedRun | None
    not_measured: str
    task: str = ""

    @property
    def name(self) -> str:
        """The label with the section."""
        return f"{self.label} ({self.section})" if self.section else self.label


@dataclass(frozen=True)
class PublishedTable:
    """A table of a document.

    Attributes:
        name: a name in `TABLES`.
        title: which document and table.
        source: where it was published.
        products: that were learnt, in this order.
        image_size: side of the network's input in pixels.
        columns: without that of the labels.
        rows: all of them.
        remarks: sentences on how what was published differs from what is measured.
    """

    name: str
    title: str
    source: str
    products: tuple[str, ...]
    image_size: int
    columns: Sequence[Column]
    rows: Sequence[PublishedRow]
    remarks: Sequence[str]


@dataclass(frozen=True)
class Plan:
    """What is to be run for a table.

    Attributes:
        table: the table.
        by_row: the runs of each row, one for each seed; none where nothing measures it.
        remarks: sentences on how they differ from what was published, and the table's own.
    """

    table: PublishedTable
    by_row: Sequence[Sequence[RunSpec]]
    remarks: Sequence[str]

    @property
    def runs(self) -> list[RunSpec]:
        """All runs, row after row; one that several rows share is there once."""
        found: list[RunSpec] = []
        for runs in self.by_row:
            found += [run for run in runs if run not in found]
        return found


def load_published(name: str) -> PublishedTable:
    """Return a table.

    Raises:
        SettingsError: there is none of that name.
    """
    file = resources.files("continuad.bench") / "tables" / TABLES[name]
    content = tomllib.loads(file.read_text(encoding="utf-8"))
    columns = [Column(**each) for each in content["columns"]]
    return PublishedTable(
        name=name,
        title=content["title"],
        source=content["source"],
        products=tuple(content["products"]),
        image_size=content["image_size"],
        columns=columns,
        rows=[_row(entry, columns, content) for entry in content["rows"]],
        remarks=content["remarks"],
    )


def _row(entry: Mapping[str, Any], columns: Sequence[Column], content: Mapping[str, Any]) -> PublishedRow:
    values = zip(columns, entry["published"], strict=True)
    run: PublishedRun | None = None
    if "run" in entry:
        given = merged(content["run"], entry["run"])
        for key, axis in {"settings": "method", "strategy_settings": "strategy"}.items():
            given[key] = merged(content.get(key, {}).get(given[axis], {}), given.get(key, {}))
        run = PublishedRun(**given)
    return PublishedRow(
        section=entry.get("section", ""),
        label=entry["label"],
        published={column.quantity: value for column, value in values if not math.isnan(value)},
        run=run,
        not_measured=entry.get("not_measured", ""),
        task=entry.get("task", ""),
    )


def plan(
    table: PublishedTable,
    *,
    dataset: Path,
    available: Sequence[str],
    products: Sequence[str] | None,
    seeds: Sequence[int],
    image_size: int | None,
    backbone: str | None,
    weights: Mapping[str, str],
    layout: str = "auto",
    device: str = "cpu",
    settings: Mapping[str, Any] = {},
) -> Plan:
    """Plan the runs of a table's rows.

    Args:
        table: the table.
        dataset: its folder, see `RunSpec`.
        available: the products in it.
        products: those to learn, in this order; None for the table's, as far as they are available.
        seeds: at least one; each row is run with each.
        image_size: instead of the table's.
        backbone: instead of every row's own.
        weights: where a backbone's weights come from, by its name; "auto" if it is not there.
        layout: see `RunSpec`.
        device: see `RunSpec`.
        settings: changes to the methods' settings, nested as they are, in every row whose method has them.

    Raises:
        SettingsError: there is no product to learn, one is named twice, weights are for a backbone that is
            not run, or no method has one of the settings.
    """
    changes = applicable(settings, dict.fromkeys(row.run.method for row in table.rows if row.run is not None))
    chosen = tuple(name for name in table.products if name in available) if products is None else (*products,)
    if not chosen:
        raise SettingsError(
            f"{dataset} has none of the products of {table.name}: {', '.join(table.products)}.",
            "Give their dataset, or name others with --products.",
        )
    if len(set(chosen)) < len(chosen):
        raise SettingsError(f"The products {', '.join(chosen)} name one twice.", "Name each once.")

    def runs(run: PublishedRun) -> list[RunSpec]:
        name = backbone or run.backbone
        first = RunSpec(
            method=run.method,
            backbone=name,
            weights=weights.get(name, "auto"),
            strategy=run.strategy,
            scenario=run.scenario,
            image_size=table.image_size if image_size is None else image_size,
            products=chosen,
            settings=merged(run.settings, changes[run.method]),
            strategy_settings=run.strategy_settings,
            dataset=dataset,
            layout=layout,
            device=device,
        )
        return [replace(first, seed=seed) for seed in seeds]

    by_row = [[] if row.run is None else runs(row.run) for row in table.rows]
    planned = Plan(table, by_row, remarks=[])
    used = dict.fromkeys(run.backbone for run in planned.runs)
    for name in weights:
        if name not in used:
            near = difflib.get_close_matches(name, used, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"It runs on: {', '.join(used)}."
            raise SettingsError(f"{table.name} does not run on {name!r}, which has weights.", hint)
    return replace(planned, remarks=[*_remarks(planned, chosen, settings), *table.remarks])


def compare(plan: Plan, groups: Sequence[Group]) -> Comparison:
    """Put what was measured beside what was published.

    Args:
        plan: of the table.
        groups: of its finished runs; a run that failed is in none.
    """
    rows, missing, fewer = [], [], []
    for row, runs in zip(plan.table.rows, plan.by_row, strict=True):
        group = next((each for each in groups if each.spec in runs), None)
        if group is not None and row.task:
            group = group.of_task(row.task)
        elif group is None and runs:
            missing.append(row.name)
        elif group is not None and len(group.runs) < len(runs):
            fewer.append(f"{row.name} ({len(group.runs)} of {len(runs)})")
        cells = [measured_cell(row.published.get(each.quantity), group, each) for each in plan.table.columns]
        rows.append(ComparedRow(row.section, row.label, cells))
    remarks = []
    if missing:
        remarks.append(f"No run has finished of: {'; '.join(missing)}.")
    if fewer:
        remarks.append(f"Not all seeds have finished of: {'; '.join(fewer)}.")
    return Comparison(plan.table.name, plan.table.title, plan.table.columns, rows, [*remarks, *plan.remarks])


def _remarks(plan: Plan, products: tuple[str, ...], settings: Mapping[str, Any]) -> Iterator[str]:
    """How the runs differ from those published, and what is not run."""
    table, runs = plan.table, plan.runs
    yield f"The published values are from {table.source}."
    yield from _on_products(table.products, products)
    for size in {run.image_size for run in runs} - {table.image_size}:
        yield f"Measured with images of {size} pixels, published with {table.image_size}."
    published = list(dict.fromkeys(row.run.backbone for row in table.rows if row.run is not None))
    measured = list(dict.fromkeys(run.backbone for run in runs))
    if measured != published:
        yield f"Measured on {', '.join(measured)}, published on {', '.join(published)}."
    random = dict.fromkeys(run.backbone for run in runs if run.weights == "random")
    if random:
        yield f"The weights are random of: {', '.join(random)}."
    if settings:
        changes = ", ".join(f"{name} {value}" for name, value in flat_settings(settings))
        yield f"Settings changed, where a method has them: {changes}."
    for reason in dict.fromkeys(row.not_measured for row in table.rows if row.run is None):
        names = ", ".join(row.name for row in table.rows if row.not_measured == reason)
        yield f"Not measured, as {reason}: {names}."
    quantities = {column.quantity for column in table.columns}
    routed = [row.name for row in table.rows if row.run is not None and row.run.strategy == "routed"]
    if routed and len(products) != len(table.products) and "added_bytes" in quantities:
        counts = f"{len(products)} here, {len(table.products)} in the document"
        yield f"Memory grows with the products, {counts}, for: {', '.join(routed)}."
    peaks = {"inspection_memory_bytes", "training_memory_bytes"}
    if quantities & peaks and any(run.device == "cpu" for run in runs):
        yield "Memory at its peak is that of a process on a CPU here, and that of a GPU in the document."


def _on_products(published: tuple[str, ...], chosen: tuple[str, ...]) -> Iterator[str]:
    known = [name for name in chosen if name in published]
    names, others = ", ".join(chosen), len(chosen) - len(known)
    if not known:
        yield f"Measured on other products than the {len(published)} published ones: {names}."
    elif others or len(known) < len(published):
        added = f" and on {others} other{'s' if others > 1 else ''}" if others else ""
        yield f"Measured on {len(known)} of the {len(published)} published products{added}: {names}."
    elif chosen != published:
        yield f"Measured on the published products in another order: {names}."
