"""The photos that a bank keeps of each product: which, how well, and that nothing else depends on them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from conftest import QUICK, leftovers, new_bank, photos, same, snapshot, teach
from continuad import Inspector
from continuad.datasets import hold_out
from continuad.errors import BankError, ImageError, ProductError
from continuad.images import resize
from continuad.inspector import Product
from continuad.inspector.bank import Bank
from continuad.inspector.samples import Photos, decode, encode


def jpeg(width: int, height: int) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height)).save(stream, "JPEG")
    return stream.getvalue()


def enter(folder: Path, name: str, **changes: str) -> Product:
    """Change a product's entry in the manifest."""
    bank = Bank(folder)
    product = bank.manifest().products[name]
    bank.update(replace(product, **changes), expected=product)  # type: ignore[arg-type]
    return bank.manifest().products[name]


# The strip.


@pytest.mark.parametrize("size", [32, 50, 96])
@pytest.mark.parametrize("count", [1, 3, 8])
def test_photos_come_back_in_order_and_nearly_as_they_were(size: int, count: int) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    images = np.stack([resize(each, size) for each in colours])
    back = decode(encode(images), size)
    assert (back.shape, back.dtype) == (images.shape, np.uint8)
    errors = np.abs(back[:, None].astype(np.int16) - images[None]).mean((2, 3, 4))
    assert errors.argmin(1).tolist() == list(range(count))
    assert errors.diagonal().max() < 3


def which(count: int) -> list[int]:
    """The numbers of the images that are kept of so many, told by their grey."""
    greys = np.arange(count, dtype=np.uint8) * 4
    images = np.broadcast_to(greys[:, None, None, None], (count, 16, 16, 3))
    return np.rint(decode(encode(images), 16).mean((1, 2, 3)) / 4).astype(int).tolist()


def test_at_most_eight_are_kept_spread_evenly() -> None:
    assert which(3) == [0, 1, 2]
    assert which(8) == list(range(8))
    assert which(12) == [0, 1, 3, 4, 6, 7, 9, 10]
    assert which(16) == [0, 2, 4, 6, 8, 10, 12, 14]
    for count in range(9, 64):
        gaps = np.diff([*which(count), count])
        assert len(gaps) == 8
        assert gaps.max() - gaps.min() <= 1


def test_a_strip_is_one_jpeg_with_colours_as_sharp_as_brightness() -> None:
    with Image.open(io.BytesIO(encode(np.zeros((5, 40, 40, 3), np.uint8)))) as image:
        assert (image.format, image.size) == ("JPEG", (200, 40))
        assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4


def test_eight_photos_of_the_largest_bank_fit_a_jpeg() -> None:
    images = np.broadcast_to(np.uint8(90), (8, 2048, 2048, 3))
    assert decode(encode(images), 2048).shape == images.shape


@pytest.mark.parametrize("data", [jpeg(64, 48), jpeg(72, 32), jpeg(16, 32), b"", b"\xff\xd8\xff"])
def test_what_is_no_strip_of_that_size_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError):
        decode(data, 32)


# What a bank keeps.


def held_out(images: list[Photos], size: int) -> Photos:
    """The images that are held out of learning them, in order."""
    _, held = hold_out(images, max(0.2, 3 / len(images)), seed=0)
    return np.stack([resize(image, size) for image in held])


@pytest.mark.parametrize(("count", "kept"), [(7, [0, 1, 2]), (60, [0, 1, 3, 4, 6, 7, 9, 10])])
def test_a_bank_keeps_photos_that_were_held_out(tmp_path: Path, count: int, kept: list[int]) -> None:
    inspector = new_bank(tmp_path / "bank")
    images = photos("screw", count)
    for number, image in enumerate(images):
        image[:8, :8] = 4 * number  # a mark
    inspector.learn("screw", images, head="adapts-s", settings=QUICK)
    expected = held_out(images, inspector.image_size)[kept]
    found = Inspector.open(tmp_path / "bank").samples("screw")
    assert (found.shape, found.dtype) == (expected.shape, np.uint8)
    assert np.abs(found.astype(np.int16) - expected).mean() < 3
    assert (
        np.rint(found[:, :4, :4].mean((1, 2, 3)) / 4).tolist()
        == np.rint(expected[:, :4, :4].mean((1, 2, 3)) / 4).tolist()
    )


def test_there_are_samples_of_known_products_only(inspector: Inspector) -> None:
    with pytest.raises(ProductError, match=r"no product called 'nut'\. Its products: bolt, plate"):
        inspector.samples("nut")


def test_the_bytes_of_a_product_are_those_that_inspection_needs(folder: Path) -> None:
    for product in Bank(folder).manifest().products.values():
        assert product.bytes == (folder / product.file).stat().st_size
        assert (folder / product.samples).stat().st_size > 0


def test_recalibration_keeps_them(inspector: Inspector) -> None:
    before = inspector.samples("bolt")
    inspector.recalibrate("bolt", images=photos("bolt", 4, seed=2))
    assert np.array_equal(inspector.samples("bolt"), before)


