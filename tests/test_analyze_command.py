"""`continuad analyze`: a real analysis of demo products."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from conftest import Result, Run, snapshot
from continuad.datasets.demo import demo_task, write_mvtec

pytest.importorskip("matplotlib")
pytest.importorskip("jinja2")

TINY = ("--backbone", "tiny", "--weights", "random", "--image-size", "32", "--percent", "10")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("cap", "wood"):
        write_mvtec(demo_task(name, size=64, train=6, good=2, defective=2), root / name)
    return root


def refused(result: Result, *words: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert re.fullmatch(r"error: [^\n]+[.)]\n  [^\n]+\n", result.err), result.err
    for word in words:
        assert word in result.err


def python(code: str, *words: str | Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, words)]


# presses Ctrl-C as soon as the first product has been found
INTERRUPTED = """
import os, signal, sys
from continuad.analysis import study
from continuad.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
keep = study.kept.keep
def keep_and_interrupt(*args):
    keep(*args)
    os.kill(os.getpid(), signal.SIGINT)
study.kept.keep = keep_and_interrupt
main(sys.argv[1:])
"""


def test_interrupted_and_called_again(run: Run, data: Path, tmp_path: Path) -> None:
    words = ("analyze", data, *TINY, "--layers", "layer1,layer2", "--out", tmp_path / "out")
    stopped = subprocess.run(python(INTERRUPTED, *words), capture_output=True, text=True, check=False)
    assert (stopped.returncode, stopped.stdout) == (130, ""), stopped.stderr
    assert "the same command goes on" in stopped.stderr
    assert [path.name for path in (tmp_path / "out" / "importance").iterdir()] == ["cap.safetensors"]

    result = run(*words)
    assert result.code == 0
    assert re.findall(r"(\w+): found in [\d.]+ s", result.err) == ["wood"]
    names, channels, _, *rest = result.out.splitlines()
    assert names.split() == ["layer1", "layer2"]
    assert channels.split() == ["product", "of", "16", "of", "24"]
    assert [re.sub(r"\d+", "N", line).split() for line in rest[:2]] == [
        ["cap", "N", "(N)", "N", "(N)"],
        ["wood", "N", "(N)", "N", "(N)"],
    ]
    assert "random forest recognises" in result.out
    files = snapshot(tmp_path / "out")
    assert {"report.html", "components.csv", "figures/tsne.svg", "figures/tsne.png"} <= files.keys()
    assert not [name for name in files if name.endswith(".tmp")]
    assert "<svg" in files["report.html"].decode()


def test_the_examples_in_the_help_work(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, product in (("bottle", "cap"), ("cable", "wood")):
        shutil.copytree(data / product, Path("datasets/mvtec_ad", name))
    lines = re.findall(r"^ +continuad (analyze .*)$", run("analyze", "--help").out, re.MULTILINE)
    assert len(lines) == 3
    for words in map(shlex.split, lines):
        layers = () if "--layers" in words else ("--layers", "layer1")
        result = run(*words, *TINY[:6], *layers, "--products", "bottle")
        assert result.code == 0, result
        assert "There is a single product" in result.out


def test_the_default_layers_are_those_of_stfpm(run: Run, data: Path, tmp_path: Path) -> None:
    result = run("analyze", data / "cap", *TINY, "--images", "test", "--out", tmp_path / "out")
    assert result.code == 0
    assert result.out.splitlines()[0].split() == ["layer1", "layer2"]
    assert "4" in (tmp_path / "out" / "components.csv").read_text().splitlines()[1].split(",")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--layers", "layer9"], ["'layer9'", "layer1, layer2"]),
        (["--products", "kap"], ["'kap'", "cap"]),
        (["--images", "all"], ["'all'", "train or test"]),
        (["--percent", "0"], ["percent is 0"]),
        (["--backbone", "tinny"], ["'tiny'"]),
        (["--weights", "none.pth"], ["none.pth"]),
        (["--layout", "mvtek"], ["mvtec"]),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, data: Path, tmp_path: Path, words: Sequence[str], named: Sequence[str]
) -> None:
    refused(run("analyze", data, *TINY, "--out", tmp_path / "out", *words), *named)
    assert not (tmp_path / "out").exists()


def test_an_empty_folder_is_refused(run: Run, tmp_path: Path) -> None:
    refused(run("analyze", tmp_path, *TINY, "--out", tmp_path / "out"), "No product was recognised")


def test_without_matplotlib_it_says_what_to_install(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("analyze", data, *TINY, "--out", tmp_path / "out")
    refused(result, "matplotlib is not installed", 'pip install "continuad[report]"')
