"""The drawing of the house in docs/architecture.md: what the linter checks, and what there is."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
HOUSE = ROOT / "src/continuad"
TEXT = (ROOT / "docs/architecture.md").read_text()
(CONTRACT,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

NOT_DRAWN = {"__init__"}  # the front of the house


def floors_drawn() -> list[set[str]]:
    """What stands on each floor of the drawing, from the top."""
    found = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    floors: list[set[str]] = [set()]
    for line in found[1].splitlines():
        if line.endswith("+"):
            floors.append(set())
        else:
            _, _, inside = line.partition("|")
            floors[-1] |= set(re.findall(r"\w+", inside))
    return [floor for floor in floors if floor]


def floors_checked() -> list[set[str]]:
    """What stands on each floor by the linter's contract, from the top."""
    return [set(re.split(r"\s*[|:]\s*", layer)) for layer in CONTRACT["layers"]]


def modules() -> set[str]:
    """All modules and packages, by their names within the package."""
    paths = [path.relative_to(HOUSE).with_suffix("") for path in HOUSE.rglob("*.py")]
    return {".".join(path.parts).removesuffix(".__init__") for path in paths}


def described() -> list[str]:
    """What the list of modules describes, in its order."""
    lines = [line for line in TEXT.splitlines() if re.match(r" *- `[\w.]+`:", line)]
    return [name for line in lines for name in re.findall(r"`([\w.]+)`", line) if name in modules()]


def test_the_drawing_is_what_the_linter_checks() -> None:
    assert CONTRACT["type"] == "layers"
    assert CONTRACT["containers"] == ["continuad"]
    assert floors_drawn() == floors_checked()


def test_everything_in_the_house_stands_on_one_floor() -> None:
    rooms = {name.partition(".")[0] for name in modules()} - NOT_DRAWN
    assert Counter(name for floor in floors_checked() for name in floor) == Counter(rooms)


def test_every_import_that_goes_upwards_is_told() -> None:
    assert re.findall(r"`(\S+ -> \S+)`", TEXT) == CONTRACT["ignore_imports"]


def test_every_room_is_described_once_on_its_floor_and_nothing_that_is_not_there() -> None:
    names = described()
    assert [name for name, times in Counter(names).items() if times > 1] == []
    rooms = [name for name in names if "." not in name]
    floors = {name: number for number, floor in enumerate(floors_checked()) for name in floor}
    assert floors.keys() == set(rooms)
    assert rooms == sorted(rooms, key=lambda name: floors[name])
    room = ""
    for name in names:
        room = name if "." not in name else room
        assert name.partition(".")[0] == room, f"{name} is described with {room}"
    dotted = set(re.findall(r"`((?:\w+\.)+\w+)`", TEXT))
    assert {name for name in dotted if name not in modules()} == {"continuad.Runtime", "images.load_image"}


def test_what_is_said_to_do_without_torch_does() -> None:
    (said,) = re.findall(r"does without it: (.*?), and all below", TEXT, re.DOTALL)
    packages = [f"continuad.{name}" for name in re.findall(r"`(\w+)`", said)]
    assert "continuad.runtime" in packages
    code = f"import sys; sys.modules['torch'] = None; import {', '.join(packages)}"
    subprocess.run([sys.executable, "-c", code], check=True)