def test_a_product_learnt_anew_has_new_ones_and_a_forgotten_one_none(folder: Path) -> None:
    inspector = Inspector.open(folder)
    old, others = inspector.product("bolt").samples, inspector.samples("plate")
    inspector.learn("bolt", photos("nut", 7), head="adapts-s", settings=QUICK, replace_existing=True)
    expected = held_out(photos("nut", 7), inspector.image_size)
    assert np.abs(inspector.samples("bolt").astype(np.int16) - expected).mean() < 3
    assert not (folder / old).exists()
    assert leftovers(folder) == set()

    inspector.forget("bolt")
    assert {file for file in snapshot(folder) if file.endswith(".jpg")} == {
        inspector.product("plate").samples
    }
    assert leftovers(folder) == set()
    assert np.array_equal(inspector.samples("plate"), others)


def test_a_product_may_be_put_without_any(folder: Path) -> None:
    bank = Bank(folder)
    bolt = bank.manifest().products["bolt"]
    put = bank.put(bolt, bank.state(bolt), expected=bolt)
    assert (put.samples, put.samples_sha256) == ("", "")
    assert not (folder / bolt.samples).exists()
    assert leftovers(folder) == set()


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_product_that_changes_while_its_samples_are_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    reader, writer = Inspector.open(folder), Inspector.open(folder)
    read, opened = reader.bank.samples, []

    def read_late(product: Product) -> Photos:
        opened.append(product.samples)
        if len(opened) == 1 and forgotten:
            writer.forget("bolt")
        elif len(opened) == 1:
            teach(writer, "bolt", seed=1, replace_existing=True)
        return read(product)

    monkeypatch.setattr(reader.bank, "samples", read_late)
    if forgotten:
        with pytest.raises(ProductError, match="no product called 'bolt'"):
            reader.samples("bolt")
    else:
        assert np.array_equal(reader.samples("bolt"), writer.samples("bolt"))
        assert len(opened) == 2


# Without them.


def test_entries_without_samples_are_read_as_well(folder: Path) -> None:
    images = photos("bolt", 1) + photos("plate", 1)
    before = Inspector.open(folder).inspect(images)
    manifest = Bank(folder).manifest()
    entries = {name: product.as_dict() for name, product in manifest.products.items()}
    for entry in entries.values():
        (folder / entry["samples"]).unlink()
        del entry["samples"], entry["samples_sha256"]
    older = {name: Product.from_dict(entry) for name, entry in entries.items()}
    (folder / "manifest.json").write_bytes(replace(manifest, products=older).to_json())
    inspector = Inspector.open(folder)
    assert all(same(one, other) for one, other in zip(inspector.inspect(images), before, strict=True))
    with pytest.raises(BankError, match=r"keeps no photos of 'bolt': .* older continuad\. Learn it again"):
        inspector.samples("bolt")
    inspector.recalibrate("plate", false_alarm_rate=0.02)
    assert inspector.product("plate").samples == ""
    teach(inspector, "bolt", replace_existing=True)
    assert inspector.samples("bolt").shape == (3, 32, 32, 3)


SPOILT: dict[str, Callable[[Path], object]] = {
    "missing": Path.unlink,
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "exchanged": lambda path: path.write_bytes(encode(np.zeros((3, 32, 32, 3), np.uint8))),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_spoilt_samples_are_noticed_and_only_where_they_are_wanted(folder: Path, spoil: str) -> None:
    images = photos("bolt", 2, seed=1)
    before = Inspector.open(folder).inspect(images)
    path = folder / Bank(folder).manifest().products["bolt"].samples
    SPOILT[spoil](path)
    inspector = Inspector.open(folder)
    with pytest.raises(BankError, match=rf"{path.name} .*\. Restore it from a backup; .* learnt again"):
        inspector.samples("bolt")
    assert all(same(one, other) for one, other in zip(inspector.inspect(images), before, strict=True))
    assert len(inspector.samples("plate")) == 3
    inspector.recalibrate("bolt", images=photos("bolt", 4, seed=2))
    teach(inspector, "screw")
    if spoil != "a folder":  # which no writer removes
        teach(inspector, "bolt", replace_existing=True)
        assert len(inspector.samples("bolt")) == 3
        assert leftovers(folder) == set()
    inspector.forget("bolt")
    assert "bolt" not in inspector.products


@pytest.mark.parametrize("data", [jpeg(64, 48), jpeg(40, 32), b"GIF89a", b""])
def test_samples_that_are_no_photos_of_the_bank_are_refused(folder: Path, data: bytes) -> None:
    path = folder / Bank(folder).manifest().products["bolt"].samples
    path.write_bytes(data)
    enter(folder, "bolt", samples_sha256=hashlib.sha256(data).hexdigest())
    with pytest.raises(BankError, match=f"{path.name} holds no photos of this bank"):
        Inspector.open(folder).samples("bolt")


def test_inspection_does_not_open_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    read = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: (opened.append(path.suffix), read(path))[1])
    inspector = Inspector.open(folder)
    inspector.inspect(photos("bolt", 1) + photos("plate", 1))
    assert ".safetensors" in opened
    assert ".jpg" not in opened
    inspector.samples("bolt")
    assert ".jpg" in opened
