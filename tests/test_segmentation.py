from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from continuad.detectors.segmentation import SegmentationHead, focal_loss, l1_loss, resize_masks

quick = settings(max_examples=40, deadline=None)


def logit(probability: float) -> Tensor:
    return torch.tensor([math.log(probability / (1 - probability))])


# --- losses ---------------------------------------------------------------------------------------


@quick
@given(seed=st.integers(0, 2**16), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_without_focus_it_is_the_cross_entropy(seed: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(2, 3, 4, generator=generator)
    target = torch.randint(0, 2, (2, 3, 4), generator=generator).float()
    expected = F.binary_cross_entropy_with_logits(logits, target)
    assert torch.allclose(focal_loss(logits, target, 0.0), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("probability", "label", "right"), [(0.8, 1.0, 0.8), (0.8, 0.0, 0.2), (0.5, 1.0, 0.5), (0.01, 0.0, 0.99)]
)
@pytest.mark.parametrize("gamma", [1.0, 2.0, 4.0])
def test_focal_loss_by_hand(probability: float, label: float, right: float, gamma: float) -> None:
    expected = -((1 - right) ** gamma) * math.log(right)
    found = focal_loss(logit(probability), torch.tensor([label]), gamma)
    assert found.item() == pytest.approx(expected, rel=1e-3)


def test_focal_loss_is_a_mean() -> None:
    logits = torch.cat([logit(0.8), logit(0.3)])
    target = torch.tensor([1.0, 0.0])
    expected = (0.2**4 * -math.log(0.8) + 0.3**4 * -math.log(0.7)) / 2
    assert focal_loss(logits, target, 4.0).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 4.0])
def test_focal_gradients_stay_finite_where_the_head_is_sure(gamma: float) -> None:
    logits = torch.tensor([-40.0, -20.0, 0.0, 20.0, 40.0], requires_grad=True)
    for label in (0.0, 1.0):
        focal_loss(logits, torch.full((5,), label), gamma).backward()  # type: ignore[no-untyped-call]
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_focus_takes_weight_from_what_is_easy() -> None:
    easy, hard = logit(0.9), logit(0.4)
    one = torch.ones(1)
    plain = focal_loss(hard, one, 0.0) / focal_loss(easy, one, 0.0)
    assert focal_loss(hard, one, 4.0) / focal_loss(easy, one, 4.0) > 100 * plain


def test_l1_by_hand() -> None:
    logits = torch.cat([logit(0.8), logit(0.3), logit(0.5)])
    assert l1_loss(logits, torch.tensor([1.0, 0.0, 1.0])).item() == pytest.approx((0.2 + 0.3 + 0.5) / 3)


# --- masks ----------------------------------------------------------------------------------------


def test_masks_shrink_by_their_bilinear_mean() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 0]]).bool()[None]
    # means of the 2x2 cells: 1, 0.25, 0, 0.75
    assert resize_masks(mask, (2, 2)).tolist() == [[[1.0, 0.0], [0.0, 1.0]]]


def test_exactly_a_half_is_not_enough() -> None:
    mask = torch.tensor([[1, 0], [0, 1]]).bool()[None]
    assert resize_masks(mask, (1, 1)).tolist() == [[[0.0]]]


@pytest.mark.parametrize("size", [(7, 5), (56, 56), (64, 64), (100, 9)])
@pytest.mark.parametrize("value", [False, True])
def test_full_and_empty_masks_stay_so(size: tuple[int, int], value: bool) -> None:
    resized = resize_masks(torch.full((3, 64, 64), value), size)
    assert resized.shape == (3, *size)
    assert resized.dtype == torch.float32
    assert (resized == float(value)).all()


def test_a_mask_of_the_right_size_is_kept() -> None:
    mask = torch.rand(2, 9, 11) > 0.5
    assert torch.equal(resize_masks(mask, (9, 11)), mask.float())


# --- the head -------------------------------------------------------------------------------------


def test_the_head_is_a_linear_map_of_all_layers_at_the_first_ones_size() -> None:
    torch.manual_seed(0)
    head = SegmentationHead(5)
    fine, coarse = torch.rand(2, 3, 8, 6), torch.rand(2, 2, 1, 1)
    logits = head([fine, coarse])
    assert logits.shape == (2, 8, 6)
    weight, bias = head.conv.weight.flatten(), head.conv.bias
    assert bias is not None
    expected = torch.einsum("c,bchw->bhw", weight[:3], fine) + torch.einsum("c,bcij->bij", weight[3:], coarse)
    assert torch.allclose(logits, expected + bias, atol=1e-6)
    assert sum(p.numel() for p in head.parameters()) == 6
