"""Small synthetic defects: where they lie, what they change, and what their masks promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import ndimage

from continuad.datasets import defects
from continuad.datasets.defects import KINDS, VISIBLE, SyntheticDefects

SIZE = 96


def part(size: int = SIZE, seed: int = 0) -> NDArray[np.uint8]:
    """A photo of an ordinary part: shapes of several colours under a little grain, (3, S, S)."""
    rng = np.random.default_rng(seed)
    shapes = ndimage.gaussian_filter(rng.normal(0, 1, (3, size, size)), (0, size / 16, size / 16))
    image = 128 + 50 * np.sign(shapes) + rng.normal(0, 3, shapes.shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def changed(one: NDArray[np.generic], other: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Where two images differ visibly."""
    difference: NDArray[np.float32] = one.astype(np.float32) - other.astype(np.float32)
    visible: NDArray[np.bool_] = np.abs(difference).max(0) > VISIBLE
    return visible


@given(size=st.sampled_from([1, 7, 32, 45]), scale=st.sampled_from([0.5, 1.0, 3.0]), seed=st.integers(0, 999))
@settings(deadline=None, max_examples=40)
def test_the_mask_is_what_has_visibly_changed(size: int, scale: float, seed: int) -> None:
    image = part(size, seed)
    before = image.copy()
    result, mask = SyntheticDefects(scale)(image, np.random.default_rng(seed))
    assert result.dtype == np.uint8
    assert result.shape == (3, size, size)
    assert mask.dtype == np.bool_
    assert mask.shape == (size, size)
    assert np.array_equal(mask, changed(result, image))
    assert np.array_equal(image, before), "the caller's image was written to"
    assert not np.shares_memory(result, image)


def test_an_ordinary_image_always_gets_a_defect() -> None:
    areas = [SyntheticDefects()(part(), np.random.default_rng(seed))[1].sum() for seed in range(60)]
    assert min(areas) >= 4
    assert np.median(areas) < 0.02 * SIZE**2, "they are small"


def test_an_image_without_room_for_a_defect_comes_back_as_it_is() -> None:
    image = part(1)
    result, mask = SyntheticDefects()(image, np.random.default_rng(0))
    assert np.array_equal(result, image)
    assert not mask.any()


@pytest.mark.parametrize("level", [0, 128, 255])
def test_constant_images_get_defects_too(level: int) -> None:
    image = np.full((3, SIZE, SIZE), level, np.uint8)
    drawn = [SyntheticDefects()(image, np.random.default_rng(seed)) for seed in range(20)]
    assert all(np.array_equal(mask, changed(result, image)) for result, mask in drawn)
    assert sum(mask.any() for _, mask in drawn) >= 18


@pytest.mark.parametrize(("change", "level"), [(300.4, 255), (-300.4, 0), (20.4, 220), (20.6, 221)])
def test_levels_are_rounded_and_do_not_wrap(
    monkeypatch: pytest.MonkeyPatch, change: float, level: int
) -> None:
    monkeypatch.setattr(defects, "KINDS", (lambda image, *_: image + change,))
    result, mask = SyntheticDefects()(np.full((3, 8, 8), 200, np.uint8), np.random.default_rng(0))
    assert (result == level).all()
    assert mask.all()


def test_the_generator_decides() -> None:
    first, again, other = (SyntheticDefects()(part(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[1], other[1])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__.strip("_"))
@pytest.mark.parametrize("size", [80.0, 160.0])
def test_every_kind_draws_something_of_its_size_where_it_is_told(kind: object, size: float) -> None:
    assert callable(kind)
    row, column = 60, 36
    image = part().astype(np.float32)
    rows, columns = np.mgrid[:SIZE, :SIZE]
    distance = np.hypot(rows - row, columns - column)
    drawn = []
    for seed in range(20):
        damaged = kind(image, row, column, size, np.random.default_rng(seed))
        assert damaged.shape == image.shape
        drawn.append(changed(damaged, image))
        assert distance[drawn[-1]].max(initial=0) < 0.2 * size + 2
    assert sum(mask.any() for mask in drawn) >= 16
    assert len({mask.tobytes() for mask in drawn}) >= 16, "all look alike"


def test_scale_multiplies_sizes() -> None:
    small, usual, large = (
        np.mean([SyntheticDefects(scale)(part(), np.random.default_rng(seed))[1].sum() for seed in range(60)])
        for scale in (0.5, 1, 2)
    )
    assert 1.5 * small < usual < 0.5 * large


@pytest.mark.parametrize(("top", "left"), [(8, 8), (60, 16)])
def test_defects_lie_where_the_structure_is(top: int, left: int) -> None:
    side, margin = 24, 10
    image = np.full((3, SIZE, SIZE), 128, np.uint8)
    texture = np.random.default_rng(0).integers(60, 196, (3, side, side))
    image[:, top : top + side, left : left + side] = texture
    near = 0
    for seed in range(60):
        _, mask = SyntheticDefects()(image, np.random.default_rng(seed))
        row, column = np.argwhere(mask).mean(0)
        near += top - margin < row < top + side + margin and left - margin < column < left + side + margin
    assert near > 0.8 * 60  # of the area it is a fifth


def test_on_flat_ground_defects_lie_anywhere() -> None:
    image = np.full((3, SIZE, SIZE), 128, np.uint8)
    masks = [SyntheticDefects()(image, np.random.default_rng(seed))[1] for seed in range(80)]
    centres = np.array([np.argwhere(mask).mean(0) for mask in masks if mask.any()])
    quarters = (centres > SIZE / 2) @ [2, 1]
    assert np.bincount(quarters, minlength=4).min() >= 8
