from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor, nn

from continuad.backbones import Backbone, create_backbone
from continuad.continual import RoutedHeads, RoutingSettings
from continuad.continual.routing import embed, routing_cost
from continuad.detectors import METHODS, Detector
from continuad.errors import ProductError, SettingsError
from continuad.router import PrototypeRouter, Route, distance_limit
from continuad.stopwatch import Stopwatch

VALUES = st.floats(-100, 100, width=32)


def router_of(prototypes: np.ndarray, limits: np.ndarray | None = None) -> PrototypeRouter:
    router = PrototypeRouter()
    for index, prototype in enumerate(prototypes):
        router.add(str(index), prototype, 1.0 if limits is None else float(limits[index]))
    return router


@given(st.data(), st.integers(1, 6), st.integers(1, 8), st.integers(1, 5))
@settings(deadline=None, max_examples=60)
def test_routes_are_those_of_brute_force(data: st.DataObject, products: int, images: int, size: int) -> None:
    prototypes = data.draw(arrays(np.float32, (products, size), elements=VALUES))
    vectors = data.draw(arrays(np.float32, (images, size), elements=VALUES))
    limits = data.draw(arrays(np.float64, products, elements=st.floats(0.1, 100)))
    for vector, route in zip(vectors, router_of(prototypes, limits).route(vectors), strict=True):
        distances = [float(np.linalg.norm(vector.astype(float) - p.astype(float))) for p in prototypes]
        nearest = int(route.nearest)
        assert distances[nearest] <= min(distances) * (1 + 1e-12)
        excess = distances[nearest] / limits[nearest]
        if products > 1 and (second := sorted(distances)[1]) > 0:
            excess = min(excess, distances[nearest] / (0.5 * second))
        assert route.distance == pytest.approx(excess, rel=1e-9)


def test_a_broken_part_is_known_as_long_as_no_other_product_is_near() -> None:
    router = router_of(np.array([[0, 0], [20, 0]], np.float32))
    broken, between = router.route(np.array([[5, 0], [9, 0]], np.float32))
    assert broken == Route("0", 5 / (0.5 * 15))
    assert broken.is_known
    assert not between.is_known
    router.remove("1")
    assert router.route(np.array([[5, 0]], np.float32)) == [Route("0", 5.0)]


def test_of_equal_prototypes_the_first_learnt_wins() -> None:
    router = router_of(np.ones((3, 2), np.float32))
    here = np.zeros((1, 2), np.float32)
    assert router.route(here)[0].nearest == "0"
    router.add("0", np.ones(2, np.float32), 1.0)  # learnt anew: it is the last now
    assert router.route(here)[0].nearest == "1"
    router.remove("1")
    assert router.route(here)[0].nearest == "2"


def test_products_come_change_and_go() -> None:
    router = router_of(np.array([[0, 0], [10, 0]], np.float32))
    image = np.array([[9, 0]], np.float32)
    assert router.route(image) == [Route("1", 1 / 4.5)]
    router.add("1", np.array([30, 0], np.float32), 7.0)
    assert router.route(image) == [Route("0", 9 / 10.5)]
    assert len(router) == 2
    router.remove("0")
    assert router.route(image) == [Route("1", 3.0)]
    router.remove("never there")
    assert len(router) == 1


def test_an_image_at_the_limit_is_still_known() -> None:
    router = router_of(np.zeros((1, 1), np.float32), np.array([2.0]))
    inside, at, outside = router.route(np.array([[1.9], [2.0], [2.1]], np.float32))
    assert [route.is_known for route in (inside, at, outside)] == [True, True, False]
    assert not Route("bolt", float("nan")).is_known


def test_a_limit_of_zero_admits_what_lies_on_the_prototype() -> None:
    router = router_of(np.zeros((2, 1), np.float32), np.zeros(2))
    on, off = router.route(np.array([[0], [1]], np.float32))
    assert on == Route("0", 0.0)
    assert not off.is_known


def test_the_limit_is_a_multiple_of_the_largest_distance() -> None:
    held_out = np.array([[3, 4], [0, 1], [0, 0]], np.float32)
    assert distance_limit(np.zeros(2, np.float32), held_out, margin=2.0) == 10.0


def test_a_product_whose_photos_are_all_alike_has_broken_parts_too() -> None:
    prototype = np.array([3, 4], np.float32)
    assert distance_limit(prototype, np.stack([prototype] * 3), margin=2.0) == pytest.approx(1.25)


def test_embeddings_are_means_and_deviations_over_positions() -> None:
    features = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]], [[2.0, 2.0], [2.0, 2.0]]]])
    assert embed(features, "mean").tolist() == [[4.0, 2.0]]
    np.testing.assert_allclose(embed(features, "mean_std"), [[4.0, 2.0, 5**0.5, 0.0]], rtol=1e-6)
    assert embed(features, "mean_std").dtype == np.float32
    with pytest.raises(SettingsError, match="Use 'mean' or 'mean_std'"):
        RoutingSettings("layer1", "median")  # type: ignore[arg-type]


def test_the_cost_of_a_prototype_is_its_size(backbone: Backbone) -> None:
    for settings_ in (RoutingSettings("layer2"), RoutingSettings("layer2", "mean_std")):
        features = backbone.features(torch.zeros(1, 3, 32, 32, dtype=torch.uint8), ["layer2"])["layer2"]
        assert routing_cost(backbone, settings_) == embed(features, settings_.statistic).nbytes


