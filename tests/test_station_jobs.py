"""Jobs, and the process that teaches."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("sqlalchemy")

from conftest import photos
from continuad import Inspector
from continuad.station.database import Database
from continuad.station.faults import ConflictError, NotFoundError
from continuad.station.jobs import MAX_ATTEMPTS, OVER, Job, Jobs
from continuad.station.teaching import Teaching

pytest_plugins = ["databases"]


@pytest.fixture
def jobs(database: Database) -> Jobs:
    return Jobs(database)


def ask(jobs: Jobs, name: str = "nut", **request: Any) -> Job:
    wish = {"photo_set": "a", "false_alarm_rate": 0.01, "replace": False, "replaces": None, **request}
    return jobs.create(kind="teach", product=name, request=wish)


def test_jobs_are_worked_off_in_order(jobs: Jobs) -> None:
    first, second = ask(jobs, "nut"), ask(jobs, "cap")
    assert [job.id for job in jobs.latest()] == [second.id, first.id]
    begun = jobs.begin()
    assert begun is not None
    assert (begun.id, begun.state, begun.attempts) == (first.id, "running", 1)
    assert jobs.tell(begun, 3, 10, "looking").as_dict()["step"] == "looking"
    assert jobs.end(first.id, "failed", problem="p", remedy="r").problem == "p"
    assert jobs.end(first.id, "succeeded").state == "failed"  # what is over stays as it is
    assert [job.id for job in jobs.unfinished()] == [second.id]
    assert jobs.begin() is not None
    assert jobs.begin() is None
    with pytest.raises(NotFoundError):
        jobs.get("0" * 16)


def test_a_key_makes_one_job(jobs: Jobs) -> None:
    made = [
        jobs.create(kind="teach", product="nut", request={}, key="k", fingerprint=mark).id for mark in "aa"
    ]
    assert made[0] == made[1]
    with pytest.raises(ConflictError):
        jobs.create(kind="teach", product="nut", request={}, key="k", fingerprint="b")
    assert len(jobs.latest()) == 1
    assert jobs.made_by("another", "a") is None


def test_what_was_cut_off_is_begun_again_a_few_times(jobs: Jobs, database: Database) -> None:
    job = ask(jobs)
    for attempt in range(1, MAX_ATTEMPTS + 1):
        begun = jobs.begin()
        assert begun is not None
        assert begun.attempts == attempt
        jobs = Jobs(database)  # the station was killed
        jobs.resume()
    ended = jobs.get(job.id)
    assert (ended.state, jobs.begin()) == ("failed", None)
    assert f"{MAX_ATTEMPTS} times" in (ended.problem or "")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Photos of a nut."""
    found = []
    for index, photo in enumerate(photos("nut", 8)):
        found.append(tmp_path / f"{index}.png")
        Image.fromarray(photo).save(found[-1])
    return found


@pytest.fixture
def told() -> list[Job]:
    return []


@pytest.fixture
def learnt() -> list[Job]:
    return []


@pytest.fixture
def teaching(
    folder: Path, files: list[Path], told: list[Job], learnt: list[Job]
) -> Iterator[Callable[[Jobs], Teaching]]:
    made: list[Teaching] = []

    def make(jobs: Jobs) -> Teaching:
        made.append(
            Teaching(
                folder,
                Inspector.open(folder),
                jobs,
                files=lambda _: files,
                report=told.append,
                learnt=learnt.append,
            )
        )
        return made[-1]

    yield make
    for each in made:
        each.stop()


def wait(jobs: Jobs, job: str, *states: str) -> Job:
    until = time.monotonic() + 60
    while (found := jobs.get(job)).state not in states:
        assert time.monotonic() < until, found
        time.sleep(0.05)
    return found


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Jobs]:
    """Jobs in a SQLite database."""
    opened = Database(tmp_path / "station.db")
    yield Jobs(opened)
    opened.close()


def test_a_product_is_taught_in_a_process_of_its_own(
    teaching: Callable[[Jobs], Teaching], here: Jobs, folder: Path, told: list[Job]
) -> None:
    before = dict(Inspector.open(folder).products)
    worker = teaching(here)
    worker.start()
    job = ask(here)
    worker.wake()
    assert wait(here, job.id, *OVER).state == "succeeded"
    worker.stop()
    known = Inspector.open(folder).products
    assert list(known) == ["bolt", "plate", "nut"]
    assert {name: known[name] for name in before} == before
    assert [each.state for each in told][:1] == ["running"]
    assert told[-1].state == "succeeded"
    steps = [each for each in told if each.step]
    assert steps
    assert all(0 <= each.done <= each.total for each in steps)


