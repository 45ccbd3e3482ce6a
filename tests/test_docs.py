"""The documentation: it builds without a warning, needs no network, and its examples run as they stand."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

from continuad import Inspector
from continuad.backbones import BACKBONES
from continuad.bench.published import TABLES
from continuad.cli import app
from continuad.continual.codecs import CODECS
from continuad.continual.strategies import STRATEGIES
from continuad.datasets import LAYOUTS
from continuad.detectors import METHODS
from pages import DOCS, ROOT, blocks, check_printed, commands, run_forked

PAGES = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
TOKEN = "0123456789abcdef0123456789abcdef"

LOADING = {("img", "src"), ("script", "src"), ("link", "href"), ("source", "src"), ("iframe", "src")}
"""Where HTML makes a browser fetch something; a link is followed only by a human."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not (find_spec("mkdocs") and find_spec("material") and find_spec("mkdocstrings")):
        pytest.skip("needs mkdocs-material and mkdocstrings[python]")
    target = tmp_path_factory.mktemp("docs") / "site"
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(target)]
    run = subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert run.returncode == 0, run.stderr
    assert "WARNING" not in run.stderr
    return target


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first page leaves: photos of two products and a bank that knows them; not to be written."""
    folder = tmp_path_factory.mktemp("started")
    run_forked("start.md", folder)
    return folder


@pytest.fixture
def place(started: Path, tmp_path: Path) -> Path:
    """A copy of that."""
    return Path(shutil.copytree(started, tmp_path / "place"))


class Loaded(HTMLParser):
    """Collects the addresses that a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "link" and values.get("rel") in ("canonical", "prev", "next"):
            return
        self.found |= {value or "" for name, value in attrs if (tag, name) in LOADING}


