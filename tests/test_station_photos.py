"""Photo sets: what was added is there and stays there, and nothing is left of what was removed."""

from __future__ import annotations

import hashlib
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql
from PIL import ExifTags, Image

from continuad.errors import ImageError
from continuad.images import load_image
from continuad.station import photo_sets as module
from continuad.station.database import Database, jobs, photos
from continuad.station.faults import ConflictError, NotFoundError
from continuad.station.photo_sets import PhotoSets
from made_inspections import PICTURE, png

pytest_plugins = ["databases"]

MANY = 100
DAY = 24 * 3600


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "photos"


@pytest.fixture
def sets(database: Database, folder: Path) -> PhotoSets:
    return PhotoSets(database, folder)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Microseconds; change the item to change the time."""
    time = [10**15]
    monkeypatch.setattr(module, "now", lambda: time[0])
    return time


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def rows(database: Database) -> int:
    with database.read() as connection:
        return connection.execute(sql.select(sql.func.count()).select_from(photos)).scalar_one()


def test_what_is_added_comes_back(sets: PhotoSets, database: Database, folder: Path) -> None:
    name = sets.create()
    first = sets.add(name, PICTURE, "IMG_1.png", max_photos=MANY)
    second = sets.add(name, png(9, (30, 20)), "IMG_2.png", max_photos=MANY)
    assert (second.name, second.width, second.height) == ("IMG_2.png", 30, 20)
    assert second.bytes == len(png(9, (30, 20)))
    assert second.sha256 == hashlib.sha256(png(9, (30, 20))).hexdigest()
    again = PhotoSets(database, folder)  # as after a restart
    assert again.get(name).photos == (first, second)
    assert again.get(name).id == name
    assert again.picture(name, first.id) == PICTURE
    assert [path.read_bytes() for path in again.files(name)] == [PICTURE, png(9, (30, 20))]


def test_sets_do_not_see_each_others_photos(sets: PhotoSets) -> None:
    one, other = sets.create(), sets.create()
    photo = sets.add(one, PICTURE, "a", max_photos=MANY)
    assert one != other
    assert sets.get(other).photos == ()
    for act in (sets.picture, sets.thumbnail, sets.remove):
        with pytest.raises(NotFoundError, match="no such photo"):
            act(other, photo.id)
    sets.keep_traits(other, photo.id, b"traits")
    sets.discard(other)
    assert sets.get(one).photos == (photo,)


def test_a_set_that_is_not_there(sets: PhotoSets, folder: Path) -> None:
    for act in (sets.get, sets.files):
        with pytest.raises(NotFoundError, match="no such photo set"):
            act("0" * 32)
    with pytest.raises(NotFoundError, match="no such photo set"):
        sets.add("0" * 32, PICTURE, "a", max_photos=MANY)
    assert files(folder) == []
    sets.discard("0" * 32)


@pytest.mark.parametrize("data", [b"", b"no image", PICTURE[:40], png(size=(4, 4))])
def test_what_is_no_usable_image_is_refused_and_not_kept(sets: PhotoSets, folder: Path, data: bytes) -> None:
    name = sets.create()
    with pytest.raises(ImageError):
        sets.add(name, data, "a.png", max_photos=MANY)
    with pytest.raises(ImageError, match="more than the limit"):
        sets.add(name, PICTURE, "a.png", max_photos=MANY, max_pixels=100)
    assert sets.get(name).photos == ()
    assert files(folder) == []


def test_a_full_set_takes_no_more(sets: PhotoSets, folder: Path) -> None:
    name = sets.create()
    for index in range(2):
        sets.add(name, PICTURE, f"{index}", max_photos=2)
    with pytest.raises(ConflictError, match="2 photos already"):
        sets.add(name, PICTURE, "2", max_photos=2)
    assert len(files(folder)) == 2
    sets.remove(name, sets.get(name).photos[0].id)
    assert sets.add(name, PICTURE, "2", max_photos=2).name == "2"


def test_many_at_once_never_exceed_the_limit(sets: PhotoSets, folder: Path) -> None:
    name = sets.create()
    start = threading.Barrier(6)

    def add(index: int) -> bool:
        start.wait()
        try:
            sets.add(name, png(index), f"{index}", max_photos=4)
        except ConflictError:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(add, range(6))) == 4
    assert len(sets.get(name).photos) == len(files(folder)) == 4


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  IMG 1.png\n", "IMG 1.png"),
        ("Prüfung Ω.jpg", "Prüfung Ω.jpg"),
        ("a\0b\x1b\ud800c", "abc"),
        ("\t\u202e", "photo"),
        ("x" * 300, "x" * 200),
        ("../../etc/passwd", "../../etc/passwd"),
    ],
)
def test_names_are_for_people_only(sets: PhotoSets, folder: Path, given: str, kept: str) -> None:
    name = sets.create()
    assert sets.add(name, PICTURE, given, max_photos=MANY).name == kept
    assert sets.get(name).photos[0].name == kept
    assert all(path.is_relative_to(folder) and ".." not in path.parts for path in sets.files(name))


def test_a_photo_taken_upright_is_one(sets: PhotoSets) -> None:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[ExifTags.Base.Orientation] = 6
    Image.new("RGB", (40, 20)).save(stream, "JPEG", exif=exif)
    name = sets.create()
    photo = sets.add(name, stream.getvalue(), "phone.jpg", max_photos=MANY)
    assert (photo.width, photo.height) == (20, 40)
    assert load_image(sets.thumbnail(name, photo.id, 10)).shape == (20, 10, 3)
    assert load_image(sets.thumbnail(name, photo.id, 1000)).shape == (40, 20, 3)


def test_traits_are_kept_and_what_has_none_is_named(sets: PhotoSets) -> None:
    one, other = sets.create(), sets.create()
    a, b = (sets.add(name, PICTURE, "a", max_photos=MANY) for name in (one, other))
    c = sets.add(one, PICTURE, "c", max_photos=MANY)
    assert sets.add(one, PICTURE, "c", max_photos=MANY) == c  # sent again
    assert sets.unexamined() == [(one, a.id), (other, b.id), (one, c.id)]
    sets.keep_traits(one, a.id, b"\0traits\xff")
    assert sets.get(one).photos[0].traits == b"\0traits\xff"
    assert sets.get(one).photos[1].traits is None
    assert sets.unexamined() == [(other, b.id), (one, c.id)]
    sets.remove(one, c.id)
    sets.keep_traits(one, c.id, b"too late")
    assert [photo.id for photo in sets.get(one).photos] == [a.id]


def test_nothing_is_left_of_what_was_removed(sets: PhotoSets, database: Database, folder: Path) -> None:
    name = sets.create()
    first, second = (sets.add(name, PICTURE, each, max_photos=MANY) for each in "ab")
    sets.remove(name, first.id)
    with pytest.raises(NotFoundError, match="no such photo"):
        sets.remove(name, first.id)
    assert sets.get(name).photos == (second,)
    assert len(files(folder)) == 1
    sets.discard(name)
    with pytest.raises(NotFoundError):
        sets.get(name)
    assert (files(folder), rows(database)) == ([], 0)


def test_a_photo_that_cannot_be_entered_is_not_kept(
    sets: PhotoSets, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = sets.create()

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "_hold", fail)
    with pytest.raises(KeyboardInterrupt):
        sets.add(name, PICTURE, "a", max_photos=MANY)
    assert files(folder) == []


def test_old_sets_expire_unless_a_job_needs_them(
    sets: PhotoSets, database: Database, folder: Path, clock: list[int]
) -> None:
    old, queued, ended = sets.create(), sets.create(), sets.create()
    clock[0] += 5 * DAY * 1_000_000
    new = sets.create()
    for name in (old, queued, ended, new):
        sets.add(name, PICTURE, "a", max_photos=MANY)
    with database.write() as connection:
        for name, state in ((queued, "queued"), (ended, "failed")):
            values = {"id": name, "kind": "teach", "state": state, "product": "bolt", "created": 1}
            connection.execute(
                jobs.insert().values(request=f'{{"photo_set": "{name}"}}', attempts=0, **values)
            )
    assert sets.expire(6 * DAY) == 0
    assert sets.expire(3 * DAY) == 2
    assert [len(sets.get(name).photos) for name in (queued, new)] == [1, 1]
    for name in (old, ended):
        with pytest.raises(NotFoundError):
            sets.get(name)
    assert len(files(folder)) == rows(database) == 2


def test_what_a_crash_left_is_swept(sets: PhotoSets, database: Database, folder: Path) -> None:
    name = sets.create()
    kept = sets.add(name, PICTURE, "a", max_photos=MANY)
    orphan = folder / kept.file.partition("/")[0] / f"{'0' * 32}.png"
    orphan.write_bytes(PICTURE)
    assert PhotoSets(database, folder).sweep() == 1
    assert sets.picture(name, kept.id) == PICTURE
    assert not orphan.exists()


def test_any_kind_of_image_keeps_its_bytes_and_suffix(sets: PhotoSets) -> None:
    name = sets.create()
    picture = Image.fromarray(np.full((16, 16, 3), 90, np.uint8))
    for kind, suffix in (
        ("JPEG", ".jpg"),
        ("BMP", ".bmp"),
        ("TIFF", ".tif"),
        ("WEBP", ".webp"),
        ("PPM", ".ppm"),
    ):
        stream = io.BytesIO()
        picture.save(stream, kind)
        photo = sets.add(name, stream.getvalue(), kind, max_photos=MANY)
        assert photo.file.endswith(suffix)
        assert sets.picture(name, photo.id) == stream.getvalue()
