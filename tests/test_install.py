"""The package as others install it: what the wheel holds, and what each extra does alone and offline."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import new_bank, photos, teach
from continuad.export import export
from stations import Running
from test_package import EXTRAS, ROOT, distributions

MEBIBYTE = 2**20
TORCH = 'PyTorch is not installed, which this needs.\n  Run: pip install "continuad[learn]"'
OPENVINO = 'OpenVINO is not installed, which this needs.\n  Run: pip install "continuad[openvino]"'

GUARD = """
import os, sys

OWN = ("", "localhost", "127.0.0.1", "::1", "0.0.0.0", "::")


def refuse(event, arguments):
    if event == "socket.getaddrinfo":
        place = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        place = arguments[1][0]
    else:
        return
    place = place.decode() if isinstance(place, bytes) else place
    if place is not None and place not in OWN:
        with open(os.path.join(sys.prefix, "touched"), "a") as log:
            log.write(f"{event} {place}\\n")
        raise PermissionError(f"{event} {place}")


sys.addaudithook(refuse)
"""
"""A sitecustomize.py: Python code that wants to leave the machine is refused, and named in a file."""

ALONE = ("unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
"""Before a command: a network with no way out, for what is not Python as well."""

SERVE = """
import re, subprocess, sys
from continuad.client import Station

command = [sys.executable, "-m", "continuad", "serve", "bank", "--port", "0"]
with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
    try:
        url = next(found[1] for line in process.stderr if (found := re.search(r"runs at (\\S+)", line)))
        with Station(url) as station:
            print(station.inspect("photo.png").product)
        import httpx
        for path in ("", "page/app.js", "api/openapi.json", "metrics"):
            assert httpx.get(url + path).is_success, path
    finally:
        process.terminate()
    assert process.wait() == 0
"""
CLIENT = """
import sys
from continuad.client import Station
with Station(sys.argv[1]) as station:
    print(station.inspect("photo.png").product)
