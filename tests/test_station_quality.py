"""The check of photos: every fault is named, with what to do, and faultless sets are left in peace."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from continuad.errors import StationError
from continuad.images import load_image
from continuad.inspector import ADVISED_IMAGES, MIN_IMAGES
from continuad.router import Vectors
from continuad.station.photo_sets import Photo
from continuad.station.quality import ENOUGH, Report, Traits, check, examine

Pixels = NDArray[np.uint8]

D = 16
BOLT, NUT, CAP = (np.eye(D, dtype=np.float32)[axis] * 30 for axis in range(3))
PATTERN = ndimage.gaussian_filter(np.random.default_rng(7).normal(0, 200, (32, 32)), 3) + 128


def traits(seed: int, centre: Vectors = BOLT, **changes: Any) -> Traits:
    """Of a normal photo, but for the changes."""
    rng = np.random.default_rng(seed)
    normal = Traits(
        sharpness=float(rng.normal(0.5, 0.03)),
        brightness=float(rng.normal(0.4, 0.01)),
        fingerprint=(PATTERN + rng.normal(0, 4, (32, 32))).astype(np.float16),
        embedding=(centre + rng.normal(0, 0.5, D)).astype(np.float32),
    )
    return replace(normal, **changes)


def photo(number: int, found: Traits | None, **changes: Any) -> Photo:
    normal = Photo(
        id=number,
        name=f"IMG_{number}.png",
        file="",
        width=640,
        height=480,
        bytes=1,
        sha256=f"{number:064}",
        traits=found and found.to_bytes(),
    )
    return replace(normal, **changes)


def set_of(count: int, centre: Vectors = BOLT, *, start: int = 0) -> list[Photo]:
    """Normal photos of one product."""
    return [photo(start + number, traits(start + number, centre)) for number in range(count)]


def kinds(report: Report) -> dict[int, list[str]]:
    return {number: [warning.kind for warning in found] for number, found in report.photos.items()}


def of_set(report: Report) -> list[str]:
    return [warning.kind for warning in report.warnings]


def texts(report: Report) -> list[str]:
    return [each.text for found in (report.warnings, *report.photos.values()) for each in found]


# traits


@settings(max_examples=50, deadline=None)
@given(st.floats(allow_nan=False), st.floats(0, 1), st.integers(0, 200), st.integers(0, 10**6))
def test_traits_come_back_bit_by_bit(sharpness: float, brightness: float, size: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    fingerprint = rng.uniform(0, 255, (32, 32)).astype(np.float16)
    embedding = rng.normal(0, 1e3, size).astype(np.float32)
    data = Traits(sharpness, brightness, fingerprint, embedding).to_bytes()
    again = Traits.from_bytes(data)
    assert (again.sharpness, again.brightness) == (sharpness, brightness)
    assert again.fingerprint.dtype == np.float16
    assert again.embedding.dtype == np.float32
    np.testing.assert_array_equal(again.fingerprint, fingerprint)
    np.testing.assert_array_equal(again.embedding, embedding)
    assert again.to_bytes() == data
    assert len(data) < 2100 + 4 * size


def test_damaged_traits_are_refused() -> None:
    whole = traits(1).to_bytes()
    for data in (b"", whole[:10], whole[:-1], whole + b"\0", b"X" + whole[1:]):
        with pytest.raises(StationError, match=r"cannot be read\. Remove the photo and add it again"):
            Traits.from_bytes(data)
        with pytest.raises(StationError):
            check([photo(1, None, traits=data)], {})


def scene(seed: int = 0, height: int = 240, width: int = 320) -> Pixels:
    """A picture with edges and texture."""
    rng = np.random.default_rng(seed)
    grey = np.full((height, width), 90.0)
    for _ in range(12):
        y, x = rng.integers(0, height - 30), rng.integers(0, width - 30)
        grey[y : y + rng.integers(10, 60), x : x + rng.integers(10, 60)] = rng.uniform(40, 160)
    grey += ndimage.gaussian_filter(rng.normal(0, 12, grey.shape), 0.7)
    return np.repeat(np.clip(np.rint(grey), 0, 255).astype(np.uint8)[:, :, None], 3, axis=2)


def blurred(image: Pixels, sigma: float) -> Pixels:
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (sigma, sigma, 0))
    return np.asarray(np.rint(smooth).astype(np.uint8))


def measured(image: Pixels) -> Traits:
    return examine(image, BOLT)


def test_blur_lowers_the_sharpness_step_by_step_and_contrast_hardly_changes_it() -> None:
    image = scene()
    values = [measured(blurred(image, sigma)).sharpness for sigma in (0, 0.6, 1, 1.5, 2.5)]
    assert np.diff(values[:4]).max() < -0.2
    assert values[4] < values[3]  # by now the detail is that of rounding to whole grey levels
    half = np.rint(image * 0.5).astype(np.uint8)
    assert measured(half).sharpness == pytest.approx(values[0], abs=0.05)


def test_brightness_is_the_mean_and_a_blank_photo_has_traits_too() -> None:
    for level in (0, 51, 255):
        found = measured(np.full((20, 30, 3), level, np.uint8))
        assert found.brightness == pytest.approx(level / 255)
        assert found.sharpness == 0
        assert (found.fingerprint == level).all()
    red = np.zeros((20, 20, 3), np.uint8)
    red[..., 0] = 255
    assert measured(red).brightness == pytest.approx(0.299, abs=0.003)  # BT.601


def test_the_fingerprint_is_the_mean_of_each_field() -> None:
    levels = np.random.default_rng(0).integers(0, 256, (64, 96), np.uint8)
    expected = levels.reshape(32, 2, 32, 3).mean((1, 3))
    found = measured(np.repeat(levels[:, :, None], 3, axis=2)).fingerprint
    np.testing.assert_allclose(found, expected, atol=0.13)  # half a step of float16 above 128, and rounding


@pytest.mark.parametrize("shape", [(8, 8), (8, 5000), (3000, 9)])
def test_pictures_of_any_shape_can_be_examined(shape: tuple[int, int]) -> None:
    found = measured(np.full((*shape, 3), 99, np.uint8))
    assert found.fingerprint.shape == (32, 32)
    assert np.isfinite(found.sharpness)


def test_what_the_network_cannot_see_does_not_count_as_detail() -> None:
    large = np.asarray(Image.fromarray(scene()).resize((2560, 1920), Image.Resampling.BICUBIC))
    assert measured(blurred(large, 1)).sharpness == pytest.approx(measured(large).sharpness, abs=0.05)


# faultless sets


@pytest.mark.parametrize("count", [20, 40, 60])
def test_a_clean_set_is_left_in_peace(count: int) -> None:
    report = check(set_of(count), {"nut": (NUT, 9.0)})
    assert report == Report((), {}, count)


def test_the_order_of_the_photos_does_not_change_who_is_blamed() -> None:
    photos = [*set_of(22), photo(50, traits(50, NUT)), photo(51, traits(51, sharpness=-0.5))]
    forth, back = check(photos, {}), check(photos[::-1], {})
    assert kinds(forth) == kinds(back) == {50: ["outlier"], 51: ["blurred"]}


def test_without_photos() -> None:
    report = check([], {"bolt": (BOLT, 9.0)})
    assert (of_set(report), report.photos, report.examined) == (["few"], {}, 0)


# too few


def test_too_few_and_better_more() -> None:
    assert of_set(check(set_of(MIN_IMAGES - 1), {})) == ["few"]
    assert texts(check(set_of(MIN_IMAGES - 2), {})) == [
        f"4 different photos are too few to teach a product. Add at least 2 more of good parts; "
        f"{ADVISED_IMAGES} are best."
    ]
    assert "will do" in texts(check(set_of(MIN_IMAGES), {}))[0]
    assert of_set(check(set_of(ENOUGH - 1), {})) == ["few"]
    assert of_set(check(set_of(ENOUGH), {})) == []


def test_copies_do_not_make_them_more() -> None:
    photos = [replace(each, id=100 + each.id) for each in set_of(5)]
    assert "5 different photos are too few" in texts(check([*set_of(5), *photos], {}))[0]


# copies


def recoded(image: Pixels, quality: int, width: int) -> Pixels:
    stream = io.BytesIO()
    small = Image.fromarray(image).resize((width, image.shape[0] * width // image.shape[1]))
    small.save(stream, "JPEG", quality=quality)
    return load_image(stream.getvalue())


def aligned(count: int) -> list[Pixels]:
    """Photos of parts in a fixture: one scene, a little noise in the parts and in the camera."""
    rng, base = np.random.default_rng(3), scene().astype(np.float64)
    found = []
    for _ in range(count):
        part = ndimage.gaussian_filter(rng.normal(0, 60, base.shape[:2]), 5)
        noisy = base + part[:, :, None] + rng.normal(0, 2, (*base.shape[:2], 1))
        found.append(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))
    return found


@pytest.mark.parametrize(("quality", "width"), [(60, 320), (80, 320), (90, 200)])
def test_another_encoding_is_a_copy_and_an_aligned_part_is_none(quality: int, width: int) -> None:
    images = aligned(24)
    copies = [recoded(image, quality, width) for image in images[:5]]
    photos = [photo(number, measured(image)) for number, image in enumerate([*images, *copies])]
    report = check(photos, {})
    assert kinds(report) == {24 + index: ["duplicate"] for index in range(5)}
    assert report.photos[26][0].text == (
        "Photo IMG_26.png is the same picture as IMG_2.png. "
        "Remove one of the two: a copy teaches nothing new."
    )


def test_the_same_bytes_are_a_copy_before_anything_was_examined() -> None:
    photos = [
        photo(number, None, sha256="a" if number in (3, 8, 15) else str(number)) for number in range(20)
    ]
    report = check(photos, {})
    assert kinds(report) == {8: ["duplicate"], 15: ["duplicate"]}
    assert all("as IMG_3.png" in found[0].text for found in report.photos.values())
    assert report.examined == 0


def test_of_a_few_photos_copies_are_found_too() -> None:
    one, two = traits(1), traits(2)
    near = replace(one, fingerprint=one.fingerprint + np.float16(0.5))
    assert kinds(check([photo(1, one), photo(2, two), photo(3, near)], {})) == {3: ["duplicate"]}
    assert kinds(check([photo(1, one), photo(2, two)], {})) == {}


# badly taken


@pytest.mark.parametrize(
    ("kind", "changes", "text"),
    [
        ("blurred", {"sharpness": 0.2}, "is blurred compared with the others. Take it again or remove it."),
        ("dark", {"brightness": 0.2}, "is darker than the others. Check the light and take it again, or"),
        ("bright", {"brightness": 0.7}, "is brighter than the others. Check the light and take it again"),
        ("dark", {"brightness": 0.0}, "is darker"),
        ("bright", {"brightness": 1.0}, "is brighter"),
    ],
)
def test_a_bad_shot_is_one_compared_with_the_others(kind: str, changes: dict[str, Any], text: str) -> None:
    photos = [*set_of(25), photo(77, traits(77, **changes))]
    report = check(photos, {})
    assert kinds(report) == {77: [kind]}
    assert report.photos[77][0].text.startswith(f"Photo IMG_77.png {text}")
    assert of_set(report) == []


def test_a_scattered_set_forgives_what_an_even_one_does_not() -> None:
    even = set_of(25)
    rough = [
        photo(number, traits(number, sharpness=float(s))) for number, s in enumerate(np.linspace(0, 1, 25))
    ]
    odd = photo(77, traits(77, sharpness=-0.1))
    assert kinds(check([*even, odd], {})) == {77: ["blurred"]}
    assert kinds(check([*rough, odd], {})) == {}


def test_small_differences_in_a_perfectly_even_set_are_nothing() -> None:
    photos = [photo(number, traits(number, sharpness=0.5, brightness=0.4)) for number in range(24)]
    photos.append(photo(50, traits(50, sharpness=0.35, brightness=0.3)))
    assert kinds(check(photos, {})) == {}


def test_bad_shots_that_look_different_to_the_network_are_not_another_product() -> None:
    soft = [photo(number, traits(number, NUT, sharpness=-1.5)) for number in range(50, 54)]
    unlit = [photo(60, traits(60, CAP, brightness=0.001, fingerprint=np.zeros((32, 32), np.float16)))]
    report = check([*set_of(25), *soft, *unlit], {})
    assert kinds(report) == {**{number: ["blurred"] for number in range(50, 54)}, 60: ["dark"]}
    assert of_set(report) == []


# other products


def looking_otherwise(photos: Sequence[Photo]) -> list[Photo]:
    """The photos with another part in them."""
    found = []
    for each in photos:
        assert each.traits is not None
        old = Traits.from_bytes(each.traits)
        turned = np.ascontiguousarray(old.fingerprint.T[::-1])
        found.append(replace(each, traits=replace(old, fingerprint=turned).to_bytes()))
    return found


@pytest.mark.parametrize(("many", "few"), [(20, 20), (32, 8), (16, 4)])
def test_two_products_are_a_mixture(many: int, few: int) -> None:
    others = looking_otherwise(set_of(few, NUT, start=100))
    report = check([*set_of(many), *others], {})
    assert of_set(report) == ["mixture"]
    assert kinds(report) == {100 + number: ["mixture"] for number in range(few)}
    assert report.warnings[0].text == (
        f"The photos seem to show 2 different products: {many} like IMG_0.png, {few} like IMG_100.png. "
        "Teach one product at a time: remove the photos of the others."
    )


def test_what_remains_without_the_warned_is_a_clean_set() -> None:
    photos = [*set_of(30), *set_of(9, NUT, start=100), *set_of(2, CAP, start=200)]
    photos += [replace(photos[0], id=300), photo(301, traits(301, sharpness=-1.0))]
    first = check(photos, {})
    assert sorted(first.photos) == [*range(100, 109), 200, 201, 300, 301]
    assert check([each for each in photos if each.id not in first.photos], {}) == Report((), {}, 30)


@pytest.mark.parametrize("strays", [1, 2])
def test_strays_are_outliers(strays: int) -> None:
    report = check([*set_of(30), *looking_otherwise(set_of(strays, NUT, start=100))], {})
    assert kinds(report) == {100 + number: ["outlier"] for number in range(strays)}
    assert of_set(report) == []


def test_bad_shots_are_found_within_each_product() -> None:
    others = [photo(number, traits(number, NUT, brightness=0.8, sharpness=2.0)) for number in range(100, 110)]
    others.append(photo(110, traits(110, NUT, brightness=0.8, sharpness=1.0)))
    found = kinds(check([*set_of(30), *looking_otherwise(others)], {}))
    assert found == {**{number: ["mixture"] for number in range(100, 110)}, 110: ["mixture", "blurred"]}


def test_photos_of_anything_have_nothing_in_common() -> None:
    centres = np.eye(D, dtype=np.float32) * 30
    report = check([photo(number, traits(number, centre)) for number, centre in enumerate(centres[:8])], {})
    assert of_set(report) == ["few", "mixture"]
    assert "little in common" in report.warnings[1].text


# known products


def test_a_set_that_shows_a_known_product() -> None:
    report = check(set_of(30), {"nut": (NUT, 9.0), "bolt": (BOLT, 6.0), "bolt 2": (BOLT + 1, 9.0)})
    assert of_set(report) == ["known"]
    assert "look like the product bolt, which is known already" in report.warnings[0].text
    assert report.photos == {}


def test_a_generous_limit_alone_does_not_make_a_product_known() -> None:
    apart = float(np.linalg.norm(BOLT - NUT))
    assert of_set(check(set_of(30), {"nut": (NUT, 1.2 * apart)})) == []
    assert of_set(check(set_of(30), {"nut": (NUT, 2.2 * apart)})) == ["known"]


def test_strays_and_parties_that_are_known() -> None:
    learnt = {"nut": (NUT, 6.0), "cap": (CAP, 6.0)}
    photos = [*set_of(30), *set_of(1, NUT, start=100), *set_of(8, CAP, start=200)]
    found = kinds(check(photos, learnt))
    assert found == {100: ["outlier", "known"], **{200 + number: ["mixture", "known"] for number in range(8)}}


# sizes


def test_another_size_or_shape() -> None:
    photos = set_of(24)
    photos[3] = replace(photos[3], width=480, height=640)
    photos[4] = replace(photos[4], width=200, height=150)
    photos[5] = replace(photos[5], width=800, height=600)
    photos[6] = replace(photos[6], width=660)
    report = check(photos, {})
    assert kinds(report) == {3: ["size"], 4: ["size"]}
    assert report.photos[3][0].text == (
        "Photo IMG_3.png has another size or shape (480 x 640) than the others. "
        "Take it again as the others were taken, or remove it."
    )


def test_a_set_of_many_shapes_is_left_in_peace() -> None:
    rng = np.random.default_rng(0)
    photos = [replace(each, width=int(rng.integers(200, 900)), height=400) for each in set_of(24)]
    assert kinds(check(photos, {})) == {}


def test_photos_that_wait_for_their_examination_are_judged_by_what_is_known() -> None:
    waiting = [photo(number, None) for number in range(50, 60)]
    waiting[2] = replace(waiting[2], height=1280)
    report = check([*set_of(15), *waiting], {})
    assert (kinds(report), of_set(report), report.examined) == ({52: ["size"]}, [], 15)
