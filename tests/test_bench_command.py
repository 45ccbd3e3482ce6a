"""`continuad bench`: real grids on demo products, in real processes."""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from conftest import Run
from continuad.bench.runner import Standing
from continuad.cli.progress import StandingBar, describe_standing
from continuad.cli.settings import nested
from continuad.datasets.demo import demo_task, write_mvtec
from continuad.errors import SettingsError

SPEC = """
products = ["cap", "wood"]
method = "paste"
backbone = "tiny"
weights = "random"
image_size = 64
scenario = "continual"
strategy = ["fine-tuning", "replay"]
seed = [0, 1]
[settings.paste.training]
epochs = 2
min_steps = 0
batch_size = 4
"""
TINY = (
    *("--products", "cap,wood", "--backbone", "tiny", "--weights", "tiny=random", "--image-size", "64"),
    *("--seeds", "0", "--set", "training.epochs=1", "--set", "training.batch_size=4"),
)
MEASURED = ("learn_seconds", "ms_per_image", "inspection_peak_bytes", "training_peak_bytes")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("cap", "wood"):
        write_mvtec(demo_task(name, size=64, train=8, good=2, defective=3), root / name)
    return root


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a grid that was run through, with its spec beside it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "study.toml").write_text(SPEC)
    subprocess.run(command(data, folder), check=True, capture_output=True, timeout=120)
    return folder


def command(data: Path, folder: Path, *more: str) -> list[str]:
    words = ["bench", folder / "study.toml", "--data", data, "--out", folder / "out", "--workers", "1", *more]
    return [sys.executable, "-m", "continuad", *map(str, words)]


def timeless(folder: Path) -> list[dict[str, str]]:
    """The rows of the results without what depends on the clock."""
    with (folder / "results.csv").open() as stream:
        rows = [dict(row) for row in csv.DictReader(stream)]
    return [{name: value for name, value in row.items() if name not in MEASURED} for row in rows]


def test_a_grid_leaves_tables_and_a_report(run: Run, data: Path, whole: Path) -> None:
    rows = timeless(whole / "out")
    assert len(rows) == 2 * 2 * 3
    assert {(row["strategy"], row["seed"]) for row in rows} == {
        (strategy, seed) for strategy in ("fine-tuning", "replay") for seed in "01"
    }
    with (whole / "out" / "summary.csv").open() as stream:
        assert len(list(csv.DictReader(stream))) == 4
    page = (whole / "out" / "report.html").read_text()
    assert "fine-tuning" in page
    assert "<svg" in page
    before = {path: path.read_bytes() for path in (whole / "out" / "runs").iterdir()}

    again = run("bench", whole / "study.toml", "--data", data, "--out", whole / "out")
    assert again.code == 0
    assert "finished:" not in again.err  # nothing was run
    assert {path: path.read_bytes() for path in (whole / "out" / "runs").iterdir()} == before
    header, _, *lines = again.out.rstrip().splitlines()
    assert header.split() == ["I-AUROC", "P-AUROC", "P-F1", "forgetting", "routing", "MiB", "learn", "s"]
    assert [line.split()[0] for line in lines] == ["fine-tuning", "replay"]
    assert all(re.fullmatch(r"\S+( +(\d\.\d{3}|-?\d\.\d{3}|-)){5} +\d+\.\d\d +\d+", line) for line in lines)
    assert max(map(len, again.out.splitlines())) <= 80


