"""The compact memory bank and what it is made of, against plain implementations."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import null_space
from scipy.spatial.distance import cdist
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.detectors import METHODS, compact, hull, metric
from continuad.detectors import codes as codes_module
from continuad.detectors.codes import FOLDS, decode, encode, nearest_codes
from continuad.detectors.compact import CompactBank
from continuad.detectors.hull import hull_residuals
from continuad.detectors.metric import within_class_metric
from continuad.errors import SettingsError

SIZE = 64
FLAW = (slice(None), slice(None), slice(12, 28), slice(36, 52))

seeds = st.integers(0, 999)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers, float32."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, dtype=np.float32))


# --- codes ----------------------------------------------------------------------------------------


def assert_nearest(queries: Tensor, bank: Tensor, count: int) -> None:
    """Compare with all distances; where some are equal, positions may differ."""
    found = nearest_codes(queries, bank, count=count).numpy()
    table = cdist(queries, bank, "sqeuclidean")
    assert found.shape == (len(queries), count)
    assert all(len({*row}) == count for row in found.tolist())
    np.testing.assert_array_equal(np.take_along_axis(table, found, 1), np.sort(table, axis=1)[:, :count])


@given(
    queries=st.sampled_from([1, 2, 30, 129, 260]),
    beyond=st.one_of(st.integers(-13, 25), st.integers(-500, 900)),
    dimensions=st.one_of(st.integers(1, 70), st.sampled_from([128, 301])),
    count=st.integers(1, 4),
    levels=st.sampled_from([1, 20, 127]),
    seed=seeds,
)
@settings(deadline=None, max_examples=60)
def test_nearest_codes_are_those_of_brute_force(
    queries: int, beyond: int, dimensions: int, count: int, levels: int, seed: int
) -> None:
    # rows of this length and more are folded
    size = max(count, FOLDS * (FOLDS * count + 1) + beyond)
    rng = np.random.default_rng(seed)
    codes = rng.integers(-levels, levels + 1, (queries + size, dimensions)).astype(np.int8)
    assert_nearest(torch.from_numpy(codes[:queries]), torch.from_numpy(codes[queries:]), count)


@pytest.mark.parametrize("size", [60, 2000])
def test_codes_at_the_ends_of_their_range_do_not_overflow(size: int) -> None:
    codes = torch.where(normal(size + 20, 1000) > 0, 127, -127).to(torch.int8)
    assert_nearest(codes[:20], codes[20:], 3)


@pytest.mark.parametrize("extra", [0, 1, FOLDS - 1])
def test_neighbours_that_lie_on_top_of_each_other_in_the_fold_are_all_found(extra: int) -> None:
    width = 100
    bank = torch.full((FOLDS * width + extra, 5), 90, dtype=torch.int8)
    places = [7 + 4 * width, 7, 7 + 10 * width, len(bank) - 1]
    bank[places] = torch.arange(4, dtype=torch.int8)[:, None]
    found = nearest_codes(torch.zeros(2, 5, dtype=torch.int8), bank, count=4)
    assert found.tolist() == [places, places]


@given(st.floats(1e-3, 1e3), seeds)
def test_codes_are_within_half_a_step_and_end_at_127(size: float, seed: int) -> None:
    step = torch.tensor(size)
    vectors = (normal(50, 7, seed=seed) * 40).clamp(-127, 127) * step
    codes = encode(vectors, step)
    assert codes.dtype == torch.int8
    assert (decode(codes, step) - vectors).abs().max() <= 0.5001 * step
    assert torch.equal(encode(decode(codes, step), step), codes)
    assert encode(torch.tensor([-1e6, -128.0, 127.4, 1e6]) * step, step).tolist() == [-127, -127, 127, 127]


# --- hull -----------------------------------------------------------------------------------------


def plain_remainder(vector: np.ndarray[Any, Any], neighbours: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Minimise |sum w (v - n)|^2 + ridge |w|^2 over weights that sum to one, by least squares."""
    offsets = (vector - neighbours).T
    count = offsets.shape[1]
    ridge = hull.RIDGE * (offsets**2).sum(0).mean()
    equal, free = np.full(count, 1 / count), null_space(np.ones((1, count)))
    tall = np.vstack([offsets, np.sqrt(ridge) * np.eye(count)])
    moved = np.linalg.lstsq(tall @ free, -tall @ equal, rcond=None)[0]
    remainder: np.ndarray[Any, Any] = offsets @ (equal + free @ moved)
    return remainder


