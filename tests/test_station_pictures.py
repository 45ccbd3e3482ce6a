"""Pictures on disk: durable before they are named, swept when nothing names them, removed within a budget."""

from __future__ import annotations

import errno
import io
import itertools
import os
import random
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql
from PIL import Image

from conftest import end_child, start_child, watched
from continuad.errors import ImageError, StationError
from continuad.files import SUFFIXES
from continuad.station import history as history_module
from continuad.station.database import Database, inspections
from continuad.station.history import History, NewInspection
from continuad.station.pictures import Pictures
from continuad.station.retention import RULE, Retention, Usage
from made_inspections import MAP, PICTURE, new, unknown

pytest_plugins = ["databases"]

DAY = 1_795_305_845_678_901  # 2026-11-22 00:04:05.678901 UTC


def files(pictures: Pictures) -> set[str]:
    return {path.relative_to(pictures.folder).as_posix() for path in pictures.folder.rglob("*.*")}


# saved and read


def test_pictures_come_back_byte_for_byte(pictures: Pictures) -> None:
    batch = [(bytes([index]) * index, suffix) for index, suffix in enumerate(SUFFIXES)]
    names = pictures.save_all(batch, time=DAY)
    assert [pictures.read(name) for name in names] == [data for data, _ in batch]
    assert {name[:11] for name in names} == {"2026-11-22/"}
    assert len({name[11:43] for name in names}) == len(batch)
    assert files(pictures) == set(names)
    again = Pictures(pictures.folder)
    assert again.read(names[3]) == batch[3][0]
    assert pictures.save_all([]) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../station.db",
        "2026-11-22/../../station.db",
        "/etc/passwd",
        "2026-11-22/" + "a" * 32,
        "2026-11-22/" + "a" * 32 + ".png\n",
        "2026-11-22/" + "a" * 31 + "/.png",
        "2026-11-22/" + "A" * 32 + ".png",
        "2026-11-22/" + "a" * 32 + ".png/../x.png",
        "2026-11-22/" + "a" * 32 + ".exe",
        "٢٠٢٦-11-22/" + "a" * 32 + ".png",
    ],
)
def test_no_other_name_reaches_the_file_system(
    pictures: Pictures, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: pytest.fail(f"read {path}"))
        patch.setattr(Path, "unlink", lambda path, missing_ok: pytest.fail(f"removed {path}"))
        for use in (pictures.read, pictures.thumbnail, lambda name: pictures.remove([name])):
            with pytest.raises(StationError, match="is not the name of a picture"):
                use(name)


def test_an_unknown_suffix_is_not_saved(pictures: Pictures) -> None:
    with pytest.raises(StationError, match="is not the name"):
        pictures.save_all([(PICTURE, ".png"), (PICTURE, ".html")])
    assert list(pictures.folder.iterdir()) == []


def test_removed_pictures_are_gone_and_others_stay(pictures: Pictures) -> None:
    one, other = pictures.save(PICTURE, ".png"), pictures.save(MAP, ".png")
    pictures.remove([one])
    pictures.remove([one])
    assert pictures.read(other) == MAP
    for use in (pictures.read, pictures.thumbnail):
        with pytest.raises(StationError, match="no longer there"):
            use(one)


def test_pictures_are_on_the_disk_before_they_have_a_name(
    pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[int, int]] = []
    fsync = os.fsync

    def note(descriptor: int) -> None:
        fsync(descriptor)
        status = os.fstat(descriptor)
        synced.append((status.st_ino, status.st_size if status.st_nlink == 1 else -1))

    monkeypatch.setattr(os, "fsync", note)
    names = pictures.save_all([(b"a" * 10**6, ".png"), (b"b" * 3, ".jpg")], time=DAY)
    inodes = [(pictures.folder / name).stat().st_ino for name in names]
    folders = [(pictures.folder / "2026-11-22").stat().st_ino, pictures.folder.stat().st_ino]
    assert [each for each, _ in synced] == inodes + folders
    assert [size for _, size in synced[:2]] == [10**6, 3]
    synced.clear()
    pictures.save_all([(b"c", ".png")] * 3, time=DAY)
    assert len(synced) == 3 + 1  # the day's folder is known to be there


def test_a_batch_that_fails_leaves_nothing(pictures: Pictures) -> None:
    kept = pictures.save(PICTURE, ".png", time=0)
    failed = list[str]()
    for step in itertools.count(1):
        before = files(pictures)

        def fail(number: int, name: str, step: int = step) -> None:
            if number == step:
                raise OSError(errno.EIO, f"{name} failed")

        try:
            with watched(fail) as made:
                pictures.save_all([(PICTURE, ".png")] * 2, time=DAY)
        except OSError as error:
            assert error.errno == errno.EIO  # noqa: PT017
            assert files(pictures) == before
            failed.append(made[step - 1])
        if len(made) < step:
            break
    assert Counter(failed) >= Counter({"open": 2, "write": 2, "fsync": 3, "mkdir": 1})
    assert pictures.read(kept) == PICTURE


