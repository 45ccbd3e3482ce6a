from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from continuad.metrics import PixelMetrics, PixelScores

Maps = NDArray[np.float32]
Masks = NDArray[np.bool_]

PERFECT = pytest.approx([1, 1, 1, 1], abs=1e-12)


def measure(maps: Maps, masks: Masks) -> PixelScores:
    metrics = PixelMetrics()
    metrics.update(maps, masks)
    return metrics.compute()


def values(scores: PixelScores) -> list[float]:
    return [scores.p_auroc, scores.p_ap, scores.p_f1max, scores.aupro]


def flood_fill(mask: Masks) -> list[list[tuple[int, int]]]:
    """The pixels of each component of one mask (H, W), 8 neighbours."""
    unseen, components = {(int(y), int(x)) for y, x in np.argwhere(mask)}, []
    while unseen:
        border = [unseen.pop()]
        component = []
        while border:
            y, x = border.pop()
            component.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & unseen
            unseen -= near
            border.extend(near)
        components.append(component)
    return components


def share_at_least(scores: Maps, thresholds: Maps) -> NDArray[np.float64]:
    return 1 - np.searchsorted(np.sort(scores), thresholds, side="left") / len(scores)


def exact_aupro(maps: Maps, masks: Masks, limit: float = 0.3) -> float:
    """AUPRO with every distinct score as a threshold, region by region."""
    thresholds = np.unique(maps)[::-1]
    fpr = share_at_least(maps[~masks], thresholds)
    overlaps = [
        share_at_least(np.array([scores[pixel] for pixel in component]), thresholds)
        for scores, mask in zip(maps, masks, strict=True)
        for component in flood_fill(mask)
    ]
    points = [(0.0, 0.0), *zip(fpr.tolist(), np.mean(overlaps, axis=0).tolist(), strict=True)]
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x1 > limit:
            area += (limit - x0) * (y0 + y0 + (y1 - y0) * (limit - x0) / (x1 - x0)) / 2
            break
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


def exact(maps: Maps, masks: Masks) -> list[float]:
    scores, labels = maps.ravel(), masks.ravel()
    precision, recall, _ = precision_recall_curve(labels, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return [
        roc_auc_score(labels, scores),
        average_precision_score(labels, scores),
        f1.max(),
        exact_aupro(maps, masks),
    ]


def scene(seed: int, images: int = 8, side: int = 64) -> tuple[NDArray[np.float64], Masks]:
    """Unit-normal pixels, raised by 1.5 in rectangles of many sizes; the last two images are normal."""
    random = np.random.default_rng(seed)
    masks = np.zeros((images, side, side), bool)
    for mask in masks[:-2]:
        for _ in range(3):
            y, x = random.integers(0, side - 4, 2)
            height, width = random.integers(1, 20, 2)
            mask[y : y + height, x : x + width] = True
    return random.normal(size=masks.shape) + 1.5 * masks, masks


DISTRIBUTIONS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "uniform": ndtr,
    "normal": lambda z: z,
    "product of small distances": lambda z: 1e-9 * ndtr(z) ** 3,
    "heavy tail": lambda z: np.exp(5 * z),
    "tiny heavy tail": lambda z: 1e-20 * np.exp(3 * z),
    "offset": lambda z: 100 + z,
    "probabilities": lambda z: 1 / (1 + np.exp(3 - 2 * z)),
    "quantised to 16 levels": lambda z: np.round(ndtr(z) * 15) / 15,
    "quantised to 8 bits": lambda z: np.round(ndtr(z) * 255),
    "constant": np.zeros_like,
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_stated_tolerance(name: str) -> None:
    z, masks = scene(seed=7)
    maps = DISTRIBUTIONS[name](z).astype(np.float32)
    error = np.abs(np.subtract(values(measure(maps, masks)), exact(maps, masks)))
    assert (error <= [1e-4, 1e-3, 1e-3, 1e-3]).all(), error
    if name.startswith(("quantised", "constant")):
        assert error.max() < 1e-12


@pytest.mark.parametrize(("scale", "dtype"), [(1, np.float16), (65535, np.uint16)])
def test_half_precision_and_16_bit_maps_are_measured_exactly(scale: float, dtype: type[np.generic]) -> None:
    z, masks = scene(seed=3, images=4, side=32)
    maps = (scale * ndtr(z)).astype(dtype).astype(np.float32)
    assert values(measure(maps, masks)) == pytest.approx(exact(maps, masks), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12))