def test_nothing_is_loaded_from_the_network(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 30
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text())
        assert loaded.found
        assert not [each for each in loaded.found if re.match(r"(https?:)?//", each)], page
        for each in loaded.found:
            if not each.startswith("data:"):
                file = each.partition("?")[0].partition("#")[0]
                folder = site if file.startswith("/") else page.parent  # that of errors is served anywhere
                assert (folder / file.lstrip("/")).exists(), (page, each)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(\s*[\"']?(https?:)?//|@import", sheet.read_text()), sheet


def test_the_site_is_searched_from_the_disk_without_network(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("there is no browser here")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--headless", "--no-sandbox"])
        page = browser.new_page()
        complaints: list[str] = []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda asked: complaints.append(asked.url))
        page.goto((site / "guides" / "camera.html").as_uri())
        question = page.locator("input[name=query]").first
        question.click()
        question.press_sequentially("coreset")  # the search listens to keys
        page.locator(".md-search-result__item").first.wait_for(state="attached")
        browser.close()
    assert not [each for each in complaints if not each.startswith(("file:", "data:", "blob:"))]


def test_results_are_those_that_were_measured(site: Path) -> None:
    for source in (ROOT / "benchmarks" / "results").glob("*.md"):
        title = source.read_text().partition("\n")[0].removeprefix("# ")
        assert title in (site / "results" / f"{source.stem}.html").read_text()


def test_all_that_has_a_name_is_there(site: Path) -> None:
    choices = (site / "reference" / "choices.html").read_text()
    for name in (*METHODS, *BACKBONES, *STRATEGIES, *CODECS, *LAYOUTS):
        assert name in choices
    tables = (site / "guides" / "tables.html").read_text()
    assert all(f'id="{name.replace(".", "")}"' in tables for name in TABLES)
    group: Any = typer.main.get_command(app)
    reference = (site / "reference" / "cli.html").read_text()
    for name in group.commands:
        assert f'id="continuad-{name}"' in reference


def test_every_command_and_strategy_is_explained_by_a_hand_written_page() -> None:
    text = "\n".join((DOCS / page).read_text() for page in PAGES)
    group: Any = typer.main.get_command(app)
    missing = {name for name in group.commands if f"continuad {name}" not in text and f"`{name}" not in text}
    missing |= {name for name in (*STRATEGIES, *CODECS) if f"`{name}`" not in text}
    families = {
        re.sub(r"-(wrn50|resnet18|mobilenetv2|mcunet|phinet|micronet)$", "", name) for name in METHODS
    }
    missing |= {name for name in families if f"`{name}`" not in text}
    assert not missing


@pytest.mark.parametrize("page", [page for page in PAGES if page.startswith("how/")])
def test_files_that_a_page_points_to_exist(page: str) -> None:
    text = (DOCS / page).read_text()
    whole = {ROOT / path for path in re.findall(r"`(src/[\w/]+\.py)`", text)}
    assert whole
    assert all(path.is_file() for path in whole), page
    for name in re.findall(r"`(\w+\.py)`", text):  # beside one of them
        assert any((path.parent / name).is_file() for path in whole), (page, name)


@pytest.mark.parametrize("page", PAGES)
def test_commands_that_are_only_shown_can_be_parsed(page: str) -> None:
    group: Any = typer.main.get_command(app)
    shown = [each for block in blocks(page) if block.language == "shell" for each in commands(block.text)]
    shown += re.findall(r"^ExecStart=(.*)$", (DOCS / page).read_text(), re.M)
    for command in shown:
        words = shlex.split(command, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words = words[1:]
        if Path(words[0]).name == "continuad":
            assert words[1] in group.commands, command
            group.commands[words[1]].make_context(words[1], words[2:])  # refuses what is not an option


@pytest.mark.parametrize(
    "page",
    [
        "guides/camera.md",
        "guides/heads.md",
        "guides/unknown.md",
        "guides/add-detector.md",
        "guides/add-backbone.md",
        "guides/add-dataset.md",
        "guides/add-codec.md",
        "how/calibration.md",
        pytest.param("guides/bench.md", marks=pytest.mark.slow),
    ],
)
def test_a_guide_runs(page: str, place: Path) -> None:
    run_forked(page, place)


@pytest.mark.slow
def test_the_guide_to_the_edge_runs(place: Path) -> None:
    for engine in ("openvino", "onnx", "nncf"):
        pytest.importorskip(engine)
    # in a process of its own: threads of the engines do not survive a fork
    words = [sys.executable, str(Path(__file__).with_name("pages.py")), "guides/edge.md", str(place)]
    run = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextlib.contextmanager
def _process(words: list[str], place: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        words,
        cwd=place,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(60)
            process.kill()


def test_the_guide_to_the_station_runs(place: Path) -> None:
    for needed in ("fastapi", "httpx", "sqlalchemy", "uvicorn"):
        pytest.importorskip(needed)
    page = blocks("guides/station.md")
    for block in page:
        if block.title:
            (place / block.title).write_text(block.text)
    (client,) = (block.text for block in page if block.language == "python" and not block.title)
    (shown,) = (block.text for block in page if block.language == "text")
    secrets = {"CONTINUAD_TOKEN": TOKEN, "CONTINUAD_WEBHOOK_SECRET": "hidden"}
    port = _free_port()
    hook = [sys.executable, "receiver.py", str(port)]
    serve = [sys.executable, "-m", "continuad", "serve", "parts.bank", "--port", "0"]
    serve += ["--webhook", f"http://127.0.0.1:{port}/"]
    with _process(hook, place, secrets) as receiver, _process(serve, place, secrets) as station:
        assert station.stderr is not None
        said = ""
        for line in station.stderr:
            said += line
            if "http://" in line:
                break
        assert "http://" in said, said
        code = client.replace("http://127.0.0.1:8765", re.findall(r"http://[0-9.:]+", said)[0])
        run = subprocess.run(
            [sys.executable, "-c", code],
            cwd=place,
            env={**os.environ, **secrets},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        check_printed(shown, run.stdout)
        assert receiver.stdout is not None
        assert receiver.stdout.readline() == "1 flange anomalous\n"  # genuine
        words = [sys.executable, "backup.py", "parts.bank", "backup"]
        subprocess.run(words, cwd=place, check=True)
    assert {*Inspector.open(place / "backup" / "parts.bank").products} == {"flange", "blister"}
    assert len([*(place / "backup" / "parts.bank.station" / "pictures").rglob("*.png")]) == 1


def test_the_unit_of_the_service_is_one(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("there is no systemd-analyze here")
    (unit,) = (block for block in blocks("guides/station.md") if block.title == "continuad.service")
    program = tmp_path / "continuad"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    file = tmp_path / unit.title
    file.write_text(unit.text.replace("/opt/continuad/bin/continuad", str(program)))
    run = subprocess.run([analyze, "verify", str(file)], capture_output=True, text=True, check=False)
    said = [line for line in run.stderr.splitlines() if unit.title in line]
    assert not said


def test_what_is_shown_must_be_what_was_printed() -> None:
    printed = "verdict  score\nnormal   0.31x\nnormal   0.52x\n"
    check_printed("verdict score\nnormal 9.99x\n...", printed)
    for wrong in ("verdict score\nanomalous 0.31x", "normal 1x\nverdict score", "verdict score\nnormal 1y"):
        with pytest.raises(AssertionError):
            check_printed(wrong, printed)
