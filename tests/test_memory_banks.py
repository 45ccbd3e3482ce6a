"""What memory banks and Gaussians are made of, against plain implementations."""

from __future__ import annotations

from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, mahalanobis
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.detectors import METHODS, coreset, neighbours
from continuad.detectors.coreset import greedy_coreset
from continuad.detectors.embedding import as_maps, as_vectors, patch_features
from continuad.detectors.neighbours import nearest
from continuad.detectors.padim import PaDiM
from continuad.detectors.patchcore import PatchCore
from continuad.errors import SettingsError

SIZE = 48


def vectors(count: int, dimensions: int, seed: int = 0) -> Tensor:
    """Vectors in clusters, some of which are larger than others."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 5, (4, dimensions))
    found = centres[rng.integers(0, 4, count) ** 2 // 3] + rng.normal(0, 1, (count, dimensions))
    return torch.from_numpy(found.astype(np.float32))


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def images(count: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8))


# --- neighbours


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.integers(0, 99))
def test_neighbours_are_those_of_brute_force(queries: int, bank: int, dimensions: int, seed: int) -> None:
    a, b = vectors(queries, dimensions, seed), vectors(bank, dimensions, seed + 1)
    count = min(bank, 1 + seed % 4)
    distances, indices = nearest(a, b, count=count)
    table = cdist(a, b, "sqeuclidean")
    assert distances.shape == indices.shape == (queries, count)
    np.testing.assert_allclose(distances, np.sort(table, axis=1)[:, :count], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(np.take_along_axis(table, indices.numpy(), 1), distances, rtol=1e-4, atol=1e-4)


def test_neighbours_do_not_depend_on_how_many_are_looked_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = vectors(50, 6), vectors(40, 6, 1)
    whole = nearest(a, b, count=3)
    monkeypatch.setattr(neighbours, "CHUNK", 90)
    parts = nearest(a, b, count=3)
    assert torch.equal(whole[1], parts[1])
    torch.testing.assert_close(whole[0], parts[0])


def test_far_from_the_origin_small_distances_stay_exact() -> None:
    a = vectors(30, 8) / 100
    distances, indices = nearest(a + 1000, a + 1000)
    assert indices.squeeze(1).tolist() == list(range(30))
    assert distances.max() < 1e-6


# --- coreset


def plain_greedy(points: Tensor, first: int, count: int) -> list[int]:
    table = cdist(points, points)
    chosen = [first]
    for _ in range(count - 1):
        chosen.append(int(table[:, chosen].min(1).argmax()))
    return chosen


@given(st.integers(2, 120), st.integers(1, 12), st.sampled_from([1, 7, 50, 2048]), st.integers(0, 99))
def test_the_coreset_is_that_of_plain_greedy(number: int, dimensions: int, farthest: int, seed: int) -> None:
    points = vectors(number, dimensions, seed)
    count = max(1, number // 3)
    with mock.patch.object(coreset, "FARTHEST", farthest):
        chosen = greedy_coreset(points, count, seed=seed).tolist()
    if count < number:
        assert chosen == plain_greedy(points, chosen[0], count)


def test_a_coreset_covers() -> None:
    points = vectors(3000, 3) @ torch.from_numpy(np.random.default_rng(1).normal(size=(3, 100))).float()
    assert points.shape[1] > coreset.DIMENSIONS  # it is projected
    chosen = greedy_coreset(points, 60)
    drawn = torch.from_numpy(np.random.default_rng(0).permutation(3000)[:60])
    assert nearest(points, points[chosen])[0].max() < 0.5 * nearest(points, points[drawn])[0].max()


def test_equal_distances_do_not_end_the_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coreset, "FARTHEST", 1)
    turned = np.linalg.qr(np.random.default_rng(0).normal(size=(40, 40)))[0]
    points = torch.from_numpy(turned).float() + 100  # equal but for rounding
    assert len(set(greedy_coreset(points, 39).tolist())) == 39


def test_of_copies_one_is_enough() -> None:
    points = vectors(5, 3).repeat(10, 1)
    assert len(greedy_coreset(points, 20)) == 5
    assert greedy_coreset(points[:4], 4).tolist() == [0, 1, 2, 3]
    assert greedy_coreset(points[:4], 9).tolist() == [0, 1, 2, 3]


def test_the_seed_decides_where_a_coreset_begins() -> None:
    points = vectors(400, 5)
    first, again, other = (greedy_coreset(points, 20, seed=seed).tolist() for seed in (0, 0, 1))
    assert first == again != other


# --- embedding


def test_patch_features_by_hand() -> None:
    fine = torch.tensor([[0.0, 1, 2], [3, 4, 5], [6, 7, 8]])[None, None]
    coarse = torch.tensor([[7.0]])[None, None]
    found = patch_features({"b": coarse, "a": fine}, ["a", "b"], pool=3)
    assert found.shape == (1, 2, 3, 3)
    assert found[0, 0].tolist() == [[2, 2.5, 3], [3.5, 4, 4.5], [5, 5.5, 6]]  # of 4, 6 or 9 values
    assert (found[0, 1] - 7).abs().max() < 1e-6
    assert torch.equal(patch_features({"a": fine}, ["a"], pool=1), fine)


def test_vectors_and_maps_are_inverse() -> None:
    embedding = torch.rand(2, 3, 4, 5)
    maps = as_maps(as_vectors(embedding)[:, 1], embedding, (4, 5))
    assert torch.equal(maps, embedding[:, 1])


# --- PatchCore


def patchcore(backbone: Backbone, **changes: Any) -> PatchCore:
    detector = METHODS["patchcore"].build(backbone, {"smoothing": 0.0, **changes})
    assert isinstance(detector, PatchCore)
    return detector


def test_patchcore_knows_what_it_has_seen(backbone: Backbone) -> None:
    detector = patchcore(backbone, share=1.0)
    detector.fit(images(5))
    assert len(detector.bank) == 5 * (SIZE // 8) ** 2
    assert detector.anomaly_maps(images(5)).max() < 1e-2
    assert detector.anomaly_maps(images(5, seed=1)).mean() > 0.1


def test_patchcore_is_the_distance_to_its_bank(backbone: Backbone) -> None:
    detector = patchcore(backbone, share=0.2)
    detector.fit(images(5))
    assert len(detector.bank) == 36
    new = images(2, seed=1)
    embedding = patch_features(backbone.features(new, detector.taps), detector.taps, pool=3)
    table = cdist(as_vectors(embedding), detector.bank).min(1).reshape(2, 1, 6, 6)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(table), [SIZE, SIZE], mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(detector.anomaly_maps(new), expected[:, 0], rtol=1e-3, atol=1e-3)


def test_patches_to_choose_from_are_limited(backbone: Backbone) -> None:
    detector = patchcore(backbone, share=1.0, patches=50)
    detector.fit(images(5))
    assert len(detector.bank) == 50
    detector = patchcore(backbone, share=1.0, patches=2)
    detector.fit(images(5))
    assert len(detector.bank) == 5  # one of each image at least


# --- PaDiM


def test_padim_is_the_mahalanobis_distance_at_each_position(backbone: Backbone) -> None:
    detector = METHODS["padim"].build(backbone, {"channels": 7, "smoothing": 0.0, "regularisation": 0.5})
    assert isinstance(detector, PaDiM)
    detector.fit(images(19), seed=3)
    assert len(set(detector.chosen.tolist())) == 7

    def described(batch: Tensor) -> np.ndarray[Any, Any]:
        embedding = patch_features(backbone.features(batch, detector.taps), detector.taps, pool=1)
        return embedding[:, detector.chosen].flatten(2).double().numpy()

    known, new = described(images(19)), described(images(2, seed=1))
    found = detector.anomaly_maps(images(2, seed=1))
    side = SIZE // 4
    expected = np.empty((2, side * side))
    for position in range(side * side):
        x = known[:, :, position]
        inverse = np.linalg.inv(np.cov(x, rowvar=False) + 0.5 * np.eye(7))
        for row in range(2):
            expected[row, position] = mahalanobis(new[row, :, position], x.mean(0), inverse)
    maps = torch.nn.functional.interpolate(
        torch.from_numpy(expected.reshape(2, 1, side, side)), [SIZE, SIZE], mode="bilinear"
    )
    np.testing.assert_allclose(found, maps[:, 0], rtol=2e-3)


@pytest.mark.parametrize(
    ("method", "changes"),
    [
        ("patchcore", {"pool": 2}),
        ("patchcore", {"share": 0.0}),
        ("patchcore", {"patches": 0}),
        ("patchcore", {"strides": []}),
        ("patchcore", {"smoothing": -1.0}),
        ("padim", {"channels": 0}),
        ("padim", {"regularisation": 0.0}),
        ("padim", {"strides": []}),
        ("padim", {"smoothing": -1.0}),
    ],
)
def test_settings_that_cannot_work_are_refused(method: str, changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        METHODS[method].configure(changes)
