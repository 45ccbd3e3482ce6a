from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from torch import Tensor

from continuad.continual.codecs import CODECS, EightBit, Encoded, Floats, Pca
from continuad.errors import SettingsError

quick = settings(max_examples=60, deadline=None)

# the standard deviation of the error, as a share of that of the values, stays below this
LOSS = {
    "none": 0.0,
    "float16": 0.0005,
    "int8-map": 0.01,
    "int8-channel": 0.01,
    "pca-map": 0.02**0.5,
    "pca-task": 0.02**0.5,
    "uint8-image": 0.0,
}
MAPS = [name for name in LOSS if name != "uint8-image"]


def features(count: int = 5, channels: int = 6, side: int = 4, *, rank: int | None = None) -> Tensor:
    """Maps (count, channels, side, side) that differ in mean by channel; `rank` directions vary equally."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(channels, channels)))[0][:rank]
    scores = rng.normal(size=(count, side, side, len(axes)))
    maps = np.moveaxis(scores @ axes, 3, 1) + rng.normal(size=(channels, 1, 1))
    return torch.from_numpy(maps.astype(np.float32, order="C"))


def items_for(name: str) -> Tensor:
    if name == "uint8-image":
        return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8))
    return features()


def everything(encoded: Encoded) -> Tensor:
    return encoded.decode(range(len(encoded)))


def each_tensor(encoded: Encoded) -> list[bytes]:
    return [tensor.numpy().tobytes() for tensor in encoded.tensors().values()]


# --- whatever the codec ---------------------------------------------------------------------------


def test_every_codec_is_tested() -> None:
    assert CODECS.keys() == LOSS.keys()


@pytest.mark.parametrize("name", LOSS)
def test_a_codec_gives_back_what_it_was_given(name: str) -> None:
    items = items_for(name)
    decoded = everything(CODECS[name].encode(items))
    assert (decoded.shape, decoded.dtype) == (items.shape, items.dtype)
    spread = items.float() - items.float().mean((2, 3), keepdim=True)
    assert (decoded.float() - items.float()).std(correction=0) <= LOSS[name] * spread.std(correction=0)
    assert torch.equal(decoded, items) == (LOSS[name] == 0)


@pytest.mark.parametrize("name", LOSS)
def test_items_are_decoded_in_the_order_asked_for(name: str) -> None:
    encoded = CODECS[name].encode(items_for(name))
    assert torch.equal(encoded.decode([3, 0, 3]), everything(encoded)[[3, 0, 3]])


@pytest.mark.parametrize("name", LOSS)
def test_dropping_items_leaves_the_others_as_they_are(name: str) -> None:
    encoded = CODECS[name].encode(items_for(name))
    before = everything(encoded)
    kept = encoded.keep([1, 3, 4]).keep([0, 2])
    assert len(kept) == 2
    assert torch.equal(everything(kept), before[[1, 4]])
    assert [part.data_ptr() for part in kept.items[1].values()] == [
        part.data_ptr() for part in encoded.items[4].values()
    ]


@pytest.mark.parametrize("name", LOSS)
def test_the_size_is_that_of_the_memory_held(name: str) -> None:
    for encoded in (CODECS[name].encode(items_for(name)), CODECS[name].encode(items_for(name)).keep([2])):
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in encoded.tensors().values()}
        assert len(storages) == len(encoded.tensors())
        assert encoded.bytes == sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("name", LOSS)
def test_encoded_items_survive_a_file(name: str) -> None:
    encoded = CODECS[name].encode(
        torch.cat([items_for(name)] * 3)
    )  # more than ten: 10 comes before 2 as text
    data = safetensors.torch.save(encoded.tensors())
    back = Encoded.from_tensors(CODECS[name], safetensors.torch.load(data))
    assert (len(back), back.bytes) == (15, encoded.bytes)
    assert torch.equal(everything(back), everything(encoded))


@pytest.mark.parametrize("name", LOSS)
def test_neither_the_caller_nor_the_codec_can_change_the_others_tensors(name: str) -> None:
    items = items_for(name)
    given = items.clone()
    encoded = CODECS[name].encode(given)
    assert torch.equal(given, items)
    before = everything(encoded)
    given.zero_()
    everything(encoded).zero_()
    assert torch.equal(everything(encoded), before)


@pytest.mark.parametrize("name", LOSS)
def test_the_memory_layout_of_the_items_does_not_matter(name: str) -> None:
    items = items_for(name)
    other = CODECS[name].encode(items.contiguous(memory_format=torch.channels_last))
    assert each_tensor(other) == each_tensor(CODECS[name].encode(items))
    safetensors.torch.save(other.tensors())  # takes contiguous tensors only


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    "items",
    [torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 3, 4, 4).double(), torch.zeros(3, 4, 4)],
    ids=["images", "double", "a single map"],
)
def test_what_is_no_feature_map_is_refused(name: str, items: Tensor) -> None:
    with pytest.raises(SettingsError, match=r"no feature maps but .* float32, or store images with"):
        CODECS[name].encode(items)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    items = features()
    items[4, 5, 3, 3] = value
    with pytest.raises(SettingsError, match=r"not a number\. Check the backbone"):
        CODECS[name].encode(items)


@pytest.mark.parametrize(
    "items", [torch.zeros(2, 3, 4, 4), torch.zeros(2, 4, 4, 4).byte(), torch.zeros(3, 4, 4).byte()]
)
def test_what_is_no_image_is_refused(items: Tensor) -> None:
    with pytest.raises(SettingsError, match="no images but"):
        CODECS["uint8-image"].encode(items)


def test_an_unknown_codec_is_named_with_the_nearest() -> None:
    with pytest.raises(SettingsError, match="Did you mean 'int8-map'"):
        CODECS["int8map"]


# --- floating point -------------------------------------------------------------------------------


def test_half_precision_rounds_as_ieee() -> None:
    items = features()
    decoded = everything(CODECS["float16"].encode(items))
    assert np.array_equal(decoded.numpy(), items.numpy().astype(np.float16).astype(np.float32))


def test_values_beyond_half_precision_are_refused() -> None:
    items = torch.full((1, 1, 2, 2), -65504.0)
    assert torch.equal(everything(Floats(torch.float16).encode(items)), items)
    with pytest.raises(SettingsError, match=r"reach 6\.6e\+04, .*float16\. Store them with the codec 'none'"):
        Floats(torch.float16).encode(items - 496)


# --- eight bits -----------------------------------------------------------------------------------


def test_codes_by_hand() -> None:
    items = torch.tensor([[[[-1.0, 0.0]], [[0.25, 50.0]]]])
    (parts,) = EightBit("map").encode(items).items
    assert parts["scale"].item() == pytest.approx(0.2)
    assert parts["low"].item() == -1
    assert parts["codes"].tolist() == [[[0, 5]], [[6, 255]]]
    (parts,) = EightBit("channel").encode(items).items
    assert parts["scale"].flatten().tolist() == pytest.approx([1 / 255, 49.75 / 255])
    assert parts["low"].flatten().tolist() == [-1, 0.25]
    assert parts["codes"].tolist() == [[[0, 255]], [[0, 255]]]


@pytest.mark.parametrize("per", ["map", "channel"])
def test_constant_maps_are_exact_and_have_scale_one(per: str) -> None:
    items = torch.full((2, 3, 2, 2), -7.3)
    items[1] = 0.1
    encoded = CODECS[f"int8-{per}"].encode(items)
    assert torch.equal(everything(encoded), items)
    assert all((parts["scale"] == 1).all() for parts in encoded.items)


@quick
@given(
    values=st.lists(
        st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False), min_size=8, max_size=8
    ),
    per=st.sampled_from(["map", "channel"]),
)
@example(values=[0.0, 1e-38, 0.0, 1e-38, 5.0, 5.0, 5.0, 5.0], per="channel")
def test_no_value_moves_by_more_than_half_a_level(values: list[float], per: str) -> None:
    items = torch.tensor(values).view(1, 2, 2, 2)
    encoded = CODECS[f"int8-{per}"].encode(items)
    low = np.array(values).reshape(2, 4).min(1) if per == "channel" else np.full(2, min(values))
    high = np.array(values).reshape(2, 4).max(1) if per == "channel" else np.full(2, max(values))
    error = (everything(encoded).double() - items.double()).abs().amax((0, 2, 3)).numpy()
    rounding = 1e-6 * np.maximum(abs(low), abs(high)) + 1e-43  # of float32
    assert (error <= (high - low) / 255 / 2 * 1.0001 + rounding).all()


def test_a_channel_of_its_own_range_keeps_its_detail() -> None:
    items = features(count=2)
    items[:, 0] *= 1000
    by_map, by_channel = (everything(CODECS[f"int8-{per}"].encode(items)) for per in ("map", "channel"))
    assert (by_map - items)[:, 1:].abs().max() > 0.5
    assert (by_channel - items)[:, 1:].abs().max() < 0.02


# --- principal components -------------------------------------------------------------------------


def test_a_map_is_reduced_as_by_scikit_learn() -> None:
    items = features(count=3, channels=12, side=6) * torch.linspace(3, 0.1, 12)[:, None, None]
    encoded = CODECS["pca-map"].encode(items)
    counts = []
    for index, item in enumerate(items):
        rows = item.permute(1, 2, 0).reshape(-1, 12).double().numpy()
        reference = PCA(svd_solver="full").fit(rows)
        count = int(np.argmax(np.cumsum(reference.explained_variance_ratio_) >= 0.98)) + 1
        scores = reference.transform(rows)[:, :count]
        expected = scores @ reference.components_[:count] + reference.mean_
        parts = encoded.items[index]
        assert parts["scores"].shape == (count, 6, 6)
        assert parts["components"].shape == (count, 12)
        found = encoded.decode([index])[0].permute(1, 2, 0).reshape(-1, 12).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        counts.append(count)
    assert 1 < min(counts) <= max(counts) < 12


def test_a_task_is_reduced_as_by_scikit_learn() -> None:
    items = features(count=3, channels=12, side=6) * torch.linspace(3, 0.1, 12)[:, None, None]
    encoded = CODECS["pca-task"].encode(items)
    rows = items.permute(0, 2, 3, 1).reshape(-1, 12).double().numpy()
    reference = PCA(0.98, svd_solver="full").fit(rows)
    expected = reference.inverse_transform(reference.transform(rows))
    found = everything(encoded).permute(0, 2, 3, 1).reshape(-1, 12).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert len(encoded.shared["components"]) == reference.n_components_


@pytest.mark.parametrize("per", ["map", "task"])
def test_all_components_are_exact(per: str) -> None:
    items = features(channels=24, side=8)
    encoded = Pca("map" if per == "map" else "task", variance=1.0).encode(items)
    assert all(len(parts["scores"]) == 24 for parts in encoded.items)
    torch.testing.assert_close(everything(encoded), items, rtol=0, atol=5e-6)


def test_maps_with_fewer_positions_than_channels_are_exact_too() -> None:
    items = features(count=2, channels=24, side=3)
    torch.testing.assert_close(everything(Pca("map", variance=1.0).encode(items)), items, rtol=0, atol=5e-6)


def test_the_first_components_that_reach_the_share_are_kept() -> None:
    items = torch.tensor(
        [[[[3.0, -3.0, 3.0, -3.0]], [[1.0, 1.0, -1.0, -1.0]]]]
    )  # 9/10 and 1/10 of the variance
    counts = [len(Pca("map", variance=v).encode(items).items[0]["scores"]) for v in (0.01, 0.9, 0.91, 1.0)]
    assert counts == [1, 1, 2, 2]


def test_more_variance_takes_more_components_and_leaves_less_error() -> None:
    items = features(channels=12, side=6)
    encoded = [Pca("task", variance=share).encode(items) for share in (0.3, 0.6, 0.9, 0.99)]
    assert all(fewer.bytes < more.bytes for fewer, more in pairwise(encoded))
    errors = [(everything(each) - items).norm() for each in encoded]
    assert all(larger > smaller for larger, smaller in pairwise(errors))


@pytest.mark.parametrize("name", ["pca-map", "pca-task"])
def test_a_map_without_variance_is_its_mean_alone(name: str) -> None:
    items = torch.tensor([1.5, -2.0, 0.25])[:, None, None].expand(2, 3, 4, 4)
    encoded = CODECS[name].encode(items)
    assert torch.equal(everything(encoded), items)
    assert encoded.bytes == (2 if name == "pca-map" else 1) * 3 * 4


@pytest.mark.parametrize("variance", [0.0, 1.01, float("nan")])
def test_a_share_that_cannot_be_kept_is_refused(variance: float) -> None:
    with pytest.raises(SettingsError, match="Give one above 0, up to 1"):
        Pca("map", variance=variance)


# --- sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("none", 9_830_400),
        ("float16", 4_915_200),
        ("int8-map", 2_457_600 + 800),
        ("int8-channel", 2_457_600 + 24 * 800),
    ],
)
def test_sizes_of_a_hundred_maps(name: str, size: int) -> None:
    assert CODECS[name].encode(torch.zeros(100, 24, 32, 32)).bytes == size


def test_sizes_of_a_hundred_images() -> None:
    images = CODECS["uint8-image"]
    assert images.encode(torch.zeros(100, 3, 256, 256, dtype=torch.uint8)).bytes == 19_660_800
    assert images.encode(torch.zeros(100, 3, 224, 224, dtype=torch.uint8)).bytes == 15_052_800


@pytest.mark.parametrize(("rank", "scores", "size"), [(17, 6_963_200, 7_136_000), (20, 8_192_000, 8_393_600)])
def test_sizes_of_a_hundred_maps_by_principal_components(rank: int, scores: int, size: int) -> None:
    encoded = CODECS["pca-map"].encode(features(100, 24, 32, rank=rank))
    assert sum(parts["scores"].nbytes for parts in encoded.items) == scores
    assert encoded.bytes == size


def test_the_basis_of_a_task_is_counted_once() -> None:
    encoded = CODECS["pca-task"].encode(features(100, 24, 32, rank=17))
    basis = 4 * (17 * 24 + 24)
    assert encoded.bytes == 6_963_200 + basis
    assert encoded.keep([5]).bytes == 69_632 + basis
