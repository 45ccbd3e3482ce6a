"""PCA feature importance and the selection of features, against plain implementations."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.detectors import importance
from continuad.detectors.importance import (
    ImportanceSettings,
    LayerImportance,
    Moments,
    component_counts,
    feature_importance,
)
from continuad.detectors.selection import most_important, shared, without_disjoint, without_shared
from continuad.errors import SettingsError

LAYERS = ["blocks.2", "blocks.4"]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("efficientnet_lite0", weights="random")


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Noise on the right; on the left, one pattern in different light."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (19, 3, 40, 40))
    noise[..., :20] = noise[:1, ..., :20] * rng.uniform(0.2, 1, (19, 1, 1, 1))
    return torch.from_numpy(noise.astype(np.uint8))


@pytest.fixture(scope="module")
def found(backbone: Backbone, images: Tensor) -> Mapping[str, LayerImportance]:
    return feature_importance(backbone, images, LAYERS)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_moments_are_those_of_all_vectors_together(sizes: list[int], seed: int) -> None:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(100, 1, (2, sum(sizes), 3))
    moments = Moments(2, 3)
    for part in np.split(vectors, np.cumsum(sizes)[:-1], axis=1):
        moments.update(torch.from_numpy(part))
    for kind in range(2):
        np.testing.assert_allclose(moments.mean[kind], vectors[kind].mean(0))
        covariance = np.cov(vectors[kind].T, bias=True).reshape(3, 3)
        np.testing.assert_allclose(moments.scatter[kind] / sum(sizes), covariance, atol=1e-9)


@pytest.mark.parametrize("layer", LAYERS)
def test_importance_is_that_of_algorithm_4_1(
    backbone: Backbone, images: Tensor, found: Mapping[str, LayerImportance], layer: str
) -> None:
    with torch.no_grad():
        features = backbone.features(images, LAYERS)[layer].numpy()
    result = found[layer]
    counts = []
    for row, column in np.ndindex(features.shape[2:]):
        pca = PCA().fit(features[:, :, row, column])
        counts.append(1 + int((np.cumsum(pca.explained_variance_ratio_) < 0.8).sum()))
        kept = slice(result.components)
        expected = np.abs(pca.components_[kept]).T @ pca.explained_variance_ratio_[kept]
        np.testing.assert_allclose(
            result.importance[:, row, column], expected / expected.sum(), rtol=1e-3, atol=1e-5
        )
    assert result.counts(0.8).ravel().tolist() == counts
    assert result.exact == int(np.percentile(counts, 99))
    np.testing.assert_allclose(result.mean, features.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.std, features.std(0), rtol=1e-3, atol=1e-5)


def test_components_are_counted_at_a_sample_of_positions(backbone: Backbone, images: Tensor) -> None:
    all_of_them = feature_importance(backbone, images, LAYERS, ImportanceSettings(share=1.0))
    for layer in all_of_them.values():
        assert layer.components == layer.exact
    one = ImportanceSettings(share=0.04)  # of 25 positions
    counts = {
        feature_importance(backbone, images, LAYERS, one, seed=s)["blocks.4"].components for s in range(5)
    }
    assert counts <= set(all_of_them["blocks.4"].counts(0.8).ravel().tolist())
    assert len(counts) > 1


def test_little_memory_changes_nothing(
    backbone: Backbone, images: Tensor, found: Mapping[str, LayerImportance], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importance, "MEMORY", 8 * 40**2 * 6)
    again = feature_importance(backbone, images, LAYERS)
    for name, layer in found.items():
        for key, value in vars(layer).items():
            np.testing.assert_array_equal(vars(again[name])[key], value)


def test_what_does_not_vary_takes_one_component_and_no_channel_is_more_important() -> None:
    layer = importance._Layer(4, 1, 2, settings=ImportanceSettings(share=1.0), rng=np.random.default_rng(0))
    vectors = np.random.default_rng(1).normal(size=(2, 9, 4))
    vectors[0] = 0.1
    moments = Moments(2, 4)
    moments.update(torch.from_numpy(vectors))
    layer.take(np.arange(2), moments)
    found = layer.result()
    assert found.counts(0.99).ravel().tolist()[0] == 1
    np.testing.assert_allclose(found.importance[:, 0, 0], 0.25)
    assert found.std[:, 0, 0].max() == 0
    assert most_important(found.importance, 25)[:, 0].sum(0).tolist() == [4, 1]


def test_one_image_does_not_vary(backbone: Backbone, images: Tensor) -> None:
    with pytest.raises(SettingsError, match="two images"):
        feature_importance(backbone, images[:1], LAYERS)


def test_components_by_hand() -> None:
    explained = np.cumsum([0.5, 0.3, 0.1, 0.1], dtype=np.float32)
    assert [int(component_counts(explained, share)) for share in (0.1, 0.5, 0.8, 0.81, 1.0)] == [
        1,
        1,
        2,
        3,
        4,
    ]


@pytest.mark.parametrize("setting", ["variance", "share"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1.1, float("nan")])
def test_settings_that_cannot_be(setting: str, value: float) -> None:
    with pytest.raises(SettingsError, match=setting):
        ImportanceSettings(**{setting: value})


# --- selection


@pytest.mark.parametrize(
    ("channels", "counts"),
    [
        (24, [1, 2, 3, 4, 5]),
        (40, [1, 2, 4, 6, 8]),
        (64, [1, 4, 7, 10, 13]),
        (96, [1, 5, 10, 15, 20]),
        (128, [2, 7, 13, 20, 26]),
        (256, [3, 13, 26, 39, 52]),
    ],
)
def test_as_many_channels_are_selected_as_in_the_thesis(channels: int, counts: list[int]) -> None:
    values = np.random.default_rng(0).permuted(np.arange(channels * 6.0).reshape(channels, 3, 2), axis=0)
    for percent, count in zip((1, 5, 10, 15, 20), counts, strict=True):
        mask = most_important(values.astype(np.float32), percent)
        assert (mask.sum(0) == count).all()
        assert np.where(mask, values, np.inf).min(0).min() > np.where(mask, -np.inf, values).max(0).min()


@pytest.mark.parametrize("percent", [0.0, -1.0, 101.0])
def test_a_percentage_that_cannot_be(percent: float) -> None:
    with pytest.raises(SettingsError, match="percent"):
        most_important(np.ones((2, 1, 1), np.float32), percent)


def as_maps(*values: float) -> NDArray[np.float32]:
    return np.array(values, np.float32).reshape(-1, 1, 1)


MASKS = {
    "a": as_maps(1, 1, 1, 0, 1).astype(bool),
    "b": as_maps(1, 0, 1, 0, 1).astype(bool),
    "c": as_maps(0, 0, 1, 1, 0).astype(bool),
}


def test_shared_features_are_dropped_for_all() -> None:
    assert shared(MASKS).ravel().tolist() == [True, False, True, False, True]
    kept = without_shared(MASKS)
    assert {task: mask.ravel().tolist() for task, mask in kept.items()} == {
        "a": [False, True, False, False, False],
        "b": [False, False, False, False, False],
        "c": [False, False, False, True, False],
    }


def test_shared_features_stay_if_two_tasks_agree_on_the_range() -> None:
    means = {"a": as_maps(0, 0, 0, 0, 2), "b": as_maps(6, 0, 0, 0, 2), "c": as_maps(0, 0, 2.9, 0, 0)}
    stds = {"a": as_maps(1, 1, 1, 1, 0), "b": as_maps(1, 1, 9, 1, 0), "c": as_maps(1, 1, 1, 1, 1)}
    # feature 0: a is -3..3, b 3..9: disjoint; 2: a -3..3, c -0.1..5.9: 3.1 / 8.9 = 0.35; 4: the same value
    kept = without_disjoint(MASKS, means, stds)
    assert {task: mask.ravel().tolist() for task, mask in kept.items()} == {
        "a": [False, True, True, False, True],
        "b": [False, False, True, False, True],
        "c": [False, False, True, True, False],
    }
    means["c"][2] = 3.3  # 2.7 / 9.3 = 0.29, and b's 54 contain both: 6 / 54
    assert not any(mask.ravel()[2] for mask in without_disjoint(MASKS, means, stds).values())