@settings(deadline=None, max_examples=50)
def test_agrees_with_exact_references_on_tiny_maps(seed: int, images: int, levels: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((images, 5, 6)) < 0.3
    masks[0, 0, :2] = True, False
    maps = random.integers(-levels, levels + 1, masks.shape).astype(np.float32)
    assert values(measure(maps, masks)) == pytest.approx(exact(maps, masks), abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 8), max_size=5))
@settings(deadline=None, max_examples=25)
def test_order_and_chunking_do_not_matter(seed: int, cuts: list[int]) -> None:
    z, masks = scene(seed, side=16)
    maps = z.astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(maps))
    metrics = PixelMetrics()
    for chunk in np.split(order, sorted(cuts)):  # some chunks are empty
        metrics.update(maps[chunk], masks[chunk])
    whole, streamed = measure(maps, masks), metrics.compute()
    assert values(streamed)[:3] == values(whole)[:3]
    assert streamed.aupro == pytest.approx(whole.aupro, abs=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(-60, 60))
@settings(deadline=None, max_examples=25)
def test_scaling_by_a_power_of_two_changes_nothing(seed: int, exponent: int) -> None:
    z, masks = scene(seed, images=3, side=16)
    maps = z.astype(np.float32)
    assert measure(maps * np.float32(2.0**exponent), masks) == measure(maps, masks)


@given(st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=25)
def test_perfect_and_inverted_maps(seed: int) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((3, 9, 9)) < 0.2
    masks[0, 0, :2] = True, False
    noise = random.uniform(0, 0.4, masks.shape)
    perfect = (masks + noise).astype(np.float32)
    assert values(measure(perfect, masks)) == PERFECT
    assert values(measure(perfect - 2, masks)) == PERFECT
    inverted = measure(-perfect, masks)
    assert inverted.p_auroc == 0.0
    assert inverted.aupro == 0.0


@given(st.integers(0, 2**32 - 1), st.floats(0.02, 0.98))
@settings(deadline=None, max_examples=60)
def test_all_metrics_stay_within_0_and_1(seed: int, density: float) -> None:
    random = np.random.default_rng(seed)
    masks = random.random((2, 12, 12)) < density
    masks[0, 0, :2] = True, False
    maps = (random.normal(size=masks.shape) + 4 * masks).astype(np.float32)
    assert all(0 <= value <= 1 for value in values(measure(maps, masks)))


def test_constant_map() -> None:
    masks = np.zeros((1, 10, 10), bool)
    masks[0, :2] = True
    scores = measure(np.full(masks.shape, 0.25, np.float32), masks)
    # Precision 0.2 at recall 1; the overlap curve is the diagonal, whose area up to 0.3 is 0.045.
    assert values(scores) == pytest.approx([0.5, 0.2, 2 * 0.2 / 1.2, 0.15], abs=1e-12)


