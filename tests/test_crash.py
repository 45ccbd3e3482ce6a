"""Killed at any moment, and many processes at once: a bank is never anything but whole."""

from __future__ import annotations

import itertools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import (
    contents,
    end_child,
    leftovers,
    new_bank,
    photos,
    same,
    snapshot,
    start_child,
    teach,
    watched,
)
from continuad import Inspector
from continuad.errors import BankError, ContinuadError, ProductError

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")

WRITES: dict[str, Callable[[Inspector], object]] = {
    "learn": lambda inspector: teach(inspector, "screw"),
    "learn anew": lambda inspector: teach(inspector, "plate", head="adapts-m", replace_existing=True),
    "forget": lambda inspector: inspector.forget("plate"),
    "recalibrate": lambda inspector: inspector.recalibrate("plate", false_alarm_rate=0.05),
}


def dying_at(step: int) -> Callable[[int, str], None]:
    """For `watched`: kill this process at the given call."""

    def die(number: int, name: str) -> None:
        if number == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return die


@pytest.mark.parametrize("write", WRITES)
def test_a_writer_killed_at_any_step_leaves_all_or_nothing(taught: Path, tmp_path: Path, write: str) -> None:
    before, bolt = contents(Inspector.open(taught)), photos("bolt", 1)[0]
    verdict = Inspector.open(taught).inspect(bolt)
    whole = Inspector.open(shutil.copytree(taught, tmp_path / "whole"))
    WRITES[write](whole)
    after = contents(whole)
    assert after != before
    found, orphans = [], set()
    for step in itertools.count(1):
        folder = Path(shutil.copytree(taught, tmp_path / str(step)))

        def work(folder: Path = folder, step: int = step) -> None:
            inspector = Inspector.open(folder)
            with watched(dying_at(step)):
                WRITES[write](inspector)

        status = end_child(start_child(work))
        inspector = Inspector.open(folder)
        known = contents(inspector)
        assert known in (before, after)
        assert same(inspector.inspect(bolt), verdict)
        for name in known:
            assert inspector.inspect(photos(name, 1)[0]).product == name
            assert len(inspector.samples(name)) == 3
        orphans |= {Path(file).suffix for file in leftovers(folder)}
        if known == before:
            WRITES[write](inspector)
        assert contents(inspector) == after
        assert same(inspector.inspect(bolt), verdict)
        inspector.recalibrate("bolt", false_alarm_rate=0.05)  # the next writer cleans up
        assert leftovers(folder) == set()
        if status == 0:
            assert known == after
            break
        assert status == -signal.SIGKILL
        found.append(known == after)
    assert (".jpg" in orphans) == (write != "recalibrate")  # there was something to clean up
    assert found == sorted(found)
    assert set(found) == {False, True}


def test_a_bank_whose_creation_is_killed_is_there_or_not(tmp_path: Path) -> None:
    found = []
    for step in itertools.count(1):
        path = tmp_path / str(step) / "bank"
        path.parent.mkdir()

        def work(path: Path = path, step: int = step) -> None:
            with watched(dying_at(step)):
                new_bank(path)

        status = end_child(start_child(work))
        exists = path.exists()
        if not exists:
            with pytest.raises(BankError, match="There is no bank"):
                Inspector.open(path)
            new_bank(path)
        teach(Inspector.open(path), "bolt")
        assert list(path.parent.iterdir()) == [path]
        assert leftovers(path) == set()
        if status == 0:
            break
        assert status == -signal.SIGKILL
        found.append(exists)
    assert found == sorted(found)
    assert set(found) == {False, True}