# Heads before, at, around and behind the router's tap, on images that a prototype of their own is taken from.
TAPS = {
    "before": ("layer0",),
    "at": ("layer1",),
    "around": ("layer0", "layer2"),
    "behind": ("layer2", "layer3"),
}


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


@pytest.fixture
def images() -> Tensor:
    """Two of each product, mixed; the products differ in brightness."""
    brightness = torch.tensor([0, 64, 128, 192] * 2).view(8, 1, 1, 1)
    generator = torch.Generator().manual_seed(0)
    return (brightness + torch.randint(0, 60, (8, 3, 32, 32), generator=generator)).to(torch.uint8)


def heads_of(backbone: Backbone, images: Tensor, taps: dict[str, tuple[str, ...]]) -> RoutedHeads:
    heads = RoutedHeads(backbone, RoutingSettings("layer1"))
    torch.manual_seed(0)
    for (name, blocks), prototype in zip(taps.items(), heads.embed(images), strict=False):
        detector = METHODS["adapts-l"].build(backbone, {"taps": blocks})
        heads.add(name, taps=blocks, load=lambda d=detector: d, prototype=prototype, limit=1e6)  # type: ignore[misc]
    return heads


def test_heads_on_shared_features_see_what_they_would_see_alone(backbone: Backbone, images: Tensor) -> None:
    heads = heads_of(backbone, images, TAPS)
    results = heads.inspect(images, product=None, reject_unknown=True, stopwatch=Stopwatch())
    assert [result.product for result in results] == list(TAPS) * 2
    for name, number in zip(TAPS, range(4), strict=True):
        rows = [number, number + 4]
        maps = heads.head(name).anomaly_maps(images[rows])
        explicit = heads.inspect(images[rows], product=name, reject_unknown=True, stopwatch=Stopwatch())
        for row, alone, told in zip(rows, maps, explicit, strict=True):
            np.testing.assert_allclose(results[row].anomaly_map, alone, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(told.anomaly_map, alone, rtol=1e-4, atol=1e-6)
            assert results[row].score == results[row].anomaly_map.max()  # type: ignore[union-attr]
            assert told.route is None


def test_the_shared_backbone_runs_once(backbone: Backbone, images: Tensor) -> None:
    # One tap each, so that no student runs a block again; "last" alone needs what lies behind the router.
    heads = heads_of(backbone, images, {"first": ("layer0",), "at": ("layer1",), "last": ("layer3",)})
    for name in ("first", "at", "last"):
        heads.head(name)
    seen: Counter[str] = Counter()

    def count(name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[name] += len(inputs[0])

    blocks = [f"layer{index}" for index in range(4)]
    hooks = [
        backbone.get_submodule(name).register_forward_pre_hook(lambda m, x, name=name: count(name, m, x))  # type: ignore[misc]
        for name in blocks
    ]
    try:
        results = heads.inspect(images, product=None, reject_unknown=True, stopwatch=Stopwatch())
        mine = sum(result.product == "last" for result in results)
        assert 0 < mine < 8
        assert seen == {"layer0": 8, "layer1": 8, "layer2": mine, "layer3": mine}
        seen.clear()
        heads.inspect(images, product="first", reject_unknown=True, stopwatch=Stopwatch())
        assert seen == {"layer0": 8}
    finally:
        for hook in hooks:
            hook.remove()


def test_a_stranger_gets_no_map_unless_it_must(backbone: Backbone, images: Tensor) -> None:
    heads = heads_of(backbone, images, TAPS)
    detector = heads.head("before")
    for name in ("at", "around", "behind"):
        heads.remove(name)
    heads.add(
        "before", taps=TAPS["before"], load=lambda: detector, prototype=heads.embed(images)[0], limit=1e-3
    )
    refused = heads.inspect(images[4:], product=None, reject_unknown=True, stopwatch=Stopwatch())[0]
    assert (refused.product, refused.anomaly_map) == (None, None)
    assert np.isnan(refused.score)
    assert refused.route is not None
    assert refused.route.nearest == "before"
    assert refused.route.distance > 1
    taken = heads.inspect(images[4:], product=None, reject_unknown=False, stopwatch=Stopwatch())[0]
    assert taken.product == "before"
    assert taken.route == refused.route
    assert taken.anomaly_map is not None


def test_a_head_is_loaded_when_it_is_first_needed(backbone: Backbone, images: Tensor) -> None:
    loaded: list[str] = []

    def load() -> Detector:
        loaded.append("bolt")
        return METHODS["adapts-l"].build(backbone)

    heads = RoutedHeads(backbone, RoutingSettings("layer1"))
    heads.add("bolt", taps=("layer2", "layer3"), load=load, prototype=heads.embed(images)[0], limit=1e6)
    assert loaded == []
    for _ in range(2):
        heads.inspect(images, product=None, reject_unknown=True, stopwatch=Stopwatch())
    assert loaded == ["bolt"]
    heads.remove("bolt")
    with pytest.raises(ProductError, match=r"No product is called 'bolt'\. Learn it first"):
        heads.inspect(images, product="bolt", reject_unknown=True, stopwatch=Stopwatch())
