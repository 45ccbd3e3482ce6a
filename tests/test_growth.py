"""A bank of many products: what it costs does not grow with them, and no verdict changes."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from conftest import photos, same, teach
from continuad import Inspector
from continuad.backbones import Backbone, create_backbone
from continuad.continual import HEAD_MEMORY, RoutedHeads, RoutingSettings
from continuad.detectors import METHODS, Detector
from continuad.errors import BankError
from continuad.inspector import Product
from continuad.inspector.bank import Bank
from continuad.inspector.manifest import Manifest
from continuad.router import PrototypeRouter
from continuad.stopwatch import Stopwatch


def crowd(folder: Path, count: int) -> None:
    """Give a bank many products: "bolt" under other names, with prototypes that lie far away."""
    bank = Bank(folder)
    bolt = bank.manifest().products["bolt"]
    state = bank.state(bolt)
    rng = np.random.default_rng(0)
    for number in range(count):
        noise = torch.from_numpy(rng.normal(0, 10, state["prototype"].shape).astype(np.float32))
        moved = {**state, "prototype": state["prototype"] + noise}
        bank.put(replace(bolt, name=f"copy {number}"), moved, expected=None)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are read from now on."""
    names: list[str] = []
    read = Path.read_bytes

    def read_and_tell(path: Path) -> bytes:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_and_tell)
    return names


# Verdicts.


def test_a_product_among_two_hundred_gives_the_verdicts_that_it_gives_alone(folder: Path) -> None:
    images = photos("bolt", 3, seed=1)
    Inspector.open(folder).forget("plate")
    alone = [Inspector.open(folder).inspect(image) for image in images]
    witness = Inspector.open(folder)
    witness.inspect(images[0])
    crowd(folder, 200)
    for inspector in (witness, Inspector.open(folder)):
        assert len(inspector.products) == 201
        for image, before in zip(images, alone, strict=True):
            after = inspector.inspect(image)
            assert after.product == after.nearest == "bolt"
            assert same(after, before)
            assert after.distance <= before.distance  # it may also be clearly nearer to it than to the others


@given(st.integers(0, 10**6), st.integers(1, 300), st.integers(2, 40))
@settings(deadline=None, max_examples=60)
def test_a_distance_is_the_same_to_the_last_bit_alone_and_among_others(
    seed: int, size: int, products: int
) -> None:
    rng = np.random.default_rng(seed)
    prototypes = rng.normal(0, 1, (products, size)).astype(np.float32)
    vectors = rng.normal(0, 1, (3, size)).astype(np.float32)
    together, alone = PrototypeRouter(), []
    for number, prototype in enumerate(prototypes):
        together.add(str(number), prototype, 1.0)
        single = PrototypeRouter()
        single.add(str(number), prototype, 1.0)
        alone.append([route.distance for route in single.route(vectors)])
    routes = together.route(vectors)
    for row, distances in enumerate(zip(*alone, strict=True)):
        first, second, *_ = sorted(distances)
        assert routes[row].nearest == str(distances.index(first))
        assert routes[row].distance == min(first, first / (0.5 * second))
        assert together.route(vectors[row : row + 1]) == [routes[row]]


# Opening.


def test_no_product_is_read_before_its_head_is_needed(folder: Path, opened: list[str]) -> None:
    crowd(folder, 20)
    opened.clear()
    inspector = Inspector.open(folder)
    assert len(inspector.products) == 22
    inspector.inspect(photos("bolt", 1))
    inspector.inspect(photos("bolt", 2))
    assert [name for name in opened if "-r" in name] == [Path(inspector.product("bolt").file).name]


def test_a_damaged_product_spoils_no_other(folder: Path) -> None:
    before = Inspector.open(folder).inspect(photos("bolt", 1)[0])
    crowd(folder, 20)
    products = Inspector.open(folder).products
    for name, product in products.items():
        if name != "bolt":
            (folder / product.file).write_bytes(b"damaged")
    inspector = Inspector.open(folder)
    assert same(inspector.inspect(photos("bolt", 1)[0]), before)
    for name in ("plate", "copy 7"):
        with pytest.raises(BankError, match=f"{Path(products[name].file).name} is damaged: its checksum"):
            inspector.inspect(photos("plate", 1)[0], product=name)


def test_the_prototype_of_the_manifest_is_that_of_the_file(folder: Path) -> None:
    bank = Bank(folder)
    for product in bank.manifest().products.values():
        prototype = bank.prototype(product)
        assert prototype.dtype == np.float32
        assert prototype.tobytes() == bank.state(product)["prototype"].numpy().tobytes()
        assert bank.prototype(replace(product, prototype="")).tobytes() == prototype.tobytes()


