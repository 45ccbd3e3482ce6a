from __future__ import annotations

import io
import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from conftest import QUICK, Photo, contents, leftovers, new_bank, photos, same, snapshot, teach
from continuad import Inspector, Verdict
from continuad.backbones import checkpoint, create_backbone, fingerprint
from continuad.continual import RoutingSettings
from continuad.datasets import hold_out
from continuad.detectors import METHODS
from continuad.errors import BankError, ImageError, ProductError, SettingsError
from continuad.images import MIN_SIDE, load_stack
from continuad.inspector import Calibration, Product
from continuad.inspector.calibration import threshold

STRANGER = np.zeros((48, 48, 3), np.uint8)


def png(image: Photo) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    return stream.getvalue()


def agree(one: Verdict, other: Verdict) -> bool:
    """Whether verdicts from different batches agree.

    A convolution over another batch size may round its float32 results differently. An INT8 adapter can carry
    that over the edge to the next of its 256 levels, which moves single pixels: hence the mean is held to
    float32's precision and single pixels to a few levels.
    """
    if (one.product, one.nearest) != (other.product, other.nearest):
        return False
    if not math.isclose(one.distance, other.distance, rel_tol=1e-3):
        return False
    if one.anomaly_map is None or other.anomaly_map is None:
        return one.anomaly_map is other.anomaly_map
    differences = np.abs(one.anomaly_map - other.anomaly_map)
    return bool(differences.mean() <= 1e-4 * one.score and differences.max() <= 0.02 * one.score)


# Learning.


@pytest.mark.parametrize("head", ["adapts-s", "adapts-m", "adapts-l"])
def test_nothing_is_forgotten(tmp_path: Path, head: str) -> None:
    inspector = new_bank(tmp_path / "bank")
    teach(inspector, "bolt", head=head)
    images = [*photos("bolt", 3, seed=1), STRANGER]
    before, frozen = inspector.inspect(images), fingerprint(inspector.backbone)
    file = snapshot(tmp_path)[f"bank/{inspector.product('bolt').file}"]
    for name in ("plate", "screw"):
        teach(inspector, name, head="adapts-l")
    for other in (inspector, Inspector.open(tmp_path / "bank")):
        after = other.inspect(images)
        assert [v.product for v in after] == ["bolt", "bolt", "bolt", None]
        assert all(same(one, two) for one, two in zip(before[:3], after[:3], strict=True))
        assert fingerprint(other.backbone) == frozen
    assert snapshot(tmp_path)[f"bank/{inspector.product('bolt').file}"] == file


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    banks = [new_bank(tmp_path / str(number)) for number in range(3)]
    for number, (inspector, seed) in enumerate(zip(banks, (5, 5, 6), strict=True)):
        torch.manual_seed(number)
        np.random.seed(number)  # noqa: NPY002 - whatever the caller did with it must not matter
        for head in ("adapts-s", "adapts-l"):
            teach(inspector, head, head=head, seed=seed)
    one, two, other = (snapshot(tmp_path / str(number)) for number in range(3))
    files = [file for each in banks[0].products.values() for file in (each.file, each.samples)]
    assert [one[file] for file in files] == [two[file] for file in files]
    assert contents(banks[0]) == contents(banks[1])
    assert all(one[file] != other[file] for file in files)


def test_learning_leaves_the_random_state_of_the_caller_alone(inspector: Inspector) -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    teach(inspector, "screw")
    assert torch.rand(1) == expected


def test_a_bank_holds_all_that_it_needs(tmp_path: Path) -> None:
    network = create_backbone("tiny", weights="random")
    shuffled = {name: tensor.flip(0).contiguous() for name, tensor in checkpoint(network).items()}
    weights = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(shuffled, weights)
    place = tmp_path / "bank"
    inspector = Inspector.create(place, backbone="tiny", weights=str(weights), image_size=32)
    teach(inspector, "bolt")
    weights.unlink()
    image = photos("bolt", 1, seed=1)[0]
    assert fingerprint(inspector.backbone) != fingerprint(network)
    assert same(Inspector.open(place).inspect(image), inspector.inspect(image))


