from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from conftest import REMOVALS, contents, leftovers, new_bank, photos, same, snapshot, teach, watched
from continuad import Inspector
from continuad.errors import BankError
from continuad.inspector import bank as bank_module
from continuad.inspector.bank import Bank
from continuad.inspector.manifest import PRODUCT_FILE, SAMPLES_FILE, Manifest
from continuad.inspector.product import file_stem


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as anyone could: with a checksum that fits."""
    path = folder / "manifest.json"
    content = json.loads(path.read_bytes())
    del content["sha256"]
    change(content)
    checksum = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path.write_text(json.dumps({**content, "sha256": checksum}))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# What lies on disk.


def test_a_bank_is_a_manifest_and_the_files_that_it_names(folder: Path) -> None:
    manifest = Bank(folder).manifest()
    files = [file for product in manifest.products.values() for file in (product.file, product.samples)]
    assert snapshot(folder).keys() == {"manifest.json", "products", manifest.backbone["file"], *files}
    for product in manifest.products.values():
        assert product.bytes == (folder / product.file).stat().st_size
        assert product.sha256 == sha256(folder / product.file)
        assert product.samples_sha256 == sha256(folder / product.samples)
    assert Manifest.from_json(manifest.to_json(), folder) == manifest


def test_every_write_is_synced_before_it_is_named(folder: Path) -> None:
    def relevant(calls: list[str]) -> list[str]:
        return [name for name in calls if name in ("write", "fsync", "replace", "rename")]

    one_file = ["write", "fsync", "replace", "fsync"]
    with watched(lambda number, name: None) as calls:
        teach(Inspector.open(folder), "screw")
    assert relevant(calls) == 3 * one_file
    with watched(lambda number, name: None) as calls:
        new_bank(folder.with_name("new"))
    assert relevant(calls) == [*2 * one_file, "rename", "fsync"]


def test_readers_write_nothing(folder: Path) -> None:
    (folder / ".lock").unlink()
    with watched(lambda number, name: None) as calls:
        inspector = Inspector.open(folder)
        inspector.inspect(photos("bolt", 1) + photos("plate", 1))
        inspector.samples("bolt")
    assert calls == []
    assert not (folder / ".lock").exists()


def test_a_bank_is_created_in_an_empty_or_a_new_folder_only(tmp_path: Path) -> None:
    new_bank(tmp_path / "a" / "b" / "c")
    (tmp_path / "empty").mkdir()
    new_bank(tmp_path / "empty")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = snapshot(tmp_path)
    for place in ("file", "full", "empty", "file/below"):
        with pytest.raises(BankError, match=place):
            new_bank(tmp_path / place)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 300, "x" * 250])
def test_a_path_that_the_system_refuses(tmp_path: Path, name: str) -> None:
    with pytest.raises(BankError, match=r"cannot be written: .* Check free space and permissions"):
        new_bank(tmp_path / name)
    assert snapshot(tmp_path) == {}


def test_there_is_no_bank(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(BankError, match=r"There is no bank at .*\. Check the path, or create"):
            Inspector.open(place)
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(BankError, match=r"manifest\.json cannot be read"):
        Inspector.open(tmp_path)


# Damage is noticed.


@given(st.data(), st.integers(1, 255))
@settings(deadline=None, max_examples=200)
def test_no_changed_byte_of_a_manifest_changes_what_it_says(
    taught: Path, data: st.DataObject, flip: int
) -> None:
    path = taught / "manifest.json"
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= flip
    try:
        manifest = Manifest.from_json(bytes(content), path)
    except BankError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:  # a blank, or the E of an exponent
        assert manifest == Bank(taught).manifest()


@given(st.data())
@settings(deadline=None, max_examples=50)
def test_a_truncated_manifest_is_refused(taught: Path, data: st.DataObject) -> None:
    path = taught / "manifest.json"
    content = path.read_bytes()
    with pytest.raises(BankError, match=r"manifest\.json is damaged\. Restore"):
        Manifest.from_json(content[: data.draw(st.integers(0, len(content) - 1))], path)


@pytest.mark.parametrize(
    "content",
    [b"[]", b"{}", b"null", b"7", b'"text"', b'{"name": "npm"}', b'["sha256"]', b'{"format": "zip"}'],
)
def test_foreign_json_is_not_a_bank(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BankError, match=r"manifest\.json does not belong to a continuad bank"):
        Inspector.open(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"[" * 100_000, b"{" * 5])
def test_what_is_not_json_is_damaged(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BankError, match=r"manifest\.json is damaged"):
        Inspector.open(tmp_path)


def test_a_newer_version_is_refused_by_its_number(folder: Path) -> None:
    edit_manifest(folder, lambda content: content.update(version=7))
    with pytest.raises(BankError, match=r"has format version 7; this continuad reads 1\. Upgrade"):
        Inspector.open(folder)


@pytest.mark.parametrize("key", ["backbone", "image_size", "routing", "revision", "products", "sha256"])
def test_a_manifest_without_a_part_is_damaged(folder: Path, key: str) -> None:
    if key == "sha256":
        content = json.loads((folder / "manifest.json").read_bytes())
        del content[key]
        (folder / "manifest.json").write_text(json.dumps(content))
    else:
        edit_manifest(folder, lambda content: content.pop(key))
    with pytest.raises(BankError, match=r"manifest\.json is damaged"):
        Inspector.open(folder)


def test_an_entry_without_a_part_is_damaged(folder: Path) -> None:
    edit_manifest(folder, lambda content: content["products"][1].pop("limit"))
    with pytest.raises(BankError, match=r"entry of a product is damaged .*limit"):
        Inspector.open(folder)


@given(st.data(), st.integers(1, 255))
@settings(deadline=None, max_examples=40)
def test_any_changed_byte_of_a_file_is_noticed(taught: Path, data: st.DataObject, flip: int) -> None:
    bank = Bank(taught)
    product = bank.manifest().products["bolt"]
    for file, load in (
        (product.file, lambda: bank.state(product)),
        (product.samples, lambda: bank.samples(product)),
        (bank.manifest().backbone["file"], bank.backbone_file),
    ):
        path = taught / file
        good = path.read_bytes()
        bad = bytearray(good)
        bad[data.draw(st.integers(0, len(good) - 1))] ^= flip
        try:
            path.write_bytes(bad)
            with pytest.raises(BankError, match=f"{path.name} is damaged: its checksum does not match"):
                load()
        finally:
            path.write_bytes(good)


@pytest.mark.parametrize("spoil", [lambda path: path.write_bytes(b""), Path.unlink], ids=["emptied", "gone"])
def test_a_spoilt_product_is_refused_by_name_and_can_be_learnt_again(
    folder: Path, spoil: Callable[[Path], object]
) -> None:
    before = Inspector.open(folder).inspect(photos("bolt", 1)[0])
    plate = folder / Inspector.open(folder).product("plate").file
    spoil(plate)
    inspector = Inspector.open(folder)
    for _ in range(2):
        with pytest.raises(BankError, match=f"{plate.name} .*Restore it from a backup; .* learnt again"):
            inspector.inspect(photos("plate", 1)[0])
        assert same(inspector.inspect(photos("bolt", 1)[0]), before)
    teach(inspector, "plate", replace_existing=True)
    assert inspector.inspect(photos("plate", 1)[0]).product == "plate"
    assert same(inspector.inspect(photos("bolt", 1)[0]), before)


def test_a_spoilt_product_can_be_forgotten(folder: Path) -> None:
    inspector = Inspector.open(folder)
    (folder / inspector.product("plate").file).unlink()
    inspector.forget("plate")
    assert inspector.inspect(photos("bolt", 1)[0]).product == "bolt"


def test_a_spoilt_backbone_is_refused_by_name(folder: Path) -> None:
    path = folder / Bank(folder).manifest().backbone["file"]
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BankError, match=f"{path.name} is damaged"):
        Inspector.open(folder)


def test_a_head_of_another_shape_is_refused_by_name(folder: Path) -> None:
    product = Bank(folder).manifest().products["bolt"]
    path = folder / product.file
    state = safetensors.torch.load_file(path)
    safetensors.torch.save_file({name: t for name, t in state.items() if name == "prototype"}, path)
    edit_manifest(folder, lambda content: content["products"][0].update(sha256=sha256(path)))
    with pytest.raises(BankError, match=f"{path.name} does not fit .*'adapts-s'.* Learn 'bolt' again"):
        Inspector.open(folder).inspect(photos("bolt", 1)[0])


# Malice.


@pytest.mark.parametrize(
    "file",
    ["../loot.safetensors", "products/../../loot.safetensors", "products/../manifest.json", "ABSOLUTE", 7],
)
@pytest.mark.parametrize("part", ["product", "samples", "backbone"])
def test_a_manifest_cannot_point_out_of_its_bank(folder: Path, part: str, file: Any) -> None:
    manifest = Bank(folder).manifest()
    bolt = manifest.products["bolt"]
    own = Path({"product": bolt.file, "samples": bolt.samples}.get(part, manifest.backbone["file"]))
    loot = Path(shutil.copy(folder / own, folder.parent / f"loot{own.suffix}"))
    target = str(loot) if file == "ABSOLUTE" else file
    if isinstance(target, str):
        target = target.replace(".safetensors", own.suffix)

    def redirect(content: dict[str, Any]) -> None:
        if part == "samples":
            content["products"][0].update(samples=target, samples_sha256=sha256(loot))
        else:
            entry = content["products"][0] if part == "product" else content["backbone"]
            entry.update(file=target, sha256=sha256(loot))

    edit_manifest(folder, redirect)
    with pytest.raises(BankError, match=r"names files that no bank has|is damaged"):
        Inspector.open(folder)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("part", ["product", "backbone"])
@pytest.mark.parametrize("honest", [True, False], ids=["checksum left", "checksum forged"])
@pytest.mark.parametrize("dump", [pickle.dumps, "torch"])
def test_a_pickle_is_never_read(folder: Path, part: str, honest: bool, dump: Any) -> None:
    manifest = Bank(folder).manifest()
    path = folder / (manifest.products["bolt"].file if part == "product" else manifest.backbone["file"])
    mark = folder / "executed"
    if dump == "torch":
        torch.save({"weight": Bomb(mark)}, path)
    else:
        path.write_bytes(dump(Bomb(mark)))
    if not honest:

        def forge(content: dict[str, Any]) -> None:
            entry = content["products"][0] if part == "product" else content["backbone"]
            entry.update(sha256=sha256(path))

        edit_manifest(folder, forge)
    with pytest.raises(Exception, match=path.name) as caught:
        Inspector.open(folder).inspect(photos("bolt", 1)[0])
    assert type(caught.value).__module__ == "continuad.errors"
    assert not mark.exists()
    pickle.loads(pickle.dumps(Bomb(mark)))
    assert mark.exists()  # it would have


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=80))
@settings(deadline=None, max_examples=200)
def test_file_names_are_plain_and_short(name: str) -> None:
    stem = file_stem(name)
    assert stem == Path(stem).name
    assert set(stem) <= set("abcdefghijklmnopqrstuvwxyz0123456789-")
    assert 8 <= len(stem) <= 49
    assert PRODUCT_FILE.fullmatch(f"products/{stem}-r1.safetensors")
    assert SAMPLES_FILE.fullmatch(f"products/{stem}-r1.jpg")


# Writers that fail, wait or are dead.


def failing(code: int, steps: Callable[[int], bool]) -> Callable[[int, str], None]:
    """For `watched`: let calls fail by their number. Removing a file needs no space."""

    def fail(number: int, name: str) -> None:
        if name not in REMOVALS and steps(number):
            raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("lasting", [True, False], ids=["from then on", "once"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_a_disk_that_fails_at_any_step_leaves_a_good_bank(
    taught: Path, tmp_path: Path, lasting: bool, code: int
) -> None:
    old, bolt, screw = contents(Inspector.open(taught)), photos("bolt", 1)[0], photos("screw", 1)[0]
    learnt = Inspector.open(shutil.copytree(taught, tmp_path / "whole"))
    teach(learnt, "screw")
    product = learnt.product("screw")
    state, samples = learnt.bank.state(product), (learnt.bank.path / product.samples).read_bytes()
    refused = []
    for step in itertools.count(1):
        folder = Path(shutil.copytree(taught, tmp_path / str(step)))
        bank = Bank(folder)
        fails = failing(code, lambda n, step=step: n >= step if lasting else n == step)  # type: ignore[misc]
        error = None
        with watched(fails) as calls:
            try:
                bank.put(product, state, samples=samples, expected=None)
            except BankError as caught:
                error = caught
        inspector = Inspector.open(folder)
        complete = contents(inspector) == contents(learnt)
        assert complete or contents(inspector) == old
        assert same(inspector.inspect(bolt), learnt.inspect(bolt))
        assert not complete or same(inspector.inspect(screw), learnt.inspect(screw))
        assert leftovers(folder) == set()
        if error is None:
            assert complete
        else:
            assert f"cannot be written: {os.strerror(code)}. Check free space and permissions" in str(error)
            refused.append(complete)
        if len(calls) < step:
            break
    assert len(refused) > 12
    assert refused == sorted(refused)  # the new product is there once its manifest is
    assert refused[0] is False


def test_a_disk_that_fails_while_a_bank_is_created(tmp_path: Path) -> None:
    for step in itertools.count(1):
        place = tmp_path / str(step)
        place.mkdir()
        with watched(failing(errno.ENOSPC, lambda number, step=step: number >= step)) as calls:  # type: ignore[misc]
            try:
                new_bank(place / "bank")
            except BankError as error:
                assert "No space left on device" in str(error)  # noqa: PT017
        if len(calls) < step:
            break
        assert [path.name for path in place.iterdir()] in ([], ["bank"])
        if (place / "bank").exists():
            assert Inspector.open(place / "bank").products == {}
    assert step > 5


def test_the_next_writer_cleans_up_behind_a_dead_one(folder: Path) -> None:
    inspector = Inspector.open(folder)
    litter = [
        "products/old-0123abcd-r0.safetensors",
        "products/old-0123abcd-r0.jpg",
        "products/x-r9.safetensors.77.tmp",
        "products/x-r9.jpg.77.tmp",
        "manifest.json.77.tmp",
    ]
    for name in litter:
        (folder / name).write_bytes(b"litter")
    assert leftovers(folder) == set(litter)
    inspector.recalibrate("bolt", false_alarm_rate=0.02)
    assert leftovers(folder) == set()


def test_dead_drafts_of_a_bank_are_removed_living_and_foreign_ones_are_not(tmp_path: Path) -> None:
    dead, living, foreign = (tmp_path / name for name in (".bank-1.draft", ".bank-2.draft", ".bank-backup"))
    for draft in (dead, living, foreign):
        draft.mkdir()
        (draft / "half").write_bytes(b"half")
    with FileLock(living / ".lock"):
        new_bank(tmp_path / "bank")
    assert {path.name for path in tmp_path.iterdir()} == {"bank", living.name, foreign.name}


def test_a_writer_waits_for_another_and_gives_up_with_a_sentence(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inspector = Inspector.open(folder)
    before = snapshot(folder)
    monkeypatch.setattr(bank_module, "LOCK_SECONDS", 0.05)
    with FileLock(folder / ".lock"):
        with pytest.raises(BankError, match=r"locked by another process for 0\.05 s\. Wait"):
            inspector.forget("bolt")
        assert inspector.inspect(photos("bolt", 1)[0]).product == "bolt"  # readers do not wait
    assert snapshot(folder) == before
    inspector.forget("bolt")


def test_a_stale_writer_is_refused(folder: Path) -> None:
    one, other = Inspector.open(folder), Inspector.open(folder)
    stale = one.product("bolt")
    state = one.bank.state(stale)
    other.recalibrate("bolt", false_alarm_rate=0.02)
    before = snapshot(folder)
    for attempt in (
        lambda: one.bank.remove(stale),
        lambda: one.bank.update(stale, expected=stale),
        lambda: one.bank.put(stale, state, expected=stale),
        lambda: one.bank.put(stale, state, expected=None),
    ):
        with pytest.raises(
            BankError, match=r"Another process has changed 'bolt' meanwhile; nothing was written"
        ):
            attempt()
    assert snapshot(folder) == before


def test_only_an_empty_bank_is_discarded(tmp_path: Path) -> None:
    first = new_bank(tmp_path / "bank")
    second = Inspector.open(tmp_path / "bank")
    teach(second, "bolt")
    kept = {path: path.read_bytes() for path in (tmp_path / "bank").rglob("*") if path.is_file()}
    first.bank.discard_if_empty()  # opened it when it was empty
    assert {path: path.read_bytes() for path in (tmp_path / "bank").rglob("*") if path.is_file()} == kept

    second.forget("bolt")
    first.bank.discard_if_empty()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(BankError, match="There is no bank"):
        teach(second, "bolt")
    new_bank(tmp_path / "bank")


def test_a_writer_removes_nothing_but_a_bank_s_own_files(folder: Path, tmp_path: Path) -> None:
    kept = folder / "products" / "notes.txt"
    kept.write_text("mine")
    left = folder / "products" / "nut-12345678-r9.safetensors.77.tmp"
    left.write_bytes(b"")
    Inspector.open(folder).recalibrate("bolt", false_alarm_rate=0.1)
    assert kept.exists()
    assert not left.exists()


def test_a_link_in_a_bank_leads_no_writer_astray(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (folder / "products").rename(elsewhere)
    (elsewhere / "other-12345678-r1.jpg").write_bytes(b"of another bank")
    (folder / "products").symlink_to(elsewhere)
    Inspector.open(folder).recalibrate("bolt", false_alarm_rate=0.1)
    assert (elsewhere / "other-12345678-r1.jpg").exists()


@pytest.mark.parametrize("size", [31, 2049, 10**9, "64", 64.0, True, None])
def test_an_image_size_that_no_bank_has_is_refused(folder: Path, size: object) -> None:
    edit_manifest(folder, lambda content: content.update(image_size=size))
    with pytest.raises(BankError, match="damaged"):
        Inspector.open(folder)


@pytest.mark.parametrize(
    ("key", "value"), [("limit", float("nan")), ("limit", "1"), ("name", "a\nb"), ("name", 3), ("taps", 3)]
)
def test_an_entry_that_no_bank_has_is_refused(folder: Path, key: str, value: object) -> None:
    edit_manifest(folder, lambda content: content["products"][0].update({key: value}))
    with pytest.raises(BankError):
        Inspector.open(folder)
