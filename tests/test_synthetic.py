from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from continuad.datasets.synthetic import PerlinAnomalies, perlin_noise
from continuad.datasets.textures import FolderTextures, ProceduralTextures
from continuad.errors import ImageError

quick = settings(max_examples=40, deadline=None)
sizes = st.sampled_from([1, 7, 32, 45, 64])
seeds = st.integers(0, 2**31)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def picture(size: int, seed: int = 0) -> NDArray[np.uint8]:
    return rng(seed).integers(0, 256, (3, size, size), dtype=np.uint8)


def white(_: np.random.Generator, size: int, /) -> NDArray[np.float32]:
    return np.full((3, size, size), 255, dtype=np.float32)


# --- Perlin noise ---------------------------------------------------------------------------------


def test_noise_is_zero_on_the_lattice_and_not_between() -> None:
    # 45 pixels, 3 x 5 cells: every 15th and every 9th pixel centre is a lattice point.
    noise = perlin_noise(rng(), 45, (3, 5), 0.0)
    rows, columns = np.arange(7, 45, 15), np.arange(4, 45, 9)
    assert np.abs(noise[np.ix_(rows, columns)]).max() < 1e-5
    assert np.abs(noise).mean() > 0.1
    assert np.abs(noise[np.ix_(rows + 7, columns + 4)]).max() > 0.2


@pytest.mark.parametrize("angle", [-1.5, 0.3, 1.0])
def test_the_lattice_turns_about_the_centre(angle: float) -> None:
    noise = perlin_noise(rng(), 33, (4, 4), angle)
    assert abs(noise[16, 16]) < 1e-5


def test_a_quarter_turn_turns_the_noise() -> None:
    straight = perlin_noise(rng(3), 32, (4, 4), 0.0)
    turned = perlin_noise(rng(3), 32, (4, 4), math.pi / 2)
    assert np.allclose(turned, np.rot90(straight), atol=1e-5)
    assert np.abs(np.diff(straight, axis=0)).max() < 0.5, "neighbours are close"


@quick
@given(size=sizes, rows=st.integers(1, 32), columns=st.integers(1, 32), angle=st.floats(-4, 4), seed=seeds)
def test_noise_is_bounded_finite_and_deterministic(
    size: int, rows: int, columns: int, angle: float, seed: int
) -> None:
    noise = perlin_noise(rng(seed), size, (rows, columns), angle)
    assert noise.shape == (size, size)
    assert noise.dtype == np.float32
    assert np.abs(noise).max() <= 1 + 1e-4
    assert np.array_equal(noise, perlin_noise(rng(seed), size, (rows, columns), angle))


def test_noise_is_centred_and_uses_its_range() -> None:
    draws = np.stack([perlin_noise(rng(seed), 32, (4, 8), seed / 10) for seed in range(100)])
    assert abs(draws.mean()) < 0.02
    assert draws.max() > 0.8
    assert draws.min() < -0.8


def test_more_cells_make_finer_noise() -> None:
    def roughness(cells: int) -> float:
        draws = [perlin_noise(rng(seed), 64, (cells, cells), 0.4) for seed in range(5)]
        return float(np.mean([np.abs(np.diff(noise, axis=0)).mean() for noise in draws]))

    assert 4 * roughness(2) < roughness(16)


# --- anomalies ------------------------------------------------------------------------------------


@quick
@given(size=st.sampled_from([1, 33, 64, 75]), seed=seeds)
def test_nothing_changes_outside_the_mask(size: int, seed: int) -> None:
    image = picture(size, seed)
    before = image.copy()
    corrupted, mask = PerlinAnomalies()(image, rng(seed))
    assert corrupted.shape == image.shape
    assert corrupted.dtype == np.uint8
    assert mask.shape == (size, size)
    assert mask.dtype == bool
    assert np.array_equal(corrupted[:, ~mask], image[:, ~mask])
    assert np.array_equal(image, before), "the original was written to"
    again, same = PerlinAnomalies()(image, rng(seed))
    assert np.array_equal(corrupted, again)
    assert np.array_equal(mask, same)


def test_most_of_the_mask_changes() -> None:
    image = picture(224)
    changed = [
        (corrupted != image).any(0)[mask].mean()
        for seed in range(20)
        for corrupted, mask in [PerlinAnomalies()(image, rng(seed))]
        if mask.any()
    ]
    assert min(changed) > 0.8


def test_masks_are_small_and_seldom_empty() -> None:
    anomalies = PerlinAnomalies(white)
    areas = np.array([anomalies(picture(64), rng(seed))[1].mean() for seed in range(300)])
    assert 0.03 < areas.mean() < 0.2
    assert 0 < (areas == 0).mean() < 0.4
    assert areas.max() < 0.7
    assert len(np.unique(areas)) > 100