def test_what_cannot_be_taught_says_why(
    teaching: Callable[[Jobs], Teaching], here: Jobs, files: list[Path]
) -> None:
    files[3].write_bytes(b"no image")
    worker = teaching(here)
    job = ask(here)
    worker.start()
    ended = wait(here, job.id, *OVER)
    assert ended.state == "failed"
    assert "3.png" in (ended.problem or "")
    assert ended.remedy
    second = ask(here, "plate")  # which the bank knows
    worker.wake()
    assert "plate" in (wait(here, second.id, *OVER).problem or "")


def test_a_job_is_cancelled_whether_it_waits_or_runs(
    teaching: Callable[[Jobs], Teaching], here: Jobs, folder: Path
) -> None:
    worker = teaching(here)
    running, waiting = ask(here), ask(here, "cap")
    assert worker.cancel(waiting.id).state == "cancelled"
    worker.start()
    wait(here, running.id, "running")
    assert worker.cancel(running.id).state == "cancelled"
    assert worker.cancel(running.id).state == "cancelled"
    assert set(Inspector.open(folder).products) == {"bolt", "plate"}


def test_a_station_that_ends_takes_its_job_up_again(
    teaching: Callable[[Jobs], Teaching], here: Jobs, folder: Path
) -> None:
    first = teaching(here)
    job = ask(here)
    first.start()
    wait(here, job.id, "running")
    first.stop()
    assert here.get(job.id).state == "running"
    second = teaching(here)
    second.start()
    ended = wait(here, job.id, *OVER)
    assert (ended.state, ended.attempts) == ("succeeded", 2)
    assert "nut" in Inspector.open(folder).products


def test_a_product_that_was_learnt_unheard_is_not_learnt_again(
    teaching: Callable[[Jobs], Teaching], here: Jobs, folder: Path, files: list[Path], learnt: list[Job]
) -> None:
    job = ask(here)
    here.begin()
    Inspector.open(folder).learn("nut", files)  # then the station was killed
    product = Inspector.open(folder).product("nut")
    worker = teaching(here)
    worker.start()
    assert wait(here, job.id, *OVER).state == "succeeded"
    assert Inspector.open(folder).product("nut") == product
    assert [each.id for each in learnt] == [job.id]


def test_the_teacher_ends_with_whoever_asked(folder: Path, files: list[Path]) -> None:
    request = {
        "bank": str(folder),
        "name": "nut",
        "files": [str(file) for file in files],
        "false_alarm_rate": 0.01,
        "replace": False,
    }
    with subprocess.Popen(
        [sys.executable, "-m", "continuad.station.teacher"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as teacher:
        assert teacher.stdin is not None
        teacher.stdin.write(json.dumps(request).encode() + b"\n")
        teacher.stdin.close()
        assert teacher.wait(timeout=30) == 1
    assert "nut" not in Inspector.open(folder).products


def test_news_reach_listeners_from_any_thread_and_the_slow_are_cut_off() -> None:
    import asyncio

    from continuad.station.events import BACKLOG, Events

    async def go() -> None:
        events = Events()
        events.open()
        quick, slow = events.listen(), events.listen()
        assert "event: hello" in await anext(quick)
        assert "event: hello" in await anext(slow)
        pending = asyncio.ensure_future(anext(quick))
        await asyncio.sleep(0)
        thread = threading.Thread(target=events.publish, args=("job", {"id": 1}))
        thread.start()
        assert await pending == 'event: job\ndata: {"id": 1}\n\n'
        thread.join()
        await asyncio.to_thread(lambda: [events.publish("job", {}) for _ in range(BACKLOG + 5)])
        await asyncio.sleep(0.01)
        with pytest.raises(StopAsyncIteration):
            await anext(slow)  # it was behind by more than may be
        events.close()
        late = events.listen()
        assert "event: hello" in await anext(late)
        with pytest.raises(StopAsyncIteration):
            await anext(late)

    asyncio.run(go())


def test_pictures_are_read_from_memory_alone() -> None:
    from continuad.station.inspecting import suffix

    for kind, ending in (
        ("PNG", ".png"),
        ("JPEG", ".jpg"),
        ("BMP", ".bmp"),
        ("TIFF", ".tif"),
        ("WEBP", ".webp"),
    ):
        stream = io.BytesIO()
        Image.new("RGB", (9, 9)).save(stream, kind)
        assert suffix(stream.getvalue()) == ending
