from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from brokers import RECEIVED, Broker, wait_for
from conftest import Result, Run, new_bank, photos
from continuad import Inspector
from continuad.cli.heatmaps import HeatmapFolder
from continuad.watching import folder as folder_module
from continuad.watching import journal as journal_module

posix = pytest.mark.skipif(os.name != "posix", reason="POSIX signals and pipes")


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = partial(folder_module.FolderSettings, poll=0.01, patience=0.1)
    monkeypatch.setattr(folder_module, "FolderSettings", quick)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with two images of a bolt, one of a plate and a broken one."""
    path = tmp_path / "in"
    path.mkdir()
    for index, image in enumerate([*photos("bolt", 2, seed=5), *photos("plate", 1, seed=5)]):
        Image.fromarray(image).save(path / f"{index}.png")
    (path / "broken.png").write_bytes((path / "0.png").read_bytes()[:200])
    return path


def rows(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def label(row: dict[str, Any]) -> str:
    return str(row.get("label", "not readable"))


def images(text: str) -> list[str]:
    return sorted(Path(row["image"]).name for row in rows(text))


def test_a_folder_is_inspected_as_inspect_does_it(run: Run, taught: Path, place: Path) -> None:
    start = datetime.now(UTC)
    result = run("watch", taught, place, "--once")
    assert result.code == 0
    found = {Path(row.pop("image")).name: row for row in rows(result.out)}
    inspector = Inspector.open(taught)
    for name in ("0.png", "1.png", "2.png"):
        row, file = found.pop(name), place / name
        when = datetime.fromisoformat(row.pop("time"))
        assert when.utcoffset() == timedelta(0)
        assert start - timedelta(seconds=1) < when < datetime.now(UTC)
        assert row.pop("mtime_ns") == file.stat().st_mtime_ns
        expected = inspector.inspect(file).as_dict()
        assert row.pop("timings_ms").keys() <= expected.pop("timings_ms").keys()
        assert row == expected
    broken = found.pop("broken.png")
    assert broken.keys() == {"time", "mtime_ns", "error"}
    assert "broken.png" in broken["error"]
    assert found == {}
    assert result.err.splitlines()[0] == f"Watching {place}. Ctrl-C ends it."
    assert result.err.splitlines()[-1].startswith("4 images: ")
    assert "1 not readable" in result.err.splitlines()[-1]


def test_product_and_nearest_are_passed_on(run: Run, taught: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "in/a.png")
    inspector = Inspector.open(taught)
    for words, options in {
        ("--product", "plate"): {"product": "plate"},
        ("--nearest",): {"reject_unknown": False},
    }.items():
        [row] = rows(run("watch", taught, tmp_path / "in", "--once", *words).out)
        expected = inspector.inspect(noise, **options).as_dict()
        assert (row["product"], row["score"], row["nearest"]) == (
            expected["product"],
            expected["score"],
            expected["nearest"],
        )


def test_the_file_of_verdicts_says_what_is_done(run: Run, taught: Path, place: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    words = ("watch", taught, place, "--once", "--out", out)
    first = run(*words)
    assert out.read_text() == first.out
    assert run(*words).out == ""

    with out.open("r+b") as stream:  # a power cut in the middle of the last line
        stream.truncate(out.stat().st_size - 30)
    Image.fromarray(photos("bolt", 1, seed=6)[0]).save(place / "1.png")
    Image.fromarray(photos("bolt", 1, seed=7)[0]).save(place / "new.png")
    again = run(*words)
    assert images(again.out) == sorted({"1.png", "new.png", Path(rows(first.out)[-1]["image"]).name})
    assert len(rows(out.read_text())) == 3 + 3
    assert out.read_text().endswith(again.out)


def test_annotated_frames_are_named_in_the_verdicts(
    run: Run, taught: Path, place: Path, tmp_path: Path
) -> None:
    (place / "sub").mkdir()
    (place / "0.png").rename(place / "sub/0.png")
    frames = tmp_path / "frames"
    for suffix in ("", "-2"):
        found = rows(run("watch", taught, place, "--once", "--frames", frames).out)
        written = {Path(row["image"]).name: row["annotated"] for row in found if "annotated" in row}
        assert written == {
            name: str(frames / f"{stem}{suffix}.png")
            for name, stem in {"0.png": "sub-0", "1.png": "1", "2.png": "2"}.items()
        }
    with Image.open(frames / "1.png") as picture:
        assert picture.width == 336  # 48 pixels, enlarged, and a strip below
        assert picture.height > 336
    assert len(list(frames.iterdir())) == 6


@posix
def test_a_full_disk_is_said_once_and_stops_nothing(
    run: Run, taught: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "broken.png").unlink()
    for index, image in enumerate(photos("bolt", 3, seed=8)):
        Image.fromarray(image).save(place / f"more{index}.png")
    append, create = journal_module._append, HeatmapFolder._create
    calls = {"append": 0, "create": 0}

    def full(name: str, code: int) -> None:
        calls[name] += 1
        if 2 <= calls[name] <= 4:
            raise OSError(code, os.strerror(code))

    def append_if(stream: Any, line: bytes) -> None:
        full("append", errno.ENOSPC)
        append(stream, line)

    def create_if(self: HeatmapFolder, stem: str, data: bytes) -> Path:
        full("create", errno.EDQUOT)
        return create(self, stem, data)

    monkeypatch.setattr(journal_module, "_append", append_if)
    monkeypatch.setattr(HeatmapFolder, "_create", create_if)
    out, frames = tmp_path / "verdicts.jsonl", tmp_path / "frames"
    result = run("watch", taught, place, "--once", "--out", out, "--frames", frames)
    assert result.code == 0
    assert ["annotated" in row for row in rows(result.out)] == [True, False, False, False, True, True]
    assert out.read_text() == result.out  # those that waited came later, in order
    said = [line for line in result.err.splitlines() if "written" in line]
    assert [str(place) in line for place, line in zip((frames, out, frames, out), said, strict=True)] == [
        True
    ] * 4
    assert [line.endswith("can be written again.") for line in said] == [False, False, True, True]
    assert os.strerror(errno.EDQUOT) in said[0]
    assert os.strerror(errno.ENOSPC) in said[1]


def test_what_a_full_disk_never_took_is_counted_at_the_end(
    run: Run, taught: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(stream: Any, line: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(journal_module, "_append", fail)
    out = tmp_path / "verdicts.jsonl"
    result = run("watch", taught, place, "--once", "--out", out)
    assert len(rows(result.out)) == 4
    assert result.err.count("No space left") == 1
    assert f"4 verdicts are missing in {out}." in result.err.splitlines()[-1]
    assert out.read_bytes() == b""


def test_a_picture_that_a_full_disk_cut_off_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, plain = HeatmapFolder(tmp_path / "frames"), Path.open

    class Full:
        def __init__(self, stream: Any) -> None:
            self.stream = stream

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *_: object) -> None:
            self.stream.close()

        def write(self, data: bytes) -> int:
            self.stream.write(data[:3])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda path, mode: Full(plain(path, mode)))
    with pytest.raises(OSError, match="No space"):
        folder._create("a", b"picture")
    assert not list((tmp_path / "frames").iterdir())
    monkeypatch.undo()
    assert folder._create("a", b"picture").name == "a.png"


@posix
@pytest.mark.parametrize(("sign", "code", "start"), [("SIGINT", 130, "Interrupted. "), ("SIGTERM", 0, "")])
def test_signals_end_it_with_a_summary(
    run: Run, taught: Path, place: Path, tmp_path: Path, sign: str, code: int, start: str
) -> None:
    out = tmp_path / "verdicts.jsonl"

    def send() -> None:
        wait_for(lambda: out.exists() and len(out.read_text().splitlines()) == 4)
        os.kill(os.getpid(), getattr(signal, sign))

    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    sender = threading.Thread(target=send)
    sender.start()
    result = run("watch", taught, place, "--out", out)
    sender.join()
    assert result.code == code
    assert len(rows(result.out)) == 4
    assert result.err.splitlines()[-1].startswith(f"{start}4 images: ")
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def refused(result: Result, *words: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith("error: ")
    for word in words:
        assert word in result.err


def test_what_cannot_work_is_refused_at_once(run: Run, taught: Path, place: Path, tmp_path: Path) -> None:
    new_bank(tmp_path / "empty")
    (tmp_path / "file").write_text("hello\n")
    refused(run("watch", tmp_path / "none", place), "There is no bank")
    refused(run("watch", tmp_path / "empty", place), "no product yet")
    refused(run("watch", taught, tmp_path / "none"), str(tmp_path / "none"))
    refused(run("watch", taught, place, "--product", "nut"), "'nut'", "bolt, plate")
    refused(run("watch", taught, place, "--every", "1"), "--every")
    refused(run("watch", taught, place, "--out", tmp_path / "file"), "Line 1")
    refused(run("watch", taught, place, "--frames", tmp_path / "file"), "file")
    refused(run("watch", taught, place, "--mqtt", "mqtt://me:secret@host"), "topic")
    assert (tmp_path / "file").read_text() == "hello\n"
    for source in ("rtsp://me:secret@127.0.0.1:9/a", "x/y?password=secret"):
        result = run("watch", taught, source)
        refused(result, "***")
        assert "secret" not in result.err


def test_a_video(run: Run, taught: Path, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    file = tmp_path / "belt.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (48, 48))
    for image in photos("plate", 10):
        writer.write(image[..., ::-1])
    writer.release()
    result = run("watch", taught, file, "--every", "0.3", "--frames", tmp_path / "frames")
    assert result.code == 0
    found = rows(result.out)
    assert [(row["source"], row["frame"]) for row in found] == [(str(file), frame) for frame in (0, 3, 6, 9)]
    assert {row["nearest"] for row in found} == {"plate"}
    assert [Path(row["annotated"]).name for row in found][:2] == ["belt-000000.png", "belt-000003.png"]
    assert result.err.splitlines()[-1].startswith("4 images: ")


# --- as a process


IMPATIENT = """
import signal, sys
from functools import partial
from continuad.cli import main
from continuad.watching import folder
signal.signal(signal.SIGINT, signal.default_int_handler)
folder.FolderSettings = partial(folder.FolderSettings, poll=0.02, patience=5)
"""
UNLEARNED = """
from continuad.cli import watch
from continuad.verdict import Verdict
class Nothing:  # inspects without torch, which takes seconds to load
    products = {"bolt": None}
    def inspect(self, image, **options):
        return Verdict(None, float("nan"), float("nan"), None, None, "bolt", 2.0)
