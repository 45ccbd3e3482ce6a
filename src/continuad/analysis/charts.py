"""Figures that compare products and layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from continuad.analysis.selected import LayerUse, Uses, by_layer
from continuad.plotting import COLOURS, INK, MUTED, WIDE, new_figure, styled, styles

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@styled
def components(uses: Uses) -> Figure:
    """Draw the number of components of each product and layer (Fig. 4.5), and the exact one as a line."""
    figure = new_figure(height=0.75 + 0.3 * len(uses), width=WIDE)
    layers = by_layer(uses)
    panels = figure.subplots(1, len(layers), sharey=True, squeeze=False)[0]
    places = np.arange(len(uses))
    for axes, colour, (layer, products) in zip(panels, _colours(len(layers)), layers.items(), strict=True):
        estimated = [use.components for use in products.values()]
        exact = [use.exact for use in products.values()]
        axes.barh(places, estimated, height=0.62, color=colour)
        axes.vlines(exact, places - 0.42, places + 0.42, color=INK, linewidth=1.4)
        for place, few, true in zip(places, estimated, exact, strict=True):
            label = f"{few}" if few == true else f"{few} ({true})"
            axes.annotate(label, (max(few, true), place), (4, 0), textcoords="offset points", va="center")
        axes.set_title(f"{layer}, of {_channels(products)}")
        axes.set_xlim(0, 1.3 * max(estimated + exact))
        axes.set_xlabel("components")
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.grid(False, axis="y")
        axes.tick_params(axis="y", length=0)
    panels[0].set_yticks(places, list(uses))
    panels[0].set_ylim(len(uses) - 0.45, -0.55)
    return figure


@styled
def boxes(uses: Uses) -> Figure:
    """Draw how the importances of the selected features are distributed, by product and layer (Fig. 4.6).

    A box has the middle half, its line is the median; whiskers reach 1.5 boxes further.
    """
    layers = by_layer(uses)
    figure = new_figure(height=3.2, width=WIDE)
    axes = figure.add_subplot()
    for number, (colour, (layer, products)) in enumerate(
        zip(_colours(len(layers)), layers.items(), strict=True)
    ):
        width = 0.8 / len(layers)
        drawn = axes.boxplot(
            [use.values for use in products.values()],
            positions=np.arange(len(uses)) + (number - (len(layers) - 1) / 2) * width,
            widths=0.8 * width,
            patch_artist=True,
            boxprops={"facecolor": colour, "edgecolor": INK, "linewidth": 0.6, "label": layer},
            medianprops={"color": "white", "linewidth": 1.2},
            whiskerprops={"color": INK, "linewidth": 0.6},
            capprops={"color": INK, "linewidth": 0.6},
            flierprops={"marker": ".", "markersize": 2, "markeredgecolor": "none", "alpha": 0.35},
        )
        for fliers in drawn["fliers"]:
            fliers.set(markerfacecolor=colour)
        drawn["boxes"][0].set_label(layer)
        for box in drawn["boxes"][1:]:
            box.set_label("_")
    axes.set_xticks(np.arange(len(uses)), list(uses))
    if len(uses) > 12:
        axes.tick_params(axis="x", rotation=35)
    axes.set_xlim(-0.6, len(uses) - 0.4)
    axes.set_ylim(bottom=0)
    axes.grid(False, axis="x")
    axes.set_ylabel("importance of a selected feature")
    figure.legend(loc="outside upper left", ncols=len(layers), frameon=False, handlelength=1)
    return figure


@styled
def usage(uses: Uses) -> Figure:
    """Draw at how many positions each channel is selected: over all layers (Fig. 4.7), and in each."""
    layers = by_layer(uses)
    widths = [1.6, *(1.0 for _ in layers)]
    figure = new_figure(height=0.5 + 0.95 * len(uses), width=WIDE)
    rows = figure.subplots(len(uses), len(widths), sharex="col", width_ratios=widths, squeeze=False)
    for row, (product, of_layers) in zip(rows, uses.items(), strict=True):
        counts = [use.usage for use in of_layers.values()]
        _histogram(row[0], merged(counts), COLOURS[-1])
        row[0].set_ylabel(product, rotation=0, ha="right", va="center", color=INK)
        for axes, each, colour in zip(row[1:], counts, _colours(len(layers)), strict=True):
            _histogram(axes, each, colour)
    for axes, title in zip(rows[0], ["all layers", *layers], strict=True):
        axes.set_title(title)
    for axes in rows[-1]:
        axes.set_xlabel("channel")
    return figure


@styled
def embedding(points: NDArray[np.float32], products: Sequence[str]) -> Figure:
    """Draw images as points of a plane (Fig. 4.4)."""
    names = list(dict.fromkeys(products))
    figure = new_figure(height=4.6)
    axes = figure.add_subplot()
    for name, style in zip(names, styles(len(names)), strict=True):
        x, y = points[np.asarray(products) == name].T
        axes.scatter(x, y, s=13, c=style.colour, marker=style.marker, alpha=0.75, linewidths=0, label=name)
    axes.grid(False)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    columns = 4 if len(names) > 4 else len(names)
    figure.legend(
        loc="outside upper left", ncols=columns, frameon=False, handletextpad=0.1, columnspacing=1.2
    )
    return figure


@styled
def areas(shares: Mapping[str, float]) -> Figure:
    """Draw the mean anomaly area of products, the largest first (Fig. 4.9)."""
    names = sorted(shares, key=lambda name: -shares[name])
    values = [100 * shares[name] for name in names]
    figure = new_figure(height=0.65 + 0.3 * len(names))
    axes = figure.add_subplot()
    axes.barh(names, values, height=0.62, color=COLOURS[0])
    for place, value in enumerate(values):
        axes.annotate(f"{value:.2f} %", (value, place), (4, 0), textcoords="offset points", va="center")
    axes.set_ylim(len(names) - 0.45, -0.55)
    axes.set_xlim(0, 1.15 * max(values) or 1)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("pixels of a defective image that are defective, %")
    return figure


def merged(counts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Add the counts of channels up by the channels' numbers, over layers of different widths."""
    total = np.zeros(max(map(len, counts)), np.int64)
    for each in counts:
        total[: len(each)] += each
    return total


def half(counts: NDArray[np.int64]) -> int:
    """How many channels it takes, the most used first, for half of all uses."""
    return 1 + int((np.cumsum(np.sort(counts)[::-1]) < counts.sum() / 2).sum())


def _histogram(axes: Axes, counts: NDArray[np.int64], colour: str) -> None:
    axes.stairs(counts, np.arange(len(counts) + 1) - 0.5, fill=True, color=colour)
    axes.set_xlim(-0.5, len(counts) - 0.5)
    axes.grid(False, axis="x")
    axes.locator_params(axis="y", nbins=3)
    axes.tick_params(axis="y", labelsize=6.5)
    text = f"half by {half(counts)} of {len(counts)}" if counts.any() else "none"
    axes.set_title(text, loc="right", fontsize=6.5, color=MUTED, pad=3)


def _channels(products: Mapping[str, LayerUse]) -> int:
    return len(next(iter(products.values())).mask)


def _colours(count: int) -> list[str]:
    return [style.colour for style in styles(count)]
