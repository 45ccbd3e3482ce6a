"""Figures over a layer's grid: how many components a position takes, and how important its features are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from continuad.analysis.selected import LayerUse
from continuad.detectors.importance import LayerImportance
from continuad.needs import needed
from continuad.plotting import MUTED, WIDE, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

VARIANCES = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.99)
"""Shares of the variance at which components are counted; the thesis has nine, and does not name them."""

COUNTS, HEAT = "viridis", "inferno"

_MAP = 2.3  # inches
_NOTHING = "#c4c8cc"
_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


@styled
def component_maps(found: Mapping[str, LayerImportance]) -> Figure:
    """Draw how many components each position takes, by layer and share of the variance (Fig. 4.1 to 4.3)."""
    norm: Any = needed("matplotlib.colors").LogNorm
    figure = new_figure(height=0.35 + 1.3 * len(found), width=WIDE)
    rows = figure.subplots(len(found), len(VARIANCES), squeeze=False)
    for axes, variance in zip(rows[0], VARIANCES, strict=True):
        axes.set_title(f"{'variance ' if axes is rows[0, 0] else ''}{100 * variance:.0f} %")
    for row, (layer, importance) in zip(rows, found.items(), strict=True):
        counts = [importance.counts(variance) for variance in VARIANCES]
        top = max(2, *(int(each.max()) for each in counts))
        for axes, each in zip(row, counts, strict=True):
            shown = axes.imshow(each, cmap=COUNTS, norm=norm(1, top), interpolation="none")
            _bare(axes)
            axes.set_xlabel(f"median {np.median(each):.0f}", fontsize=7, color=MUTED, labelpad=2)
        row[0].set_ylabel(f"{layer}\n{len(importance.importance)} channels")
        bar = _scale(figure, shown, list(row))
        bar.set_ticks([tick for tick in _TICKS if tick <= top])
        bar.set_ticks([], minor=True)
        bar.ax.yaxis.set_major_formatter("{x:.0f}")
    return figure


@styled
def heatmaps(
    found: Mapping[str, LayerImportance],
    uses: Mapping[str, LayerUse],
    photo: NDArray[np.uint8],
    percent: float,
) -> Figure:
    """Draw how important the features of each position are, beside a photo (Fig. 4.8, 4.11 to 4.19).

    The upper row sums the importances of the selected features, and is grey where nothing varies. A map that
    summed all importances would be flat, as those of a position add up to 1: of all features the lower row
    has the variance, which importance is a share of.

    Args:
        found: by layer.
        uses: by layer.
        photo: (3, S, S) of the product.
        percent: of the channels, that are selected.
    """
    colours = needed("matplotlib").colormaps[HEAT].with_extremes(bad=_NOTHING)
    figure = new_figure(height=_MAP * 2, width=_MAP * (1.15 * len(found) + 1.7))
    grid = figure.add_gridspec(2, 1 + len(found), width_ratios=[1.5, *(1.0 for _ in found)])
    axes = figure.add_subplot(grid[:, 0])
    axes.imshow(photo.transpose(1, 2, 0), interpolation="none")
    _bare(axes)
    for column, (layer, importance) in enumerate(found.items(), start=1):
        use = uses[layer]
        selected = np.ma.masked_array((importance.importance * use.mask).sum(0), ~use.varies)
        rows = {f"top {percent:g} %": selected, "all features: variance": (importance.std**2).sum(0)}
        for row, (name, values) in enumerate(rows.items()):
            axes = figure.add_subplot(grid[row, column])
            top = float(values.max()) if use.varies.any() else 1.0
            shown = axes.imshow(values, cmap=colours, vmin=0, vmax=top, interpolation="none")
            _bare(axes)
            axes.set_title(layer if row == 0 else "")
            axes.set_ylabel(name if column == 1 else "")
            _scale(figure, shown, [axes]).ax.locator_params(nbins=4)
    return figure


def _bare(axes: Axes) -> None:
    """Take away what does not belong to a picture."""
    axes.grid(False)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _scale(figure: Figure, shown: AxesImage, axes: list[Axes]) -> Colorbar:
    """Put a scale to the right of pictures."""
    bar = figure.colorbar(shown, ax=axes, aspect=14, fraction=0.08, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", length=2, labelsize=7)
    bar.ax.grid(False)
    return bar