def test_entries_without_a_prototype_are_read_as_well(folder: Path) -> None:
    images = photos("bolt", 1) + photos("plate", 1)
    before = Inspector.open(folder).inspect(images)
    manifest = Bank(folder).manifest()
    entries = {name: product.as_dict() for name, product in manifest.products.items()}
    for entry in entries.values():
        del entry["prototype"]
    older = {name: Product.from_dict(entry) for name, entry in entries.items()}
    (folder / "manifest.json").write_bytes(replace(manifest, products=older).to_json())
    inspector = Inspector.open(folder)
    assert {product.prototype for product in inspector.products.values()} == {""}
    for one, other in zip(inspector.inspect(images), before, strict=True):
        assert same(one, other)
        assert one.distance == other.distance
    (folder / older["plate"].file).write_bytes(b"damaged")
    with pytest.raises(BankError, match="is damaged: its checksum does not match"):
        Inspector.open(folder).inspect(images[0])


@pytest.mark.parametrize("prototype", ["Zg==", "not base64"])
def test_a_prototype_that_is_none_is_refused(folder: Path, prototype: str) -> None:
    bank = Bank(folder)
    bolt = bank.manifest().products["bolt"]
    with pytest.raises(BankError, match=r"The prototype of 'bolt' is damaged\. Restore"):
        bank.prototype(replace(bolt, prototype=prototype))


# The manifest in memory.


def settle(folder: Path) -> None:
    """Let the manifest look as if it had been written a while ago."""
    earlier = time.time() - 60
    os.utime(folder / "manifest.json", (earlier, earlier))


def test_an_unchanged_manifest_is_read_once(folder: Path, opened: list[str]) -> None:
    settle(folder)
    inspector = Inspector.open(folder)
    opened.clear()
    for _ in range(3):
        inspector.inspect(photos("bolt", 1))
        assert inspector.products
    assert "manifest.json" not in opened


def test_what_another_process_writes_is_noticed(folder: Path) -> None:
    settle(folder)
    reader, writer = Bank(folder), Bank(folder)
    before = reader.manifest()
    bolt = before.products["bolt"]
    writer.update(replace(bolt, limit=7.0), expected=bolt)
    assert reader.manifest() is not before
    assert reader.manifest().products["bolt"].limit == 7.0
    writer.remove(before.products["plate"])
    assert list(reader.manifest().products) == ["bolt"]


def test_a_change_that_leaves_the_time_stamp_is_noticed(folder: Path) -> None:
    # As when two writes share a tick of the clock, and the second gets the inode that the first has freed.
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    first, second = (
        replace(Bank(folder).manifest(), revision=revision).to_json()
        for revision in (content["revision"] + 1, content["revision"] + 2)
    )
    assert len(first) == len(second)
    path.write_bytes(first)
    status = path.stat()
    bank = Bank(folder)
    assert bank.manifest() is bank.manifest()
    path.write_bytes(second)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_ino, path.stat().st_size) == (status.st_ino, status.st_size)
    assert bank.manifest() == Manifest.from_json(second, path)


def test_a_manifest_that_was_only_touched_stays_the_same_object(folder: Path) -> None:
    bank = Bank(folder)
    before = bank.manifest()
    settle(folder)
    assert bank.manifest() is before


# Heads in memory.


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return create_backbone("tiny", weights="random")


@pytest.fixture
def loaded() -> list[str]:
    """The names of the heads that were loaded."""
    return []


def heads_within(backbone: Backbone, limit: int, loaded: list[str]) -> RoutedHeads:
    """Heads of equal size, one for each of "abcd", that lie at different grey values."""
    heads = RoutedHeads(backbone, RoutingSettings("layer1"), head_memory=limit)

    def loader(name: str) -> Callable[[], Detector]:
        def load() -> Detector:
            loaded.append(name)
            torch.manual_seed(ord(name))
            return METHODS["adapts-l"].build(backbone, {"taps": ["layer2"]})

        return load

    for name, image in zip("abcd", greys(), strict=True):
        heads.add(name, taps=("layer2",), load=loader(name), prototype=heads.embed(image[None])[0], limit=1e6)
    return heads


def greys() -> Tensor:
    return (60 * torch.arange(4)).view(4, 1, 1, 1).expand(4, 3, 32, 32).to(torch.uint8)


