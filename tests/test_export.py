"""Exporting a bank, and inspecting with what was exported."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from conftest import CHILD_SECONDS, Run, new_bank, photos, teach

pytest.importorskip("onnxscript")
pytest.importorskip("openvino")
pytest.importorskip("onnxruntime")

from continuad import ContinuadError, Inspector, Runtime, Verdict
from continuad.errors import BankError, ExportError, ImageError, ProductError, SettingsError
from continuad.export import export
from continuad.runtime import is_exported

NAMES = ("bolt", "plate", "cap")


def learn_stfpm(inspector: Inspector, name: str) -> None:
    settings = {"layers": ["layer1", "layer2"], "smoothing": 0, "training": {"epochs": 1, "min_steps": 0}}
    inspector.learn(name, photos(name, 7), head="stfpm", settings=settings)


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that knows three products, with heads of three kinds; not to be written."""
    path = tmp_path_factory.mktemp("bank") / "bank"
    inspector = new_bank(path)
    teach(inspector, "bolt")
    learn_stfpm(inspector, "plate")
    inspector.learn("cap", photos("cap", 9), head="compact", settings={"budget": 40})
    return path


@pytest.fixture(scope="module", params=["openvino", "onnx"])
def exported(request: pytest.FixtureRequest, bank: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bank, exported; not to be written."""
    folder = tmp_path_factory.mktemp("exported") / "edge"
    export(bank, folder, target=request.param)
    return folder


@pytest.fixture(scope="module")
def runtime(exported: Path) -> Runtime:
    return Runtime.open(exported, threads=1)


def mixed() -> Iterator[np.ndarray]:
    """Photos of all products in turns, some damaged, of different sizes."""
    for number in range(4):
        for name in NAMES:
            (photo,) = photos(name, 1, seed=100 + number, width=40 + 9 * number, height=48)
            if number % 2:
                photo[14:22, 12:20] = 255 - photo[14:22, 12:20]
            yield photo


def assert_same(found: Verdict, expected: Verdict) -> None:
    assert found.product == expected.product
    assert found.is_anomalous == expected.is_anomalous
    assert found.score == pytest.approx(expected.score, rel=2e-2, nan_ok=True)
    assert found.threshold == pytest.approx(expected.threshold, nan_ok=True)
    assert found.nearest == expected.nearest
    assert found.distance == pytest.approx(expected.distance, rel=1e-4, nan_ok=True)
    assert (found.anomaly_map is None) == (expected.anomaly_map is None)
    if found.anomaly_map is not None and expected.anomaly_map is not None:
        assert found.anomaly_map.shape == expected.anomaly_map.shape
        assert found.anomaly_map.dtype == np.float32
        scale = np.abs(expected.anomaly_map).max()
        assert np.abs(found.anomaly_map - expected.anomaly_map).mean() < 3e-3 * scale


# --- verdicts -------------------------------------------------------------------------------------


def test_the_runtime_says_what_the_inspector_says(bank: Path, runtime: Runtime) -> None:
    images = list(mixed())
    stranger = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    expected = Inspector.open(bank).inspect([*images, stranger])
    found = runtime.inspect([*images, stranger])
    assert {verdict.product for verdict in found} == {*NAMES, None}
    assert {verdict.is_anomalous for verdict in found} == {True, False, None}
    for each, other in zip(found, expected, strict=True):
        assert_same(each, other)


def test_a_product_can_be_named_and_a_stranger_inspected(bank: Path, runtime: Runtime) -> None:
    (photo,) = photos("plate", 1, seed=9)
    named = runtime.inspect(photo, product="bolt")
    assert_same(named, Inspector.open(bank).inspect(photo, product="bolt"))
    assert named.nearest is None
    stranger = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    assert runtime.inspect(stranger).label == "unknown"
    assert runtime.inspect(stranger, reject_unknown=False).product in NAMES


def test_throughput_mode_says_the_same_in_order(exported: Path, runtime: Runtime) -> None:
    images = list(mixed()) * 2
    quick = Runtime.open(exported, mode="throughput", threads=3)
    for found, image in zip(quick.stream(iter(images)), images, strict=True):
        expected = runtime.inspect(image)
        assert (found.product, found.label) == (expected.product, expected.label)
        assert found.score == pytest.approx(expected.score, rel=1e-3, nan_ok=True)


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_a_stream_takes_no_more_than_it_needs(exported: Path, mode: str) -> None:
    runtime = Runtime.open(exported, mode=mode, threads=2)  # type: ignore[arg-type]
    taken = 0

    def endless() -> Iterator[np.ndarray]:
        nonlocal taken
        (photo,) = photos("bolt", 1)
        while True:
            taken += 1
            yield photo

    stream = runtime.stream(endless())
    for _ in range(5):
        next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert taken <= 5 + 4


def test_an_image_that_cannot_be_read_is_refused(runtime: Runtime, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG\r\n\x1a\nrest")
    with pytest.raises(ImageError):
        runtime.inspect(broken)
    with pytest.raises(ProductError, match="bolt, plate, cap"):
        runtime.inspect(photos("bolt", 1)[0], product="nut")


def test_settings_that_cannot_work_are_refused(exported: Path) -> None:
    for changes in ({"threads": 0}, {"heads": 0}, {"mode": "fast"}):
        with pytest.raises(SettingsError):
            Runtime.open(exported, **changes)  # type: ignore[arg-type]


def test_heads_that_were_dropped_are_compiled_again(exported: Path, runtime: Runtime) -> None:
    images = list(mixed())
    small = Runtime.open(exported, threads=1, heads=1)
    assert list(map(repr, small.inspect(images))) == list(map(repr, runtime.inspect(images)))


def test_it_works_without_torch(exported: Path, tmp_path: Path) -> None:
    from PIL import Image

    photo = tmp_path / "bolt.png"
    Image.fromarray(photos("bolt", 1, seed=5)[0]).save(photo)
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "scipy", "sklearn", "safetensors", "onnx", "nncf"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from continuad import Runtime
print(Runtime.open({str(exported)!r}, threads=1).inspect({str(photo)!r}).product)
from continuad.cli import main
main(["inspect", {str(exported)!r}, {str(photo)!r}, "--json"])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=CHILD_SECONDS
    )
    assert done.returncode == 0, done.stderr
    name, line = done.stdout.splitlines()
    assert name == json.loads(line)["product"] == "bolt"


def test_nobody_is_told(exported: Path, tmp_path: Path) -> None:
    program = f"from continuad import Runtime; Runtime.open({str(exported)!r}, threads=1)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("XDG", "ORT"))}
    subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "HOME": str(tmp_path)},
        check=True,
        timeout=CHILD_SECONDS,
    )
    assert list(tmp_path.rglob("*")) == []  # where the engines note what they have sent


# --- the folder -----------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".lock"
    }


@pytest.fixture
def grown(tmp_path: Path) -> tuple[Inspector, Path]:
    """A bank with one product, exported."""
    inspector = new_bank(tmp_path / "bank")
    teach(inspector, "bolt")
    export(tmp_path / "bank", tmp_path / "edge")
    return inspector, tmp_path / "edge"


def test_another_product_costs_its_head_alone(grown: tuple[Inspector, Path]) -> None:
    inspector, folder = grown
    runtime = Runtime.open(folder, threads=1)
    before = contents(folder)
    teach(inspector, "nut")
    report = export(inspector.bank.path, folder)
    assert (report.exported, report.unchanged, report.backbone) == (("nut",), ("bolt",), False)
    after = contents(folder)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {name.partition("-")[0] for name in changed} == {"manifest.json", "heads/nut"}
    assert before.keys() <= after.keys()
    assert list(runtime.products) == ["bolt", "nut"]  # which was open all the time
    assert runtime.inspect(photos("nut", 1, seed=3)[0]).product == "nut"


def test_heads_of_a_kind_share_a_program(grown: tuple[Inspector, Path]) -> None:
    inspector, folder = grown
    for name in ("cap", "nut"):
        before = contents(folder)
        inspector.learn(name, photos(name, 9), head="compact", settings={"budget": 40})
        export(inspector.bank.path, folder)
    changed = {name for name, data in contents(folder).items() if data != before.get(name)}
    assert {name.rpartition(".")[2] for name in changed} == {"json", "npz"}
    assert len(list((folder / "heads").glob("compact-*.xml"))) == 1
    assert [len(list((folder / "heads").glob(f"{name}-*"))) for name in ("cap", "nut")] == [1, 1]
    runtime = Runtime.open(folder, threads=1)
    for name in ("cap", "nut", "cap"):
        (photo,) = photos(name, 1, seed=3)
        assert_same(runtime.inspect(photo), inspector.inspect(photo))
    inspector.learn("ring", photos("ring", 9), head="compact", settings={"budget": 30})
    export(inspector.bank.path, folder)
    assert len(list((folder / "heads").glob("compact-*.xml"))) == 2  # of another size
    inspector.forget("cap")
    inspector.forget("nut")
    export(inspector.bank.path, folder)
    assert len(list((folder / "heads").glob("compact-*.xml"))) == 1


def test_a_head_that_looks_at_other_blocks_brings_the_backbone_with_it(grown: tuple[Inspector, Path]) -> None:
    inspector, folder = grown
    runtime = Runtime.open(folder, threads=1)
    learn_stfpm(inspector, "plate")
    report = export(inspector.bank.path, folder)
    assert (report.exported, report.unchanged, report.backbone) == (("plate",), ("bolt",), True)
    assert len(list(folder.glob("backbone-*.xml"))) == 1
    for name in ("bolt", "plate"):
        (photo,) = photos(name, 1, seed=3)
        assert_same(runtime.inspect(photo), inspector.inspect(photo))


def test_a_threshold_is_exported_without_its_head(grown: tuple[Inspector, Path]) -> None:
    inspector, folder = grown
    before = contents(folder)
    threshold = inspector.recalibrate("bolt", false_alarm_rate=0.2).calibration.threshold
    report = export(inspector.bank.path, folder)
    assert (report.exported, report.unchanged) == ((), ("bolt",))
    after = contents(folder)
    assert {name for name in after if after[name] != before[name]} == {"manifest.json"}
    assert Runtime.open(folder).inspect(photos("bolt", 1)[0]).threshold == threshold


def test_what_was_learnt_anew_or_forgotten_is_replaced(grown: tuple[Inspector, Path]) -> None:
    inspector, folder = grown
    teach(inspector, "nut")
    export(inspector.bank.path, folder)
    teach(inspector, "nut", seed=1, replace_existing=True)
    inspector.forget("bolt")
    report = export(inspector.bank.path, folder)
    assert (report.exported, report.dropped) == (("nut",), ("bolt",))
    assert {path.name.partition("-")[0] for path in (folder / "heads").iterdir()} == {"nut"}
    assert len(list((folder / "heads").glob("*.xml"))) == 1


def test_a_folder_of_something_else_is_refused(grown: tuple[Inspector, Path], tmp_path: Path) -> None:
    inspector, folder = grown
    bank = inspector.bank.path
    other = new_bank(tmp_path / "other")
    with pytest.raises(BankError, match="no product yet"):
        export(other.bank.path, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ExportError, match="another runtime"):
        export(bank, folder, target="onnx")
    with pytest.raises(ExportError, match="precision"):
        export(bank, folder, int8=True)
    strange = tmp_path / "photos"
    strange.mkdir()
    (strange / "a.png").write_bytes(b"mine")
    with pytest.raises(ExportError, match="no export"):
        export(bank, strange)
    assert [path.name for path in strange.iterdir() if path.name not in (".lock", "heads")] == ["a.png"]
    with pytest.raises(ExportError, match="no exported bank"):
        Runtime.open(strange)
    assert is_exported(folder)
    assert not is_exported(bank)
    assert not is_exported(tmp_path / "nothing")


@pytest.mark.parametrize(
    "file", ["heads/model.onnx", "heads/mine-1.npz", "backbone-mine.bin", "heads/a/b.txt"]
)
def test_what_only_looks_like_an_export_is_not_removed(bank: Path, tmp_path: Path, file: str) -> None:
    path = tmp_path / "folder" / file
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(ExportError, match="is no export"):
        export(bank, tmp_path / "folder")
    assert path.read_text() == "mine"


def test_damage_is_noticed(grown: tuple[Inspector, Path]) -> None:
    _, folder = grown
    manifest = (folder / "manifest.json").read_text()
    (head,) = (folder / "heads").glob("*.bin")
    whole = head.read_bytes()
    head.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    (photo,) = photos("bolt", 1)
    with pytest.raises(ExportError, match="checksum"):
        Runtime.open(folder).inspect(photo)
    head.unlink()
    with pytest.raises(ExportError, match="cannot be read"):
        Runtime.open(folder).inspect(photo)
    for text, match in (
        (manifest[:-9], "damaged"),
        ("[]", "does not belong"),
        (manifest.replace('"version": 1', '"version": 2'), "version 2"),
        (manifest.replace("heads/bolt", "../bolt"), "no exported bank has"),
        (manifest.replace('"openvino"', '"other"'), "no exported bank has"),
        (manifest.replace('"prototype"', '"prototypes"'), "damaged"),
    ):
        (folder / "manifest.json").write_text(text)
        with pytest.raises(ExportError, match=match):
            Runtime.open(folder)


def test_an_export_that_is_cut_short_leaves_the_last_one(
    grown: tuple[Inspector, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector, folder = grown
    before = contents(folder)
    teach(inspector, "nut")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[export.__module__]._Draft, "commit", fail)
        with pytest.raises(ExportError, match="No space left"):
            export(inspector.bank.path, folder)
    assert {name: data for name, data in contents(folder).items() if name in before} == before
    assert list(Runtime.open(folder).products) == ["bolt"]
    report = export(inspector.bank.path, folder)
    assert report.exported == ("nut",)
    assert len(list((folder / "heads").glob("nut-*.xml"))) == 1


@pytest.mark.parametrize("target", ["openvino", "onnx"])
def test_int8_uses_the_banks_own_photos(bank: Path, tmp_path: Path, target: str) -> None:
    report = export(bank, tmp_path / "int8", target=target, int8=True)  # type: ignore[arg-type]
    assert report.manifest.int8
    runtime, inspector = Runtime.open(tmp_path / "int8", threads=1), Inspector.open(bank)
    images = list(mixed())
    found, expected = runtime.inspect(images), inspector.inspect(images)
    assert [each.product for each in found] == [each.product for each in expected]
    assert any(each.score != other.score for each, other in zip(found, expected, strict=True))


# --- the command ----------------------------------------------------------------------------------


def test_the_command_exports_and_inspect_takes_the_folder(bank: Path, tmp_path: Path, run: Run) -> None:
    from PIL import Image

    folder = tmp_path / "edge"
    done = run("export", bank, folder, "--format", "onnx")
    assert done.code == 0
    assert "3 products (3 exported)" in done.out
    photo = tmp_path / "cap.png"
    Image.fromarray(photos("cap", 1, seed=4)[0]).save(photo)
    found, expected = (json.loads(run("inspect", place, photo, "--json").out) for place in (folder, bank))
    assert found["product"] == expected["product"] == "cap"
    assert found["score"] == pytest.approx(expected["score"], rel=1e-3)
    assert "3 unchanged" in run("export", bank, folder, "--format", "onnx").out
    assert run("inspect", folder, photo, "--device", "cuda").code == 2


def test_errors_have_a_remedy(bank: Path, tmp_path: Path, run: Run) -> None:
    done = run("export", tmp_path / "none", tmp_path / "edge")
    assert done.code == 2
    assert "There is no bank" in done.err
    with pytest.raises(ContinuadError):
        Runtime.open(bank)


def test_an_export_is_evaluated_as_its_bank_is(tmp_path: Path, run: Run) -> None:
    from continuad.datasets.demo import demo_task, write_mvtec

    write_mvtec(demo_task("flange", size=64, train=8, good=3, defective=3), tmp_path / "data" / "flange")
    bare = ("--backbone", "tiny", "--weights", "random", "--image-size", "64", "--head", "compact")
    data, bank, folder = tmp_path / "data", tmp_path / "bank", tmp_path / "edge"
    results = [tmp_path / "bank.json", tmp_path / "edge.json"]
    assert run("evaluate", data, "--bank", bank, *bare, "--out", results[0]).code == 0
    assert run("export", bank, folder).code == 0
    assert run("evaluate", data, "--exported", folder, "--out", results[1]).code == 0
    (ours,), (theirs,) = (json.loads(result.read_text())["products"] for result in results)
    for name in ("i_auroc", "p_auroc", "aupro", "recall", "false_alarm_rate", "routing_accuracy"):
        assert theirs[name] == pytest.approx(ours[name], abs=1e-4), name
    assert theirs["kib"] == pytest.approx(ours["kib"], rel=0.2)
    done = run("evaluate", data, "--exported", folder, "--bank", bank)
    assert done.code == 2
    assert "as it is" in done.err
    assert run("evaluate", data, "--exported", tmp_path / "none").code == 2
