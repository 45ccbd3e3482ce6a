from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from continuad.errors import ImageError
from continuad.images import load_mask

H, W = 10, 14
GREY = (np.arange(H * W, dtype=np.uint8).reshape(H, W) * 7) % 251


def save(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)
    return path


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    truth = GREY > 100
    path = save(tmp_path / "a.png", Image.fromarray(truth * np.uint8(255)))
    for source in (
        path,
        Image.fromarray(truth),
        truth,
        truth * np.uint8(255),
        truth.astype(float),
        truth[:, :, None],
    ):
        out = load_mask(source)
        assert out.dtype == np.bool_
        np.testing.assert_array_equal(out, truth)
    np.testing.assert_array_equal(load_mask(np.zeros((H, W), np.uint8)), False)
    assert not np.shares_memory(load_mask(truth), truth)


def test_labels_are_all_anomalous(tmp_path: Path) -> None:
    labels = GREY % 4
    path = save(tmp_path / "a.png", Image.fromarray(labels))
    np.testing.assert_array_equal(load_mask(path), labels > 0)
    np.testing.assert_array_equal(load_mask(labels.astype(np.uint16)), labels > 0)
    paletted = Image.frombytes("P", (W, H), labels.tobytes())
    paletted.putpalette([0, 0, 0, 250, 0, 0, 0, 3, 0, 90, 90, 90])
    np.testing.assert_array_equal(load_mask(save(tmp_path / "b.png", paletted)), labels > 0)


def test_ringing_and_blur_do_not_grow_a_mask(tmp_path: Path) -> None:
    truth = np.zeros((48, 48), bool)
    truth[13:31, 10:22] = True
    path = save(tmp_path / "a.jpg", Image.fromarray(truth * np.uint8(255)), quality=70)
    with Image.open(path) as image:
        assert len(np.unique(np.asarray(image))) > 4
    np.testing.assert_array_equal(load_mask(path), truth)
    np.testing.assert_array_equal(
        load_mask(np.array([[0, 127, 128, 255] * 2] * 8, np.uint8))[0, :4], [0, 0, 1, 1]
    )


def test_colour_masks_and_transparent_ones() -> None:
    truth = GREY > 100
    red = np.zeros((H, W, 3), np.uint8)
    red[truth, 0] = 255
    np.testing.assert_array_equal(load_mask(red), truth)
    np.testing.assert_array_equal(
        load_mask(np.dstack([np.full((H, W, 3), 200), truth * 255]).astype(np.uint8)), truth
    )


def test_a_damaged_mask_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "mask.png", Image.fromarray(GREY))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(ImageError, match=r"mask\.png"):
        load_mask(path)
