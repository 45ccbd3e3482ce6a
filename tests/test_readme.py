"""The README's commands and code, run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from continuad import Inspector
from continuad.datasets.demo import demo_task, write_mvtec

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def factory(tmp_path: Path) -> Path:
    """A folder with the photos that the README speaks of."""
    for name, product in (("bottle", "flange"), ("cap", "cap")):
        task = demo_task(product, size=64, train=10, good=1, defective=1)
        for folder, images in (
            (f"photos/{name}/good", task.train),
            (f"photos/{'new' if name == 'bottle' else 'later'}", [sample.image for sample in task.test]),
        ):
            place = tmp_path / folder
            place.mkdir(parents=True)
            for index, image in enumerate(images, start=1):
                Image.fromarray(image).save(place / f"{index:04}.png")
    return tmp_path


def run_all(block: str, place: Path) -> list[str]:
    """Run the commands of a block in a folder; returns what each printed."""
    printed = []
    for command in filter(None, block.splitlines()):
        assert command.startswith("continuad ")
        words = shlex.split(command, comments=True)
        run = subprocess.run(
            [sys.executable, "-m", *words], cwd=place, capture_output=True, text=True, check=False
        )
        assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
        printed.append(run.stdout)
    return printed


def test_commands_and_code_run_in_order(factory: Path) -> None:
    *_, products = run_all(blocks("sh")[1], factory)
    assert len(list((factory / "out").rglob("*.png"))) == 2
    assert "cap" in products
    assert "bottle" in products

    code = blocks("python")[0]
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=factory, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("bottle ")
    assert "(64, 64)" in run.stdout

    export, inspect, watch = run_all(blocks("sh")[2], factory)
    assert "2 products" in export
    assert "bottle" in inspect
    assert [json.loads(line)["product"] for line in watch.splitlines()] == ["bottle", "bottle"]
    assert (factory / "verdicts.jsonl").read_text() == watch
    assert len(list((factory / "overlays").iterdir())) == 2


def test_the_station_and_its_client_run(factory: Path) -> None:
    bank = factory / "parts.bank"
    inspector = Inspector.create(bank, backbone="tiny", weights="random", image_size=32)
    inspector.learn("bottle", factory / "photos/bottle/good", head="padim")
    (command,) = blocks("sh")[3].splitlines()
    words = [sys.executable, "-m", *shlex.split(command, comments=True), "--port", "0"]
    with subprocess.Popen(words, cwd=factory, stderr=subprocess.PIPE, text=True) as station:
        assert station.stderr is not None
        said = next(line for line in station.stderr if "http://" in line)
        address = re.findall(r"http://[0-9.:]+", said)[0]
        code = blocks("python")[1].replace("http://127.0.0.1:8765", address)
        run = subprocess.run(
            [sys.executable, "-c", code], cwd=factory, capture_output=True, text=True, check=False
        )
        station.send_signal(signal.SIGINT)
        rest = station.stderr.read()
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 ")
    assert station.returncode == 130, rest


def test_the_commands_about_methods_run(tmp_path: Path) -> None:
    task = demo_task("flange", size=64, train=10, good=1, defective=1)
    write_mvtec(task, tmp_path / "datasets" / "mvtec_ad" / "flange")
    evaluation, costs = run_all(blocks("sh")[4], tmp_path)
    assert "flange" in evaluation
    assert all(method in costs for method in ("stfpm", "paste", "rd4ad", "destseg"))


def test_the_bench_and_the_analysis_run(tmp_path: Path) -> None:
    for name, product in (("bottle", "flange"), ("pill", "cap")):
        task = demo_task(product, size=64, train=8, good=2, defective=2)
        write_mvtec(task, tmp_path / "datasets" / "mvtec_ad" / name)
    (tmp_path / "study.toml").write_text(blocks("toml")[0])
    grid, table = run_all(blocks("sh")[5], tmp_path)
    assert "compressed-replay" in grid
    assert table.count("  here ") == 3
    assert (tmp_path / "bench" / "study" / "report.html").exists()
    assert (tmp_path / "bench" / "thesis-5.5" / "report.html").exists()
    run_all(blocks("sh")[6], tmp_path)
    assert (tmp_path / "features" / "report.html").exists()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in blocks("sh")[0].splitlines():
        assert f"\n{shlex.split(command, comments=True)[1]}:" in makefile


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