def size_of(detector: Detector) -> int:
    return sum(tensor.nbytes for tensor in (*detector.parameters(), *detector.buffers()))


def test_the_heads_used_last_stay(backbone: Backbone, loaded: list[str]) -> None:
    size = size_of(heads_within(backbone, HEAD_MEMORY, []).head("a"))
    assert size > 1000
    heads = heads_within(backbone, 2 * size, loaded)
    for name in "abab":
        heads.head(name)
    assert loaded == ["a", "b"]
    heads.head("c")  # instead of "a", which was used before "b"
    heads.head("b")
    assert loaded == ["a", "b", "c"]
    heads.head("a")  # instead of "c"
    heads.head("b")
    assert loaded == ["a", "b", "c", "a"]
    heads.head("c")
    assert loaded == ["a", "b", "c", "a", "c"]


def test_a_head_larger_than_the_memory_is_used_and_replaced(backbone: Backbone, loaded: list[str]) -> None:
    heads = heads_within(backbone, 0, loaded)
    for name in "aabba":
        heads.head(name)
    assert loaded == ["a", "b", "a"]


def test_removed_and_replaced_heads_take_no_memory(backbone: Backbone, loaded: list[str]) -> None:
    size = size_of(heads_within(backbone, HEAD_MEMORY, []).head("a"))
    heads = heads_within(backbone, 2 * size, loaded)
    heads.head("a")
    heads.head("b")
    heads.remove("a")
    heads.head("c")
    heads.head("b")
    assert loaded == ["a", "b", "c"]
    detector = heads.head("b")
    heads.add("b", taps=("layer2",), load=lambda: detector, prototype=np.zeros(1, np.float32), limit=1.0)
    heads.head("d")
    heads.head("c")
    assert loaded == ["a", "b", "c", "d"]
    assert heads.head("b") is detector


@pytest.mark.parametrize("limit", [0, 3000, HEAD_MEMORY])
def test_results_do_not_depend_on_the_memory(backbone: Backbone, loaded: list[str], limit: int) -> None:
    expected = heads_within(backbone, HEAD_MEMORY, [])
    heads = heads_within(backbone, limit, loaded)
    for _ in range(2):
        for images in (greys(), *greys().split(1)):
            one, other = (
                each.inspect(images, product=None, reject_unknown=True, stopwatch=Stopwatch())
                for each in (heads, expected)
            )
            for mine, theirs in zip(one, other, strict=True):
                assert mine.product == theirs.product
                assert mine.anomaly_map is not None
                assert theirs.anomaly_map is not None
                assert mine.anomaly_map.tobytes() == theirs.anomaly_map.tobytes()
    assert (len(loaded) == 4) == (limit == HEAD_MEMORY)


def test_an_inspector_without_memory_for_heads_gives_the_same_verdicts(
    folder: Path, opened: list[str]
) -> None:
    images = [photos(name, 1)[0] for name in ("bolt", "plate")] * 2
    roomy, tight = Inspector.open(folder), Inspector.open(folder, head_memory=0)
    for image in images:
        assert same(tight.inspect(image), roomy.inspect(image))
    reads = [name for name in opened if "-r" in name]
    assert len(reads) == 2 + 4


def test_the_way_to_the_router_knows_of_every_new_head(backbone: Backbone) -> None:
    heads = RoutedHeads(backbone, RoutingSettings("layer1"))
    for tap, image in zip(("layer2", "layer0", "layer1"), greys().split(1), strict=False):
        detector = METHODS["adapts-l"].build(backbone, {"taps": [tap]})
        heads.add(tap, taps=(tap,), load=lambda d=detector: d, prototype=heads.embed(image)[0], limit=1e6)  # type: ignore[misc]
        (result,) = heads.inspect(image, product=None, reject_unknown=True, stopwatch=Stopwatch())
        alone = detector.anomaly_maps(image)[0].detach()
        assert result.product == tap
        assert result.anomaly_map is not None
        np.testing.assert_allclose(result.anomaly_map, alone, rtol=1e-4, atol=1e-6)


def test_a_new_product_of_a_crowd_is_learnt_and_recognised(folder: Path) -> None:
    crowd(folder, 30)
    reader, inspector = Inspector.open(folder), Inspector.open(folder)
    assert reader.inspect(photos("screw", 1)[0], reject_unknown=True).product != "screw"
    teach(inspector, "screw")
    assert reader.inspect(photos("screw", 1, seed=1)[0]).product == "screw"
    assert list(reader.products)[-1] == "screw"
