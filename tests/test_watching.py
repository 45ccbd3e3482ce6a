from __future__ import annotations

import errno
import io
import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brokers import RECEIVED, Broker, wait_for
from conftest import Photo, photos
from continuad.errors import ContinuadError, ImageError, SettingsError
from continuad.images import load_image
from continuad.watching import (
    CameraSettings,
    CameraSource,
    FolderSettings,
    FolderSource,
    Journal,
    MqttAddress,
    MqttSettings,
    Publisher,
    Sighting,
    VideoSource,
    folder,
    open_source,
    without_credentials,
)
from continuad.watching.video import open_file

QUICK = FolderSettings(poll=0.01, patience=0.15, remembered=100)
STEADY = FolderSettings(poll=0.01, patience=30)
SECONDS = 10


def encoded(photo: Photo, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, kind, **options)
    return stream.getvalue()


GOOD = [encoded(photo) for photo in photos("bolt", 4)]
PIXELS = [load_image(data) for data in GOOD]


class Watcher:
    """A folder being watched in a thread; what it has seen and said so far."""

    def __init__(self, path: Path, *, settings: FolderSettings = QUICK, **options: Any) -> None:
        self.sightings: list[Sighting] = []
        self.notes: list[str] = []
        self._stop = threading.Event()
        self.source = FolderSource(
            path,
            **{"once": False, "note": self.notes.append, "stop": self._stop, "settings": settings, **options},
        )
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        for sighting in self.source:
            self.sightings.append(sighting)

    @property
    def names(self) -> list[str]:
        return [Path(str(sighting.origin["image"])).name for sighting in self.sightings]

    @property
    def errors(self) -> list[str]:
        return [str(each.image) for each in self.sightings if isinstance(each.image, ImageError)]

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def wait_for(self, count: int) -> None:
        wait_for(lambda: len(self.sightings) >= count)

    def looks(self, count: int = 5) -> None:
        """Wait while the folder is looked at so many times."""
        time.sleep(count * 0.02)


def names(source: Iterable[Sighting]) -> list[str]:
    return [Path(str(sighting.origin["image"])).name for sighting in source]


def once(path: Path, *, notes: list[str] | None = None, **options: Any) -> FolderSource:
    note = (notes if notes is not None else []).append
    return FolderSource(path, once=True, note=note, stop=threading.Event(), settings=QUICK, **options)


def put(path: Path, data: bytes, *, at: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    if at is not None:
        os.utime(path, (at, at))


# --- folders


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("WEBP", {}),
        ("PPM", {}),
    ],
)
def test_the_beginning_of_a_file_is_never_taken_for_a_picture(kind: str, options: dict[str, Any]) -> None:
    data = encoded(photos("bolt", 1, width=90, height=70)[0], kind, **options)
    whole = load_image(data)
    refused = 0
    for end in {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 20, len(data))}:
        try:
            beginning = load_image(data[:end])
        except ImageError:
            refused += 1
        else:  # only what stands behind the pixels is missing
            assert np.array_equal(beginning, whole), end
    assert refused > 50