# thumbnails


def test_a_thumbnail_is_a_small_upright_jpeg(pictures: Pictures) -> None:
    pixels = np.zeros((60, 40, 3), np.uint8)
    pixels[:20] = 255
    stream, turned = io.BytesIO(), Image.Exif()
    turned[0x0112] = 6  # to be shown turned clockwise
    Image.fromarray(pixels).save(stream, "JPEG", exif=turned)
    name = pictures.save(stream.getvalue(), ".jpg")
    for width, size in ((30, (30, 20)), (60, (60, 40)), (61, (60, 40)), (None, (60, 40)), (1, (1, 1))):
        shown = Image.open(io.BytesIO(pictures.thumbnail(name, width)))
        assert (shown.format, shown.mode, shown.size) == ("JPEG", "RGB", size)
    shown = Image.open(io.BytesIO(pictures.thumbnail(name, 30))).convert("L")
    assert shown.getpixel((27, 10)) > 240  # type: ignore[operator]
    assert shown.getpixel((3, 10)) < 15  # type: ignore[operator]


def test_a_damaged_picture_has_no_thumbnail(pictures: Pictures) -> None:
    with pytest.raises(ImageError, match="cannot be decoded"):
        pictures.thumbnail(pictures.save(PICTURE[:40], ".png"), 10)


# swept


def test_only_orphans_are_swept(history: History, pictures: Pictures) -> None:
    stored = [each.picture or "" for each in history.add([new(), new()])]
    orphan = pictures.save(PICTURE, ".png")
    old = pictures.save(PICTURE, ".png", time=0)
    strangers = [pictures.folder / "notes.txt", pictures.folder / "1970-01-01" / "notes.txt"]
    for path in strangers:
        path.write_text("mine")
    assert pictures.sweep(history.pictures_of) == 0  # might be about to be named
    assert Pictures(pictures.folder).sweep(history.pictures_of) == 2
    assert {orphan, old} & files(pictures) == set()
    assert all(path.read_text() == "mine" for path in strangers)
    assert [pictures.read(name) for name in stored] == [PICTURE, PICTURE]
    assert Pictures(pictures.folder).sweep(history.pictures_of) == 0


