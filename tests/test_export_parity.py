"""What is exported says what PyTorch says: for every operator of ours, method, backbone and target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from test_detectors import SIZE, changes, cloth
from test_detectors import build as build_on_tiny

pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("openvino")

from continuad.backbones import BACKBONES, Backbone, create_backbone
from continuad.continual import RoutingSettings
from continuad.continual.routing import embed
from continuad.detectors import METHODS
from continuad.detectors.codes import encode, nearest_codes
from continuad.export.convert import convert
from continuad.export.graphs import _graph, backbone_graph, head_graph, head_state
from continuad.runtime.engines import ENGINES, Call
from continuad.runtime.folder import Target
from continuad.runtime.maps import enlarge, score

TARGETS = get_args(Target)


def compiled(graph: Any, target: Target) -> Call:
    return ENGINES[target](1, 1).compile(list(convert(graph, target).values()))


def run(call: Call, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return {name: np.array(value) for name, value in call(inputs).items()}


# --- operators ------------------------------------------------------------------------------------


class Search(nn.Module):
    def __init__(self, bank: Tensor, step: float, count: int) -> None:
        super().__init__()
        self.register_buffer("bank", bank)
        self.register_buffer("step", torch.tensor(step))
        self.count = count

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        codes = encode(vectors, self.step)
        return codes, nearest_codes(codes, self.bank, count=self.count)


@settings(max_examples=8, deadline=None)
@given(
    queries=st.sampled_from([1, 7, 256, 300]),
    vectors=st.sampled_from([3, 16, 255, 256, 257, 700]),
    dimensions=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_codes_and_neighbours_are_the_same(queries: int, vectors: int, dimensions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bank = torch.from_numpy(rng.integers(-127, 128, (vectors, dimensions), dtype=np.int8))
    sent = torch.from_numpy(rng.normal(0, 30, (queries, dimensions)).astype(np.float32))
    search = Search(bank, 0.5, 3)
    graph = _graph(search, {"vectors": sent}, ["codes", "places"])
    codes, places = search(sent)

    def distances(at: NDArray[Any]) -> NDArray[Any]:
        return ((codes.numpy()[:, None].astype(int) - bank.numpy()[at].astype(int)) ** 2).sum(2)

    for target in TARGETS:
        found = run(compiled(graph, target), {"vectors": sent.numpy()})
        assert np.array_equal(found["codes"], codes.numpy())
        assert np.array_equal(distances(found["places"]), distances(places.numpy()))  # ties break either way
        assert all(len(set(row)) == 3 for row in found["places"].tolist())


# --- heads ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tiny() -> Backbone:
    return create_backbone("tiny", weights="random")


def of_a_kind(method: str) -> Any:
    """A method that is another's for a backbone takes the same path: it is tested at leisure."""
    return pytest.param(method, marks=[pytest.mark.slow] if METHODS[method].backbone else [])


@pytest.mark.parametrize("method", map(of_a_kind, METHODS))
def test_every_head_agrees(method: str, tiny: Backbone) -> None:
    detector = build_on_tiny(method, tiny, changes(method, epochs=1))
    detector.fit(cloth(12, 0))
    graph = head_graph(detector, image_size=SIZE)
    heads = {target: compiled(graph, target) for target in TARGETS}
    images = cloth(2, 7)
    images[1, :, 12:28, 36:52] = 250
    for image in images:
        with torch.no_grad():
            features = detector.backbone.features(image[None], detector.taps)
            expected = detector.anomaly_maps(image[None], features)
        arrays = {"images": image.permute(1, 2, 0)[None].numpy().copy()}
        arrays |= {tap: feature.numpy() for tap, feature in features.items()} | head_state(detector)
        for target, head in heads.items():
            (found,) = run(head, {each.name: arrays[each.name] for each in graph.graph.input})["map"]
            assert found.dtype == np.float32
            errors = np.abs(found - expected[0].numpy()) / float(expected.abs().max())
            rounds = method in (
                "adapts-m",
                "adapts-s",
            )  # to int8: a value between two levels may go either way
            assert errors.max() < (3e-2 if rounds else 1e-3), target
            expected_score = float(detector.image_scores(expected))
            found_score = score(found, detector.scored_pixels(SIZE * SIZE))
            assert found_score == pytest.approx(expected_score, rel=2e-2 if rounds else 1e-4)


def test_a_head_takes_what_it_looks_at(tiny: Backbone) -> None:
    names = {
        method: [
            each.name for each in head_graph(build_on_tiny(method, tiny, {}), image_size=SIZE).graph.input
        ]
        for method in ("adapts-s", "stfpm")
    }
    assert "images" not in names["adapts-s"]
    assert names["stfpm"][0] == "images"


# --- backbones ------------------------------------------------------------------------------------


def of_a_size(name: str) -> Any:
    large = ("resnet34", "resnet50", "wide_resnet50_2", "mcunet_in4")
    return pytest.param(name, marks=[pytest.mark.slow] if name in large else [])


@pytest.mark.parametrize("name", map(of_a_size, BACKBONES))
def test_every_backbone_agrees(name: str) -> None:
    backbone = create_backbone(name, weights="random")
    taps = [backbone.stage(8), backbone.stage(16)]
    routing = RoutingSettings(backbone.stage(16), "mean_std")
    graph = backbone_graph(backbone, routing, taps, image_size=SIZE)
    image = cloth(1, 3)
    with torch.no_grad():
        features = backbone.features(image, taps)
    expected = {tap: features[tap].numpy() for tap in taps}
    expected["embedding"] = embed(features[routing.tap], "mean_std")
    for target in TARGETS:
        found = run(compiled(graph, target), {"images": image.permute(0, 2, 3, 1).numpy().copy()})
        assert list(found) == ["embedding", *taps]
        for name, values in expected.items():
            assert np.abs(found[name] - values).max() < 1e-4 * np.abs(values).max(), (target, name)


# --- maps -----------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 40), height=st.integers(1, 90), width=st.integers(1, 90), seed=st.integers(0, 99))
def test_maps_are_enlarged_as_pytorch_does(size: int, height: int, width: int, seed: int) -> None:
    small = np.random.default_rng(seed).normal(size=(size, size)).astype(np.float32)
    expected = nn.functional.interpolate(
        torch.from_numpy(small)[None, None], (height, width), mode="bilinear", align_corners=False
    )[0, 0].numpy()
    found = enlarge(small, height, width)
    assert found.flags.c_contiguous
    assert found.max() <= small.max()
    np.testing.assert_allclose(found, np.minimum(expected, small.max()), atol=1e-4)


@given(pixels=st.integers(1, 64), seed=st.integers(0, 99))
def test_the_score_is_the_mean_of_the_highest_pixels(pixels: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(8, 8)).astype(np.float32)
    assert score(values, pixels) == pytest.approx(np.sort(values.ravel())[::-1][:pixels].mean(), abs=1e-6)
