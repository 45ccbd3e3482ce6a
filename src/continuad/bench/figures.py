"""The figures of a bench: vector graphics with a colour for each group, the same in all of them."""

from __future__ import annotations

import importlib
import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from continuad.bench.findings import REPLAY
from continuad.bench.summary import METRICS, Group
from continuad.bench.summary import labels as name_groups
from continuad.plotting import INK, WIDE, WIDTH, Style, new_figure, styled, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL_COLUMNS, _LINE_POINTS = 26, 9.5


@styled
def over_time(
    groups: Sequence[Group], labels: Sequence[str], column: str, title: str, *, unit: float = 1
) -> Figure | None:
    """Draw a column of the rows after each task of a stream, as in Fig. 5.4 of the thesis.

    Args:
        groups: those that are no streams, or have no value, are left out.
        labels: of all groups.
        column: name of the column; several, joined by "+", are added up.
        title: of the axis.
        unit: what 1 on the axis is in the column.

    Returns:
        None where nothing is to be drawn, or everything is 0.
    """
    curves: list[tuple[Group, str, Style, NDArray[np.float64]]] = []
    for group, label, style in zip(groups, labels, styles(len(groups)), strict=True):
        if group.is_stream:
            parts = [group.over_time(part) for part in column.split("+")]
            curves.append((group, label, style, np.sum(parts, axis=0) / unit))
    curves = [curve for curve in curves if _any(curve[3])]
    if not any(np.nansum(values) > 0 for *_, values in curves):
        return None
    figure, axes = _axes(labels=[label for _, label, *_ in curves])
    for _, label, style, values in curves:
        steps = np.arange(1, len(values) + 1)
        look: dict[str, Any] = {"color": style.colour, "linestyle": style.dash, "marker": style.marker}
        axes.plot(steps, values, **look, markersize=4, label=label)
    _name_tasks(axes, [group.tasks for group, *_ in curves])
    axes.set_ylabel(title)
    axes.margins(y=0.08)
    if axes.get_ylim()[0] < 0 <= min(float(np.nanmin(values)) for *_, values in curves):
        axes.set_ylim(bottom=0)
    lasts = [int(np.flatnonzero(~np.isnan(values))[-1]) for *_, values in curves]
    named = zip(lasts, curves, strict=True)
    _label(axes, [(i + 1.0, float(y[i]), name, style.colour) for i, (_, name, style, y) in named], figure)
    return figure


@styled
def accuracy_memory(groups: Sequence[Group], labels: Sequence[str], metric: str) -> Figure | None:
    """Draw a metric against all memory, the backbone's included, as in Fig. 1 of AdapTS; bars are over seeds.

    None where there are not two points.
    """
    points = [
        (group, label, style)
        for group, label, style in zip(groups, labels, styles(len(groups)), strict=True)
        if group.mean("total_bytes") > 0 and not math.isnan(group.mean(metric))
    ]
    if len(points) < 2:
        return None
    figure, axes = _axes(labels=[label for _, label, _ in points])
    ends = []
    for group, label, style in points:
        x, y = group.mean("total_bytes") / 2**20, group.mean(metric)
        spread = np.nan_to_num(group.deviation(metric))
        axes.errorbar(x, y, spread, color=style.colour, marker=style.marker, capsize=3, label=label)
        ends.append((x, y, label, style.colour))
    memory = [x for x, *_ in ends]
    low, high = min(memory) / 1.6, max(memory) * 1.6
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    ticks = [lead * 10.0**power for power in range(-4, 7) for lead in (1, 2, 5)]
    axes.set_xticks([tick for tick in ticks if low <= tick <= high])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("memory with the backbone, MiB")
    axes.set_ylabel(METRICS[metric])
    axes.margins(y=0.12)
    _label(axes, ends, figure)
    return figure


@styled
def replay_memory(groups: Sequence[Group], labels: Sequence[str]) -> Figure | None:
    """Draw the memory of an item in each replay buffer, as in Fig. 5.5 of the thesis, and the P-F1 beside it.

    It is the buffer's, with what is needed to decode it, shared by its items at the end of the stream. None
    where no stream stored anything.
    """
    rows = [
        (group, label, style)
        for group, label, style in zip(groups, labels, styles(len(groups)), strict=True)
        if group.is_stream and group.spec.strategy in REPLAY and group.mean("memory_items") > 0
    ]
    if not rows:
        return None
    figure = new_figure(height=_bar_height(len(rows)))
    left, right = figure.subplots(1, 2, sharey=True)
    names, found = [label for _, label, _ in rows], [group for group, *_ in rows]
    colours = [style.colour for *_, style in rows]
    _bars(left, names, found, colours, "bytes_per_item", "memory of a stored item, KiB", "{:,.1f}", unit=1024)
    _bars(right, names, found, colours, "p_f1max", METRICS["p_f1max"], "{:.3f}")
    return figure


@styled
def by_backbone(groups: Sequence[Group]) -> Figure | None:
    """Draw the P-F1 on each backbone, as in chapter 5.1 of the thesis; None if nothing was run on several."""
    series: dict[str, list[tuple[Group, Style]]] = {}
    for group, style in zip(groups, styles(len(groups)), strict=True):
        rest = {**group.spec.facts(), "backbone": None, "weights": None, "seed": None}
        if not math.isnan(group.mean("p_f1max")):
            series.setdefault(repr(rest), []).append((group, style))
    several = [members for members in series.values() if len(members) > 1]
    if not several:
        return None
    titles = name_groups([members[0][0] for members in several])
    counts = [len(members) for members in several]
    figure = new_figure(height=_bar_height(sum(counts)) + 0.3 * len(several))
    panels = figure.subplots(len(several), 1, sharex=True, squeeze=False, height_ratios=counts)[:, 0]
    for axes, title, members in zip(panels, titles, several, strict=True):
        found, colours = [group for group, _ in members], [style.colour for _, style in members]
        _bars(axes, [group.spec.backbone for group in found], found, colours, "p_f1max", "", "{:.3f}")
        axes.set_title(title)
    panels[-1].set_xlabel(METRICS["p_f1max"])
    return figure


