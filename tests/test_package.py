"""The package as a whole: what it shows, and what it does not drag in."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import continuad

ROOT = Path(__file__).parent.parent


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
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert continuad.__version__ == project["version"]


def test_nothing_of_the_machine_is_in_the_sources() -> None:
    home = str(Path.home())
    for path in (ROOT / "src").rglob("*.py"):
        text = path.read_text()
        assert home not in text, path
        assert "TODO" not in text, path
