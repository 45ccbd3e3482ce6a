"""Learning that is interrupted in the middle of training, and goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from conftest import end_child, new_bank, photos, start_child, watched
from continuad import Inspector
from continuad.detectors.checkpoint import Checkpoint
from continuad.errors import ContinuadError
from continuad.inspector import Product

PLAN = {"training": {"epochs": 6, "min_steps": 0, "batch_size": 4, "drop_last": False}}
STEPS = 6 * 2
Tick = Callable[[int, int, str], None]


@pytest.fixture(autouse=True)
def _save_after_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Checkpoint, "is_due", lambda self: True)


def learn(
    inspector: Inspector, *, stop_at: int | None = None, name: str = "bolt", **options: Any
) -> tuple[Product | None, list[int]]:
    """Learn a product by seven training images; returns it and the steps made."""
    steps: list[int] = []

    def progress(done: int, total: int, what: str) -> None:
        if what == "training":
            steps.append(done)
            if done == stop_at:
                raise KeyboardInterrupt

    options = {"head": "stfpm", "settings": PLAN, **options}
    try:
        return inspector.learn(name, photos("bolt", 10), progress=progress, **options), steps
    except KeyboardInterrupt:
        return None, steps


def unfinished(inspector: Inspector) -> list[str]:
    """The names of the trainings under way."""
    folder = inspector.bank.path / "unfinished"
    return sorted(each.name.partition("-")[0] for each in folder.iterdir()) if folder.exists() else []


def test_the_same_call_goes_on_and_gives_the_same_product(tmp_path: Path) -> None:
    whole, steps = learn(new_bank(tmp_path / "whole"))
    assert steps == list(range(1, STEPS + 1))
    inspector = new_bank(tmp_path / "bank")
    assert learn(inspector, stop_at=5) == (None, steps[:5])
    assert unfinished(inspector) == ["bolt"]
    assert not inspector.products
    product, more = learn(Inspector.open(tmp_path / "bank"))
    assert more == steps[5:]
    assert product is not None
    assert whole is not None
    assert product.calibration.scores == pytest.approx(whole.calibration.scores, rel=1e-3)
    assert unfinished(inspector) == []
    assert not (tmp_path / "bank" / "unfinished").exists()


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"settings": {**PLAN, "fusion": "sum"}}, {"head": "paste"}, {"name": "nut"}]
)
def test_another_call_begins_anew_and_leaves_it_alone(tmp_path: Path, change: dict[str, Any]) -> None:
    inspector = new_bank(tmp_path / "bank")
    learn(inspector, stop_at=5)
    _, steps = learn(inspector, stop_at=3, **change)
    assert steps == [1, 2, 3]
    assert learn(inspector)[1][0] == 6
    assert unfinished(inspector) == (["nut"] if "name" in change else [])


def test_other_images_begin_anew(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    learn(inspector, stop_at=5)
    steps: list[int] = []
    inspector.learn(
        "bolt",
        photos("bolt", 10, seed=1),
        head="stfpm",
        settings=PLAN,
        progress=lambda done, total, what: steps.append(done) if what == "training" else None,
    )
    assert steps[0] == 1


def test_forgetting_a_product_forgets_its_unfinished_training(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    learn(inspector)
    learn(inspector, stop_at=5, seed=1, replace_existing=True)
    learn(inspector, stop_at=5, name="nut")
    assert unfinished(inspector) == ["bolt", "nut"]
    inspector.forget("bolt")
    assert unfinished(inspector) == ["nut"]


def test_a_bank_without_a_product_is_kept_for_its_unfinished_training(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    learn(inspector, stop_at=2)
    inspector.bank.discard_if_empty()
    assert learn(Inspector.open(tmp_path / "bank"))[1][0] == 3


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize("moment", [1, 2, 3, 4, 5, 6, 7, 10, 15, 20, 40])
def test_a_power_cut_at_any_write_loses_one_step_at_most(tmp_path: Path, moment: int) -> None:
    new_bank(tmp_path / "bank")
    done = tmp_path / "done"

    def work() -> None:
        def die(number: int, name: str) -> None:
            if number == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        def note(step: int, total: int, what: str) -> None:
            if what == "training":
                os.write(descriptor, bytes([step]))

        inspector = Inspector.open(tmp_path / "bank")
        descriptor = os.open(done, os.O_WRONLY | os.O_CREAT)
        with watched(die):
            inspector.learn("bolt", photos("bolt", 10), head="stfpm", settings=PLAN, progress=note)

    assert end_child(start_child(work)) == -signal.SIGKILL
    before = done.read_bytes()
    product, steps = learn(Inspector.open(tmp_path / "bank"))
    assert product is not None
    assert len(before) + 1 <= steps[0] <= len(before) + 2  # saved, but killed before it was noted


def test_a_checkpoint_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    inspector = new_bank(tmp_path / "bank")
    (tmp_path / "bank" / "unfinished").write_text("a file where the folder should be")
    with pytest.raises(ContinuadError, match=r"unfinished.* cannot be written"):
        learn(inspector)
    assert not inspector.products