def test_slowly_written_files_come_whole_and_exactly_once(tmp_path: Path) -> None:
    kinds = ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"]
    files = {
        tmp_path / f"{index}.{kinds[index % 6].lower()}": encoded(photo, kinds[index % 6])
        for index, photo in enumerate(photos("bolt", 18))
    }

    def write(part: int) -> None:
        rng = np.random.default_rng(part)
        for file, data in [*files.items()][part::3]:
            pauses = rng.uniform(0, 0.05, 4)  # up to five looks
            with file.open("wb", buffering=0) as stream:
                for pause, quarter in zip(
                    pauses, np.array_split(np.frombuffer(data, np.uint8), 4), strict=True
                ):
                    time.sleep(pause)
                    stream.write(quarter)

    with Watcher(tmp_path, settings=STEADY) as watcher:
        writers = [threading.Thread(target=write, args=[part]) for part in range(3)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        watcher.wait_for(len(files))
        watcher.looks()
    assert sorted(watcher.names) == sorted(file.name for file in files)
    for sighting in watcher.sightings:
        assert np.array_equal(sighting.image, load_image(files[Path(str(sighting.origin["image"]))]))


def test_a_file_that_changes_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.png", GOOD[0])
    reads = []

    def load_and_replace(path: str) -> Photo:
        image = load_image(path)
        reads.append(image)
        if len(reads) == 1:
            put(Path(path), GOOD[1], at=5)
        return image

    monkeypatch.setattr(folder, "load_image", load_and_replace)
    [sighting] = once(tmp_path)
    assert len(reads) == 2
    assert np.array_equal(sighting.image, PIXELS[1])


def test_a_broken_file_that_changes_while_it_is_read_is_not_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "a.png", b"broken")

    def load_and_replace(path: str) -> Photo:
        if Path(path).read_bytes() == b"broken":
            put(Path(path), GOOD[1])
            raise ImageError("It is", "broken.")
        return load_image(path)

    monkeypatch.setattr(folder, "load_image", load_and_replace)
    settings = FolderSettings(poll=0.01, patience=0)
    source = FolderSource(tmp_path, once=True, note=print, stop=threading.Event(), settings=settings)
    [sighting] = source
    assert np.array_equal(sighting.image, PIXELS[1])


def test_a_file_that_differs_at_every_look_is_not_opened(tmp_path: Path) -> None:
    class Looks(threading.Event):
        """Counts the pauses between looks, and replaces the file in the first ones."""

        count = 0

        def wait(self, timeout: float | None = None) -> bool:
            self.count += 1
            if self.count <= 5:
                put(tmp_path / "a.png", GOOD[self.count % 4], at=self.count)
            return False

    looks = Looks()
    put(tmp_path / "a.png", GOOD[0], at=0)
    [sighting] = FolderSource(tmp_path, once=True, note=print, stop=looks)
    assert sighting.origin["mtime_ns"] == 5_000_000_000
    assert looks.count == 6


def test_files_come_by_time_then_by_natural_name(tmp_path: Path) -> None:
    order = ["z.png", "img2.png", "img10.png", "sub/img1.png", "a.png"]
    for name, at in zip(order, [1, 2, 2, 2, 3], strict=True):
        put(tmp_path / name, GOOD[0], at=at)
    (first, *_, last) = found = list(once(tmp_path))
    assert [Path(str(each.origin["image"])).relative_to(tmp_path).as_posix() for each in found] == order
    assert first.origin == {"image": str(tmp_path / "z.png"), "mtime_ns": 1_000_000_000}
    assert [each.name for each in found] == ["z", "img2", "img10", "sub-img1", "a"]
    assert last.name == "a"


def test_hidden_and_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in (".a.png", ".hidden/a.png", "a.png.part", "notes.txt", "a"):
        put(tmp_path / name, GOOD[0])
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    put(tmp_path / "deep/er/B.JPG", GOOD[0])
    assert names(once(tmp_path)) == ["B.JPG"]


def test_images_are_absolute_wherever_they_are_watched_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "in/a.png", GOOD[0])
    monkeypatch.chdir(tmp_path)
    [sighting] = once(Path("in"))
    assert sighting.origin["image"] == str(tmp_path / "in/a.png")


def test_a_replaced_file_is_seen_again(tmp_path: Path) -> None:
    file = tmp_path / "latest.png"
    put(file, GOOD[0], at=1)
    with Watcher(tmp_path) as watcher:
        watcher.wait_for(1)
        put(tmp_path / "draft", GOOD[1], at=2)
        (tmp_path / "draft").rename(file)
        watcher.wait_for(2)
        put(tmp_path / "draft", GOOD[2], at=1)  # an older one
        (tmp_path / "draft").rename(file)
        watcher.wait_for(3)
        watcher.looks()
    assert len(watcher.sightings) == 3
    for sighting, pixels in zip(watcher.sightings, PIXELS, strict=False):
        assert np.array_equal(sighting.image, pixels)


