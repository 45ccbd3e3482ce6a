"""Context regression, against plain implementations."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.detectors import METHODS, context
from continuad.detectors.context import ContextRegression, random_signs, surroundings, whitening
from continuad.detectors.embedding import patch_features
from continuad.detectors.matching import smooth
from continuad.errors import SettingsError
from continuad.metrics.costs import state_bytes

SIZE = 64
SIDE = SIZE // 8
FLAW = (slice(None), slice(None), slice(12, 28), slice(36, 52))

SIGNS = [-1, 1, -1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, 1, -1]

Array = NDArray[Any]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def parts(count: int, *, size: int = SIZE, seed: int = 0) -> Tensor:
    """Photos of one product, a coarse pattern under grain: (count, 3, S, S) uint8."""
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(9).uniform(60, 180, (3, 4, 4)).repeat(size // 4, 1).repeat(size // 4, 2)
    light = rng.uniform(0.8, 1.2, (count, 1, 1, 1))
    images = light * pattern + rng.normal(0, 8, (count, 1, size, size))
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8))


def flawed(images: Tensor) -> Tensor:
    noise = torch.from_numpy(np.random.default_rng(5).integers(0, 256, images[FLAW].shape, dtype=np.uint8))
    images = images.clone()
    images[FLAW] = noise
    return images


def learnt(backbone: Backbone, images: Tensor, *, seed: int = 0, **changes: Any) -> ContextRegression:
    detector = METHODS["context"].build(backbone, changes)
    assert isinstance(detector, ContextRegression)
    detector.fit(images, seed=seed)
    return detector


def described(detector: ContextRegression, images: Tensor) -> Array:
    """Patches (N, D, H, W) as they are held while learning."""
    features = detector.backbone.features(images, detector.taps)
    embedding = patch_features(features, detector.taps, pool=detector.settings.pool)
    return embedding.half().double().numpy()


def plain_inputs(detector: ContextRegression, patches: Array) -> Array:
    """The regression's inputs (N, H, W, F), position by position."""
    distance, hidden = detector.settings.distance, detector.settings.hidden
    count, dimensions, height, width = patches.shape
    scaled = (patches - detector.middle.double().numpy()[:, None, None]) / detector.scale.item()
    inputs = np.ones((count, height, width, 4 * dimensions + hidden + 1))
    signs = random_signs(4 * dimensions, hidden).double().numpy()
    for y in range(height):
        for x in range(width):
            up, down = max(y - distance, 0), min(y + distance, height - 1)
            left, right = max(x - distance, 0), min(x + distance, width - 1)
            around = np.concatenate(
                [scaled[:, :, up, x], scaled[:, :, down, x], scaled[:, :, y, left], scaled[:, :, y, right]], 1
            )
            random = around @ signs / np.sqrt(4 * dimensions) + np.linspace(-0.5, 0.5, hidden)
            inputs[:, y, x, : 4 * dimensions] = around
            inputs[:, y, x, 4 * dimensions : -1] = np.maximum(random, 0)
    return inputs


def plain_remainders(detector: ContextRegression, patches: Array) -> Array:
    """What the learnt regression leaves of patches, scaled: (N, H, W, D)."""
    scaled = (patches - detector.middle.double().numpy()[:, None, None]) / detector.scale.item()
    weights = detector.weights.double().numpy() * detector.steps.double().numpy()
    remainders: Array = scaled.transpose(0, 2, 3, 1) - plain_inputs(detector, patches) @ weights
    return remainders


# --- what it is made of


def test_surroundings_by_hand() -> None:
    rows = torch.arange(12.0).view(1, 1, 3, 4)  # 0 1 2 3 / 4 5 6 7 / 8 9 10 11
    above, below, left, right = surroundings(rows, 1)[0]
    assert above.tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert below.tolist() == [[4, 5, 6, 7], [8, 9, 10, 11], [8, 9, 10, 11]]
    assert left.tolist() == [[0, 0, 1, 2], [4, 4, 5, 6], [8, 8, 9, 10]]
    assert right.tolist() == [[1, 2, 3, 3], [5, 6, 7, 7], [9, 10, 11, 11]]
    far = surroundings(rows, 7)[0]
    assert [side[1, 2].item() for side in far] == [2, 10, 4, 7]


def test_channels_stay_together() -> None:
    embedding = torch.rand(2, 5, 4, 6)
    whole = surroundings(embedding, 2)
    assert whole.shape == (2, 20, 4, 6)
    for channel in range(5):
        assert torch.equal(whole[:, channel::5], surroundings(embedding[:, channel : channel + 1], 2))