def test_a_picture_is_known_on_the_day_of_its_row(
    history: History, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    midnight = DAY - DAY % (24 * 3600 * 10**6)
    moments = (midnight - 1, midnight, midnight + 24 * 3600 * 10**6 - 1, midnight + 24 * 3600 * 10**6)
    stored = []
    for moment in moments:
        monkeypatch.setattr(history_module, "now", lambda moment=moment: moment)
        stored += [each.picture for each in history.add([new()])]
    days = ["2026-11-21", "2026-11-22", "2026-11-22", "2026-11-23"]
    assert [str(name)[:10] for name in stored] == days
    assert history.pictures_of("2026-11-22") == {*stored[1:3]}
    assert Pictures(pictures.folder).sweep(history.pictures_of) == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_what_a_killed_process_has_acknowledged_is_there(address: str | Path, tmp_path: Path) -> None:
    folder, moments = tmp_path / "pictures", random.Random(0)
    acknowledged: list[int] = []
    for _ in range(3):
        reader, writer = os.pipe()

        def work(writer: int = writer) -> None:
            history = History(Database(address), Pictures(folder), ["mqtt"])
            for batch in itertools.count():
                for each in history.add([new(reference=f"{batch}", key=f"{os.getpid()} {batch}"), unknown()]):
                    os.write(writer, b"%d\n" % each.id)

        child = start_child(work)
        os.close(writer)
        with os.fdopen(reader) as said:
            first = [said.readline() for _ in range(moments.randrange(2, 40))]
            os.kill(child, signal.SIGKILL)
            lines = [*first, *said.read().splitlines(keepends=True)]
        assert end_child(child) == -signal.SIGKILL
        acknowledged += [int(line) for line in lines if line.endswith("\n")]

    database, pictures = Database(address), Pictures(folder)
    history = History(database, pictures)
    orphan = Pictures(folder).save(PICTURE, ".png")
    swept = pictures.sweep(history.pictures_of)
    stored = {each.id: each for each in history.walk()}
    assert stored.keys() >= set(acknowledged)
    assert len(stored) - len(acknowledged) <= 3 * 2  # of each child the batch of which it did not tell
    assert len(acknowledged) == len(set(acknowledged)) >= 6
    assert all(pictures.read(each.picture or "") == PICTURE for each in stored.values())
    assert files(pictures) == {each.picture for each in stored.values()}
    assert 1 <= swept <= 1 + 3 * 2
    assert orphan not in files(pictures)
    database.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_process_killed_at_any_step_leaves_no_row_without_its_picture(tmp_path: Path) -> None:
    Database(tmp_path / "station.db").close()
    folder = tmp_path / "pictures"
    swept = 0
    for step in itertools.count(1):

        def die(number: int, name: str, step: int = step) -> None:
            if number == step:
                os.kill(os.getpid(), signal.SIGKILL)

        def work(die: Callable[[int, str], None] = die) -> None:
            database = Database(tmp_path / "station.db")
            with watched(die):
                History(database, Pictures(folder)).add([new(), new()])

        status = end_child(start_child(work))
        database, pictures = Database(tmp_path / "station.db"), Pictures(folder)
        history = History(database, pictures)
        swept += pictures.sweep(history.pictures_of)
        stored = history.page()
        assert files(pictures) == {each.picture for each in stored}
        assert len(stored) == (0 if status else 2)
        database.close()
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert step > 8
    assert swept > 4


# retention


def fill(history: History, kinds: list[str]) -> list[int]:
    """An inspection of each kind, each with a picture of 100 bytes; returns their ids."""
    of: dict[str, Callable[[], NewInspection]] = {
        "normal": lambda: new(data=bytes(60), map=bytes(40)),
        "anomalous": lambda: new(label="anomalous", data=bytes(70), map=bytes(30)),
        "unknown": lambda: unknown(data=bytes(100)),
        "settled": lambda: unknown(data=bytes(100)),
        "good": lambda: new(label="anomalous", data=bytes(50), map=bytes(50)),
        "bad": lambda: new(data=bytes(99), map=bytes(1)),
        "bad unknown": lambda: unknown(data=bytes(100)),
    }
    stored = [each.id for each in history.add([of[kind]() for kind in kinds])]
    for number, kind in zip(stored, kinds, strict=True):
        if kind.split()[0] in ("good", "bad"):
            history.set_truth(number, kind.split()[0])
    history.settle(number for number, kind in zip(stored, kinds, strict=True) if kind == "settled")
    return stored


KINDS = [
    "good",
    "unknown",
    "anomalous",
    "settled",
    "normal",
    "bad unknown",
    "normal",
    "settled",
    "bad",
    "anomalous",
]
ORDER = [4, 6, 3, 7, 2, 9, 1, 0, 5, 8]  # of the above, which goes first, second, ...


@pytest.mark.parametrize(
    ("budget", "removed"),
    [(1000, 0), (999, 1), (947, 2), (700, 4), (526, 6), (420, 7), (200, 9), (1, 10), (0, 10)],
)
def test_pictures_go_in_the_stated_order(
    history: History, database: Database, pictures: Pictures, budget: int, removed: int
) -> None:
    # 999: down to 949.05, so 1 of 1000 bytes must go; 947 * 0.95 = 899.65, so 2; 526 -> 499.7, so 6
    stored = fill(history, KINDS)
    before = {each.id: each for each in history.page()}
    retention = Retention(database, pictures, budget)
    assert retention.enforce() == removed
    gone = {stored[index] for index in ORDER[:removed]}
    after = {each.id: each for each in history.page()}
    assert {number for number, each in after.items() if each.picture is None} == gone
    assert files(pictures) == {each.picture for number, each in before.items() if number not in gone}
    for number, each in after.items():
        if number not in gone:
            assert each == before[number]
            continue
        assert (each.picture_bytes, each.map_peak, history.map(number)) == (0, None, None)
        assert (each.score, each.label, each.truth) == (
            before[number].score,
            before[number].label,
            before[number].truth,
        )
        assert not each.as_dict()["has_picture"]
        assert not each.as_dict()["has_map"]
    usage = retention.usage()
    assert usage == Usage(10 - removed, 1000 - 100 * removed, budget, usage.free, removed)
    assert usage.free > 0
    assert retention.enforce() == 0


def test_retention_removes_many_in_small_portions(
    history: History, database: Database, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("continuad.station.retention.CHUNK", 2)
    fill(history, ["normal"] * 7 + ["anomalous"] * 3)
    assert Retention(database, pictures, 200).enforce() == 9
    assert [each.label for each in history.page() if each.picture] == ["anomalous"]


def test_a_picture_that_goes_no_longer_waits_to_be_taught(
    history: History, database: Database, pictures: Pictures
) -> None:
    fill(history, ["unknown", "unknown"])
    Retention(database, pictures, 150).enforce()
    assert history.unknown_count() == len(history.unknowns()) == 1
    assert history.unknowns()[0][0].picture is not None


def test_rows_let_go_before_the_files_do(
    history: History, database: Database, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(history, ["normal"])

    def die(names: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch:
        patch.setattr(pictures, "remove", die)
        with pytest.raises(SystemExit):
            Retention(database, pictures, 0).enforce()
    with database.read() as connection:
        assert connection.execute(sql.select(inspections.c.picture)).scalars().all() == [None]
    assert len(files(pictures)) == 1
    assert Pictures(pictures.folder).sweep(history.pictures_of) == 1


def test_the_rule_is_said() -> None:
    assert "oldest go first" in RULE
