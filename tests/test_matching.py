from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

from continuad.detectors.matching import Fusion, alignment_loss, fuse, smooth, squared_differences

quick = settings(max_examples=40, deadline=None)


def rand(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


# --- differences ----------------------------------------------------------------------------------


@quick
@given(
    channels=st.integers(1, 20),
    seed=st.integers(0, 2**16),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_their_sum_over_channels_is_twice_one_minus_the_cosine(
    channels: int, seed: int, scale: float
) -> None:
    teacher, student = rand(2, channels, 3, 4, seed=seed), scale * rand(2, channels, 3, 4, seed=seed + 1)
    total = squared_differences(teacher, student).sum(1)
    assert torch.allclose(total, 2 * (1 - F.cosine_similarity(teacher, student, dim=1)), atol=1e-5)
    assert total.min() >= 0
    assert total.max() <= 4 + 1e-5


def test_equal_directions_differ_by_nothing_and_opposite_ones_by_four() -> None:
    teacher = rand(1, 5, 2, 2)
    assert squared_differences(teacher, teacher).sum() == 0
    assert squared_differences(teacher, 2 * teacher).sum(1).max() < 1e-12
    assert torch.allclose(squared_differences(teacher, -3 * teacher).sum(1), torch.full((1, 2, 2), 4.0))


def test_a_dead_position_gives_a_number() -> None:
    teacher, student = rand(1, 5, 2, 2), rand(1, 5, 2, 2, seed=1)
    student[:, :, 0, 0] = 0
    total = squared_differences(teacher, student).sum(1)
    assert total[0, 0, 0].item() == pytest.approx(1)  # against nothing, the unit vector itself remains
    assert squared_differences(student, student)[0, :, 0, 0].sum() == 0


@pytest.mark.parametrize("axis", [2, 3])
def test_channels_are_normalised_not_rows(axis: int) -> None:
    teacher, student = rand(2, 6, 5, 7), rand(2, 6, 5, 7, seed=1)
    order = torch.randperm(teacher.shape[axis], generator=torch.Generator().manual_seed(0))
    moved = squared_differences(teacher.index_select(axis, order), student.index_select(axis, order))
    assert torch.equal(moved, squared_differences(teacher, student).index_select(axis, order))
    channels = torch.tensor([3, 1, 0, 2, 5, 4])
    shuffled = squared_differences(teacher[:, channels], student[:, channels])
    assert torch.allclose(shuffled.sum(1), squared_differences(teacher, student).sum(1), atol=1e-6)


def test_a_scaled_position_changes_no_other() -> None:
    teacher, student = rand(1, 4, 3, 3), rand(1, 4, 3, 3, seed=1)
    scaled = student.clone()
    scaled[:, :, 1, 1] *= 100
    assert torch.allclose(
        squared_differences(teacher, scaled), squared_differences(teacher, student), atol=1e-6
    )


# --- the loss -------------------------------------------------------------------------------------


def test_alignment_loss_by_hand() -> None:
    first = torch.full((2, 3, 2, 2), 0.5)  # 0.5 * (2 * 3 * 4 * 0.5) / 4 = 1.5
    second = torch.full((2, 5, 1, 3), 0.1)  # 0.5 * (2 * 5 * 3 * 0.1) / 3 = 0.5
    assert alignment_loss([first, second]).item() == pytest.approx(2.0)


def test_alignment_loss_of_orthogonal_features() -> None:
    teacher, student = torch.zeros(2, 3, 4, 5), torch.zeros(2, 3, 4, 5)
    teacher[:, 0], student[:, 1] = 3.0, 0.2  # every position differs by |(1, -1)|^2 = 2, half of it counts
    assert alignment_loss([squared_differences(teacher, student)]).item() == pytest.approx(2.0)


def test_alignment_loss_sums_images_and_averages_positions() -> None:
    difference = rand(3, 4, 5, 6).abs()
    whole = alignment_loss([difference]).item()
    assert whole == pytest.approx(sum(alignment_loss([row[None]]).item() for row in difference), rel=1e-5)
    tiled = difference.repeat(1, 1, 2, 3)
    assert alignment_loss([tiled]).item() == pytest.approx(whole, rel=1e-5)


# --- maps -----------------------------------------------------------------------------------------


def upsampled(layer: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear with half-pixel centres and replicated borders, written out."""
    for axis, wanted in enumerate(size):
        have = layer.shape[axis]
        at = np.clip((np.arange(wanted) + 0.5) * have / wanted - 0.5, 0, have - 1)
        below = np.floor(at).astype(int)
        above = np.minimum(below + 1, have - 1)
        weight = (at - below).reshape([-1, 1] if axis == 0 else [1, -1])
        layer = (1 - weight) * layer.take(below, axis) + weight * layer.take(above, axis)
    return layer


@pytest.mark.parametrize("fusion", ["product", "sum"])
@pytest.mark.parametrize("size", [(16, 16), (15, 9), (3, 2)])
def test_fusion_against_numpy(fusion: Fusion, size: tuple[int, int]) -> None:
    layers = [rand(2, 3, 8, 4).abs(), rand(2, 7, 4, 2, seed=1).abs(), rand(2, 2, 1, 1, seed=2).abs()]
    maps = fuse(layers, size, fusion)
    assert maps.shape == (2, *size)
    assert maps.dtype == torch.float32
    for row in range(2):
        parts = np.stack([upsampled(layer[row].double().sum(0).numpy(), size) for layer in layers])
        expected = parts.prod(0) if fusion == "product" else parts.sum(0)
        assert np.allclose(maps[row].numpy(), expected, rtol=1e-4, atol=1e-6)


def test_one_layer_needs_no_fusion() -> None:
    layer = rand(1, 3, 4, 4).abs()
    assert torch.equal(fuse([layer], (8, 8), "product"), fuse([layer], (8, 8), "sum"))


@pytest.mark.parametrize("scale", [1e-2, 0.3, 70.0])
def test_the_ranking_of_a_product_ignores_the_scale_of_a_layer(scale: float) -> None:
    layers = [rand(2, 3, 8, 8).abs(), rand(2, 3, 4, 4, seed=1).abs()]
    truth = rand(2, 16, 16, seed=2).flatten() > 0

    def auroc(first: Tensor, fusion: Fusion) -> float:
        return float(roc_auc_score(truth, fuse([first, layers[1]], (16, 16), fusion).double().flatten()))

    assert auroc(scale * layers[0], "product") == pytest.approx(auroc(layers[0], "product"), abs=1e-3)
    assert auroc(scale * layers[0], "sum") != pytest.approx(auroc(layers[0], "sum"), abs=1e-3)


def test_permuting_rows_permutes_the_map() -> None:
    # At the layers' own size the upsampling is the identity, and only a wrong axis could mix rows.
    teacher, student = rand(1, 6, 8, 8), rand(1, 6, 8, 8, seed=1)
    order = torch.tensor([3, 0, 7, 1, 6, 2, 5, 4])

    def score(rows: Tensor) -> Tensor:
        layers = [squared_differences(teacher[:, :, rows], student[:, :, rows])] * 2
        return fuse(layers, (8, 8), "product")

    assert torch.equal(score(order), score(torch.arange(8))[:, order])
    assert not torch.equal(score(order), score(torch.arange(8)))


# --- smoothing ------------------------------------------------------------------------------------


@quick
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    sigma=st.sampled_from([0.1, 0.5, 1.0, 2.3, 4.0]),
    seed=st.integers(0, 2**16),
)
def test_smoothing_against_scipy(height: int, width: int, sigma: float, seed: int) -> None:
    maps = rand(2, height, width, seed=seed)
    expected = ndimage.gaussian_filter(maps.double().numpy(), (0, sigma, sigma), mode="nearest", truncate=4)
    assert np.allclose(smooth(maps, sigma).numpy(), expected, atol=1e-5)


def test_no_smoothing_leaves_maps_alone() -> None:
    maps = rand(2, 5, 6)
    assert torch.equal(smooth(maps, 0), maps)


def test_smoothing_keeps_constants_and_spreads_a_point() -> None:
    assert torch.allclose(smooth(torch.full((1, 9, 9), 3.0), 2.0), torch.tensor(3.0))
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    blurred = smooth(point, 2.0)
    assert blurred.sum().item() == pytest.approx(1, abs=1e-4)
    assert blurred.max().item() == pytest.approx(1 / (2 * math.pi * 4), rel=0.01)