@given(count=st.integers(1, 6), dimensions=st.integers(1, 20), seed=seeds)
@settings(deadline=None)
def test_remainders_are_those_of_plain_least_squares(count: int, dimensions: int, seed: int) -> None:
    vectors, neighbours = normal(9, dimensions, seed=seed), normal(9, count, dimensions, seed=seed + 1)
    found = hull_residuals(vectors, neighbours)
    expected = [
        plain_remainder(v, n)
        for v, n in zip(vectors.double().numpy(), neighbours.double().numpy(), strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    to_the_middle = (vectors - neighbours.mean(1)).norm(dim=1)  # equal weights are the ridge's choice
    assert (found.norm(dim=1) <= to_the_middle + 1e-5).all()


def test_one_neighbour_leaves_the_difference() -> None:
    vectors, neighbours = normal(20, 8), normal(20, 1, 8, seed=1)
    torch.testing.assert_close(hull_residuals(vectors, neighbours), vectors - neighbours[:, 0])


def test_a_vector_within_the_hull_leaves_what_the_ridge_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    neighbours = normal(40, 4, 30)
    weights = normal(40, 4, seed=1).softmax(1)
    vectors = (weights[:, :, None] * neighbours).sum(1)
    nearest = (vectors[:, None] - neighbours).norm(dim=2).amin(1)
    assert (hull_residuals(vectors, neighbours).norm(dim=1) < 0.4 * nearest).all()
    middle = neighbours.mean(1)
    assert hull_residuals(middle, neighbours).norm(dim=1).max() < 1e-5  # with equal weights, nothing
    monkeypatch.setattr(hull, "RIDGE", 1e-5)
    assert (hull_residuals(vectors, neighbours).norm(dim=1) < 1e-3 * nearest).all()


def test_what_is_outside_the_hulls_plane_remains() -> None:
    neighbours = normal(10, 3, 6)
    neighbours[:, :, 5] = 0
    vectors = neighbours.mean(1)
    vectors[:, 5] = 2
    found = hull_residuals(vectors, neighbours)
    torch.testing.assert_close(found[:, 5], torch.full((10,), 2.0))
    assert found[:, :5].abs().max() < 1e-5


@given(shift=st.floats(-50, 50), scale=st.floats(0.01, 100), seed=seeds)
@settings(deadline=None)
def test_remainders_move_with_nothing_and_grow_with_all(shift: float, scale: float, seed: int) -> None:
    vectors, neighbours = normal(5, 6, seed=seed), normal(5, 3, 6, seed=seed + 1)
    plain = hull_residuals(vectors, neighbours)
    torch.testing.assert_close(hull_residuals(vectors + shift, neighbours + shift), plain, rtol=0, atol=1e-3)
    scaled = hull_residuals(vectors * scale, neighbours * scale)
    torch.testing.assert_close(scaled / scale, plain, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1.0, 1e6])
def test_neighbours_that_coincide_do_no_harm(count: int, size: float) -> None:
    vectors = normal(6, 5) * size
    neighbours = (normal(6, 1, 5, seed=1) * size).expand(-1, count, -1)
    found = hull_residuals(vectors, neighbours)
    torch.testing.assert_close(found, vectors - neighbours[:, 0], rtol=1e-4, atol=0)
    assert not hull_residuals(vectors, vectors[:, None].expand(-1, count, -1)).any()


# --- metric ---------------------------------------------------------------------------------------


def patches(images: int, kinds: int, mixing: Tensor, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """In each image one patch of every kind, under noise of covariance mixing @ mixing.T."""
    dimensions = len(mixing)
    centres = torch.from_numpy(np.random.default_rng(seed).uniform(0, 400, (kinds, dimensions))).float()
    noise = normal(images, kinds, dimensions, seed=seed + 1) @ mixing.T
    return (centres + noise).flatten(0, 1), torch.arange(images).repeat_interleave(kinds)


def mixing() -> Tensor:
    """Of strongly correlated noise, with deviations from about 0.3 to 3."""
    deviations = torch.logspace(-0.5, 0.5, 6)
    return rotation(5) * deviations


def rotation(seed: int) -> Tensor:
    orthogonal: Tensor = torch.linalg.qr(normal(6, 6, seed=seed))[0]
    return orthogonal


def test_in_the_metric_differences_between_images_have_unit_covariance() -> None:
    vectors, owners = patches(2, 2000, mixing())
    whitening = within_class_metric(vectors, owners, shrinkage=1e-6)
    assert (whitening.shape, whitening.dtype) == ((6, 6), torch.float32)
    differences = (vectors[:2000] - vectors[2000:]) @ whitening
    assert torch.linalg.matrix_norm(differences.T @ differences / 2000 - torch.eye(6), 2) < 0.02
    known = whitening.T @ (2 * mixing() @ mixing().T) @ whitening
    assert torch.linalg.matrix_norm(known - torch.eye(6), 2) < 0.2


def test_shrinkage_adds_a_share_of_the_mean_variance() -> None:
    vectors, owners = patches(2, 500, mixing())
    covariance = torch.linalg.inv(squared(within_class_metric(vectors, owners, shrinkage=1e-9)))
    shrunk = torch.linalg.inv(squared(within_class_metric(vectors, owners, shrinkage=0.5)))
    expected = covariance + 0.5 * covariance.trace() / 6 * torch.eye(6)
    torch.testing.assert_close(shrunk, expected, rtol=1e-3, atol=1e-3)


def squared(whitening: Tensor) -> Tensor:
    """W W^T: what decides about distances, whichever way the directions point."""
    return whitening @ whitening.T


def test_the_metric_turns_with_the_vectors_and_does_not_move() -> None:
    vectors, owners = patches(4, 300, mixing())
    plain = squared(within_class_metric(vectors, owners, shrinkage=0.1))
    turned = squared(within_class_metric(vectors @ rotation(9) + 7, owners, shrinkage=0.1))
    torch.testing.assert_close(turned, rotation(9).T @ plain @ rotation(9), rtol=1e-2, atol=1e-3)


def test_only_patches_of_different_images_are_compared() -> None:
    vectors, owners = patches(2, 300, mixing())
    vectors, owners = vectors.repeat_interleave(2, 0), owners.repeat_interleave(2)  # each has a twin
    across = within_class_metric(vectors, owners, shrinkage=1e-6)
    known = across.T @ (2 * mixing() @ mixing().T) @ across
    assert torch.linalg.matrix_norm(known - torch.eye(6), 2) < 0.5
    within = within_class_metric(vectors, torch.zeros_like(owners), shrinkage=1e-6)
    assert within.norm() > 100 * across.norm(), "in one image, twins are compared"


def test_one_image_is_compared_with_itself() -> None:
    vectors, owners = patches(2, 500, mixing())
    pairs = vectors.view(2, 500, 6).transpose(0, 1).flatten(0, 1)  # every other one as if of another image
    alone = within_class_metric(pairs, torch.zeros(1000, dtype=torch.int64), shrinkage=0.1)
    together = within_class_metric(vectors, owners, shrinkage=0.1)
    torch.testing.assert_close(squared(alone), squared(together), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images", [1, 3])
def test_vectors_that_are_all_equal_have_a_metric(images: int) -> None:
    vectors, owners = torch.full((30, 4), 3.0), torch.arange(30) % images
    whitening = within_class_metric(vectors, owners, shrinkage=0.3).half()
    assert torch.isfinite(whitening).all()
    assert torch.linalg.matrix_rank(whitening.float()) == 4


def test_the_seed_draws_the_patches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metric, "QUERIES", 60)
    monkeypatch.setattr(metric, "OTHERS", 100)
    vectors, owners = patches(4, 100, mixing())
    first, again, other = (
        within_class_metric(vectors, owners, shrinkage=0.3, seed=seed) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(squared(first), squared(other))


# --- the bank -------------------------------------------------------------------------------------


def build(backbone: Backbone, **changes: Any) -> CompactBank:
    detector = METHODS["compact"].build(backbone, changes)
    assert isinstance(detector, CompactBank)
    return detector


def learnt(backbone: Backbone, images: Tensor, *, seed: int = 0, **changes: Any) -> CompactBank:
    detector = build(backbone, **changes)
    detector.fit(images, seed=seed)
    return detector


def parts(count: int, *, size: int = SIZE, seed: int = 0) -> Tensor:
    """Photos of one product, a coarse pattern under grain: (count, 3, S, S) uint8."""
    rng = np.random.default_rng(seed)
    pattern = np.random.default_rng(99).uniform(60, 180, (3, 4, 4)).repeat(size // 4, 1).repeat(size // 4, 2)
    images = pattern + rng.normal(0, 8, (count, 1, size, size))
    return torch.from_numpy(np.clip(images, 0, 255).astype(np.uint8))


def noise(count: int, *, size: int = SIZE, seed: int = 0) -> Tensor:
    """Images no two patches of which are alike."""
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, 3, size, size), dtype=np.uint8))


def flawed(images: Tensor) -> Tensor:
    images = images.clone()
    images[FLAW] = 255
    return images


def content(state: Mapping[str, Tensor]) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in state.items()}


