"""The package as a whole: what it shows, and what it does not drag in."""

from __future__ import annotations

import functools
import pickle
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import continuad
from conftest import Run
from continuad.errors import ContinuadError, MissingError
from continuad.needs import NEEDS, explain_missing, needed

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
TORCH_IS_MISSING = (
    'error: PyTorch is not installed, which this needs.\n  Run: pip install "continuad[learn]"\n'
)


def without_extras(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Run code as if nothing were installed but the core."""
    code = f"import sys\nsys.modules.update(dict.fromkeys({list(NEEDS)}))\n{code}"
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def distributions(requirements: Iterable[str]) -> set[str]:
    """Their names, normalised, without versions and extras."""
    return {re.sub(r"[-_.]+", "-", re.split(r"[<>=\[]", each)[0]).lower() for each in requirements}


@functools.cache
def installed() -> dict[str, set[str]]:
    """The distributions that provide each module here."""
    return {module: distributions(names) for module, names in packages_distributions().items()}


def test_importing_it_loads_nothing_heavy() -> None:
    code = "import sys, continuad; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in run.stdout.split()}
    assert "continuad" in loaded
    assert not loaded & {"torch", "numpy", "scipy", "sklearn", "PIL", "rich", "typer"}


def test_all_names_are_there() -> None:
    for name in continuad.__all__:
        assert getattr(continuad, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Inspectr'"):
        _ = continuad.Inspectr  # type: ignore[attr-defined]


def test_version_is_that_of_the_project() -> None:
    assert continuad.__version__ == PROJECT["version"]


def test_nothing_of_the_machine_is_in_the_sources() -> None:
    home = str(Path.home())
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert home not in text, path
        assert "TODO" not in text, path


# Without the extras


def test_what_inspects_needs_no_extra() -> None:
    ground = [f"continuad.{path.stem}" for path in (ROOT / "src/continuad").glob("[a-z]*.py")]
    assert {"continuad.drawing", "continuad.images", "continuad.router", "continuad.verdict"} < set(ground)
    code = "import importlib\nfor name in sys.argv[1:]: importlib.import_module(name)"
    run = without_extras(code, *ground, "continuad.cli", "continuad.runtime", "continuad.watching")
    assert run.returncode == 0, run.stderr


def test_help_needs_no_extra() -> None:
    run = without_extras("from continuad.cli import main; main()", "--help")
    assert run.returncode == 0, run.stderr
    assert "inspect" in run.stdout


@pytest.mark.parametrize("words", ["learn bank x folder", "learn bank x folder --debug", "methods", "costs"])
def test_a_command_says_that_torch_is_missing(words: str) -> None:
    run = without_extras("from continuad.cli import main; main()", *words.split())
    assert (run.returncode, run.stdout) == (2, "")
    assert run.stderr.endswith(TORCH_IS_MISSING)
    assert run.stderr.startswith("Traceback" if "--debug" in words else "error:")


def test_a_bug_is_not_taken_for_a_missing_extra(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "continuad.detectors", None)
    result = run("methods")
    assert result.code == 70
    assert "ModuleNotFoundError: import of continuad.detectors halted" in result.err


def test_the_inspector_says_that_torch_is_missing() -> None:
    code = """
try:
    from continuad import Inspector
except ImportError as error:
    print(type(error).__name__, error, type(error.__cause__).__name__)
"""
    run = without_extras(code)
    expected = 'PyTorch is not installed, which this needs. Run: pip install "continuad[learn]"'
    assert run.stdout.strip() == f"MissingError {expected} ModuleNotFoundError", run.stderr


@pytest.mark.parametrize("module", NEEDS)
def test_what_is_said_of_a_module_is_what_installs_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        MissingError, match=r'is not installed, .* Run: pip install "continuad\[\w+\]"$'
    ) as error:
        needed(module)
    if module not in installed():
        pytest.skip(f"{module} is not installed")
    extra = error.value.remedy.partition("[")[2].rstrip('"]')
    assert distributions(EXTRAS[extra]) & installed()[module]
    assert not distributions(PROJECT["dependencies"]) & installed()[module]


def test_something_can_be_said_of_every_package_of_an_extra() -> None:
    packages = set().union(
        *(distributions(each) for extra, each in EXTRAS.items() if extra not in ("dev", "docs"))
    )
    known = set().union(*(installed().get(module, set()) for module in NEEDS))
    here = set().union(*installed().values())
    assert (packages & here) - known <= {"continuad"}


def test_what_no_extra_installs_is_not_explained() -> None:
    for name in ("continuad.nothing", "torch.nothing", "numpy", None):
        assert explain_missing(ModuleNotFoundError("No module", name=name)) is None
    with pytest.raises(ModuleNotFoundError, match=r"torch\.nothing"):
        needed("torch.nothing")
    assert needed("continuad.needs") is import_module("continuad.needs")


def test_what_is_missing_is_an_error_of_both_kinds_and_travels() -> None:
    error = MissingError("a is not installed.", "Run: b")
    assert isinstance(error, ContinuadError)
    assert isinstance(error, ImportError)
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.remedy) == (MissingError, "a is not installed. Run: b", "Run: b")


# The papers of the house


def test_the_citation_is_of_this_version() -> None:
    assert f"\nversion: {PROJECT['version']}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.parametrize("paper", ["CONTRIBUTING.md", "SECURITY.md"])
def test_what_a_paper_points_to_is_there(paper: str) -> None:
    text = (ROOT / paper).read_text()
    links = set(re.findall(r"\]\(([^)#]+)\)", text))
    code = {each.removeprefix("src/continuad/") for each in re.findall(r"`([\w/]+/\w+\.py)`", text)}
    files = {ROOT / link for link in links if "://" not in link}
    files |= {ROOT / each if each.startswith("tests/") else ROOT / "src/continuad" / each for each in code}
    assert len(files) > 10
    assert {path for path in files if not path.exists()} == set()
