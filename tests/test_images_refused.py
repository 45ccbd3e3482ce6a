from __future__ import annotations

import io
import os
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from continuad.errors import ImageError
from continuad.images import load_image

H, W = 24, 20
RGB = np.random.default_rng(0).integers(0, 256, (H, W, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def refuse(source: object, *, names: str) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source)  # type: ignore[arg-type]
    assert names in caught.value.problem
    assert caught.value.remedy
    return str(caught.value)


def test_what_is_no_image_is_refused_by_name(tmp_path: Path) -> None:
    assert "folder" in refuse(tmp_path, names=str(tmp_path))
    assert "No such file" in refuse(tmp_path / "no.png", names="no.png")
    (tmp_path / "empty.png").touch()
    assert "empty" in refuse(tmp_path / "empty.png", names="empty.png")
    (tmp_path / "text.png").write_text("not an image at all, though long enough to be one " * 9)
    assert "unknown kind" in refuse(tmp_path / "text.png", names="text.png")
    refuse(b"", names="given as bytes")
    refuse(b"junk", names="given as bytes")
    refuse("x" * 5000, names="xxx")
    refuse("a\0b.png", names="b.png")
    refuse(None, names="NoneType")
    refuse([1, 2], names="list")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    assert "regular file" in refuse(tmp_path / "pipe.png", names="pipe.png")


@pytest.mark.parametrize(
    "url", ["https://example.com/a.png", "HTTP://x/a.jpg", "s3://b/k.png", "file:///a.png"]
)
def test_a_web_address_is_refused(url: str) -> None:
    assert "web address" in refuse(url, names=url)


def test_formats_that_are_not_listed_are_refused() -> None:
    assert "unknown kind" in refuse(encoded(Image.fromarray(RGB[:, :, 0]), "GIF"), names="given as bytes")
    assert "unknown kind" in refuse(encoded(Image.fromarray(RGB), "EPS"), names="given as bytes")


def test_small_images_are_refused() -> None:
    assert "7 x 9" in refuse(encoded(Image.new("RGB", (7, 9)), "PNG"), names="given as bytes")
    assert load_image(Image.new("RGB", (8, 8), "white")).min() == 255


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def test_a_header_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    header = (50_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    body = (
        png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000))) + png_chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert "50000 x 50000" in refuse(tmp_path / "bomb.png", names="bomb.png")
    ppm = b"P6 50000 50000 255\n" + bytes(100)
    assert "50000 x 50000" in refuse(ppm, names="given as bytes")
    refuse(Image.Image(), names="PIL image")


def test_the_pixel_limit_is_ours_and_pillows_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 5)
    np.testing.assert_array_equal(load_image(data, max_pixels=H * W), RGB)
    assert Image.MAX_IMAGE_PIXELS == 5
    for source in (data, RGB, Image.fromarray(RGB)):
        with pytest.raises(ImageError, match="limit of 479"):
            load_image(source, max_pixels=H * W - 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_anywhere_is_refused_or_whole(tmp_path: Path, kind: str) -> None:
    image = Image.fromarray(RGB)
    data = encoded(image, kind)
    whole = load_image(data)
    path = tmp_path / f"cut.{kind.lower()}"
    refused = whole_again = 0
    lengths = [*range(40), *range(40, len(data) - 40, 37), *range(len(data) - 40, len(data))]
    for length in lengths:
        path.write_bytes(data[:length])
        try:
            out = load_image(path)
        except ImageError as error:
            refused += str(path) in error.problem
        else:
            whole_again += 1
            np.testing.assert_array_equal(out, whole)
    assert whole_again < 40  # only trailing bookkeeping may be missing
    assert refused == len(lengths) - whole_again


@settings(deadline=None, max_examples=150)
@given(
    prefix=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"BM", b"II*\0", b"MM\0*", b"P6 9 9 "]
    ),
    junk=st.binary(max_size=200),
)
def test_random_bytes_are_always_refused_in_a_sentence(prefix: bytes, junk: bytes) -> None:
    refuse(prefix + junk, names="The image given as bytes")


BASES = {kind: encoded(Image.fromarray(RGB), kind) for kind in ("PNG", "JPEG", "TIFF", "WEBP", "BMP")}


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(sorted(BASES)), st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), min_size=1)
)
def test_flipped_bytes_never_crash(kind: str, changes: list[tuple[int, int]]) -> None:
    data = bytearray(BASES[kind])
    for position, value in changes:
        data[position % len(data)] = value
    try:
        out = load_image(bytes(data))
    except ImageError:
        return
    assert out.dtype == np.uint8
    assert out.shape[2:] == (3,)


def test_no_warning_leaks_and_the_filters_are_left_as_they_were() -> None:
    data = encoded(Image.fromarray(RGB), "PNG")
    header = data.index(b"IHDR") + 4 + 13 + 4
    data = data[:header] + png_chunk(b"acTL", bytes(8)) + data[header:]  # an animation of no frames
    with pytest.warns(UserWarning, match="Invalid APNG"), Image.open(io.BytesIO(data)):
        pass
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = list(warnings.filters)
        threads = [threading.Thread(target=load_image, args=(data,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        np.testing.assert_array_equal(load_image(data), RGB)
        assert list(warnings.filters) == before
        warnings.warn("still heard", UserWarning, stacklevel=1)
    assert [str(entry.message) for entry in caught] == ["still heard"]