def test_a_learner_killed_at_any_time_changes_nothing(folder: Path) -> None:
    before = snapshot(folder)
    forever = {"training": {"epochs": 10**6}}
    times = random.Random(0)
    for _ in range(6):
        child = start_child(
            lambda: Inspector.open(folder).learn(
                "screw", photos("screw", 7), head="adapts-s", settings=forever
            )
        )
        time.sleep(times.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
        assert end_child(child) == -signal.SIGKILL
        assert snapshot(folder) == before
    teach(Inspector.open(folder), "screw")


def test_a_learner_that_is_interrupted_changes_nothing(folder: Path, inspector: Inspector) -> None:
    before = snapshot(folder)

    def interrupt(done: int, total: int, what: str) -> None:
        if what == "training":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        teach(inspector, "screw", progress=interrupt)
    assert snapshot(folder) == before


def test_one_process_inspects_while_another_writes(folder: Path) -> None:
    names = [f"part {number}" for number in range(4)]
    images = [photos(name, 1, seed=9)[0] for name in ("bolt", *names)]

    def work() -> None:
        writer = Inspector.open(folder)
        for name in names:
            teach(writer, name)
        teach(writer, names[0], head="adapts-l", replace_existing=True)
        writer.recalibrate(names[1], false_alarm_rate=0.05)
        writer.forget(names[2])
        for _ in range(3):
            teach(writer, names[3], replace_existing=True)

    reader = Inspector.open(folder)
    first = reader.inspect(images[0])
    writer = start_child(work)
    rounds = 0
    while os.waitid(os.P_PID, writer, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        verdicts = reader.inspect(images)
        assert verdicts[0].product == "bolt"
        assert same(reader.inspect(images[0]), first)
        rounds += 1
    assert end_child(writer) == 0
    assert rounds > 0
    assert [verdict.product for verdict in reader.inspect(images)] == ["bolt", *names[:2], None, names[3]]
    for image, name in zip(images, ("bolt", *names), strict=True):
        if name != names[2]:
            assert same(reader.inspect(image), Inspector.open(folder).inspect(image))
    with pytest.raises(ProductError, match=r"No product is called 'part 2'"):
        reader.inspect(images[3], product="part 2")
    assert leftovers(folder) == set()


def test_the_last_product_is_forgotten_and_learnt_again_while_another_process_inspects(
    folder: Path,
) -> None:
    reader, image = Inspector.open(folder), photos("bolt", 1)[0]
    reader.forget("plate")

    def work() -> None:
        writer = Inspector.open(folder)
        for _ in range(8):
            writer.forget("bolt")
            teach(writer, "bolt")

    writer = start_child(work)
    seen = set()
    while os.waitid(os.P_PID, writer, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        try:
            seen.add(reader.inspect(image).product)
        except BankError as error:
            assert "has no product yet. Learn one first." in str(error)  # noqa: PT017
    assert end_child(writer) == 0
    assert seen <= {"bolt"}
    assert reader.inspect(image).product == "bolt"


def start_together(works: list[Callable[[], object]], expected: type[Exception]) -> list[int]:
    """Run the works in children that start at the same moment; their exit statuses, sorted."""
    gate, opener = os.pipe()

    def wait(work: Callable[[], object]) -> Callable[[], object]:
        def waiting() -> None:
            os.close(opener)
            os.read(gate, 1)  # ends when the parent closes its end
            work()

        return waiting

    children = [start_child(wait(work), expected=expected) for work in works]
    os.close(gate)
    os.close(opener)
    return sorted(end_child(child) for child in children)


def test_many_learners_of_different_products_all_win(folder: Path) -> None:
    names = [f"part {number}" for number in range(4)]
    works = [lambda name=name: teach(Inspector.open(folder), name) for name in names]
    assert start_together(works, ContinuadError) == [0, 0, 0, 0]
    inspector = Inspector.open(folder)
    assert inspector.products.keys() == {"bolt", "plate", *names}
    for name in inspector.products:
        assert inspector.inspect(photos(name, 1)[0]).product == name
    assert leftovers(folder) == set()


def test_of_many_learners_of_one_product_one_wins(folder: Path) -> None:
    works = [lambda seed=seed: teach(Inspector.open(folder), "screw", seed=seed) for seed in range(3)]
    assert start_together(works, ContinuadError) == [0, 3, 3]
    inspector = Inspector.open(folder)
    assert list(inspector.products) == ["bolt", "plate", "screw"]
    assert inspector.inspect(photos("screw", 1)[0]).product == "screw"
    assert leftovers(folder) == set()


def test_of_many_creators_of_one_bank_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "bank"
    assert start_together([lambda: new_bank(path)] * 3, BankError) == [0, 3, 3]
    assert list(tmp_path.iterdir()) == [path]
    teach(Inspector.open(path), "bolt")


@pytest.mark.parametrize("other", ["gear", "screw"])
def test_a_product_that_is_learnt_while_another_is_being_learnt(
    folder: Path, inspector: Inspector, other: str
) -> None:
    learnt = []

    def meanwhile(done: int, total: int, what: str) -> None:
        if what == "training" and not learnt:
            learnt.append(other)
            teach(Inspector.open(folder), other)

    if other == "gear":
        teach(inspector, "screw", progress=meanwhile)
        assert list(inspector.products) == ["bolt", "plate", "gear", "screw"]
    else:
        with pytest.raises(BankError, match=r"Another process has changed 'screw' meanwhile"):
            teach(inspector, "screw", seed=1, progress=meanwhile)
        whole = Inspector.open(shutil.copytree(folder, folder.with_name("whole")))
        whole.forget("screw")
        teach(whole, "screw")
        assert contents(inspector) == contents(whole)
    assert leftovers(folder) == set()