@given(distance=st.integers(1, 4), y=st.integers(1, 7), x=st.integers(1, 7))
def test_a_patch_inside_a_map_is_not_among_its_own_surroundings(distance: int, y: int, x: int) -> None:
    embedding = torch.zeros(1, 1, 9, 9)
    embedding[0, 0, y, x] = 1
    assert not surroundings(embedding, distance)[..., y, x].any()


def test_the_signs_never_change() -> None:
    """Weights on disk belong to them."""
    signs = random_signs(608, 1024)
    assert signs.shape == (608, 1024)
    assert signs[0, :16].tolist() == SIGNS
    assert torch.equal(signs.abs(), torch.ones(608, 1024))
    assert abs(signs.mean()) < 5 / np.sqrt(608 * 1024)
    products = signs.T @ signs / 608 - torch.eye(1024)
    assert products.abs().max() < 6 / np.sqrt(608)
    assert random_signs(3, 0).shape == (3, 0)


def test_whitening_by_hand() -> None:
    found = whitening(torch.diag(torch.tensor([4.0, 1.0], dtype=torch.float64)))
    floor = context.SHRINKAGE * 2.5
    lengths = (torch.eye(2) @ found).norm(dim=1)
    np.testing.assert_allclose(lengths, [(4 + floor) ** -0.5, (1 + floor) ** -0.5], rtol=1e-5)


def test_without_any_variance_the_metric_fits_into_float16() -> None:
    found = whitening(torch.zeros(3, 3, dtype=torch.float64)).half()
    assert torch.isfinite(found).all()
    assert (found.abs().amax(0) > 0).all()


# --- what is learnt