"""
FRAMES = """
import threading
from continuad.watching import MqttAddress, Publisher, open_source
seen = open_source("film.avi", every=None, once=True, done=(), note=print, stop=threading.Event())
print(sum(not isinstance(each.image, Exception) for each in seen))
Publisher(MqttAddress.parse("mqtt://127.0.0.1:9/line"), note=print).close()
"""


@dataclass(frozen=True)
class Machine:
    """A virtual environment with the package and one extra, and the folder to work in.

    Attributes:
        folder: where commands run; "bank", "edge" (OpenVINO), "edge.onnx", "good" and "photo.png" are there.
        environment: of the virtual environment.
    """

    folder: Path
    environment: Path

    def python(self, *words: str | Path, code: int = 0, alone: bool = True) -> str:
        """Run its Python; returns stdout, and stderr where the command is to fail."""
        command = [self.environment / "bin/python", *words]
        if alone and can_be_alone():
            command = [*ALONE, *command]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout if code == 0 else done.stderr

    def continuad(self, words: str, *, code: int = 0) -> str:
        """Run a command."""
        return self.python("-m", "continuad", *words.split(), code=code)

    def inspects(self, bank: str) -> None:
        verdict = json.loads(self.continuad(f"inspect {bank} photo.png --json"))
        assert verdict["product"] == "bolt"
        wanted = json.loads((self.folder / "verdict.json").read_text())
        assert verdict["score"] == pytest.approx(wanted["score"], rel=2e-2)


@functools.cache
def can_be_alone() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*ALONE, "true"], capture_output=True, check=False).returncode == 0


def build(target: str, source: Path, folder: Path) -> Path:
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder]
    subprocess.run(command, cwd=source, capture_output=True, check=True)
    (made,) = folder.glob("*.whl" if target == "wheel" else "*.tar.gz")
    return made


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a machine works with; the commands of a test run in a copy."""
    import cv2

    folder = tmp_path_factory.mktemp("workplace")
    inspector = new_bank(folder / "bank")
    teach(inspector, "bolt")
    for name, target in (("edge", "openvino"), ("edge.onnx", "onnx")):
        export(folder / "bank", folder / name, target=target)
    (folder / "good").mkdir()
    for number, photo in enumerate(photos("bolt", 8, width=96, height=96)):
        Image.fromarray(photo).save(folder / f"good/{number}.png")
    Image.fromarray(photos("bolt", 1, seed=3)[0]).save(folder / "photo.png")
    verdict = inspector.inspect(folder / "photo.png")
    (folder / "verdict.json").write_text(json.dumps(verdict.as_dict()))
    film = cv2.VideoWriter(str(folder / "film.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (96, 96))
    for photo in photos("bolt", 5, width=96, height=96):
        film.write(np.ascontiguousarray(photo[:, :, ::-1]))
    film.release()
    return folder


# What is built


def test_the_wheel_holds_the_package_and_its_page_and_is_small(wheel: Path) -> None:
    files = [path for path in (ROOT / "src/continuad").rglob("*") if path.is_file()]
    ours = {
        path.relative_to(ROOT / "src").as_posix()
        for path in files
        if path.parent.name != "__pycache__" and not path.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert held == ours
    assert {"continuad/py.typed", "continuad/station/page/index.html"} <= held
    assert wheel.stat().st_size < MEBIBYTE


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    assert build("wheel", source, tmp_path / "again").read_bytes() == wheel.read_bytes()
    assert (source / "constraints.txt").is_file()


# What each extra does alone


def nothing(machine: Machine) -> None:
    for words in ("learn parts.bank bolt good", "inspect bank photo.png", "methods"):
        assert TORCH in machine.continuad(words, code=2)
    for words, extra in (("serve bank", "serve"), ("export bank made", "export")):
        assert f"continuad[{extra}]" in machine.continuad(words, code=2)
    for words in ("inspect edge photo.png", "watch edge good --once"):
        assert OPENVINO in machine.continuad(words, code=2)
    assert "continuad[onnx]" in machine.continuad("inspect edge.onnx photo.png", code=2)
    assert "continuad[client]" in machine.python("-c", CLIENT, "http://127.0.0.1:9", code=1)


def learn(machine: Machine) -> None:
    machine.inspects("bank")
    machine.continuad("learn parts.bank bolt good --image-size 96")
    found = json.loads(machine.continuad("inspect parts.bank good/1.png --json"))
    assert (found["product"], found["label"]) == ("bolt", "normal")
    assert "bolt" in machine.continuad("products parts.bank")
    assert "continuad[openvino]" in machine.continuad("inspect edge photo.png", code=2)


def export_(machine: Machine) -> None:
    for words in ("made", "made.int8 --int8", "made.onnx --format onnx", "int8.onnx --format onnx --int8"):
        machine.continuad(f"export bank {words}")
    machine.inspects("made")
    machine.inspects("made.onnx")


def serve(machine: Machine) -> None:
    assert machine.python("-c", SERVE) == "bolt\n"


def client(machine: Machine) -> None:
    with Running(machine.folder / "bank") as station:
        assert machine.python("-c", CLIENT, station.url, alone=False) == "bolt\n"
    assert TORCH in machine.continuad("learn parts.bank bolt good", code=2)


def watch(machine: Machine) -> None:
    assert machine.python("-c", FRAMES).splitlines()[0] == "5"
    assert OPENVINO in machine.continuad("watch edge film.avi", code=2)


def needs_learn(machine: Machine) -> None:
    for words in ("analyze . --out pages", "bench study.toml --engine ray"):
        assert TORCH in machine.continuad(words, code=2)


PROMISES: Mapping[str, Callable[[Machine], None]] = {
    "": nothing,
    "client": client,
    "export": export_,
    "learn": learn,
    "onnx": lambda machine: machine.inspects("edge.onnx"),
    "openvino": lambda machine: machine.inspects("edge"),
    "postgresql": lambda machine: machine.python(
        "-c", "import psycopg; assert psycopg.pq.__impl__ == 'binary'"
    ),
    "report": needs_learn,
    "scale": needs_learn,
    "serve": serve,
    "watch": watch,
}
HEAVY = {"torch", "scipy", "scikit-learn", "ray"}


def test_every_extra_promises_something() -> None:
    assert PROMISES.keys() - {""} == EXTRAS.keys() - {"dev", "docs"}


@pytest.mark.slow  # installs what is to be tested, from the package index
@pytest.mark.parametrize("extra", PROMISES, ids=lambda extra: extra or "none")
def test_an_extra_does_alone_what_it_promises_and_asks_nobody(
    extra: str, wheel: Path, workplace: Path, tmp_path: Path
) -> None:
    machine = Machine(Path(shutil.copytree(workplace, tmp_path / "work")), tmp_path / "environment")
    subprocess.run([sys.executable, "-m", "venv", machine.environment], check=True)
    (packages,) = machine.environment.glob("lib/*/site-packages")
    before = size(machine.environment)
    started = time.perf_counter()
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    machine.python("-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", wanted, alone=False)
    seconds = time.perf_counter() - started
    megabytes = (size(machine.environment) - before) / 1e6
    print(f"[{extra or 'none'}]: {megabytes:.0f} MB, installed in {seconds:.0f} s")  # pytest -m slow -rP
    there = distributions(machine.python("-m", "pip", "list", "--format=freeze").splitlines())
    if extra not in ("export", "learn", "scale", "serve"):
        assert not there & HEAVY
    assert not {name for name in there if name.startswith(("nvidia", "cuda"))}, "a CPU needs none of them"

    (packages / "sitecustomize.py").write_text(GUARD)
    assert "PermissionError" in machine.python(
        "-c", "import socket; socket.getaddrinfo('example.org', 80)", code=1
    )
    (machine.environment / "touched").unlink()
    assert "inspect" in machine.continuad("--help")
    PROMISES[extra](machine)
    touched = machine.environment / "touched"
    assert not touched.exists(), touched.read_text()


def size(folder: Path) -> int:
    """Bytes of all files in a folder."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