def test_a_copied_bank_gives_the_same_verdicts_in_a_new_process(folder: Path, tmp_path: Path) -> None:
    images = photos("bolt", 2, seed=1) + photos("plate", 2, seed=1)
    verdicts = Inspector.open(folder).inspect(images)
    copy = shutil.copytree(folder, tmp_path / "elsewhere ü" / "copy")
    shutil.rmtree(folder)
    np.save(tmp_path / "images.npy", np.stack(images))
    script = """
import sys, numpy, torch
torch.set_num_threads(1)
from continuad import Inspector
verdicts = Inspector.open(sys.argv[1]).inspect(list(numpy.load(sys.argv[2])))
numpy.save(sys.argv[3], [v.anomaly_map for v in verdicts])
print(*[f"{v.product} {v.score.hex()} {v.threshold.hex()} {v.distance.hex()}" for v in verdicts], sep="\\n")
"""
    files = [str(copy), str(tmp_path / "images.npy"), str(tmp_path / "maps.npy")]
    printed = subprocess.run(  # only what continuad says: numeric libraries may greet on stdout
        [sys.executable, "-c", script, *files], check=True, capture_output=True, text=True
    ).stdout.splitlines()[-len(images) :]
    assert printed == [
        f"{v.product} {v.score.hex()} {v.threshold.hex()} {v.distance.hex()}" for v in verdicts
    ]
    assert np.load(tmp_path / "maps.npy").tobytes() == np.stack([v.anomaly_map for v in verdicts]).tobytes()


def test_what_is_known_of_a_product(inspector: Inspector) -> None:
    bolt, plate = inspector.products.values()
    assert (bolt.name, bolt.method, bolt.taps) == ("bolt", "adapts-s", ("layer2",))
    assert (plate.name, plate.method, plate.taps) == ("plate", "adapts-l", ("layer2", "layer3"))
    assert (bolt.images, len(bolt.calibration.scores)) == (4, 3)  # of 7 photos
    assert bolt.settings["training"]["epochs"] == 1
    assert bolt.learnt.endswith("+00:00")
    assert bolt.seconds > 0


def test_the_held_out_scores_are_those_of_inspection(inspector: Inspector) -> None:
    scores = [verdict.score for verdict in inspector.inspect(photos("plate", 7))]
    for score in inspector.product("plate").calibration.scores:
        assert min(abs(score - each) for each in scores) < 1e-5 * score


def test_equal_photos_are_a_product_too(inspector: Inspector) -> None:
    image = photos("screw", 1)[0]
    inspector.learn("screw", [image] * 6, head="adapts-s", settings=QUICK)
    verdict = inspector.inspect(image)
    assert (verdict.product, verdict.label) == ("screw", "normal")
    assert verdict.distance < 1


def test_photos_come_from_a_list_a_folder_or_a_pattern(tmp_path: Path) -> None:
    good = tmp_path / "photos" / "good"
    good.mkdir(parents=True)
    images = photos("bolt", 7)
    for number, image in enumerate(images):
        (good / f"{number}.png").write_bytes(png(image))
    inspector = new_bank(tmp_path / "bank")
    inspector.learn("list", images, head="adapts-s", settings=QUICK)
    inspector.learn("folder", tmp_path / "photos", head="adapts-s", settings=QUICK)
    inspector.learn("pattern", str(good / "*.png"), head="adapts-s", settings=QUICK)
    one, *others = contents(inspector).values()
    assert others == [one, one]


def test_progress_is_told(inspector: Inspector) -> None:
    told: list[tuple[int, int, str]] = []
    teach(inspector, "screw", progress=lambda *step: told.append(step))
    assert {what for _, _, what in told} >= {"reading images", "training"}
    assert all(0 < done <= total for done, total, _ in told)
    assert told[-1][0] == told[-1][1]


# Names.


