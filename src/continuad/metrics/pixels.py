"""Pixel-level metrics of anomaly maps, streamed in constant memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from continuad.metrics.ranking import RankCounts

AUPRO_FPR_LIMIT = 0.3

_BIN_BITS = 24  # sign, 8 exponent bits, 15 mantissa bits
_PAGE_BITS = 12  # bins are looked for only on pages of this many bits that were ever written
_SIGN = np.uint32(0x8000_0000)
_WITHIN_IMAGE = np.stack([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))])


@dataclass(frozen=True)
class PixelScores:
    """Pixel-level metrics, each in [0, 1]; NaN unless both normal and anomalous pixels were seen."""

    p_auroc: float
    p_ap: float
    p_f1max: float
    aupro: float


class PixelMetrics:
    """AUROC, average precision, best F1 and AUPRO over all pixels of many images.

    AUPRO is the area under the per-region-overlap curve (MVTec AD): the share of a connected component
    (8 neighbours) that is found, averaged over all components of all images, against the false-positive
    rate over all normal pixels, integrated by trapezoids from 0 to exactly 0.3 and divided by 0.3.

    Scores may have any sign and scale: each falls into one of 2**24 bins, the leading bits of its float32,
    so nothing about their range need be known. Scores that differ by less than 2**-15 (0.003 %) of their
    size may count as tied: half-precision and 16-bit integer maps are measured exactly, others to within
    1e-4 for AUROC and 1e-3 for the rest. Scores crowded more closely around a value other than zero are
    not resolved that well: give logits rather than saturated probabilities, distances rather than offsets.

    The state is of constant size: 384 MiB of address space, of which only the parts that are written take
    up memory (typically 50 MiB). Neither the order nor the grouping of the images matters, except to the
    rounding of AUPRO.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget every image."""
        self._pages = np.zeros(2 ** (_BIN_BITS - _PAGE_BITS), np.bool_)
        self._pixels = np.zeros(2**_BIN_BITS, np.int64)
        self._positives = np.zeros(2**_BIN_BITS, np.int64)
        self._overlap = np.zeros(2**_BIN_BITS, np.float64)

    def update(self, maps: NDArray[np.float32], masks: NDArray[np.bool_]) -> None:
        """Add images; leave out defective images whose mask is unknown, as their pixels have no truth.

        Args:
            maps: (N, H, W) float32 anomaly maps at the masks' resolution, higher is more anomalous.
            masks: (N, H, W) bool, true on anomalous pixels; all false for a normal image.

        Raises:
            ValueError: a shape or dtype is not as stated, or a map holds NaN.
        """
        if maps.ndim != 3 or maps.shape != masks.shape:
            raise ValueError(f"maps and masks must both be (N, H, W), not {maps.shape} and {masks.shape}")
        if maps.dtype != np.float32 or masks.dtype != np.bool_:
            raise ValueError(f"maps must be float32 and masks bool, not {maps.dtype} and {masks.dtype}")
        if maps.size == 0:
            return
        if np.isnan(maps.min()):
            raise ValueError("maps must not hold NaN")
        bins = _bins(maps)
        self._pages[bins >> _PAGE_BITS] = True
        np.add.at(self._pixels, bins.ravel(), 1)

        anomalous = bins[masks]
        regions = ndimage.label(masks, structure=_WITHIN_IMAGE)[0][masks]
        sizes = np.bincount(regions)
        np.add.at(self._positives, anomalous, 1)
        np.add.at(self._overlap, anomalous, 1 / sizes[regions])

    def compute(self) -> PixelScores:
        """Return the metrics of all images seen so far; all NaN if no pixel, or only one kind, was seen."""
        occupied = self._occupied_bins()
        positives = self._positives[occupied]
        ranks = RankCounts(positives=positives, negatives=self._pixels[occupied] - positives)
        return PixelScores(
            p_auroc=ranks.auroc(),
            p_ap=ranks.average_precision(),
            p_f1max=ranks.f1_max(),
            aupro=_aupro(self._overlap[occupied], ranks.negatives) if ranks.has_both() else math.nan,
        )

    def _occupied_bins(self) -> NDArray[np.intp]:
        """Return the bins that hold a pixel, highest first."""
        pages = np.flatnonzero(self._pages)
        bins = (pages[:, None] << _PAGE_BITS) + np.arange(2**_PAGE_BITS)
        occupied: NDArray[np.intp] = bins[self._pixels[bins] > 0][::-1]
        return occupied


def _bins(scores: NDArray[np.float32]) -> NDArray[np.intp]:
    """Map float32 scores to bins 0 .. 2**24 - 1, in order: a monotone, logarithm-like binning."""
    bits = (scores + np.float32(0)).view(np.uint32)  # adding zero turns -0.0 into 0.0
    ordered = np.where(bits & _SIGN, ~bits, bits | _SIGN)
    return (ordered >> np.uint32(32 - _BIN_BITS)).astype(np.intp)


def _aupro(overlap: NDArray[np.float64], negatives: NDArray[np.int64]) -> float:
    """Integrate the curve of summed component overlap and false positives, highest score first."""
    found, false = np.cumsum(overlap), np.cumsum(negatives)
    pro = np.append(0.0, found / found[-1])
    fpr = np.append(0.0, false / false[-1])
    inside = fpr <= AUPRO_FPR_LIMIT
    x = np.append(fpr[inside], AUPRO_FPR_LIMIT)
    y = np.append(pro[inside], np.interp(AUPRO_FPR_LIMIT, fpr, pro))
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1])) / 2)
    return min(area / AUPRO_FPR_LIMIT, 1.0)  # rounding may exceed 1 by an ulp
