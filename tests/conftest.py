"""Products that are learnt in a moment, banks of them, and ways to disturb whoever writes one."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from continuad import Inspector, Verdict
from continuad.cli import main

Photo = npt.NDArray[np.uint8]

torch.set_num_threads(1)  # images are tiny, and a forked child cannot use its parent's thread pool

QUICK = {"taps": ["layer2"], "smoothing": 0, "training": {"epochs": 1, "min_steps": 0}}
CHILD_SECONDS = 60
REMOVALS = ("unlink", "rmdir")
CHANGES = ("mkdir", "rename", "replace", "fsync", *REMOVALS)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process."""

    def run(*words: str | Path) -> Result:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Result(end.value.code, captured.out, captured.err)

    return run


def photos(name: str, count: int, *, seed: int = 0, width: int = 48, height: int = 48) -> list[Photo]:
    """Photos of a product: a pattern that depends on the name alone, under a little noise."""
    pattern = np.random.default_rng([*name.encode()]).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    clean = np.array(Image.fromarray(pattern).resize((width, height), Image.Resampling.BILINEAR), np.int16)
    rng = np.random.default_rng([seed, *name.encode()])
    return [(clean + rng.integers(-9, 10, clean.shape)).clip(0, 255).astype(np.uint8) for _ in range(count)]


def new_bank(path: Path) -> Inspector:
    return Inspector.create(path, backbone="tiny", weights="random", image_size=32)


def teach(inspector: Inspector, name: str, *, head: str = "adapts-s", **options: Any) -> None:
    taps = ["layer2"] if head == "adapts-s" else ["layer2", "layer3"]
    inspector.learn(name, photos(name, 7), head=head, settings={**QUICK, "taps": taps}, **options)


@pytest.fixture(scope="session")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank that knows "bolt" (one INT8 adapter) and "plate" (two float adapters); not to be written."""
    folder = tmp_path_factory.mktemp("taught") / "bank"
    inspector = new_bank(folder)
    teach(inspector, "bolt")
    teach(inspector, "plate", head="adapts-l")
    return folder


@pytest.fixture
def folder(taught: Path, tmp_path: Path) -> Path:
    """A copy of the taught bank."""
    return Path(shutil.copytree(taught, tmp_path / "bank"))


@pytest.fixture
def inspector(folder: Path) -> Inspector:
    return Inspector.open(folder)


def same(one: Verdict, other: Verdict) -> bool:
    """Whether two verdicts about a product agree to the last bit, whichever other products there are."""
    plain = [(v.product, v.score, v.threshold, v.is_anomalous) for v in (one, other)]
    maps = [b"" if v.anomaly_map is None else v.anomaly_map.tobytes() for v in (one, other)]
    return repr(plain[0]) == repr(plain[1]) and maps[0] == maps[1]


def snapshot(folder: Path) -> dict[str, bytes]:
    """All that lies in a folder, by relative path; folders are empty, and locks do not count."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else b""
        for path in folder.rglob("*")
        if path.name != ".lock"
    }


def contents(inspector: Inspector) -> dict[str, object]:
    """What a bank knows, whenever and under whichever file names it was written."""
    return {name: (each.sha256, each.calibration) for name, each in inspector.products.items()}


def leftovers(folder: Path) -> set[str]:
    """Files in a bank that it does not name."""
    manifest = Inspector.open(folder).bank.manifest()
    named = {"manifest.json", manifest.backbone["file"], "products"}
    files = {file for each in manifest.products.values() for file in (each.file, each.samples)}
    return snapshot(folder).keys() - named - files


@contextlib.contextmanager
def watched(action: Callable[[int, str], None]) -> Iterator[list[str]]:
    """Call `action` with number (from 1) and name before each call that changes the file system.

    A "write" is announced when half of it is on the disk. Yields the names of the calls made so far.
    """
    made: list[str] = []

    def announce(name: str) -> None:
        made.append(name)
        action(len(made), name)

    def announced(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            announce(name)
            return function(*arguments, **options)

        return call

    def os_open(path: Any, flags: int, *arguments: Any, **options: Any) -> int:
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            announce("open")
        return low_open(path, flags, *arguments, **options)

    class Halting(io.BufferedWriter):
        def write(self, data: Any) -> int:
            half = len(data) // 2
            super().write(data[:half])
            self.flush()
            announce("write")
            return half + super().write(data[half:])

    def io_open(path: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode != "wb":
            return high_open(path, mode, *arguments, **options)
        announce("open")
        return Halting(io.FileIO(path, "w"))

    low_open, high_open = os.open, io.open
    with pytest.MonkeyPatch.context() as patch:
        for name in CHANGES:
            patch.setattr(os, name, announced(name, getattr(os, name)))
        patch.setattr(os, "open", os_open)
        patch.setattr(io, "open", io_open)
        yield made


def start_child(work: Callable[[], object], *, expected: type[Exception] | None = None) -> int:
    """Fork a child that does the work; returns its process id. It exits with 0, 3 if `expected`, else 1."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        signal.alarm(CHILD_SECONDS)
        work()
        status = 0
    except BaseException as error:
        if expected is not None and isinstance(error, expected):
            status = 3
        else:
            traceback.print_exc()
    finally:
        os._exit(status)


def end_child(child: int) -> int:
    """Wait for a child; its exit status, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
