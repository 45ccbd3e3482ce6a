from __future__ import annotations

import io
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import arrays
from PIL import Image

from continuad.errors import ImageError, SettingsError
from continuad.images import load_image, load_stack, resize, resize_mask

H, W = 10, 14
GREY = (np.arange(H * W, dtype=np.uint8).reshape(H, W) * 7) % 251
RGB = np.stack([GREY, 255 - GREY, GREY[::-1]], axis=2)


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def grey3(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


# What comes in, and what comes out


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff", "ppm", "PNG"])
def test_rgb_files_come_back_exactly(tmp_path: Path, suffix: str) -> None:
    out = load_image(save(tmp_path / f"a.{suffix}", Image.fromarray(RGB)))
    np.testing.assert_array_equal(out, RGB)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.flags.writeable


def test_lossless_webp_comes_back_exactly(tmp_path: Path) -> None:
    path = save(tmp_path / "a.webp", Image.fromarray(RGB), lossless=True)
    np.testing.assert_array_equal(load_image(path), RGB)


def test_jpeg_is_what_pillow_decodes(tmp_path: Path) -> None:
    path = save(tmp_path / "a.jpg", Image.fromarray(RGB), quality=80)
    with Image.open(path) as image:
        np.testing.assert_array_equal(load_image(path), np.asarray(image))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "pgm"])
def test_grey_files_become_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(GREY))
    np.testing.assert_array_equal(load_image(path), grey3(GREY))


def test_one_bit(tmp_path: Path) -> None:
    bits = GREY > 100
    path = save(tmp_path / "a.png", Image.fromarray(bits))
    with Image.open(path) as image:
        assert image.mode == "1"
    np.testing.assert_array_equal(load_image(path), grey3(bits * np.uint8(255)))