watch.open_to_inspect = lambda path, device: Nothing()
"""
RUN = "main(sys.argv[1:])"


@contextmanager
def started(
    *words: str | Path, code: str = IMPATIENT + RUN, stdout: Any = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """Run the command as a process that a hanging test cannot outlive."""
    command: Sequence[str] = [sys.executable, "-c", code, "watch", *map(str, words)]
    process = subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)
    watchdog = threading.Timer(60, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()


@posix
def test_from_the_camera_to_the_broker(taught: Path, tmp_path: Path) -> None:
    place, out, frames = tmp_path / "in", tmp_path / "verdicts.jsonl", tmp_path / "frames"
    place.mkdir()
    shots = {f"shot{index}.png": image for index, image in enumerate(photos("bolt", 6, seed=3))}
    with Broker() as broker:
        topic = f"{broker.url}/line/1"
        with started(taught, place, "--out", out, "--frames", frames, "--mqtt", topic) as process:
            assert process.stdout
            printed = []
            for name, image in shots.items():
                Image.fromarray(image).save(tmp_path / "whole.png")
                data = (tmp_path / "whole.png").read_bytes()
                with (place / name).open("wb", buffering=0) as stream:
                    for start in (0, 1000, 2000):
                        stream.write(data[start : start + 1000] if start < 2000 else data[start:])
                        threading.Event().wait(0.03)
                printed.append(process.stdout.readline())
            process.send_signal(signal.SIGINT)
            rest, err = process.communicate()
    assert (process.returncode, rest) == (130, "")
    assert [Path(json.loads(line)["image"]).name for line in printed] == list(shots)
    assert out.read_text() == "".join(printed)
    assert sorted(RECEIVED) == sorted(("line/1", line.rstrip()) for line in printed)
    assert sorted(path.stem for path in frames.iterdir()) == [f"shot{index}" for index in range(6)]
    said = err.splitlines()
    assert said[0].startswith("Watching ") or said[1].startswith("Watching ")
    assert said[-1].startswith("Interrupted. 6 images: ")
    assert len(said) == 3
    assert "p@ss" not in err
    assert "p%40ss" not in err


@posix
def test_a_reader_that_goes_away_ends_it_quietly(place: Path) -> None:
    with started("bank", place, code=IMPATIENT + UNLEARNED + RUN) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        Image.fromarray(photos("bolt", 1)[0]).save(place / "late.png")
        err = process.stderr.read()
        assert process.wait() == 0
    assert err == f"Watching {place}. Ctrl-C ends it.\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_behind_stdout_is_said_once(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    (place / "broken.png").unlink()
    words = ("bank", place, "--once", "--out", out)
    with (
        Path("/dev/full").open("w") as full,
        started(*words, code=IMPATIENT + UNLEARNED + RUN, stdout=full) as process,
    ):
        assert process.stderr
        err = process.stderr.read()
        code = process.wait()
    assert code == 0
    assert len(rows(out.read_text())) == 3
    assert err.count("The output cannot be written (No space left on device)") == 1
    assert "Traceback" not in err