def test_an_unreadable_file_is_reported_once_and_again_when_it_changes(tmp_path: Path) -> None:
    put(tmp_path / "a.png", GOOD[0][:300])
    put(tmp_path / "empty.png", b"")
    put(tmp_path / "b.png", GOOD[1])
    with Watcher(tmp_path) as watcher:
        watcher.wait_for(3)
        watcher.looks(12)
        assert watcher.names == ["b.png", "a.png", "empty.png"]  # none waits for a broken one
        assert [
            name in error for name, error in zip(("a.png", "empty.png"), watcher.errors, strict=True)
        ] == [
            True,
            True,
        ]
        put(tmp_path / "a.png", GOOD[0])
        watcher.wait_for(4)
    assert np.array_equal(watcher.sightings[3].image, PIXELS[0])


def test_a_file_that_rests_half_written_is_waited_for(tmp_path: Path) -> None:
    put(tmp_path / "a.png", GOOD[0][:300])
    with Watcher(tmp_path, settings=STEADY) as watcher:
        watcher.looks(10)
        assert not watcher.sightings
        put(tmp_path / "a.png", GOOD[0])
        watcher.wait_for(1)
    assert not watcher.errors


def test_a_folder_that_vanishes_is_waited_for_and_nothing_is_seen_twice(tmp_path: Path) -> None:
    place, away = tmp_path / "in", tmp_path / "away"
    put(place / "sub/a.png", GOOD[0])
    with Watcher(place) as watcher:
        watcher.wait_for(1)
        place.rename(away)
        wait_for(lambda: watcher.notes)
        watcher.looks()
        place.mkdir()  # the mount point of a share, still empty
        watcher.looks()
        place.rmdir()
        watcher.looks()
        put(away / "sub/b.png", GOOD[1])
        away.rename(place)
        watcher.wait_for(2)
        watcher.looks()
    assert watcher.names == ["a.png", "b.png"]
    gone, back = f"The folder {place} is gone", f"The folder {place} is back"
    assert [note.startswith((gone, back)) for note in watcher.notes] == [True] * 4
    assert [note.startswith(back) for note in watcher.notes] == [False, True, False, True]


def test_a_half_written_file_gets_all_its_time_when_the_folder_is_back(tmp_path: Path) -> None:
    place, away = tmp_path / "in", tmp_path / "away"
    put(place / "a.png", GOOD[0][:300])
    with Watcher(place, settings=FolderSettings(poll=0.01, patience=0.5)) as watcher:
        watcher.looks()
        place.rename(away)
        watcher.looks(30)
        away.rename(place)
        watcher.looks()
        put(place / "a.png", GOOD[0])
        watcher.wait_for(1)
    assert watcher.errors == []


def test_a_sub_folder_that_cannot_be_listed_is_said_once_and_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "locked/a.png", GOOD[0])
    scandir, is_locked = os.scandir, threading.Event()
    is_locked.set()

    def guarded(path: str) -> Any:
        if is_locked.is_set() and path.endswith("locked"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    with Watcher(tmp_path) as watcher:
        put(tmp_path / "b.png", GOOD[1])
        watcher.wait_for(1)
        watcher.looks()
        assert [str(tmp_path / "locked") in note for note in watcher.notes] == [True]
        is_locked.clear()
        watcher.wait_for(2)
    assert watcher.names == ["b.png", "a.png"]
    assert "Permission denied" in watcher.notes[0]
    assert len(watcher.notes) == 2


def test_a_folder_that_is_not_there_at_the_start_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ContinuadError, match="cannot be listed"):
        once(tmp_path / "none")


def test_once_ends_although_more_files_come(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "broken.png"):
        put(tmp_path / name, GOOD[0][:300] if name == "broken.png" else GOOD[0])
    source = once(tmp_path)
    found = []
    for sighting in source:
        found.append(sighting)
        put(tmp_path / f"new{len(found)}.png", GOOD[1])
    assert names(found) == ["a.png", "b.png", "broken.png"]


def test_once_in_an_empty_folder_ends(tmp_path: Path) -> None:
    assert not list(once(tmp_path))