@pytest.mark.parametrize(
    "names",
    [
        ("Flaschenverschluß №7", "ボトル", "🔩"),
        ("a/b", "a\\b", "../../etc/passwd", "/", ".", "..", "~", "C:"),
        ("A b", "a-b", "a_b", "a b", "a.b"),
        ("x" * 80, "x" * 79 + "y", "é" * 80),
        ("manifest.json", "nul", "products", "prototype", "*", "%s", "{}", "'"),
    ],
    ids=["unicode", "paths", "one slug", "long", "special"],
)
def test_products_may_have_any_printable_name(folder: Path, names: tuple[str, ...]) -> None:
    outside = snapshot(folder.parent).keys()
    inspector = Inspector.open(folder)
    for name in names:
        teach(inspector, name)
    again = Inspector.open(folder)
    assert list(again.products) == ["bolt", "plate", *names]
    for name in names:
        image = photos(name, 1)[0]
        assert again.inspect(image, product=name).product == name
        assert same(again.inspect(image), inspector.inspect(image))
    new = snapshot(folder.parent).keys() - outside
    assert len(new) == 2 * len(names)
    assert all(Path(each).parent.as_posix() == f"{folder.name}/products" for each in new)
    for name in names:
        again.forget(name)
    assert snapshot(folder.parent).keys() == outside


def test_blanks_around_a_name_are_dropped(inspector: Inspector) -> None:
    inspector.learn("  screw ", photos("screw", 6), head="adapts-s", settings=QUICK)
    assert "screw" in inspector.products


@pytest.mark.parametrize("name", ["", " ", "x" * 81, "a\nb", "a\tb", "a\0b", "\x1b[31m", "\u200b", "\ud800"])
def test_names_that_cannot_be_used(folder: Path, name: str) -> None:
    before = snapshot(folder)
    with pytest.raises(ProductError, match=r"cannot be the name of a product\. Use 1 to 80 printable"):
        Inspector.open(folder).learn(name, photos("screw", 6))
    assert snapshot(folder) == before


# What is refused leaves everything as it was.


@pytest.mark.parametrize(
    ("refused", "error", "sentence"),
    [
        (lambda i: teach(i, "bolt"), ProductError, r"knows 'bolt' already\. Choose another name"),
        (lambda i: i.learn("screw", photos("screw", 5)), ImageError, r"5 images are too few .* at least 6"),
        (lambda i: i.learn("screw", []), ImageError, r"0 images are too few"),
        (lambda i: i.learn("screw", "/no/where"), ImageError, r"no file or folder /no/where"),
        (lambda i: i.learn("screw", [*photos("screw", 6), b"GIF89a"]), ImageError, r"of an unknown kind"),
        (lambda i: i.learn("screw", [*photos("screw", 6), None]), ImageError, r"NoneType is not an image"),
        (lambda i: teach(i, "screw", head="adapts-xl"), SettingsError, r"no method named 'adapts-xl'"),
        (
            lambda i: i.learn("screw", photos("screw", 6), settings={"taps": ["x"]}),
            SettingsError,
            "no block 'x'",
        ),
        (lambda i: i.learn("screw", photos("screw", 6), settings={"x": 1}), SettingsError, "no setting 'x'"),
        (lambda i: teach(i, "screw", false_alarm_rate=0.0), SettingsError, "rate of 0 cannot be calibrated"),
        (lambda i: teach(i, "screw", false_alarm_rate=0.5), SettingsError, r"rate of 0\.5 cannot"),
        (lambda i: teach(i, "screw", false_alarm_rate=-1), SettingsError, "rate of -1 cannot"),
        (lambda i: teach(i, "screw", false_alarm_rate=math.nan), SettingsError, "rate of nan cannot"),
        (lambda i: i.recalibrate("bolt", false_alarm_rate=0.0), SettingsError, "rate of 0 cannot"),
        (lambda i: i.recalibrate("bolt", false_alarm_rate=1.0), SettingsError, "rate of 1 cannot"),
        (lambda i: i.recalibrate("bolt", images=photos("bolt", 1)), SettingsError, "1 scores do not make"),
        (lambda i: i.recalibrate("bolt", images=[b"", b""]), ImageError, "is empty"),
        (
            lambda i: i.recalibrate("nut"),
            ProductError,
            r"no product called 'nut'\. Its products: bolt, plate",
        ),
        (lambda i: i.forget("nut"), ProductError, r"no product called 'nut'\. Its products: bolt, plate"),
        (
            lambda i: i.inspect(STRANGER, product="nut"),
            ProductError,
            r"No product is called 'nut'\. Learn it",
        ),
        (lambda i: i.inspect([STRANGER, b"GIF89a"]), ImageError, "of an unknown kind"),
        (lambda i: i.inspect(np.zeros((2, 48, 48, 3), np.uint8)), ImageError, r"shape \(2, 48, 48, 3\)"),
        (lambda i: next(i.stream([STRANGER], batch_size=0)), SettingsError, "batch of 0 images"),
    ],
)
def test_what_is_refused_changes_nothing(
    folder: Path, refused: Callable[[Inspector], object], error: type[Exception], sentence: str
) -> None:
    before, inspector = snapshot(folder), Inspector.open(folder)
    with pytest.raises(error, match=sentence):
        refused(inspector)
    assert snapshot(folder) == before
    assert inspector.inspect(photos("bolt", 1)[0]).product == "bolt"