def test_a_threshold_out_of_reach_leaves_the_image_alone() -> None:
    image = picture(64)
    corrupted, mask = PerlinAnomalies(threshold=1.1)(image, rng())
    assert not mask.any()
    assert np.array_equal(corrupted, image)


def test_the_texture_covers_a_fifth_to_all() -> None:
    # White over black: the brightness is the opacity.
    black = np.zeros((3, 48, 48), dtype=np.uint8)
    opacities = []
    for seed in range(200):
        corrupted, mask = PerlinAnomalies(white)(black, rng(seed))
        if mask.any():
            (level,) = np.unique(corrupted[:, mask])  # one opacity for the whole image
            opacities.append(level / 255)
    assert min(opacities) >= 0.2
    assert max(opacities) <= 1
    assert min(opacities) < 0.25
    assert max(opacities) > 0.95
    assert np.mean(opacities) == pytest.approx(0.6, abs=0.06)


def test_the_blend_by_hand() -> None:
    image = np.full((3, 48, 48), 101, dtype=np.uint8)
    corrupted, mask = PerlinAnomalies(white, max_opacity_loss=0.0)(image, rng(1))
    assert mask.any()
    assert (corrupted[:, mask] == 255).all()


@pytest.mark.parametrize("size", [224, 225, 100])
def test_networks_sizes(size: int) -> None:
    drawn = [PerlinAnomalies()(picture(size), rng(seed)) for seed in range(5)]
    assert {corrupted.shape for corrupted, _ in drawn} == {(3, size, size)}
    assert any(mask.any() for _, mask in drawn)


# --- textures drawn by code -----------------------------------------------------------------------


@quick
@given(size=sizes, seed=seeds)
def test_textures_have_the_stated_shape_and_range(size: int, seed: int) -> None:
    texture = ProceduralTextures()(rng(seed), size)
    assert texture.shape == (3, size, size)
    assert texture.dtype == np.float32
    assert texture.min() >= 0
    assert texture.max() <= 255
    assert np.array_equal(texture, ProceduralTextures()(rng(seed), size))


def test_textures_differ_in_kind() -> None:
    drawn = np.stack([ProceduralTextures()(rng(seed), 64) for seed in range(60)])
    contrast = drawn.std((2, 3)).max(1)
    assert (contrast < 15).any(), "plain ones"
    assert (contrast > 40).any(), "lively ones"
    assert (np.abs(drawn[:, 0] - drawn[:, 2]).mean((1, 2)) > 20).any(), "coloured ones"
    roughness = np.abs(np.diff(drawn, axis=2)).mean((1, 2, 3)) / (contrast + 1)
    assert roughness.max() > 5 * roughness.min(), "fine and coarse ones"
    assert drawn.mean() == pytest.approx(127, abs=25)


# --- textures of a folder -------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "deep").mkdir()
    Image.new("RGB", (30, 20), (250, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (8, 8), 77).save(tmp_path / "grey.png")
    Image.new("RGBA", (9, 12), (0, 0, 200, 255)).save(tmp_path / "deep" / "blue.png")
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_every_image_of_the_folder_is_drawn(folder: Path) -> None:
    textures = FolderTextures(folder)
    drawn = [textures(rng(seed), 16) for seed in range(40)]
    assert all(texture.shape == (3, 16, 16) and texture.dtype == np.float32 for texture in drawn)
    colours = {tuple(texture[:, 8, 8].tolist()) for texture in drawn}
    assert colours == {(250, 0, 0), (77, 77, 77), (0, 0, 200)}
    assert np.array_equal(textures(rng(3), 16), textures(rng(3), 16))


def test_folder_textures_are_blended_in(folder: Path) -> None:
    black = np.zeros((3, 32, 32), dtype=np.uint8)
    corrupted, mask = PerlinAnomalies(FolderTextures(str(folder / "red.png")), max_opacity_loss=0)(
        black, rng(1)
    )
    assert mask.any()
    assert (corrupted[:, mask] == np.array([[250], [0], [0]])).all()


def test_a_folder_without_images_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No image was found"):
        FolderTextures(tmp_path)
    with pytest.raises(ImageError, match="no file or folder"):
        FolderTextures(tmp_path / "dtd")


def test_a_damaged_texture_is_named(folder: Path) -> None:
    for name in ("red.png", "grey.png", "deep/blue.png"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"red\.png|grey\.png|blue\.png"):
        FolderTextures(folder)(rng(), 16)