def test_what_is_done_is_skipped_unless_it_changed(tmp_path: Path) -> None:
    for index, name in enumerate(("a.png", "b.png", "c.png")):
        put(tmp_path / name, GOOD[index], at=index + 1)
    done = [(str(tmp_path / "a.png"), 1_000_000_000), (str(tmp_path / "b.png"), 7), ("elsewhere.png", 1)]
    assert names(once(tmp_path, done=done)) == ["b.png", "c.png"]


def test_memory_is_bounded_however_many_files_go_through(tmp_path: Path) -> None:
    settings = FolderSettings(poll=0.001, remembered=10)
    with Watcher(tmp_path, settings=settings) as watcher:
        for count in range(40):
            put(tmp_path / f"{count}.png", GOOD[0])
            watcher.wait_for(count + 1)
            (tmp_path / f"{count}.png").unlink()
        watcher.looks()
    assert 5 <= len(watcher.source._seen) <= 11
    assert str(tmp_path / "39.png") in watcher.source._seen  # those that went first are forgotten first


# --- journals


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def entry(number: int) -> str:
    return json.dumps({"image": f"/in/{number}.png", "mtime_ns": number, "label": "normal"})


def test_a_journal_names_what_is_done(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl")
    assert list(journal.images()) == []
    for number in range(3):
        journal.append(entry(number))
    journal.append('{"source": "0", "frame": 7}')
    done = [(f"/in/{number}.png", number) for number in range(3)]
    assert list(Journal(tmp_path / "out.jsonl").images()) == done


@pytest.mark.parametrize("tail", ["cut", "zeros", "cut and zeros", "line of zeros"])
def test_a_torn_last_line_is_cut_off(tmp_path: Path, tail: str) -> None:
    file = tmp_path / "out.jsonl"
    whole = (entry(0) + "\n" + entry(1) + "\n").encode()
    last = entry(2).encode()
    for end in range(len(last) + 1):
        torn = {
            "cut": last[:end],
            "zeros": b"\0" * end,
            "cut and zeros": last[:end] + b"\0" * 9,
            "line of zeros": b"\0" * end + last[end:] + b"\n",
        }[tail]
        file.write_bytes(whole + torn)
        is_torn = torn != last + b"\n"
        journal = Journal(file)
        assert file.read_bytes() == (whole if is_torn else whole + torn)
        journal.append(entry(3))
        assert lines(file)[-1]["mtime_ns"] == 3


@pytest.mark.parametrize("content", [b"notes of mine", b"\x89PNG\r\n\x1a\n\0\0", b'[1]\n{"a": 1}\n', b"1\n"])
def test_a_file_that_is_no_journal_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "out.jsonl"
    file.write_bytes(content)
    with pytest.raises(ContinuadError, match="Line 1 of"):
        Journal(file)
    assert file.read_bytes() == content


@pytest.mark.parametrize("place", [".", "none/out.jsonl", "pipe"])
def test_a_journal_that_cannot_be_is_refused(tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ContinuadError):
        Journal(tmp_path / place)


class Disk:
    """Lets journals write so many bytes more; then it is full."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 0
        disk, plain = self, Path.open

        class Limited(io.FileIO):
            def write(self, data: Any) -> int:
                if not disk.room:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                written = super().write(bytes(data)[: disk.room])
                disk.room -= written
                return written

        def limited(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            return Limited(path, mode) if mode == "a+b" else plain(path, mode, *arguments, **options)

        monkeypatch.setattr(Path, "open", limited)


def test_a_full_disk_leaves_no_half_line_and_the_line_is_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    journal = Journal(tmp_path / "out.jsonl")
    disk.room = 2 * len(entry(0)) - 9  # the second line does not fit by a few bytes
    journal.append(entry(0))
    for number in (1, 2):
        with pytest.raises(OSError, match="No space"):
            journal.append(entry(number))
        assert lines(tmp_path / "out.jsonl") == [json.loads(entry(0))]
        disk.room = 3
    assert journal.waiting == 2
    disk.room = 10_000
    journal.append(entry(3))
    assert [line["mtime_ns"] for line in lines(tmp_path / "out.jsonl")] == [0, 1, 2, 3]
    assert (journal.waiting, journal.lost) == (0, 0)


def test_half_a_line_that_stayed_nevertheless_is_cut_off(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl")
    for number in range(3):
        journal.append(entry(number))
        with (tmp_path / "out.jsonl").open("ab") as stream:
            stream.write(entry(9).encode()[:-3] * 10_000 * (number == 1) or b"{")
    journal.append(entry(3))
    assert [line["mtime_ns"] for line in lines(tmp_path / "out.jsonl")] == [0, 1, 2, 3]


def test_what_waits_for_a_full_disk_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    journal = Journal(tmp_path / "out.jsonl", backlog=2)
    for number in range(5):
        with pytest.raises(OSError, match="No space"):
            journal.append(entry(number))
    disk.room = 10_000
    journal.flush()
    assert [line["mtime_ns"] for line in lines(tmp_path / "out.jsonl")] == [3, 4]
    assert journal.lost == 3


def test_a_journal_that_was_moved_away_is_begun_anew(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "out.jsonl")
    journal.append(entry(0))
    (tmp_path / "out.jsonl").rename(tmp_path / "yesterday.jsonl")
    journal.append(entry(1))
    assert [line["mtime_ns"] for line in lines(tmp_path / "out.jsonl")] == [1]


# --- videos and cameras

RATE, COUNT = 5, 7


def frame(number: int) -> Photo:
    """A frame as OpenCV gives it: blue, green, red; red is the number."""
    return np.full((16, 16, 3), (10, 20, number % 256), np.uint8)


def red(sighting: Sighting) -> int:
    assert isinstance(sighting.image, np.ndarray)
    assert tuple(sighting.image[0, 0, 1:]) == (20, 10)
    return int(sighting.image[0, 0, 0])


class Film:
    """A capture of so many frames, some of which cannot be decoded."""

    def __init__(
        self, count: int, *, broken: Iterable[int] = (), rate: float = 10, promised: int | None = None
    ) -> None:
        self.number, self.count, self.broken = -1, count, set(broken)
        self.facts = {RATE: rate, COUNT: float(count if promised is None else promised)}
        self.is_open = True

    def grab(self) -> bool:
        self.number += 1
        return self.number < self.count

    def retrieve(self) -> tuple[bool, Photo | None]:
        return (False, None) if self.number in self.broken else (True, frame(self.number))

    def get(self, what: int, /) -> float:
        return self.facts[what]

    def release(self) -> None:
        self.is_open = False


def video(film: Film, *, every: float | None = None, notes: list[str] | None = None) -> VideoSource:
    note = (notes if notes is not None else []).append
    return VideoSource(Path("belt.v2.mp4"), every=every, note=note, stop=threading.Event(), capture=film)


def test_a_video_is_seen_frame_by_frame_in_rgb() -> None:
    film, notes = Film(5), []
    found = list(video(film, notes=notes))
    assert [sighting.origin for sighting in found] == [
        {"source": "belt.v2.mp4", "frame": number} for number in range(5)
    ]
    assert [red(sighting) for sighting in found] == [0, 1, 2, 3, 4]
    assert found[3].name == "belt.v2-000003"
    assert not film.is_open
    assert notes == []


@pytest.mark.parametrize(
    ("rate", "every", "expected"),
    [
        (10, 0.5, [0, 5, 10, 15]),
        (10, 0.25, [0, 3, 5, 8, 10, 13, 15, 18]),
        (10, 0.01, list(range(20))),
        (30, 0.1, [0, 3, 6, 9, 12, 15, 18]),
        (10, 60, [0]),
    ],
)
def test_every_counts_seconds_of_the_video(rate: float, every: float, expected: list[int]) -> None:
    assert [red(each) for each in video(Film(20, rate=rate), every=every)] == expected


def test_frames_that_cannot_be_decoded_are_skipped_and_counted() -> None:
    source = video(Film(8, broken=[0, 3, 4]))
    assert [red(each) for each in source] == [1, 2, 5, 6, 7]
    assert source.skipped == 3
    assert [red(each) for each in video(Film(8, broken=[0, 3]), every=0.3)] == [1, 4, 6]


def test_a_video_that_breaks_off_says_so() -> None:
    notes: list[str] = []
    assert len(list(video(Film(6, promised=30), notes=notes))) == 6
    assert ["after 6 of 30 frames" in note for note in notes] == [True]


def test_seconds_of_a_video_without_a_frame_rate_are_refused() -> None:
    with pytest.raises(ContinuadError, match="how many frames"):
        video(Film(3, rate=0), every=1)
    assert len(list(video(Film(3, rate=0)))) == 3


def test_a_real_video_file(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for number in range(40):
        writer.write(np.full((48, 64, 3), (0, 0, 5 * number), np.uint8))
    writer.release()
    options: dict[str, Any] = {"once": False, "done": (), "stop": threading.Event()}
    notes: list[str] = []
    found = list(open_source(str(file), every=0.5, note=notes.append, **options))
    assert [sighting.origin["frame"] for sighting in found] == [0, 5, 10, 15, 20, 25, 30, 35]
    for number, sighting in enumerate(found):
        assert isinstance(sighting.image, np.ndarray)
        assert sighting.image.shape == (48, 64, 3)
        assert np.abs(sighting.image.astype(int) - [25 * number, 0, 0]).max() < 12
    data = file.read_bytes()
    file.write_bytes(data[: 3 * len(data) // 4])
    assert 0 < len(list(open_source(str(file), every=None, note=notes.append, **options))) < 35
    assert len(notes) == 1
    (tmp_path / "none.mp4").write_bytes(b"nothing")
    with pytest.raises(ContinuadError, match="cannot be opened"):
        open_file(tmp_path / "none.mp4")


class Camera:
    """A camera that gives a frame each millisecond while it is plugged in; `opened` counts its openings."""

    def __init__(self) -> None:
        self.is_plugged, self.is_clear = threading.Event(), threading.Event()
        self.is_plugged.set()
        self.is_clear.set()
        self.number = 0  # of the frame that the camera shows now
        self.opened: list[float] = []
        self.released = 0

    def __call__(self) -> Camera:
        self.opened.append(time.monotonic())
        return self

    def grab(self) -> bool:
        time.sleep(0.001)
        self.number += 1
        return self.is_plugged.is_set()

    def retrieve(self) -> tuple[bool, Photo | None]:
        return (True, frame(self.number)) if self.is_clear.is_set() else (False, None)

    def get(self, what: int, /) -> float:
        return 0.0

    def release(self) -> None:
        self.released += 1


def camera_source(
    camera: Callable[[], Any],
    *,
    stop: threading.Event | None = None,
    notes: list[str] | None = None,
    every: float | None = None,
    once: bool = False,
    waits: tuple[float, ...] = (0.01, 0.02, 0.04),
    tolerance: int = 100,
) -> CameraSource:
    return CameraSource(
        camera,
        name="rtsp://cam",
        every=every,
        once=once,
        note=(notes if notes is not None else []).append,
        stop=stop or threading.Event(),
        settings=CameraSettings(waits=waits, tolerance=tolerance, tick=0.01),
    )


def cameras() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "camera"]


def test_a_slow_inspection_always_gets_the_newest_frame() -> None:
    camera = Camera()
    frames: Iterator[Sighting] = iter(camera_source(camera))
    before, numbers = -1, []
    for _ in range(4):
        shown = camera.number
        sighting = next(frames)
        assert camera.number - 256 < shown  # or red would be ambiguous
        assert (red(sighting) - shown) % 256 <= (
            camera.number - shown
        ) % 256  # nothing from before the question
        assert int(sighting.origin["frame"]) > before
        before = int(sighting.origin["frame"])
        numbers.append(before)
        time.sleep(0.05)
    frames.close()  # type: ignore[attr-defined]
    assert numbers[-1] > 20
    assert cameras() == []
    assert camera.released == 1


def test_every_is_the_least_time_between_frames_of_a_camera() -> None:
    frames = iter(camera_source(Camera(), every=0.05))
    times = []
    for _ in range(4):
        next(frames)
        times.append(time.monotonic())
    frames.close()  # type: ignore[attr-defined]
    assert min(np.diff(times)) > 0.045


def test_a_lost_camera_is_reached_again_after_growing_waits() -> None:
    camera, notes = Camera(), []
    frames = iter(camera_source(camera, notes=notes))
    next(frames)
    camera.is_plugged.clear()
    wait_for(lambda: len(camera.opened) >= 6)
    gaps = np.diff(camera.opened[1:])
    assert np.all(gaps > [0.02, 0.04, 0.04, 0.04])
    assert ["is lost" in note for note in notes] == [True]
    camera.is_plugged.set()
    next(frames)
    camera.is_plugged.clear()  # and once more, from the shortest wait on
    wait_for(lambda: len(notes) == 3)
    camera.is_plugged.set()
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert ["is back" in note for note in notes] == [False, True, False, True]
    assert all("rtsp://cam" in note for note in notes)
    assert camera.released == len(camera.opened)


def test_a_camera_whose_frames_cannot_be_decoded_is_opened_anew() -> None:
    camera, notes = Camera(), []
    source = camera_source(camera, notes=notes, tolerance=5)
    frames = iter(source)
    next(frames)
    camera.is_clear.clear()
    threading.Timer(0.1, camera.is_clear.set).start()
    next(frames)
    frames.close()  # type: ignore[attr-defined]
    assert len(camera.opened) > 1
    assert source.skipped >= 5
    assert len(notes) % 2 == 0


def test_a_camera_that_gives_nothing_at_the_start_is_an_error() -> None:
    camera = Camera()
    camera.is_plugged.clear()
    with pytest.raises(ContinuadError, match="rtsp://cam gives no picture"):
        camera_source(camera)
    assert camera.released == 1


def test_watching_a_camera_ends_at_once_also_while_it_is_lost() -> None:
    camera, stop = Camera(), threading.Event()
    source = camera_source(camera, stop=stop, waits=(60,))
    frames = iter(source)
    next(frames)
    camera.is_plugged.clear()
    threading.Timer(0.05, stop.set).start()
    assert list(frames) == []
    assert cameras() == []


def test_once_takes_one_frame_of_a_camera() -> None:
    assert len(list(camera_source(Camera(), once=True))) == 1


def test_what_fails_in_the_thread_is_raised_where_it_is_seen() -> None:
    camera = Camera()

    def open_once() -> Camera:
        if camera.opened:
            raise RuntimeError("boom")
        return camera()

    frames = iter(camera_source(open_once))
    next(frames)
    camera.is_plugged.clear()
    with pytest.raises(RuntimeError, match="boom"):
        list(frames)


# --- addresses


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://cam:554/stream?channel=1", "rtsp://cam:554/stream?channel=1"),
        ("rtsp://user:secret@cam/stream", "rtsp://***@cam/stream"),
        ("RTSP://user:se/cr@et@cam/stream", "RTSP://***@cam/stream"),
        ("http://cam/video?user=user&pwd=secret&fps=5", "http://cam/video?user=***&pwd=***&fps=5"),
        (
            "rtsp://cam/user=user_password=secret_channel=1.sdp",
            "rtsp://cam/user=***_password=***_channel=1.sdp",
        ),
        ("/srv/images", "/srv/images"),
        ("0", "0"),
    ],
)
def test_addresses_are_shown_without_credentials(address: str, shown: str) -> None:
    assert without_credentials(address) == shown


def test_sources_that_are_none_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "a.png", GOOD[0])

    def refuse(text: str | Path, every: float | None = None) -> str:
        with pytest.raises(ContinuadError) as error:
            open_source(str(text), every=every, once=False, done=(), note=print, stop=threading.Event())
        return str(error.value)

    assert "no folder or video" in refuse(tmp_path / "none")
    assert "continuad inspect" in refuse(tmp_path / "a.png")
    assert "no frames" in refuse(tmp_path, every=1)
    assert "more than 0" in refuse(tmp_path, every=0)
    pytest.importorskip("cv2")
    said = refuse("rtsp://user:secret@127.0.0.1:9/x")
    assert "rtsp://***@127.0.0.1:9/x" in said
    assert "secret" not in said


def test_opencv_prints_no_address(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(ContinuadError):
        open_source(
            "rtsp://user:secret@127.0.0.1:9/x",
            every=None,
            once=False,
            done=(),
            note=print,
            stop=threading.Event(),
        )
    captured = capfd.readouterr()
    assert "secret" not in captured.out + captured.err


# --- brokers


def test_broker_addresses() -> None:
    assert MqttAddress.parse("mqtt://host/line/1") == MqttAddress("host", 1883, "line/1")
    address = MqttAddress.parse("mqtts://me:p%40ss%2Fword@host:99/t%C3%BCr")
    assert address == MqttAddress("host", 99, "tür", True, "me", "p@ss/word")
    assert MqttAddress.parse("mqtts://host/t").port == 8883
    assert MqttAddress.parse("mqtt://[::1]/t").host == "::1"
    assert "p@ss" not in repr(address)
    assert "me" not in repr(address)


@pytest.mark.parametrize(
    "text",
    [
        "host/topic",
        "http://host/topic",
        "mqtt:///topic",
        "mqtt://host",
        "mqtt://host/",
        "mqtt://host/a/+/b",
        "mqtt://host/a/#",
        "mqtt://host/a?qos=2",
        "mqtt://user:secret/word@host/topic",
        "mqtt://user:secret@host:port/topic",
        "mqtt://a..b/topic",
        "mqtt://user:secret@[::1/topic",
    ],
)
def test_broker_addresses_that_are_none_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(SettingsError) as error:
        MqttAddress.parse(text)
    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


def publisher(broker: Broker, *, notes: list[str], url: str = "", **settings: Any) -> Publisher:
    return Publisher(
        MqttAddress.parse(url or f"{broker.url}/line/1"),
        note=notes.append,
        settings=MqttSettings(**{"waits": (0.05, 0.1), **settings}),
    )


def test_texts_arrive_also_those_said_while_the_broker_was_away() -> None:
    notes: list[str] = []
    broker = Broker()
    with broker:
        line = publisher(broker, notes=notes)
        line.publish("a")
        wait_for(lambda: RECEIVED)
    line.publish("b")
    wait_for(lambda: len(notes) == 2)
    line.publish("c")
    time.sleep(0.3)  # some attempts that fail
    with broker:
        wait_for(lambda: len(RECEIVED) >= 3)
        line.publish("tür")
        assert line.close() == 0
    assert sorted(set(RECEIVED)) == [("line/1", text) for text in ("a", "b", "c", "tür")]
    here = f"127.0.0.1:{broker.port}"
    assert [here in note for note in notes] == [True] * 3
    assert ["Connected" in note for note in notes] == [True, False, True]
    assert "gone" in notes[1]


def test_what_waits_for_a_broker_is_bounded_and_what_is_dropped_is_counted() -> None:
    notes: list[str] = []
    broker = Broker()
    line = publisher(broker, notes=notes, queue=3)
    for number in range(5):
        line.publish(str(number))
    wait_for(lambda: len(notes) == 2)
    with broker:
        assert line.close() == 2
    assert [text for _, text in RECEIVED] == ["0", "1", "2"]
    assert sorted("cannot be reached" in note for note in notes[:2]) == [False, True]
    assert sum("3 verdicts wait" in note for note in notes) == 1


def test_a_broker_that_refuses_the_password_is_said_once() -> None:
    notes: list[str] = []
    with Broker() as broker:
        wrong = f"mqtt://camera:secret@127.0.0.1:{broker.port}/line"
        line = publisher(broker, notes=notes, url=wrong, linger=0.4)
        line.publish("a")
        assert line.close() == 1
    assert RECEIVED == []
    assert ["Not authorized" in note for note in notes] == [True]
    assert "secret" not in notes[0]


def test_an_end_without_a_broker_does_not_wait_for_long() -> None:
    broker = Broker()
    line = publisher(broker, notes=[], linger=0.05)
    line.publish("a")
    assert line.close() == 1
    assert not [thread for thread in threading.enumerate() if "paho" in thread.name]