@styled
def matrix(group: Group) -> Figure | None:
    """Draw a stream's P-F1 and I-AUROC on each task after each; None if it is no stream, or unmeasured."""
    metrics = [metric for metric in ("p_f1max", "i_auroc") if group.is_stream and _any(group.scores(metric))]
    if not metrics:
        return None
    tasks = group.tasks
    count = len(tasks)
    side = min(0.62, 2.1 / count) if count <= 6 else min(0.42, 4.8 / count)
    figure = new_figure(height=1.1 + side * count, width=WIDTH if count <= 6 else WIDE)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        scores = group.scores(metric)
        axes.grid(False)
        axes.pcolormesh(np.ma.masked_invalid(scores), cmap="Blues", vmin=0, vmax=1, edgecolors="white")
        for (row, column), score in np.ndenumerate(scores):
            if not np.isnan(score):
                ink = "white" if score > 0.6 else INK
                text = axes.text(column + 0.5, row + 0.5, f"{score:.2f}", ha="center", va="center")
                text.set(color=ink, fontsize=7.5 if count <= 10 else 6, in_layout=False)
        axes.set_title(METRICS[metric])
        axes.set_xticks(np.arange(count) + 0.5, tasks, rotation=35, ha="right", rotation_mode="anchor")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("tested on")
    panels[0].set_yticks(np.arange(count) + 0.5, tasks)
    panels[0].set_ylabel("after learning")
    panels[0].invert_yaxis()
    return figure


def _any(values: NDArray[np.float64]) -> bool:
    return not bool(np.isnan(values).all())


def _axes(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with axes, high enough for a label beside each other."""
    lines = sum(len(textwrap.wrap(label, _LABEL_COLUMNS)) for label in labels)
    figure = new_figure(height=max(3.1, 0.9 + lines * 1.25 * _LINE_POINTS / 72))
    return figure, figure.add_subplot()


def _bar_height(count: int) -> float:
    return 0.65 + 0.34 * count


def _bars(
    axes: Axes,
    names: Sequence[str],
    groups: Sequence[Group],
    colours: Sequence[str],
    quantity: str,
    title: str,
    form: str,
    *,
    unit: float = 1,
) -> None:
    """Draw bars to the right, the first at the top, each with its number and its deviation over the seeds."""
    places = np.arange(len(groups))
    values = np.array([group.mean(quantity) for group in groups]) / unit
    deviations = np.nan_to_num([group.deviation(quantity) for group in groups]) / unit
    axes.barh(places, np.nan_to_num(values), xerr=deviations, color=list(colours), height=0.62, ecolor=INK)
    ends = np.nan_to_num(values) + deviations
    for place, end, value in zip(places, ends, values, strict=True):
        said = "-" if math.isnan(value) else form.format(value)
        axes.annotate(said, (end, place), (3, 0), textcoords="offset points", va="center")
    axes.set_yticks(places, [textwrap.fill(name, _LABEL_COLUMNS) for name in names])
    axes.set_ylim(len(groups) - 0.45, -0.55)
    axes.tick_params(axis="y", length=0)
    axes.grid(False, axis="y")
    axes.set_xlim(0, max(float(ends.max()) * 1.25, axes.get_xlim()[1]))
    axes.locator_params(axis="x", nbins=4)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(title)


def _name_tasks(axes: Axes, tasks: Sequence[Sequence[str]]) -> None:
    """Name the steps by the tasks where all streams have the same, else by their numbers."""
    axes.set_xticks(range(1, max(map(len, tasks)) + 1))
    axes.set_xlabel("tasks learnt")
    if all(list(each) == list(tasks[0]) for each in tasks):
        axes.set_xticks(axes.get_xticks(), tasks[0], rotation=35, ha="right", rotation_mode="anchor")
        axes.set_xlabel("after learning")


def _label(axes: Axes, points: Sequence[tuple[float, float, str, str]], figure: Figure) -> None:
    """Write labels to the right of the axes, each joined to its point (x, y, label, colour)."""
    texts = [textwrap.fill(label, _LABEL_COLUMNS) for _, _, label, _ in points]
    low, high = axes.get_ylim()
    beside = axes.get_yaxis_transform()
    line = _LINE_POINTS / 72 * (high - low) / (figure.get_size_inches()[1] - 0.8)
    heights = np.array([text.count("\n") + 1 for text in texts]) * line
    places = _apart(np.array([y for _, y, *_ in points]), heights)
    for (x, y, _, colour), text, place in zip(points, texts, places, strict=True):
        line_to_it = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "relpos": (0, 0.5), "shrinkA": 0}
        axes.annotate(text, (x, y), (1.03, place), textcoords=beside, va="center", arrowprops=line_to_it)


def _apart(values: NDArray[np.float64], heights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Move values as little as can be (least squares) so that labels of these heights do not overlap."""
    isotonic: Any = importlib.import_module("sklearn.isotonic")
    order = np.argsort(values, kind="stable")
    sorted_heights = heights[order]
    offsets = np.cumsum(sorted_heights) - sorted_heights / 2
    moved = np.empty_like(values)
    moved[order] = isotonic.isotonic_regression(values[order] - offsets) + offsets
    return moved