def test_a_grid_that_has_grown_runs_only_what_is_new(
    run: Run, data: Path, whole: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    (tmp_path / "study.toml").write_text(SPEC.replace('"replay"]', '"replay", "lwf"]'))
    grown = run("bench", tmp_path / "study.toml", "--data", data, "--out", tmp_path / "out", "--seeds", "1")
    assert grown.code == 0
    assert [line.split(" in ")[0] for line in grown.err.splitlines() if "finished" in line] == [
        "finished: paste, tiny, lwf, continual, seed 1"
    ]


def test_killed_halfway_and_started_again_it_repeats_no_finished_run(
    run: Run, data: Path, whole: Path, tmp_path: Path
) -> None:
    (tmp_path / "study.toml").write_text(SPEC)
    finished = tmp_path / "out" / "runs"
    child = subprocess.Popen(
        command(data, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 90
    while not (finished.exists() and any(finished.glob("*.json"))):
        assert child.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    kept = {path: path.stat().st_mtime_ns for path in finished.glob("*.json")}
    assert 1 <= len(kept) < 4

    result = run(
        "bench", tmp_path / "study.toml", "--data", data, "--out", tmp_path / "out", "--workers", "2"
    )
    assert result.code == 0
    assert result.err.count("finished:") == 4 - len(kept)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert timeless(tmp_path / "out") == timeless(whole / "out")


@pytest.mark.slow
def test_on_ray_it_gives_the_same_numbers(run: Run, data: Path, whole: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    result = run(
        *("bench", whole / "study.toml", "--data", data, "--out", tmp_path, "--engine", "ray"),
        *("--seeds", "1", "--workers", "2"),
    )
    assert result.code == 0, result.err
    assert timeless(tmp_path) == [row for row in timeless(whole / "out") if row["seed"] == "1"]


def test_a_published_table_stands_beside_what_was_measured(run: Run, data: Path, tmp_path: Path) -> None:
    result = run("bench", "--table", "thesis-5.5", "--data", data, "--out", tmp_path, *TINY)
    assert result.code == 0, result.err
    _, _, comparison = result.out.partition("Table 5.5")
    rows, _, remarks = comparison.partition("\n- ")
    assert all(len(line) <= 80 for line in rows.splitlines()[1:])
    assert len(re.findall(r"^  here( +-?\d+\.\d\d){9}$", rows, re.MULTILINE)) == 3
    assert "cap, wood" in remarks
    page = (tmp_path / "report.html").read_text()
    assert "Table 5.5" in page
    assert "0.40" in page


def test_a_run_that_fails_is_reported_and_the_rest_are_kept(run: Run, data: Path, tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(
        SPEC.replace('["fine-tuning", "replay"]', '["fine-tuning", "compressed-replay"]').replace(
            '"paste"', '["paste", "destseg"]'
        )
        + "[settings.destseg]\nstudent.steps = 1\nsegmentation.steps = 1\n"
    )
    result = run(
        *("bench", tmp_path / "study.toml", "--data", data, "--out", tmp_path / "out", "--seeds", "0")
    )
    assert result.code == 2
    assert "1 of 4 runs failed." in result.err
    assert len(list((tmp_path / "out" / "runs").iterdir())) == 3
    assert len(list((tmp_path / "out" / "failed").iterdir())) == 1
    assert "destseg" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "no single thing to run"),
        (["study.toml", "--table", "thesis-5.3"], "no single thing to run"),
        (["study.toml"], "says no dataset"),
        (["study.toml", "--data", "DATA", "--engine", "rai"], "Did you mean 'ray'"),
        (["study.toml", "--data", "DATA", "--seeds", "0,x"], "--seeds 0,x are not seeds"),
        (["study.toml", "--data", "DATA", "--seeds", "-1"], "are not seeds"),
        (["study.toml", "--data", "DATA", "--weights", "random"], "names no backbone"),
        (["study.toml", "--data", "DATA", "--weights", "phinet=random"], "for a backbone not run"),
        (
            ["study.toml", "--data", "DATA", "--set", "training.epoch=2"],
            "No method here has a setting 'training.epoch'",
        ),
        (["study.toml", "--data", "DATA", "--products", "cab"], "Did you mean cap"),
        (["study.toml", "--data", "DATA", "--backbone", "tinny"], "Did you mean 'tiny'"),
        (["study.toml", "--data", "nowhere"], "does not exist"),
        (["--table", "thesis-5.3"], "--data ROOT"),
        (["--table", "thesis-5.9", "--data", "DATA"], "Did you mean"),
        (["--table", "thesis-5.3", "--data", "DATA"], "--products"),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is_written(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], complaint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CONTINUAD_DATA", raising=False)
    (tmp_path / "study.toml").write_text(SPEC)
    result = run("bench", *(str(data) if word == "DATA" else word for word in words))
    assert (result.code, result.out) == (2, "")
    assert complaint in " ".join(result.err.split())
    assert [path.name for path in tmp_path.iterdir()] == ["study.toml"]


def test_without_the_reports_packages_it_says_so(
    run: Run, data: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    (tmp_path / "out" / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    result = run("bench", whole / "study.toml", "--data", data, "--out", tmp_path / "out")
    assert result.code == 0
    assert 'pip install "continuad[report]"' in result.err
    assert "fine-tuning" in result.out
    assert not (tmp_path / "out" / "report.html").exists()


def test_how_far_it_is_in_words() -> None:
    assert describe_standing(Standing(0, 12, 0, None)) == "0 of 12 runs"
    assert describe_standing(Standing(3.7, 12, 1, 89.2)) == "3 of 12 runs, 1 failed, about 90 s left"
    assert describe_standing(Standing(3, 12, 0, 95)) == "3 of 12 runs, about 2 min left"
    assert describe_standing(Standing(3, 12, 0, 9000)) == "3 of 12 runs, about 2.5 h left"
    assert describe_standing(Standing(12, 12, 2, 0.0)) == "12 of 12 runs, 2 failed"


def test_the_bar_is_drawn_on_a_terminal() -> None:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=80)
    with StandingBar(console) as bar:
        bar(Standing(1.5, 4, 0, 30))
        bar._bar.refresh()
    assert "1 of 4 runs, about 30 s left" in stream.getvalue()


def test_settings_of_any_method() -> None:
    pairs = ["training.epochs=3", "training.rate=0.5", "optimiser=adam", "on=true", "taps=['a', 'b']"]
    assert nested(pairs) == {
        "training": {"epochs": 3, "rate": 0.5},
        "optimiser": "adam",
        "on": True,
        "taps": ["a", "b"],
    }
    for wrong in (["epochs"], ["training=3", "training.epochs=3"]):
        with pytest.raises(SettingsError):
            nested(wrong)