def test_the_regression_is_that_of_plain_least_squares(backbone: Backbone) -> None:
    images = parts(6)
    detector = learnt(backbone, images, hidden=11, distance=2, ridge=0.01)
    patches = described(detector, images)
    np.testing.assert_allclose(detector.middle, patches.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    centred = patches - patches.mean((0, 2, 3), keepdims=True)
    np.testing.assert_allclose(detector.scale, np.sqrt((centred**2).mean()), rtol=1e-4)
    inputs = plain_inputs(detector, patches)
    a = inputs.reshape(-1, inputs.shape[-1])
    b = (centred / detector.scale.item()).transpose(0, 2, 3, 1).reshape(len(a), -1)
    assert len(a) == 6 * SIDE * SIDE
    tall = np.vstack([a, np.sqrt(0.01 * len(a)) * np.eye(a.shape[1])])
    expected = np.linalg.lstsq(tall, np.vstack([b, np.zeros((a.shape[1], b.shape[1]))]), rcond=None)[0]
    steps = detector.steps.double().numpy()
    np.testing.assert_allclose(steps, np.maximum(np.abs(expected).max(0) / 127, context.LEAST), rtol=1e-3)
    assert (np.abs(detector.weights.double().numpy() * steps - expected) <= 0.52 * steps).all()


def test_the_metric_is_of_what_the_rounded_weights_leave(backbone: Backbone) -> None:
    images = parts(6)
    detector = learnt(backbone, images, hidden=11, distance=2)
    rest = plain_remainders(detector, described(detector, images))
    rest = rest.reshape(-1, rest.shape[-1])
    covariance = rest.T @ rest / len(rest)
    covariance += context.SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    metric = detector.metric.double().numpy()
    np.testing.assert_allclose(metric.T @ covariance @ metric, np.eye(len(metric)), atol=0.02)


@pytest.mark.parametrize("coherence", [0.0, 2.0])
def test_maps_are_standardised_lengths_of_whitened_remainders(backbone: Backbone, coherence: float) -> None:
    images, new = parts(5), parts(2, seed=1)
    detector = learnt(backbone, images, hidden=7, distance=3, coherence=coherence)

    def lengths(batch: Tensor) -> Array:
        rest = plain_remainders(detector, described(detector, batch)) @ detector.metric.double().numpy()
        squares = (rest**2).sum(-1)
        for y in range(SIDE):
            for x in range(SIDE):
                near = rest[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2].mean((1, 2))
                squares[:, y, x] += coherence * (near**2).sum(-1)
        roots: Array = np.sqrt(squares)
        return roots

    usual = smooth(torch.from_numpy(np.stack([lengths(images).mean(0), lengths(images).std(0)])), 1.0)
    np.testing.assert_allclose(detector.usual, usual, rtol=0.01, atol=0.01)
    mean, spread = usual.numpy()
    expected = (lengths(new) - mean) / (spread + spread.mean())
    maps = torch.nn.functional.interpolate(torch.from_numpy(expected)[:, None], [SIZE, SIZE], mode="bilinear")
    np.testing.assert_allclose(detector.anomaly_maps(new), maps[:, 0], rtol=0.02, atol=0.05)


def test_positions_can_be_judged_alike(backbone: Backbone) -> None:
    images, new = parts(5), parts(2, seed=1)
    detector = learnt(backbone, images, hidden=7)
    by_position = detector.anomaly_maps(new)
    detector.settings = dataclasses.replace(detector.settings, by_position=False)
    alike = detector.anomaly_maps(new)
    assert not torch.allclose(by_position, alike, atol=0.1)
    mean, spread = detector.usual.double().numpy()
    overall = np.sqrt((spread**2).mean() + mean.var())
    known = (detector.anomaly_maps(images) * overall + mean.mean()).mean()
    np.testing.assert_allclose(known, mean.mean(), rtol=0.02)
    assert alike.amax() > alike.amin() + 1


def test_a_flaw_is_found_where_it_is(backbone: Backbone) -> None:
    detector = learnt(backbone, parts(24, size=128), hidden=64)
    good, bad = parts(6, size=128, seed=1), flawed(parts(6, size=128, seed=2))
    maps = detector.anomaly_maps(bad)
    assert detector.image_scores(detector.anomaly_maps(good)).max() < detector.image_scores(maps).min()
    for found in maps:  # it also spoils the predictions at the distance, but less
        y, x = divmod(int(found.argmax()), 128)
        assert 8 <= y < 32
        assert 32 <= x < 56


def test_random_features_explain_more_than_a_line(backbone: Backbone) -> None:
    images = parts(24)
    rest = [
        plain_remainders(detector, described(detector, parts(8, seed=1)))
        for detector in (learnt(backbone, images, hidden=hidden, distance=2) for hidden in (0, 256))
    ]
    assert (rest[1] ** 2).mean() < (rest[0] ** 2).mean()


def test_the_seed_draws_the_examples(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "EXAMPLES", 60)
    taken: list[Tensor] = []
    regress = ContextRegression._regress
    monkeypatch.setattr(
        ContextRegression,
        "_regress",
        lambda self, examples: (taken.append(examples), regress(self, examples)),
    )
    first, again, other = (learnt(backbone, parts(6), seed=seed, hidden=5) for seed in (1, 1, 2))
    assert [len(examples) for examples in taken] == [60, 60, 60]
    assert torch.equal(first.weights, again.weights)
    assert not torch.equal(first.weights, other.weights)


@pytest.mark.parametrize("watched", [1, 3])
def test_only_so_many_images_are_watched(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, watched: int
) -> None:
    monkeypatch.setattr(context, "WATCHED", watched)
    seen: list[int] = []
    watch = ContextRegression._watch
    monkeypatch.setattr(
        ContextRegression, "_watch", lambda self, held, p: (seen.append(len(held)), watch(self, held, p))
    )
    learnt(backbone, parts(5), hidden=5)
    assert seen == [watched]


@settings(max_examples=5, deadline=None)
@given(images=st.integers(1, 9), hidden=st.sampled_from([0, 3, 40]))
def test_bytes_do_not_depend_on_the_number_of_images(backbone: Backbone, images: int, hidden: int) -> None:
    detector = learnt(backbone, parts(images), hidden=hidden)
    channels = len(detector.middle)
    inputs = 4 * channels + hidden + 1
    expected = inputs * channels + 2 * channels**2 + 4 * (2 * channels + 1) + 2 * 2 * SIDE**2
    assert state_bytes(detector).total == expected
    reserved = METHODS["context"].build(backbone, {"hidden": hidden})
    assert isinstance(reserved, ContextRegression)
    reserved.reserve(images, SIZE)
    assert state_bytes(reserved).total == expected


def test_a_product_without_any_variation_can_be_learnt(backbone: Backbone) -> None:
    images = torch.full((3, 3, SIZE, SIZE), 90, dtype=torch.uint8)
    detector = learnt(backbone, images, hidden=9)
    assert torch.isfinite(detector.anomaly_maps(images)).all()
    assert detector.anomaly_maps(flawed(images)).amax() > 10 * detector.anomaly_maps(images).amax().clamp(
        min=1
    )


def test_the_score_is_the_mean_of_the_worst_share(backbone: Backbone) -> None:
    detector = METHODS["context"].build(backbone, {"worst": 0.25})
    maps = torch.tensor([[[1.0, 2], [3, 4]], [[8, 0], [0, 0]]]).repeat(1, 2, 2)
    assert detector.image_scores(maps).tolist() == [4, 8]
    detector = METHODS["context"].build(backbone, {"worst": 0.0})
    assert detector.image_scores(maps + torch.eye(4)).tolist() == [5, 9]


@pytest.mark.parametrize(
    "changes",
    [
        {"strides": []},
        {"pool": 2},
        {"distance": 0},
        {"hidden": -1},
        {"ridge": 0.0},
        {"coherence": -0.1},
        {"worst": 1.1},
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(SettingsError, match="no block" if name == "strides" else name):
        METHODS["context"].configure(changes)