def test_palette(tmp_path: Path) -> None:
    image = Image.fromarray(GREY % 3).convert("L")
    image = Image.frombytes("P", image.size, image.tobytes())
    image.putpalette([10, 20, 30, 200, 0, 5, 1, 2, 3])
    colours = np.array([[10, 20, 30], [200, 0, 5], [1, 2, 3]], np.uint8)
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.png", image)), colours[GREY % 3])
    transparent = save(tmp_path / "b.png", image, transparency=1)
    colours[1] = 255
    np.testing.assert_array_equal(load_image(transparent), colours[GREY % 3])
    half = save(tmp_path / "c.png", image, transparency=bytes([255, 0, 128]))
    colours[2] = [(c * 128 + 255 * 127 + 127) // 255 for c in (1, 2, 3)]
    np.testing.assert_array_equal(load_image(half), colours[GREY % 3])


def test_transparency_is_laid_over_white_and_opaque_pixels_keep_their_values(tmp_path: Path) -> None:
    alpha = np.zeros((H, W), np.uint8)
    alpha[:, :5] = 255
    alpha[:, 5:9] = 51
    path = save(tmp_path / "a.png", Image.fromarray(np.dstack([RGB, alpha])))
    exact = RGB * (alpha[:, :, None] / 255) + 255 * (1 - alpha[:, :, None] / 255)
    out = load_image(path)
    np.testing.assert_array_equal(out[:, :5], RGB[:, :5])
    np.testing.assert_array_equal(out[:, 9:], 255)
    assert np.abs(out - exact).max() <= 0.5
    grey = save(tmp_path / "b.png", Image.fromarray(np.dstack([GREY, alpha])))
    out = load_image(grey)
    np.testing.assert_array_equal(out[:, :5], grey3(GREY)[:, :5])
    np.testing.assert_array_equal(out[:, 9:], 255)


def test_a_transparent_colour(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", Image.fromarray(GREY), transparency=int(GREY[0, 0]))
    np.testing.assert_array_equal(load_image(path), grey3(np.where(GREY[0, 0] == GREY, 255, GREY)))


WIDE = np.linspace(0, 65535, H * W).astype(np.uint16).reshape(H, W)
SCALED = np.rint(WIDE / 257).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    path = save(tmp_path / f"a.{suffix}", Image.fromarray(WIDE))
    np.testing.assert_array_equal(load_image(path), grey3(SCALED))


def test_16_bit_pgm_is_scaled_from_its_own_maximum() -> None:
    np.testing.assert_array_equal(
        load_image(b"P5 14 10 65535\n" + WIDE.astype(">u2").tobytes()), grey3(SCALED)
    )
    twelve_bit = b"P5 14 10 4095\n" + (WIDE // 16).astype(">u2").tobytes()
    assert np.abs(load_image(twelve_bit) - (WIDE // 16 / 4095 * 255)[:, :, None]).max() < 0.51


def test_16_bit_big_endian(tmp_path: Path) -> None:
    image = Image.frombytes("I;16B", (W, H), WIDE.astype(">u2").tobytes())
    np.testing.assert_array_equal(load_image(image), grey3(SCALED))
    np.testing.assert_array_equal(load_image(WIDE.astype(">u2")), grey3(SCALED))
    path = save(tmp_path / "a.tif", image)
    assert path.read_bytes()[:2] == b"MM"
    np.testing.assert_array_equal(load_image(path), grey3(SCALED))


def test_mode_i_is_16_bit_and_nothing_wider(tmp_path: Path) -> None:
    image = Image.fromarray(WIDE.astype(np.int32))
    assert image.mode == "I"
    np.testing.assert_array_equal(load_image(save(tmp_path / "a.tif", image)), grey3(SCALED))
    for value in (-1, 65536):
        with pytest.raises(ImageError, match="int32"):
            load_image(Image.fromarray(np.full((H, W), value, np.int32)))


def test_mode_f_is_in_0_to_1(tmp_path: Path) -> None:
    values = (GREY / np.float32(255)).astype(np.float32)
    path = save(tmp_path / "a.tif", Image.fromarray(values))
    np.testing.assert_array_equal(load_image(path), grey3(GREY))
    with pytest.raises(ImageError, match=r"b\.tif holds floats"):
        load_image(save(tmp_path / "b.tif", Image.fromarray(GREY.astype(np.float32))))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_other_colour_spaces(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))
    assert np.abs(load_image(image).astype(int) - RGB).max() <= 3
    jpeg = save(tmp_path / "a.jpg", image, quality=100, subsampling=0)
    assert np.abs(load_image(jpeg).astype(int) - RGB).mean() < 3


# How RGB is stored under each EXIF orientation. The first row stored is the upright image's top, top, bottom,
# bottom, left, right, right, left; the first column its left, right, right, left, top, top, bottom, bottom.
STORED = {
    1: RGB,
    2: RGB[:, ::-1],
    3: RGB[::-1, ::-1],
    4: RGB[::-1],
    5: RGB.transpose(1, 0, 2),
    6: RGB.transpose(1, 0, 2)[::-1],
    7: RGB.transpose(1, 0, 2)[::-1, ::-1],
    8: RGB.transpose(1, 0, 2)[:, ::-1],
}


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", image, exif=exif, **options)
    np.testing.assert_array_equal(load_image(path), RGB)
    with Image.open(path) as opened:
        np.testing.assert_array_equal(load_image(opened), RGB)


@pytest.mark.parametrize("orientation", STORED)
def test_exif_orientation_in_jpeg(tmp_path: Path, orientation: int) -> None:
    upright = grey3(np.kron(np.array([[0, 200, 40], [90, 255, 120]], np.uint8), np.ones((8, 8), np.uint8)))
    turned = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1],
        5: upright.transpose(1, 0, 2), 6: np.rot90(upright), 7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / "a.jpg", Image.fromarray(np.ascontiguousarray(turned[orientation])), exif=exif)
    out = load_image(path)
    assert out.shape == upright.shape
    assert np.abs(out.astype(int) - upright).max() < 8


@pytest.mark.parametrize(("kind", "lossless"), [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})])
def test_of_several_frames_the_first_is_taken(kind: str, lossless: dict[str, object]) -> None:
    second = Image.fromarray(255 - RGB)
    data = encoded(Image.fromarray(RGB), kind, save_all=True, append_images=[second], **lossless)
    np.testing.assert_array_equal(load_image(data), RGB)


@pytest.mark.parametrize("array", [GREY, GREY[:, :, None], RGB, RGB[:, ::-1], RGB.transpose(1, 0, 2)])
def test_uint8_arrays(array: np.ndarray) -> None:
    out = load_image(array)
    np.testing.assert_array_equal(
        out, grey3(array.reshape(array.shape[:2])) if array.size == H * W else array
    )
    assert out.flags.c_contiguous
    assert not np.shares_memory(out, array)


def test_other_arrays() -> None:
    np.testing.assert_array_equal(load_image(WIDE), grey3(SCALED))
    np.testing.assert_array_equal(load_image(GREY > 9), grey3((GREY > 9) * np.uint8(255)))
    for kind in (np.float32, np.float64):
        np.testing.assert_array_equal(load_image((RGB / 255).astype(kind)), RGB)
    opaque = np.dstack([RGB, np.full((H, W), 255, np.uint8)])
    np.testing.assert_array_equal(load_image(opaque), RGB)
    np.testing.assert_array_equal(load_image(opaque / 255), RGB)


