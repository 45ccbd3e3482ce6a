"""Unknown images by similarity, against a reference in plain Python, and what must hold in any order."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from continuad.station.grouping import group

Vectors = NDArray[np.float32]


def kinds(*sizes: int, spread: float = 0.5, gap: float = 30.0, seed: int = 0) -> Vectors:
    """Images of kinds that lie far apart, one kind after the other."""
    rng = np.random.default_rng(seed)
    centres = np.eye(8)[: len(sizes)] * gap
    noise = rng.normal(0, spread, (sum(sizes), 8))
    return (np.repeat(centres, sizes, axis=0) + noise).astype(np.float32)


def reference(vectors: Vectors) -> set[frozenset[int]]:
    """The rule as it is described, pair by pair."""
    points = [tuple(map(float, vector)) for vector in vectors]
    reach = []
    for point in points:
        ordered = sorted(math.dist(point, other) for other in points)
        typical, length = ordered[min(3, len(points) - 1)], math.hypot(*point)
        reach.append(min(max(2.5 * typical, 0.1 * length), 0.5 * length))
    owner = list(range(len(points)))
    for a in range(len(points)):
        for b in range(a):
            if math.dist(points[a], points[b]) <= min(reach[a], reach[b]):
                owner = [owner[b] if each == owner[a] else each for each in owner]
    return {frozenset(i for i, each in enumerate(owner) if each == kind) for kind in owner}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 25), st.floats(0.1, 8))
def test_it_is_the_rule_that_is_described(seed: int, count: int, spread: float) -> None:
    rng = np.random.default_rng(seed)
    vectors = (rng.normal(0, spread, (count, 3)) + rng.integers(0, 3, (count, 1)) * 10 + 5).astype(np.float32)
    assert {frozenset(members) for members in group(vectors)} == reference(vectors)


@settings(max_examples=40, deadline=None)
@given(st.permutations(range(31)))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    vectors = kinds(16, 9, 4, 1, 1)
    found = {frozenset(order[index] for index in members) for members in group(vectors[order])}
    assert found == {frozenset(members) for members in group(vectors)}


def test_kinds_come_out_the_largest_first_and_then_the_earliest() -> None:
    assert [len(members) for members in group(kinds(5, 12, 5, 2))] == [12, 5, 5, 2]
    assert group(kinds(2, 3, 2)) == [[2, 3, 4], [0, 1], [5, 6]]


def test_no_image_one_two_and_three() -> None:
    assert group(np.empty((0, 8), np.float32)) == []
    assert group(kinds(1)) == [[0]]
    assert group(kinds(2)) == [[0, 1]]
    assert group(kinds(1, 1)) == [[0], [1]]
    assert group(kinds(1, 2)) == [[1, 2], [0]]
    assert group(kinds(1, 1, 1)) == [[0], [1], [2]]


def test_a_dense_and_a_scattered_kind_side_by_side() -> None:
    dense, scattered = kinds(20, spread=0.2), kinds(20, spread=2.5, seed=1)
    dense[:, 1] += 9.0  # nearer than the scattered ones reach, farther than the dense ones do
    found = group(np.concatenate([dense, scattered]))
    assert sorted(map(sorted, found)) == [list(range(20)), list(range(20, 40))]


def test_photos_of_one_part_again_and_again_do_not_fall_apart_from_its_kind() -> None:
    parts = kinds(6, spread=0.4)
    bursts = np.repeat(parts, 5, axis=0) + np.tile(np.linspace(0, 1e-3, 5, dtype=np.float32), 6)[:, None]
    assert group(bursts) == [list(range(30))]


def test_equal_images_are_one_group() -> None:
    assert group(np.ones((7, 4), np.float32)) == [list(range(7))]
    assert group(np.zeros((4, 4), np.float32)) == [[0, 1, 2, 3]]


@pytest.mark.parametrize("count", [500, 2000])
def test_many_images(count: int) -> None:
    assert [len(members) for members in group(kinds(count // 2, count // 2 - 10, 10))] == [
        count // 2,
        count // 2 - 10,
        10,
    ]
