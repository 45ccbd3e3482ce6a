from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.backbones import Backbone, create_backbone
from continuad.datasets.synthetic import PerlinAnomalies
from continuad.detectors.corrupted import CorruptedFeatures
from continuad.detectors.frozen import FrozenFeatures
from continuad.detectors.samples import Samples
from continuad.detectors.segmentation import resize_masks

TAPS = ("layer1", "layer2")
PER_IMAGE = 4 * (16 * 8 * 8 + 24 * 4 * 4)  # bytes of both taps at 32 px


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


@pytest.fixture
def runs(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the backbone sees."""
    sizes: list[int] = []
    features = backbone.features

    def counted(x: Tensor, taps: Collection[str], start: str | None = None) -> dict[str, Tensor]:
        sizes.append(len(x))
        return features(x, taps, start)

    monkeypatch.setattr(backbone, "features", counted)
    return sizes


def stack(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 32, 32), generator=generator, dtype=torch.uint8)


def equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Up to the rounding of a convolution in another batch."""
    return list(found) == list(expected) and all(
        torch.allclose(found[tap], expected[tap], atol=1e-5) for tap in found
    )


# --- features of fixed images ---------------------------------------------------------------------


def test_values_and_order_are_those_of_the_backbone(backbone: Backbone) -> None:
    images = stack(5)
    frozen = FrozenFeatures(backbone, TAPS, Samples(images))
    for numbers in ([3], [0, 3, 1], [4, 0, 1, 2, 3], [2, 2, 0, 2]):
        assert equal(frozen(numbers), backbone.features(images[numbers], TAPS))


def test_an_image_is_computed_once(backbone: Backbone, runs: list[int]) -> None:
    frozen = FrozenFeatures(backbone, TAPS, Samples(stack(6)))
    first = frozen([0, 1, 2])
    assert sum(runs) == 3
    again = frozen([2, 0, 1])
    assert sum(runs) == 3
    assert all(torch.equal(again[tap], first[tap][[2, 0, 1]]) for tap in TAPS)
    frozen([5, 1, 5, 4])
    assert sum(runs) == 5
    frozen([5, 4, 0])
    assert sum(runs) == 5


def test_an_images_features_do_not_depend_on_its_company(backbone: Backbone) -> None:
    images = stack(19)
    whole = FrozenFeatures(backbone, TAPS, Samples(images))(range(19))
    for numbers in ([7], [3, 7], [*range(1, 18)]):
        found = FrozenFeatures(backbone, TAPS, Samples(images))(numbers)
        assert all(torch.equal(found[tap], whole[tap][numbers]) for tap in TAPS)


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_no_more_is_kept_than_the_budget_allows(backbone: Backbone, runs: list[int], kept: int) -> None:
    images = stack(4)
    frozen = FrozenFeatures(backbone, TAPS, Samples(images), budget=kept * PER_IMAGE + PER_IMAGE - 1)
    expected = backbone.features(images, TAPS)
    runs.clear()
    for _ in range(3):
        assert equal(frozen([0, 1, 2, 3]), expected)
    assert sum(runs) == 4 + 2 * (4 - kept)


def test_what_is_kept_changes_no_value(backbone: Backbone) -> None:
    images = stack(6)
    keeping = FrozenFeatures(backbone, TAPS, Samples(images))
    forgetting = FrozenFeatures(backbone, TAPS, Samples(images), budget=0)
    for numbers in ([0, 1, 2], [1, 5], [0, 1, 2, 3, 4, 5], [5, 5]):
        assert equal(keeping(numbers), forgetting(numbers))


def test_a_caller_may_write_to_what_it_gets(backbone: Backbone) -> None:
    frozen = FrozenFeatures(backbone, TAPS, Samples(stack(2)))
    before = {tap: features.clone() for tap, features in frozen([0, 1]).items()}
    for features in frozen([0, 1]).values():
        features.zero_()
    assert all(torch.equal(features, before[tap]) for tap, features in frozen([0, 1]).items())


def test_nothing_asks_for_gradients(backbone: Backbone) -> None:
    frozen = FrozenFeatures(backbone, TAPS, Samples(stack(2)))
    assert not any(features.requires_grad for features in frozen([0, 1]).values())


# --- corrupted copies -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorder(PerlinAnomalies):
    """Remembers what it made of which image."""

    made: list[tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.bool_]]] = field(default_factory=list)

    def __call__(
        self, image: NDArray[np.uint8], rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        corrupted, mask = super().__call__(image, rng)
        self.made.append((image.copy(), corrupted, mask))
        return corrupted, mask


def copies(
    backbone: Backbone, images: Tensor, recorder: PerlinAnomalies, *, variants: int, seed: int = 0
) -> CorruptedFeatures:
    return CorruptedFeatures(backbone, TAPS, images, recorder, variants=variants, mask_size=(8, 8), seed=seed)


@pytest.mark.parametrize("variants", [0, 2])
def test_features_and_masks_belong_to_the_images_asked_for(backbone: Backbone, variants: int) -> None:
    images, recorder = stack(6), Recorder(max_log2_cells=2, threshold=0.1)
    corrupted = copies(backbone, images, recorder, variants=variants)
    for epoch in range(2):
        recorder.made.clear()
        features, masks = corrupted([4, 1, 5], epoch)
        originals, changed, made_masks = zip(*recorder.made, strict=True)
        assert np.array_equal(np.stack(originals), images[[4, 1, 5]].numpy())
        assert equal(features, backbone.features(torch.from_numpy(np.stack(changed)), TAPS))
        assert torch.equal(masks, resize_masks(torch.from_numpy(np.stack(made_masks)), (8, 8)))
        assert masks.shape == (3, 8, 8)
        assert set(masks.flatten().tolist()) == {0.0, 1.0}


def test_variants_are_made_once_and_taken_in_turn(backbone: Backbone, runs: list[int]) -> None:
    images, recorder = stack(4), Recorder(threshold=0.1)
    corrupted = copies(backbone, images, recorder, variants=2)
    epochs = [corrupted([0, 1, 2, 3], epoch) for epoch in range(6)]
    assert len(recorder.made) == sum(runs) == 8
    for epoch in range(2, 6):
        (features, masks), (same_features, same_masks) = epochs[epoch], epochs[epoch - 2]
        assert equal(features, same_features)
        assert torch.equal(masks, same_masks)
    assert not torch.equal(epochs[0][1], epochs[1][1])
    assert not equal(epochs[0][0], epochs[1][0])


def test_without_variants_every_epoch_has_new_copies(backbone: Backbone) -> None:
    images, recorder = stack(3), Recorder(threshold=0.1)
    corrupted = copies(backbone, images, recorder, variants=0)
    for epoch in range(4):
        corrupted([0, 1, 2], epoch)
    assert len(recorder.made) == 12
    counts = Counter(mask.tobytes() for *_, mask in recorder.made)
    assert len(counts) >= 11  # an empty mask may come twice


def test_a_copy_depends_on_seed_image_and_variant_alone(backbone: Backbone) -> None:
    images, anomalies = stack(4), PerlinAnomalies(threshold=0.1)
    whole = copies(backbone, images, anomalies, variants=3)([0, 1, 2, 3], 1)
    other_order = copies(backbone, images, anomalies, variants=3)
    other_order([3], 2)
    features, masks = other_order([2, 0], 1)
    assert equal(features, {tap: f[[2, 0]] for tap, f in whole[0].items()})
    assert torch.equal(masks, whole[1][[2, 0]])
    fewer = copies(backbone, images[:3], anomalies, variants=3)([0, 1, 2], 1)
    assert torch.equal(fewer[1], whole[1][:3])
    other_seed = copies(backbone, images, anomalies, variants=3, seed=1)([0, 1, 2, 3], 1)
    assert not torch.equal(other_seed[1], whole[1])


def test_repeated_images_share_one_copy(backbone: Backbone) -> None:
    recorder = Recorder(threshold=0.1)
    features, masks = copies(backbone, stack(2), recorder, variants=0)([1, 1, 0], 0)
    assert len(recorder.made) == 2
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(features["layer1"][0], features["layer1"][1])