def test_a_bad_image_file_is_named(folder: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    for number, image in enumerate(photos("screw", 9)):
        (good / f"{number}.png").write_bytes(png(image)[: 200 if number == 6 else None])
    before, inspector = snapshot(folder), Inspector.open(folder)
    for refused in (
        lambda: inspector.learn("screw", good),
        lambda: inspector.recalibrate("bolt", images=good),
        lambda: inspector.inspect(sorted(good.iterdir())),
    ):
        with pytest.raises(ImageError, match=r"6\.png cannot be decoded"):
            refused()
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"image_size": 16}, "image size of 16"),
        ({"image_size": 4096}, "image size of 4096"),
        ({"backbone": "tinny"}, "Did you mean 'tiny'"),
        ({"routing": RoutingSettings("layer9")}, "no block 'layer9'"),
    ],
)
def test_a_bank_that_cannot_be_created_is_not_there(
    tmp_path: Path, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(SettingsError, match=sentence):
        Inspector.create(tmp_path / "bank", **{"backbone": "tiny", "weights": "random", **options})
    assert snapshot(tmp_path) == {}


# Inspection.


def test_one_image_or_a_list(inspector: Inspector) -> None:
    image = photos("bolt", 1, seed=1)[0]
    verdict = inspector.inspect(image)
    assert isinstance(verdict, Verdict)
    (listed,) = inspector.inspect([image])
    assert same(verdict, listed)
    assert inspector.inspect([]) == []
    assert new_bank(inspector.bank.path.with_name("empty")).inspect([]) == []
    assert len(inspector.inspect(tuple(photos("bolt", 3)))) == 3


@pytest.mark.parametrize("count", [3, 8, 13])
def test_a_mixed_batch_equals_one_by_one(inspector: Inspector, count: int) -> None:
    teach(inspector, "screw", head="adapts-m")
    pairs = zip(
        photos("bolt", 5, seed=1), photos("plate", 5, seed=1), photos("screw", 5, seed=1), strict=True
    )
    images = [image for trio in pairs for image in trio][:count]
    images[1] = STRANGER
    together = inspector.inspect(images)
    assert [v.product for v in together[:3]] == ["bolt", None, "screw"]
    for image, verdict in zip(images, together, strict=True):
        assert agree(verdict, inspector.inspect(image))


def test_any_source_gives_the_same_verdict(inspector: Inspector, tmp_path: Path) -> None:
    image = photos("bolt", 1, seed=1)[0]
    data = png(image)
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    expected = inspector.inspect(image)
    for source in (path, str(path), data, Image.fromarray(image), image.astype(np.float32) / 255):
        assert same(inspector.inspect(source), expected)


@pytest.mark.parametrize(
    ("height", "width"), [(32, 32), (MIN_SIDE, MIN_SIDE), (MIN_SIDE, 333), (37, 91), (1200, 1601)]
)
@pytest.mark.parametrize("product", ["bolt", "plate"])
def test_the_map_has_the_size_of_the_image_and_the_scale_of_the_score(
    inspector: Inspector, height: int, width: int, product: str
) -> None:
    image = photos(product, 1, height=height, width=width)[0]
    image[: height // 3, : width // 3] = 255
    verdict = inspector.inspect(image, product=product)
    assert verdict.anomaly_map is not None
    assert verdict.anomaly_map.shape == (height, width)
    assert verdict.anomaly_map.dtype == np.float32
    assert np.isfinite(verdict.anomaly_map).all()
    assert 0.9 * verdict.score < verdict.anomaly_map.max() <= verdict.score


def test_rounding_lifts_no_map_above_its_score(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    # Interpolation between equal values may round up in float32.
    plateau = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)).clamp(max=0.5171)
    monkeypatch.setattr(METHODS["adapts-s"].detector, "anomaly_maps", lambda *_: plateau)
    for size in range(MIN_SIDE, 300, 5):
        verdict = inspector.inspect(np.zeros((size, 100, 3), np.uint8), product="bolt")
        assert verdict.anomaly_map is not None
        assert verdict.anomaly_map.max() <= verdict.score


@pytest.mark.parametrize("side", ["left", "right", "top", "bottom"])
def test_a_map_lies_where_the_defect_is(inspector: Inspector, side: str) -> None:
    # "bolt" looks at a grid of 4 x 4; its outermost cells do not see the opposite fifth of the image.
    image = photos("bolt", 1, height=80, width=160)[0]
    spoilt = image.copy()
    near, far = {
        "left": (np.s_[:, :30], np.s_[:, 120:]),
        "right": (np.s_[:, 130:], np.s_[:, :40]),
        "top": (np.s_[:15], np.s_[60:]),
        "bottom": (np.s_[65:], np.s_[:20]),
    }[side]
    spoilt[near] = 255 - spoilt[near]
    one, other = (inspector.inspect(each, product="bolt") for each in (image, spoilt))
    assert one.anomaly_map is not None
    assert other.anomaly_map is not None
    change = np.abs(one.anomaly_map - other.anomaly_map)
    assert change[near].max() > 0.01 * one.score
    assert change[far].max() < 1e-5 * one.score


def test_a_named_product_is_not_recognised(inspector: Inspector) -> None:
    image = photos("plate", 1, seed=1)[0]
    as_bolt, as_plate = (inspector.inspect(image, product=name) for name in ("bolt", "plate"))
    assert (as_bolt.product, as_bolt.nearest) == ("bolt", None)
    assert math.isnan(as_bolt.distance)
    assert as_bolt.threshold == inspector.product("bolt").calibration.threshold
    assert as_bolt.score != as_plate.score
    recognised = inspector.inspect(image)
    assert (recognised.product, recognised.nearest) == ("plate", "plate")
    assert recognised.score == as_plate.score


def test_an_image_of_no_product_is_unknown(inspector: Inspector) -> None:
    verdict = inspector.inspect(STRANGER)
    assert (verdict.product, verdict.label, verdict.is_anomalous) == (None, "unknown", None)
    assert verdict.anomaly_map is None
    assert math.isnan(verdict.score)
    assert math.isnan(verdict.threshold)
    assert verdict.nearest in inspector.products
    assert verdict.distance > 1
    forced = inspector.inspect(STRANGER, reject_unknown=False)
    assert forced.product == forced.nearest == verdict.nearest
    assert forced.distance == verdict.distance
    assert forced.anomaly_map is not None


def test_an_image_is_anomalous_above_the_threshold(inspector: Inspector) -> None:
    images = photos("bolt", 5, seed=1)
    median = sorted(verdict.score for verdict in inspector.inspect(images))[2]
    assert {v.label for v in inspector.inspect(images)} == {"normal"}
    held = [median * factor for factor in (0.999, 1.0, 1.001)]
    bolt = inspector.product("bolt")
    calibration = type(bolt.calibration)(tuple(held), 0.01, median)
    inspector.bank.update(type(bolt)(**{**vars(bolt), "calibration": calibration}), expected=bolt)
    verdicts = inspector.inspect(images)
    assert [v.is_anomalous for v in verdicts] == [v.score > median for v in verdicts]
    assert sum(v.label == "anomalous" for v in verdicts) == 2


def test_a_stream_takes_its_source_batch_by_batch_and_keeps_the_order(inspector: Inspector) -> None:
    images = [photos(name, 1, seed=seed)[0] for seed in range(4) for name in ("bolt", "plate")]
    taken = 0

    def source() -> Iterator[Photo]:
        nonlocal taken
        for image in images:
            taken += 1
            yield image

    stream = inspector.stream(source(), batch_size=3)
    assert taken == 0
    verdicts = []
    for expected in (3, 3, 3, 6, 6, 6, 8, 8):
        verdicts.append(next(stream))
        assert taken == expected
    with pytest.raises(StopIteration):
        next(stream)
    assert [v.product for v in verdicts] == ["bolt", "plate"] * 4
    assert all(agree(v, inspector.inspect(image)) for v, image in zip(verdicts, images, strict=True))


def test_a_stream_says_what_it_saw_before_a_bad_image(inspector: Inspector) -> None:
    stream = inspector.stream([*photos("bolt", 2), b"bad", *photos("bolt", 1)], batch_size=2)
    assert [next(stream).product, next(stream).product] == ["bolt", "bolt"]
    with pytest.raises(ImageError):
        next(stream)


def test_every_verdict_says_where_its_time_went(inspector: Inspector) -> None:
    verdicts = inspector.inspect([*photos("bolt", 2), STRANGER])
    for verdict in verdicts:
        assert verdict.timings.keys() == {"reading", "backbone", "routing", "head", "map"}
        assert all(milliseconds > 0 for milliseconds in verdict.timings.values())
    named = inspector.inspect(photos("bolt", 1)[0], product="bolt")
    assert named.timings.keys() == {"reading", "backbone", "head", "map"}


def test_an_empty_bank_says_what_to_do(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    assert inspector.products == {}
    with pytest.raises(BankError, match=r"has no product yet\. Learn one first"):
        inspector.inspect(STRANGER)
    with pytest.raises(ProductError, match=r"no product called 'bolt'\. Its products: none yet"):
        inspector.forget("bolt")


# Forgetting, learning anew, recalibrating; and what other Inspectors of the same bank see of it.


def test_a_forgotten_product_is_gone_and_the_others_stay(folder: Path) -> None:
    inspector, other = Inspector.open(folder), Inspector.open(folder)
    image, plate = photos("bolt", 1, seed=1)[0], photos("plate", 1, seed=1)[0]
    before = other.inspect(image)
    assert other.inspect(plate).product == "plate"
    file = inspector.product("plate").file
    inspector.forget("plate")
    assert not (folder / file).exists()
    for each in (inspector, other):
        assert list(each.products) == ["bolt"]
        assert each.inspect(plate).product is None
        assert same(each.inspect(image), before)
    teach(inspector, "plate", head="adapts-l")
    assert other.inspect(plate).product == "plate"


def test_a_renamed_product_keeps_all_but_its_name(folder: Path) -> None:
    inspector, other = Inspector.open(folder), Inspector.open(folder)
    before, image = inspector.product("bolt"), photos("bolt", 1)[0]
    was = other.inspect(image, product="bolt")
    renamed = inspector.rename("bolt", " bolt M6 ")
    assert renamed == replace(before, name="bolt M6")
    assert list(other.products) == ["bolt M6", "plate"]
    verdict = other.inspect(image)
    assert (verdict.product, verdict.score) == ("bolt M6", was.score)
    for name in ("plate", "bolt M6"):
        with pytest.raises(ProductError, match="already"):
            inspector.rename("bolt M6", name)
    with pytest.raises(ProductError, match="no product called 'bolt'"):
        inspector.rename("bolt", "nut")


def test_an_archived_product_is_not_inspected_until_it_is_restored(folder: Path) -> None:
    inspector, other = Inspector.open(folder), Inspector.open(folder)
    image, product = photos("bolt", 1)[0], inspector.product("bolt")
    was = inspector.inspect(image)
    inspector.archive("bolt")
    assert (list(other.products), dict(other.archived)) == (["plate"], {"bolt": product})
    assert other.inspect(image).product != "bolt"
    with pytest.raises(ProductError):
        other.inspect(image, product="bolt")
    with pytest.raises(ProductError, match="archived"):
        teach(inspector, "bolt")
    with pytest.raises(ProductError, match="archived"):
        inspector.rename("plate", "bolt")
    with pytest.raises(ProductError, match="'plate'"):
        inspector.restore("plate")
    assert inspector.restore("bolt") == product
    assert other.inspect(image).score == was.score
    assert not other.archived


def test_an_archived_product_survives_other_writes_and_can_be_forgotten(folder: Path) -> None:
    inspector = Inspector.open(folder)
    product = inspector.product("bolt")
    inspector.archive("bolt")
    inspector.rename("plate", "disc")
    assert (folder / product.file).exists()
    inspector.forget("bolt")
    assert not inspector.archived
    assert not (folder / product.file).exists()
    assert not (folder / product.samples).exists()


def test_a_product_learnt_anew_replaces_the_old_one_for_everybody(folder: Path) -> None:
    inspector, other = Inspector.open(folder), Inspector.open(folder)
    image, bolt = photos("plate", 1, seed=1)[0], photos("bolt", 1, seed=1)[0]
    before, others = other.inspect(image), other.inspect(bolt)
    old = inspector.product("plate").file
    teach(inspector, "plate", head="adapts-m", replace_existing=True)
    assert not (folder / old).exists()
    after = inspector.inspect(image)
    assert after.score != before.score
    for each in (other, Inspector.open(folder)):
        assert same(each.inspect(image), after)
        assert same(each.inspect(bolt), others)
    assert leftovers(folder) == set()


def test_replacing_what_is_not_there_is_learning(inspector: Inspector) -> None:
    teach(inspector, "screw", replace_existing=True)
    assert "screw" in inspector.products


def test_of_two_equal_products_the_first_learnt_is_recognised_by_everybody(folder: Path) -> None:
    inspector, other = Inspector.open(folder), Inspector.open(folder)
    images = photos("screw", 7)

    def recognised() -> set[str | None]:
        return {each.inspect(images[0]).product for each in (inspector, other, Inspector.open(folder))}

    for name in ("one", "two"):
        inspector.learn(name, images, head="adapts-s", settings=QUICK)
    assert recognised() == {"one"}
    inspector.learn("one", images, head="adapts-s", settings=QUICK, replace_existing=True)
    assert recognised() == {"two"}
    inspector.forget("two")
    inspector.learn("two", images, head="adapts-s", settings=QUICK)
    assert recognised() == {"one"}


def test_a_new_rate_moves_the_threshold_and_nothing_else(folder: Path) -> None:
    inspector, other = Inspector.open(folder), Inspector.open(folder)
    image = photos("bolt", 1, seed=1)[0]
    before, product = other.inspect(image), inspector.product("bolt")
    file = folder / product.file
    content, modified = file.read_bytes(), file.stat()
    changed = inspector.recalibrate("bolt", false_alarm_rate=0.2)
    assert (file.read_bytes(), file.stat()) == (content, modified)
    assert changed.calibration.scores == product.calibration.scores
    assert changed.calibration.false_alarm_rate == 0.2
    assert changed.calibration.threshold == threshold(product.calibration.scores, 0.2)
    assert changed.calibration.threshold < product.calibration.threshold
    assert list(inspector.products) == ["bolt", "plate"]
    for each in (inspector, other, Inspector.open(folder)):
        after = each.inspect(image)
        assert after.threshold == changed.calibration.threshold
        assert after.score == before.score
    assert inspector.recalibrate("bolt").calibration == changed.calibration  # the rate stays as well


def test_scores_that_a_head_gave_set_its_threshold(inspector: Inspector) -> None:
    scores = [verdict.score for verdict in inspector.inspect(photos("bolt", 9, seed=5), product="bolt")]
    calibration = inspector.recalibrate("bolt", scores=scores, false_alarm_rate=0.1).calibration
    assert calibration == Calibration(tuple(scores), 0.1, threshold(scores, 0.1))
    with pytest.raises(SettingsError, match="not on both"):
        inspector.recalibrate("bolt", scores=scores, images=photos("bolt", 3))


def test_the_embedding_of_many_images_is_that_of_each(inspector: Inspector) -> None:
    images = photos("bolt", 5) + photos("plate", 5)
    together = inspector.embed(images)
    assert together.dtype == np.float32
    assert np.allclose(together, np.concatenate([inspector.embed([image]) for image in images]), atol=1e-4)


def test_new_images_give_new_scores(folder: Path) -> None:
    inspector = Inspector.open(folder)
    images = photos("bolt", 12, seed=4)
    content = (folder / inspector.product("bolt").file).read_bytes()
    changed = inspector.recalibrate("bolt", images=images)
    assert changed.calibration.scores == pytest.approx(
        [verdict.score for verdict in inspector.inspect(images, product="bolt")], rel=0.02
    )
    assert len(changed.calibration.scores) == 12
    assert changed.calibration.false_alarm_rate == 0.01
    assert changed.calibration.threshold == threshold(changed.calibration.scores, 0.01)
    assert (folder / changed.file).read_bytes() == content


@pytest.mark.parametrize("forgotten", [True, False])
def test_a_product_that_changes_while_its_file_is_opened(
    folder: Path, monkeypatch: pytest.MonkeyPatch, forgotten: bool
) -> None:
    reader, writer, image = Inspector.open(folder), Inspector.open(folder), photos("plate", 1, seed=1)[0]
    read, opened = reader.bank.state, []

    def read_late(product: Product) -> dict[str, torch.Tensor]:
        opened.append(product.name)
        if opened == ["plate"] and forgotten:
            writer.forget("plate")
        elif opened == ["plate"]:
            with torch.enable_grad():  # which is off where the reader stands
                teach(writer, "plate", head="adapts-m", replace_existing=True)
        return read(product)

    monkeypatch.setattr(reader.bank, "state", read_late)
    verdict = reader.inspect(image)
    assert verdict.product == (None if forgotten else "plate")
    assert same(verdict, Inspector.open(folder).inspect(image))


def test_a_bank_that_was_exchanged_under_an_inspector_is_noticed(folder: Path, tmp_path: Path) -> None:
    reader, image = Inspector.open(folder), photos("bolt", 1, seed=1)[0]
    before = reader.inspect(image)
    shutil.rmtree(folder)
    inspector = new_bank(folder)
    inspector.learn(
        "bolt", photos("bolt", 7), head="adapts-s", settings=QUICK, seed=3
    )  # the same revision and file name
    after = reader.inspect(image)
    assert after.score != before.score
    assert same(after, Inspector.open(folder).inspect(image))


def test_products_cannot_be_changed_from_outside(inspector: Inspector) -> None:
    with pytest.raises((TypeError, AttributeError)):
        inspector.products.pop("bolt")  # type: ignore[attr-defined]
    teach(inspector, "screw")
    assert "bolt" in inspector.products


def test_prototypes_are_the_same_whether_or_not_the_head_has_looked_at_the_images(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    product = inspector.learn("bolt", photos("bolt", 7), head="compact", settings={"budget": 60})
    kept, _ = hold_out(range(7), 3 / 7, seed=0)
    stack = torch.from_numpy(load_stack([photos("bolt", 7)[index] for index in kept], inspector.image_size))
    expected = inspector._heads.embed(stack).mean(0)
    assert inspector._heads.routing.tap in product.taps
    np.testing.assert_allclose(inspector.bank.prototype(product), expected, rtol=1e-5)