def test_aupro_is_interpolated_at_exactly_the_limit() -> None:
    # Ten normal pixels in tied pairs and a defect of 4: false-positive rates 0, 0.2 and 0.4 with overlaps
    # 0.25, 0.5 and 1; at 0.3 the overlap is 0.75.
    maps = np.array([[[9, 8, 7, 7, 8, 8, 7, 7, 1, 1, 1, 1, 1, 1]]], np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[0, 0, :4] = True
    expected = (0.2 * (0.25 + 0.5) / 2 + 0.1 * (0.5 + 0.75) / 2) / 0.3
    assert measure(maps, masks).aupro == pytest.approx(expected, abs=1e-12)


def test_regions_of_different_size_count_equally() -> None:
    masks = np.zeros((2, 20, 20), bool)
    masks[0, :15, :15] = True
    masks[1, 3, 3] = True
    for found, missed in ((0, 1), (1, 0)):
        maps = np.zeros(masks.shape, np.float32)
        maps[found][masks[found]] = 2
        maps[missed][masks[missed]] = -1  # below every normal pixel
        assert measure(maps, masks).aupro == pytest.approx(0.5, abs=1e-12)


def test_pixels_touching_at_a_corner_are_one_region() -> None:
    masks = np.zeros((1, 6, 6), bool)
    masks[0, [0, 1, 2], [0, 1, 2]] = True
    masks[0, 5, 5] = True
    maps = np.where(masks, 2, 0).astype(np.float32)
    maps[0, 5, 5] = -1
    assert measure(maps, masks).aupro == pytest.approx(0.5, abs=1e-12)  # 0.75 were they four regions


def test_regions_do_not_reach_into_the_next_image() -> None:
    masks = np.zeros((2, 4, 4), bool)
    masks[0, :2, :2] = True
    masks[1, 1, 1] = True  # would join the region above if images were stacked
    maps = np.where(masks, 2, 0).astype(np.float32)
    maps[1, 1, 1] = -1
    assert measure(maps, masks).aupro == pytest.approx(0.5, abs=1e-12)  # 0.8 were they one region


def test_negative_zero_ties_with_zero_and_infinities_rank_at_the_ends() -> None:
    masks = np.array([[[True, False]]])
    assert measure(np.array([[[-0.0, 0.0]]], np.float32), masks).p_auroc == 0.5
    assert measure(np.array([[[np.inf, 3e38]]], np.float32), masks).p_auroc == 1.0
    assert measure(np.array([[[-np.inf, -3e38]]], np.float32), masks).p_auroc == 0.0
    assert measure(np.array([[[1e-44, 0]]], np.float32), masks).p_auroc == 0.5  # subnormals below 2**-141 tie


def test_nothing_one_kind_and_reset() -> None:
    metrics = PixelMetrics()
    assert all(map(math.isnan, values(metrics.compute())))
    metrics.update(np.ones((0, 4, 4), np.float32), np.zeros((0, 4, 4), bool))
    assert all(map(math.isnan, values(metrics.compute())))
    metrics.update(np.ones((2, 4, 4), np.float32), np.zeros((2, 4, 4), bool))
    assert all(map(math.isnan, values(metrics.compute())))
    metrics.update(np.full((1, 4, 4), 2, np.float32), np.ones((1, 4, 4), bool))
    assert values(metrics.compute()) == PERFECT
    metrics.reset()
    metrics.update(np.ones((1, 4, 4), np.float32), np.ones((1, 4, 4), bool))
    assert all(map(math.isnan, values(metrics.compute())))


def test_input_is_left_alone_and_may_be_a_view() -> None:
    z, masks = scene(seed=5, images=3, side=16)
    maps = z.astype(np.float32)
    before = maps.copy()
    turned = measure(maps.transpose(0, 2, 1), masks.transpose(0, 2, 1))
    assert values(turned) == pytest.approx(values(measure(maps, masks)), abs=1e-12)
    np.testing.assert_array_equal(maps, before)


@pytest.mark.parametrize(
    ("maps", "masks", "message"),
    [
        (np.zeros((2, 3), np.float32), np.zeros((2, 3), bool), "both be"),
        (np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 5), bool), "both be"),
        (np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool), "float32"),
        (np.zeros((1, 4, 4), np.float32), np.zeros((1, 4, 4), np.uint8), "bool"),
        (np.full((1, 4, 4), np.nan, np.float32), np.zeros((1, 4, 4), bool), "NaN"),
    ],
)
def test_bad_input_is_refused_and_changes_nothing(
    maps: NDArray[np.float32], masks: NDArray[np.bool_], message: str
) -> None:
    good_maps, good_masks = np.array([[[1, 0]]], np.float32), np.array([[[True, False]]])
    metrics = PixelMetrics()
    metrics.update(good_maps, good_masks)
    with pytest.raises(ValueError, match=message):
        metrics.update(maps, masks)
    assert values(metrics.compute()) == PERFECT