@pytest.mark.parametrize(
    "array",
    [
        np.full((H, W), 1.001),
        np.full((H, W), -0.001),
        np.where(GREY == 7, np.nan, 0.5),
        np.full((H, W), np.inf),
        GREY.astype(np.int64),
        GREY.astype(np.uint32),
        GREY.astype(complex),
        GREY.astype(object),
        np.zeros((H, W, 2), np.uint8),
        np.zeros((1, H, W, 3), np.uint8),
        np.zeros(100, np.uint8),
        np.zeros((0, 0, 3), np.uint8),
        np.zeros((7, 100, 3), np.uint8),
        np.zeros((100, 7), np.uint8),
    ],
)
def test_arrays_that_would_have_to_be_guessed_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"^The image given as an array"):
        load_image(array)


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, (9, 8, 4)))
def test_compositing_is_within_rounding_of_the_formula(pixels: np.ndarray) -> None:
    alpha = pixels[:, :, 3:] / 255
    assert np.abs(load_image(pixels) - (pixels[:, :, :3] * alpha + 255 * (1 - alpha))).max() <= 0.5 + 1e-9


def test_the_same_image_through_every_door(tmp_path: Path) -> None:
    path = save(tmp_path / "Fläche 漢字 no. 1.png", Image.fromarray(RGB))
    for source in (path, str(path), path.read_bytes(), RGB, Image.fromarray(RGB)):
        np.testing.assert_array_equal(load_image(source), RGB)


# Scaling


def test_resize_is_antialiased_and_keeps_the_mean() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 254
    out = resize(stripes, 8)
    assert out.shape == (8, 8, 3)
    assert np.abs(out.astype(int) - 127).max() <= 16  # taking every eighth column would give 0 or 254
    np.testing.assert_array_equal(resize(RGB[:, :H], H), RGB[:, :H])
    np.testing.assert_array_equal(resize(np.full((9, 30, 3), 77, np.uint8), 5), 77)


def test_resize_mask_is_nearest() -> None:
    mask = np.random.default_rng(0).random((6, 9)) > 0.5
    np.testing.assert_array_equal(resize_mask(np.kron(mask[:, :6], np.ones((3, 3), bool)), 6), mask[:, :6])
    up = resize_mask(mask, 18)
    assert up.dtype == np.bool_
    np.testing.assert_array_equal(up, np.repeat(np.repeat(mask, 3, axis=0), 2, axis=1))


def test_a_size_below_one_is_refused() -> None:
    for call in (lambda: resize(RGB, 0), lambda: resize_mask(GREY > 1, -1), lambda: load_stack([RGB], 0)):
        with pytest.raises(SettingsError):
            call()


# Many at once


def test_a_stack_is_the_images_one_by_one_in_order(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sources: list[object] = []
    for index in range(23):
        pixels = generator.integers(0, 256, (20 + 7 * (index % 4), 30, 3), dtype=np.uint8)
        sources.append(save(tmp_path / f"{index}.png", Image.fromarray(pixels)) if index % 2 else pixels)
    ticks: list[tuple[int, int, str]] = []
    stack = load_stack(sources, 16, progress=lambda *tick: ticks.append(tick))  # type: ignore[arg-type]
    assert stack.shape == (23, 3, 16, 16)
    assert stack.dtype == np.uint8
    assert stack.flags.c_contiguous
    for image, source in zip(stack, sources, strict=True):
        np.testing.assert_array_equal(image.transpose(1, 2, 0), resize(load_image(source), 16))  # type: ignore[arg-type]
    assert ticks == [(done, 23, "reading images") for done in range(1, 24)]
    assert load_stack([], 16).shape == (0, 3, 16, 16)


def test_the_first_unreadable_image_of_a_stack_is_named_and_no_thread_stays(tmp_path: Path) -> None:
    before = threading.active_count()
    sources = [RGB] * 5 + [tmp_path / "first.png"] + [RGB] * 5 + [tmp_path / "second.png"]
    with pytest.raises(ImageError, match=r"first\.png"):
        load_stack(sources, 16)
    assert threading.active_count() == before


def test_a_stack_can_be_interrupted() -> None:
    read: list[int] = []

    class Counted(list[np.ndarray]):
        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            read.append(index)
            return super().__getitem__(index)

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_stack(Counted([np.zeros((400, 400, 3), np.uint8)] * 500), 64, progress=stop)
    assert len(read) < 500