def taken(detector: CompactBank) -> int:
    return sum(tensor.nbytes for tensor in detector.state_dict().values())


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize("size", [32, 50, 64])
@pytest.mark.parametrize("budget", [8, 9, 10, 13, 20])
def test_the_budget_is_kept_and_used(backbone: Backbone, budget: int, size: int, by_position: bool) -> None:
    images = noise(24, size=size)
    detector = learnt(backbone, images, budget=budget, by_position=by_position)
    spare = 1024 * budget - taken(detector)
    assert spare >= 0
    assert spare < len(detector.middle), "another vector would have fitted"


def test_a_budget_that_is_more_than_enough_keeps_every_patch(backbone: Backbone) -> None:
    assert len(learnt(backbone, noise(5), budget=480).codes) == 5 * (SIZE // 8) ** 2


@pytest.mark.parametrize("size", [32, 96])
@pytest.mark.parametrize("budget", [-3, 0, 1, 6])
def test_too_small_a_budget_is_refused_with_one_that_suffices(
    backbone: Backbone, budget: int, size: int
) -> None:
    images = noise(2, size=size)
    with pytest.raises(SettingsError, match=f"{budget} KiB are too few.*Set budget to") as caught:
        build(backbone, budget=budget).fit(images)
    (least,) = map(int, re.findall(r"Set budget to (\d+) or more", str(caught.value)))
    assert taken(learnt(backbone, images, budget=least)) <= 1024 * least
    with pytest.raises(SettingsError, match=f"Set budget to {least} or more"):
        build(backbone, budget=least - 1).fit(images)


@pytest.mark.parametrize("by_position", [True, False])
@pytest.mark.parametrize(("count", "size"), [(1, 32), (3, 50), (9, 64), (30, 32)])
def test_reserving_is_as_large_as_learning(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch, count: int, size: int, by_position: bool
) -> None:
    monkeypatch.setattr(compact, "CANDIDATES", 100)
    detector = learnt(backbone, noise(count, size=size), budget=12, by_position=by_position)
    reserved = build(backbone, budget=12, by_position=by_position)
    reserved.reserve(count, size)
    forms = [
        {name: (tensor.shape, tensor.dtype) for name, tensor in each.state_dict().items()}
        for each in (detector, reserved)
    ]
    assert forms[0] == forms[1]


def test_what_is_saved_gives_the_same_maps_to_the_bit(backbone: Backbone) -> None:
    detector = learnt(backbone, parts(8), budget=12)
    copy = build(backbone, budget=12)
    copy.load_state_dict(safetensors.torch.load(safetensors.torch.save(detector.state_dict())))
    for images in (flawed(parts(3, seed=1)), parts(2, size=96, seed=1)):
        assert torch.equal(copy.anomaly_maps(images), detector.anomaly_maps(images))


def test_only_the_seed_decides(backbone: Backbone) -> None:
    states = []
    for number, seed in enumerate((5, 5, 6)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(number)
            states.append(content(learnt(backbone, noise(12), seed=seed, budget=10).state_dict()))
    assert states[0] == states[1]
    assert states[0]["codes"] != states[2]["codes"]


@pytest.mark.parametrize("changes", [{}, {"coherence": 0.0, "neighbours": 1}, {"by_position": False}])
def test_a_bright_square_stands_out_and_is_located(backbone: Backbone, changes: dict[str, Any]) -> None:
    detector = learnt(backbone, parts(16, size=128), budget=12, **changes)
    clean = parts(8, size=128, seed=1)
    bright = clean.clone()
    bright[:, :, 40:72, 60:92] = 255
    before, after = detector.anomaly_maps(clean), detector.anomaly_maps(bright)
    assert detector.image_scores(after).min() > 2 * detector.image_scores(before).max()
    rows, columns = np.unravel_index(after.flatten(1).argmax(1).numpy(), (128, 128))
    assert ((rows >= 40) & (rows < 72) & (columns >= 60) & (columns < 92)).all()


def test_new_normal_images_score_about_zero(backbone: Backbone) -> None:
    maps = learnt(backbone, parts(24)).anomaly_maps(parts(24, seed=1))
    assert abs(maps.mean()) < 0.6
    assert 0.2 < maps.std() < 2


def test_an_images_own_vectors_do_not_count_for_what_is_usual(backbone: Backbone) -> None:
    images = noise(12)
    detector = learnt(backbone, images, neighbours=1)
    assert len(detector.codes) == 12 * (SIZE // 8) ** 2  # every patch is in the bank
    known, new = detector.distances(images).mean(), detector.distances(noise(12, seed=1)).mean()
    usual = detector.usual[0].float().mean()
    assert known < 0.2 * new
    assert 0.75 * new < usual < 1.1 * new


def test_a_place_that_always_varies_counts_less(backbone: Backbone) -> None:
    def restless(count: int, seed: int) -> Tensor:
        """Parts whose left half is more or less blurred by noise, and always another."""
        share = torch.from_numpy(np.random.default_rng(seed).uniform(0, 1, (count, 1, 1, 1)))
        images = parts(count, seed=seed)
        left, other = images[..., : SIZE // 2], noise(count, seed=seed)[..., : SIZE // 2]
        images[..., : SIZE // 2] = ((1 - share) * left + share * other).to(torch.uint8)
        return images

    def rise(detector: CompactBank, columns: slice) -> float:
        """How much more anomalous a bright square makes a place."""
        clean = restless(12, seed=1)
        bright = clean.clone()
        bright[:, :, 24:40, columns] = 255
        rises = detector.anomaly_maps(bright) - detector.anomaly_maps(clean)
        return float(rises[:, 24:40, columns].mean())

    told, blended = (
        learnt(backbone, restless(30, seed=0), budget=64, by_position=each) for each in (True, False)
    )
    restless_place, quiet_place = slice(8, 24), slice(40, 56)
    counts = rise(told, restless_place) / rise(told, quiet_place)
    assert 0 < counts < 0.85 * rise(blended, restless_place) / rise(blended, quiet_place)


@pytest.mark.parametrize("size", [32, 50, 96])
@pytest.mark.parametrize("by_position", [True, False])
def test_images_of_another_size_can_be_inspected(backbone: Backbone, size: int, by_position: bool) -> None:
    detector = learnt(backbone, noise(12), budget=12, by_position=by_position)
    images = noise(4, size=size, seed=1)
    images[0, :, : size // 2, : size // 2] = 255
    maps = detector.anomaly_maps(images)
    assert maps.shape == (4, size, size)
    assert torch.isfinite(maps).all()
    assert detector.image_scores(maps).argmax() == 0


@pytest.mark.parametrize("count", [1, 2, 6])
def test_few_images_are_enough_to_run(backbone: Backbone, count: int) -> None:
    detector = learnt(backbone, parts(count), budget=12)
    before, after = (detector.anomaly_maps(images) for images in (parts(4, seed=1), flawed(parts(4, seed=1))))
    assert torch.isfinite(before).all()
    assert (detector.image_scores(after) > detector.image_scores(before)).all()


@pytest.mark.parametrize("level", [0, 100, 255])
@pytest.mark.parametrize("count", [1, 4])
def test_images_without_any_variation_can_be_learnt(backbone: Backbone, count: int, level: int) -> None:
    images = torch.full((count, 3, SIZE, SIZE), level, dtype=torch.uint8)
    detector = learnt(backbone, images, budget=12)
    assert all(torch.isfinite(tensor).all() for tensor in detector.state_dict().values())
    before, after = detector.anomaly_maps(images), detector.anomaly_maps(parts(1))
    assert torch.isfinite(before).all()
    assert torch.isfinite(after).all()
    assert detector.image_scores(after) > detector.image_scores(before).max()


def test_the_image_score_is_the_mean_of_the_worst_pixels(backbone: Backbone) -> None:
    maps = torch.arange(200.0).view(2, 10, 10)
    scores = {worst: build(backbone, worst=worst).image_scores(maps).tolist() for worst in (0.0, 0.03, 1.0)}
    assert scores == {0.0: [99, 199], 0.03: [98, 198], 1.0: [49.5, 149.5]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides": []}, r"no block to look at\. Give strides or taps"),
        ({"pool": 0}, r"pool is 0\. Set pool to an odd number"),
        ({"pool": 2}, r"pool is 2\. Set pool to an odd number"),
        ({"shrinkage": 0.0}, r"shrinkage is 0\.0\. Set shrinkage above 0"),
        ({"neighbours": 0}, r"neighbours is 0\. Set neighbours to 1 or more"),
        ({"coherence": -0.1}, r"coherence is -0\.1\. Set coherence to 0 or more"),
        ({"worst": 1.5}, r"worst is 1\.5\. Set worst to"),
        ({"worst": -0.5}, r"worst is -0\.5\. Set worst to"),
        ({"strides": [3]}, r"no features of stride 3\. Choose a stride from"),
        ({"taps": ["layer9"]}, r"no block 'layer9'\. Choose from"),
    ],
)
def test_settings_that_cannot_work_are_refused(
    backbone: Backbone, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError, match=message):
        build(backbone, **changes)


def test_without_int8_products_the_same_codes_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    queries, bank = (
        torch.from_numpy(rng.integers(-127, 128, (count, 152)).astype(np.int8)) for count in (40, 500)
    )
    found = []
    for has in (True, False):
        monkeypatch.setattr(codes_module, "HAS_INT8_PRODUCTS", has)
        found.append(nearest_codes(queries, bank, count=3))
    assert torch.equal(*found)
