"""What came of an analysis, in numbers and in sentences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from continuad.analysis.selected import Uses
from continuad.analysis.separation import Accuracy


@dataclass(frozen=True)
class Analysis:
    """What came of it.

    Attributes:
        uses: how each product uses each layer.
        percent: of the channels at each position, that are selected.
        features: how many are selected by at least one product.
        shared: the share of them that two or more select.
        accuracy: of recognising products by them; None for a single product.
        areas: mean anomaly area, as a share of the pixels, of the products with masks.
    """

    uses: Uses
    percent: float
    features: int
    shared: float
    accuracy: Accuracy | None
    areas: Mapping[str, float]

    def sentences(self) -> list[str]:
        """Say it."""
        said = [
            f"{self.features:,} features (a channel at a position) are among the most important "
            f"{self.percent:g} % of their position for at least one product."
        ]
        if self.accuracy is None:
            said.append("There is a single product: nothing to tell apart, so no t-SNE and no classifiers.")
        else:
            said.append(f"{100 * self.shared:.1f} % of them are so for two or more products.")
            forest, mlp = (f"{100 * each:.1f} %" for each in (self.accuracy.forest, self.accuracy.mlp))
            said.append(
                f"By these features, a random forest recognises the product of {forest} of "
                f"{self.accuracy.held_out} held-out images, a perceptron of {mlp}."
            )
        if self.areas:
            name, area = min(self.areas.items(), key=lambda each: each[1])
            said.append(f"The smallest defects are those of {name}: {100 * area:.2f} % of an image.")
        else:
            said.append("No test image has a mask, so the size of defects is not known.")
        return said
