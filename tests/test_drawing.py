"""Verdicts as pictures: what an overlay, an annotated photo and a contact sheet show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from continuad.drawing import (
    LABEL_COLOURS,
    TRUTH,
    WRONG,
    SheetCell,
    SheetRow,
    annotated,
    contact_sheet,
    describe,
    overlay,
)
from continuad.verdict import Verdict

WHITE = (255, 255, 255)


def photo(height: int = 12, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 200, (height, width, 3), dtype=np.uint8)


def verdict(anomaly_map: np.ndarray, threshold: float = 1.0, product: str = "bolt") -> Verdict:
    score = float(anomaly_map.max())
    return Verdict(product, score, threshold, score > threshold, anomaly_map.astype(np.float32))


def unknown() -> Verdict:
    return Verdict(None, float("nan"), float("nan"), None, None, "bolt", 1.7)


def colours(picture: np.ndarray) -> set[tuple[int, ...]]:
    return set(map(tuple, picture.reshape(-1, 3).tolist()))


maps = hnp.arrays(np.float32, (9, 11), elements=st.floats(0, 6, width=32))


@given(maps)
@settings(max_examples=60, deadline=None)
def test_the_photo_is_untouched_up_to_half_the_threshold_and_nowhere_beyond(values: np.ndarray) -> None:
    image = np.full((9, 11, 3), 97, np.uint8)
    changed = (overlay(image, values, 2.0) != image).any(axis=2)
    assert not changed[values <= 1.0].any()
    assert changed[values >= 1.1].all()


@given(maps)
@settings(max_examples=60, deadline=None)
def test_the_line_runs_along_the_inside_of_what_exceeds_the_threshold(values: np.ndarray) -> None:
    above = values > 2.0
    expected = np.zeros_like(above)
    for row, column in np.ndindex(above.shape):
        neighbours = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        inside = all(0 <= r < 9 and 0 <= c < 11 and above[r, c] for r, c in neighbours)
        expected[row, column] = above[row, column] and not inside
    out = overlay(np.full((9, 11, 3), 40, np.uint8), values, 2.0)
    assert np.array_equal((out == 255).all(axis=2), expected)


def test_the_threshold_itself_is_not_exceeded() -> None:
    out = overlay(photo(), np.full((12, 16), 2, np.float32), 2.0)
    assert WHITE not in colours(out)


def test_a_pixel_looks_the_same_whatever_the_rest_of_the_map_is() -> None:
    calm, wild = np.full((2, 12, 16), 0.8, np.float32)
    wild[:, 8:] = 1000
    assert np.array_equal(overlay(photo(), calm, 1.0)[:, :8], overlay(photo(), wild, 1.0)[:, :8])


def test_only_the_ratio_to_the_threshold_counts() -> None:
    values = np.random.default_rng(1).uniform(0, 4, (12, 16)).astype(np.float32)
    assert np.array_equal(overlay(photo(), values, 1.0), overlay(photo(), values * 2**-20, 2.0**-20))


@pytest.mark.parametrize("level", [0, 60, 128, 200, 255])
def test_the_heat_departs_further_from_any_photo_the_higher_the_map(level: int) -> None:
    image = np.full((40, 3, 3), level, np.uint8)
    values = np.geomspace(0.5, 1, 40, dtype=np.float32)[:, None].repeat(3, 1)
    change = np.abs(overlay(image, values, 1.0)[:, 0].astype(int) - level).max(axis=1)
    assert (np.diff(change) >= 0).all()
    assert change[0] == 0
    assert change[-1] >= 50


def test_the_heat_grows_lighter_with_the_map() -> None:
    image = np.zeros((100, 3, 3), np.uint8)
    values = np.geomspace(0.5, 4, 100, dtype=np.float32)[:, None].repeat(3, 1)
    lightness = overlay(image, values, 1.0)[:, 1] @ np.array([0.2126, 0.7152, 0.0722])
    inner = values[:, 1] <= 1
    assert (np.diff(lightness[inner]) > 0).all()
    assert (np.diff(lightness[~inner][1:-1]) > 0).all()


def test_far_above_the_threshold_the_colour_is_the_last_one() -> None:
    values = np.full((12, 16), 4, np.float32)
    once, far = overlay(photo(), values, 1.0), overlay(photo(), values * 1e6, 1.0)
    assert np.array_equal(once, far)
    expected = np.rint(photo() + 0.85 * (np.array([255, 244, 150]) - photo().astype(float)))
    assert np.array_equal(once[1:-1, 1:-1], expected[1:-1, 1:-1])


@pytest.mark.parametrize("value", [0.0, 1e-38, 0.4, 0.7, 1.0, 3.0, 3e38, np.inf])
@pytest.mark.parametrize("threshold", [1.0, 1e-300, 1e300])
def test_a_constant_map_is_drawn_without_a_warning(value: float, threshold: float) -> None:
    with np.errstate(all="raise"):
        out = overlay(photo(), np.full((12, 16), value, np.float32), threshold)
    assert out.shape == (12, 16, 3)
    assert out.dtype == np.uint8
    framed = (out[[0, -1]] == 255).all() and (out[:, [0, -1]] == 255).all()
    assert framed == (value > threshold)


def test_the_line_is_thicker_on_a_large_photo() -> None:
    values = np.zeros((800, 800), np.float32)
    values[100:200, 100:200] = 2
    out = overlay(np.zeros((800, 800, 3), np.uint8), values, 1.0)
    assert (out[150, 100:110] == 255).all(axis=1).sum() == 2


def test_the_arguments_are_left_alone() -> None:
    image, values = photo(), np.full((12, 16), 2, np.float32)
    overlay(image, values, 1.0)[:] = 0
    assert np.array_equal(image, photo())
    assert (values == 2).all()


@pytest.mark.parametrize("threshold", [0.0, -1.0, float("nan"), float("inf")])
def test_a_threshold_that_is_no_positive_number_is_refused(threshold: float) -> None:
    with pytest.raises(ValueError, match="threshold"):
        overlay(photo(), np.zeros((12, 16), np.float32), threshold)


def test_a_map_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must be"):
        overlay(photo(), np.zeros((16, 12), np.float32), 1.0)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (verdict(np.full((2, 2), 1.84)), "anomalous 1.8x"),
        (verdict(np.full((2, 2), 0.6)), "normal 0.6x"),
        (verdict(np.full((2, 2), 0.97)), "normal 0.97x"),
        (verdict(np.full((2, 2), 1.04)), "anomalous 1.04x"),
        (verdict(np.full((2, 2), 99.7), 10.0), "anomalous 10x"),
        (verdict(np.full((2, 2), 123.4)), "anomalous 123x"),
        (unknown(), "unknown"),
    ],
)
def test_a_verdict_in_a_few_words(said: Verdict, words: str) -> None:
    assert describe(said) == words


@pytest.mark.parametrize(("height", "width"), [(8, 8), (9, 500), (700, 31), (240, 320), (400, 1000)])
def test_the_strip_lies_below_the_whole_overlay(height: int, width: int) -> None:
    values = np.zeros((height, width), np.float32)
    image = photo(height, width)
    plain = annotated(image, verdict(values))
    factor = -(-320 // width)
    assert plain.shape[1] == factor * width >= 320
    assert plain.shape[0] > factor * height
    assert plain.dtype == np.uint8
    assert tuple(plain[-1, 0]) == LABEL_COLOURS["normal"]
    if factor == 1:
        assert np.array_equal(plain[:height], image)
        values[: height // 2] = 3
        assert np.array_equal(annotated(image, verdict(values))[:height], overlay(image, values, 1.0))


def test_the_strip_says_what_the_verdict_is() -> None:
    image = photo(320, 320)
    normal, defective = (verdict(np.full((320, 320), value)) for value in (0.5, 2))
    strips = [annotated(image, said)[320:] for said in (normal, defective, unknown())]
    assert [tuple(strip[0, 0]) for strip in strips] == [
        LABEL_COLOURS[label] for label in ("normal", "anomalous", "unknown")
    ]
    assert all(WHITE in colours(strip) for strip in strips)
    assert not np.array_equal(
        annotated(image, normal), annotated(image, verdict(np.full((320, 320), 0.5), 0.9))
    )


def test_an_unknown_product_has_no_heatmap() -> None:
    assert np.array_equal(annotated(photo(330, 330), unknown())[:330], photo(330, 330))


def test_a_caption_is_a_further_line_and_never_runs_out_of_the_strip() -> None:
    image, said = photo(320, 400), verdict(np.zeros((320, 400)), product="ä" * 80)
    without, short, long = (
        annotated(image, said, caption=text) for text in (None, "part.png", "a/b/c_" * 90 + "零件.png")
    )
    assert without.shape[0] < short.shape[0] == long.shape[0]
    assert not np.array_equal(short, long)
    assert colours(long[320:, -8:]) == {LABEL_COLOURS["normal"]}


def cell(height: int, width: int, *, is_correct: bool = True, said: Verdict | None = None) -> SheetCell:
    mask = np.zeros((height, width), np.bool_)
    mask[height // 3 : height // 2 + 1, width // 3 : width // 2 + 1] = True
    values = np.where(mask, 3, 0).astype(np.float32)
    return SheetCell(photo(height, width), said or verdict(values), "hole · anomalous 3.0x", is_correct, mask)


def test_a_sheet_takes_images_of_all_sizes_and_rows_of_all_lengths() -> None:
    rows = [
        SheetRow("bolt", [cell(8, 8), cell(300, 40), cell(41, 300)], "I-AUROC 0.98\n7 KiB · 8 s"),
        SheetRow("a name that is far too long for its column 螺丝", [cell(2000, 1500, said=unknown())]),
        SheetRow("", []),
    ]
    for tile in (48, 97, 160):
        sheet = contact_sheet(rows, tile=tile, heading="three products")
        assert sheet.dtype == np.uint8
        assert sheet.shape[0] > 3 * tile
        assert sheet.shape[1] > 3 * 3 * tile
        border = np.concatenate([sheet[:4].reshape(-1, 3), sheet[:, :4].reshape(-1, 3), sheet[-4:, :4, :][0]])
        assert len(colours(border)) == 1
    assert contact_sheet([SheetRow("bolt", [])], tile=64).shape[0] > 64


def test_a_sheet_shows_photo_truth_and_heatmap_side_by_side() -> None:
    shown = cell(100, 100)
    sheet = contact_sheet([SheetRow("bolt", [shown])], tile=100)
    places = [
        (row, column)
        for row, column in zip(*np.nonzero((sheet == shown.image[0, 0]).all(axis=2)), strict=True)
        if np.array_equal(sheet[row : row + 100, column : column + 100], shown.image)
    ]
    assert len(places) == 1
    row, column = places[0]
    truth, heat = (sheet[row : row + 100, column + k * 102 : column + k * 102 + 100] for k in (1, 2))
    assert np.array_equal(heat, overlay(shown.image, shown.verdict.anomaly_map, 1.0))
    assert shown.mask is not None
    outline = (truth == TRUTH).all(axis=2)
    assert outline.sum() == 2 * (shown.mask.sum(0).max() + shown.mask.sum(1).max()) + 4
    assert np.array_equal(truth[shown.mask], shown.image[shown.mask])
    grey = truth[~shown.mask & ~outline]
    assert (grey == grey[:, :1]).all()


def test_a_wrong_verdict_is_framed() -> None:
    right, wrong = (
        contact_sheet([SheetRow("bolt", [cell(64, 64, is_correct=is_correct)])], tile=100)
        for is_correct in (True, False)
    )
    assert WRONG not in colours(right)
    assert (wrong == WRONG).all(axis=2).sum() > 4 * 100


def test_an_unknown_product_has_no_heatmap_on_the_sheet() -> None:
    sheet = contact_sheet([SheetRow("bolt", [cell(64, 64, said=unknown())])], tile=100)
    assert LABEL_COLOURS["unknown"] in colours(sheet)


@pytest.mark.parametrize(("rows", "tile"), [([], 100), ([SheetRow("bolt", [])], 40)])
def test_a_sheet_without_rows_or_with_tiny_tiles_is_refused(rows: list[SheetRow], tile: int) -> None:
    with pytest.raises(ValueError, match="sheet"):
        contact_sheet(rows, tile=tile)
