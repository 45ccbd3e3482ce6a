from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from conftest import end_child, start_child
from continuad.bench import on_ray, processes, runner
from continuad.bench.execute import Event, Events, Failed, Finished, Job, Work
from continuad.bench.fingerprints import Fingerprints
from continuad.bench.grid import RunSpec
from continuad.bench.runner import Ended, FinishedRun, Results, Standing, run_grid
from continuad.errors import ContinuadError, DatasetError, SettingsError
from grid_works import count_threads, expected_rows, inline, journal, perform, put, spec


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "ENGINES", {"local": inline})


def starts(root: Path) -> Counter[str]:
    """How often each run was started."""
    return Counter(line.removeprefix("start ") for line in journal(root) if line.startswith("start "))


def table(runs: Sequence[RunSpec]) -> list[dict[str, Any]]:
    known = Fingerprints()
    return [{**run.facts(), **row, "key": run.key(known)} for run in runs for row in expected_rows(run)]


def record(folder: Path, run: RunSpec) -> Path:
    return folder / "runs" / f"{run.key(Fingerprints())}.json"


# In processes


def test_a_worker_that_dies_does_not_keep_the_rest_from_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [spec(tmp_path, "waits"), spec(tmp_path, "dies"), spec(tmp_path, "good", 1)]
    folder = tmp_path / "bench"
    ended: list[Ended] = []
    standings: list[Standing] = []
    results = run_grid(
        runs, perform, folder=folder, workers=2, progress=standings.append, on_done=ended.append
    )

    assert [each.run for each in results.finished] == [runs[0], runs[2]]
    assert [each.run for each in ended] == [runs[1], runs[2], runs[0]]  # not the order of the grid
    assert results.rows() == table([runs[0], runs[2]])
    (dies,) = results.failed
    assert dies.run == runs[1]
    assert "was killed by signal 9" in dies.problem
    assert "use fewer workers" in dies.problem
    assert str(runs[1]) in dies.trace.read_text()
    assert [path.name for path in (folder / "work").iterdir()] == [dies.key]

    assert [each.done for each in standings] == sorted(each.done for each in standings)
    assert standings[0] == Standing(0, 3, 0, None)
    assert standings[-1] == Standing(3, 3, 1, 0.0)
    assert any(each.done % 1 == 0.5 for each in standings)  # half a run
    assert multiprocessing.active_children() == []

    text = record(folder, runs[0]).read_text()
    assert not any(place in text for place in (str(tmp_path), str(Path.home())))
    assert json.loads(text)["environment"]["threads"] == 1

    (tmp_path / "mended").touch()
    monkeypatch.setattr(runner, "ENGINES", {"local": inline})
    again = run_grid(runs, perform, folder=folder)
    assert again.rows() == table(runs)
    assert again.failed == []
    assert starts(tmp_path) == {"waits 0": 1, "good 1": 1, "dies 0": 2}
    assert list((folder / "failed").iterdir()) == []
    assert list((folder / "work").iterdir()) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_a_bench_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    runs = [spec(tmp_path, "good", 1), spec(tmp_path, "assassinates")]
    folder = tmp_path / "bench"
    child = start_child(lambda: run_grid(runs, perform, folder=folder))
    assert end_child(child) == -signal.SIGKILL
    assert journal(tmp_path) == ["start good 1", "end good 1", "start assassinates 0"]
    results = run_grid(runs, perform, folder=folder)
    assert results.rows() == table(runs)
    assert starts(tmp_path) == {"good 1": 1, "assassinates 0": 2}


def test_an_interrupt_stops_the_workers_and_keeps_what_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [spec(tmp_path, "sleeps"), spec(tmp_path, "good", 1), spec(tmp_path, "good", 2)]

    def interrupt(ended: Ended) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(runs, perform, folder=tmp_path / "bench", workers=2, on_done=interrupt)
    assert multiprocessing.active_children() == []
    assert starts(tmp_path)["good 1"] == 1
    assert record(tmp_path / "bench", runs[1]).exists()
    (tmp_path / "mended").touch()
    monkeypatch.setattr(runner, "ENGINES", {"local": inline})
    assert run_grid(runs, perform, folder=tmp_path / "bench").rows() == table(runs)
    assert starts(tmp_path)["good 1"] == 1


def test_a_worker_has_so_many_threads_and_ends_with_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "EXIT_SECONDS", 0.1)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    results = run_grid([spec(tmp_path)], count_threads, folder=tmp_path / "bench", workers=2, threads=2)
    assert results.failed == []
    assert results.rows()[0]["torch"] == 2
    assert os.environ["OMP_NUM_THREADS"] == "5"


def test_work_that_cannot_be_sent_is_refused(tmp_path: Path) -> None:
    with pytest.raises((AttributeError, TypeError), match=r"local object|pickle"):
        run_grid([spec(tmp_path)], lambda run, folder, progress: [], folder=tmp_path / "bench")


# What is kept


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_fails_is_reported_and_tried_again(tmp_path: Path) -> None:
    methods = ["fails", "good", "breaks"]
    runs = [spec(tmp_path, method) for method in methods]
    results = run_grid(runs, perform, folder=tmp_path / "bench")
    assert results.rows() == table(runs[1:2])
    fails, breaks = results.failed
    assert (fails.run, fails.problem) == (runs[0], "There is no light. Switch it on.")
    assert (breaks.run, breaks.problem) == (runs[2], "ZeroDivisionError: one by none")
    assert fails.trace == tmp_path / f"bench/failed/{fails.key}.txt"
    assert "Traceback" in breaks.trace.read_text()
    assert "in _misbehave" in breaks.trace.read_text()
    (tmp_path / "mended").touch()
    again = run_grid(runs, perform, folder=tmp_path / "bench")
    assert again.rows() == table(runs)
    assert again.failed == []
    assert starts(tmp_path) == {"fails 0": 2, "good 0": 1, "breaks 0": 2}
    assert not fails.trace.exists()


@pytest.mark.usefixtures("in_this_process")
def test_finished_runs_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [spec(tmp_path, "good", seed) for seed in range(3)]
    first = run_grid(runs[:2], perform, folder=tmp_path / "bench")
    assert first.rows() == table(runs[:2])
    ended: list[Ended] = []
    second = run_grid(runs[::-1], perform, folder=tmp_path / "bench", on_done=ended.append)
    assert second.rows() == table(runs[::-1])
    assert [each.run for each in ended] == runs[2:]
    assert starts(tmp_path) == {"good 0": 1, "good 1": 1, "good 2": 1}
    monkeypatch.setattr(runner, "ENGINES", {"local": None})  # not even needed
    assert run_grid(runs, perform, folder=tmp_path / "bench").rows() == table(runs)


@pytest.mark.usefixtures("in_this_process")
def test_a_run_asked_for_twice_is_run_once(tmp_path: Path) -> None:
    runs = [spec(tmp_path), spec(tmp_path)]
    results = run_grid(runs, perform, folder=tmp_path / "bench")
    assert results.rows() == table(runs[:1])
    assert starts(tmp_path) == {"good 0": 1}


@pytest.mark.usefixtures("in_this_process")
def test_a_run_whose_dataset_has_changed_is_another(tmp_path: Path) -> None:
    run = spec(tmp_path)
    run_grid([run], perform, folder=tmp_path / "bench")
    put(run.dataset / "bolt/train/good/0.png", "changed")
    assert run_grid([run], perform, folder=tmp_path / "bench").rows() == table([run])
    assert starts(tmp_path) == {"good 0": 2}


def test_a_run_that_is_read_is_the_run_that_was_made(
    tmp_path: Path, in_this_process: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Ended] = []
    run_grid([spec(tmp_path)], perform, folder=tmp_path / "bench", on_done=made.append)
    assert run_grid([spec(tmp_path)], perform, folder=tmp_path / "bench").finished == made
    assert isinstance(made[0], FinishedRun)
    assert made[0].seconds > 0
    assert made[0].environment.keys() == {
        *("continuad", "python", "torch", "numpy", "system", "machine", "threads")
    }


DAMAGES = {
    "cut short": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "of another kind": lambda text: "[]",
    "without a checksum": lambda text: text.replace('"sha256"', '"sha"'),
    "with another number": lambda text: text.replace('"images": 0', '"images": 1'),
    "no text": lambda text: "\udcff",
}


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_made_anew(tmp_path: Path, damage: str) -> None:
    runs = [spec(tmp_path, "good", seed) for seed in range(2)]
    run_grid(runs, perform, folder=tmp_path / "bench")
    file = record(tmp_path / "bench", runs[0])
    text = file.read_text()
    file.write_text(DAMAGES[damage](text), errors="surrogateescape")
    assert file.read_bytes() != text.encode()
    assert run_grid(runs, perform, folder=tmp_path / "bench").rows() == table(runs)
    assert starts(tmp_path) == {"good 0": 2, "good 1": 1}


@pytest.mark.usefixtures("in_this_process")
def test_a_file_under_another_run_s_name_does_not_count(tmp_path: Path) -> None:
    runs = [spec(tmp_path, "good", seed) for seed in range(2)]
    run_grid(runs[:1], perform, folder=tmp_path / "bench")
    record(tmp_path / "bench", runs[0]).rename(record(tmp_path / "bench", runs[1]))
    assert run_grid(runs[1:], perform, folder=tmp_path / "bench").rows() == table(runs[1:])


@pytest.mark.usefixtures("in_this_process")
def test_what_an_attempt_left_is_there_for_the_next(tmp_path: Path) -> None:
    run = spec(tmp_path, "breaks")
    (failed,) = run_grid([run], perform, folder=tmp_path / "bench").failed
    seen: list[bool] = []

    def look(run: RunSpec, folder: Path, progress: Any) -> list[dict[str, Any]]:
        seen.append((folder / "kept").exists())
        return []

    assert run_grid([run], look, folder=tmp_path / "bench").failed == []
    assert seen == [True]
    assert not (tmp_path / "bench/work" / failed.key).exists()


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ([{"x": [1]}], "TypeError: x is a list, not str, int, float or None"),
        ([{"x": float("inf")}], "ValueError: x is infinite"),
        ([{"seed": 1}], "ValueError: the column name 'seed' is taken by the run's own facts"),
        ([{"key": 1}], "ValueError: the column name 'key' is taken"),
        (None, "TypeError"),
    ],
)
def test_rows_that_are_no_table_fail_their_run(tmp_path: Path, rows: Any, problem: str) -> None:
    results = run_grid([spec(tmp_path)], lambda run, folder, progress: rows, folder=tmp_path / "bench")
    assert results.finished == []
    assert results.failed[0].problem.startswith(problem)


@pytest.mark.usefixtures("in_this_process")
def test_the_table_is_written_beside_the_runs(tmp_path: Path) -> None:
    results = run_grid([spec(tmp_path)], perform, folder=tmp_path / "bench")
    lines = (tmp_path / "bench/results.csv").read_text().splitlines()
    assert lines[0].startswith("dataset,layout,products,scenario,strategy,")
    assert lines[0].endswith(",product,auroc,images,remark,key")
    assert len(lines) == 3
    assert '"nut, left"' in lines[2]
    results.write(tmp_path / "elsewhere/copy.csv")
    assert (tmp_path / "elsewhere/copy.csv").read_text().splitlines() == lines


# Progress


def play(events: Sequence[tuple[int, Event]]) -> Any:
    """An engine to which the given things happen, each to the job of a number."""

    def engine(work: Work, jobs: Sequence[Job], workers: int, threads: int) -> Events:
        yield from ((jobs[number].key, event) for number, event in events)

    return engine


def test_time_left_is_the_mean_time_of_finished_runs_shared_by_the_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [spec(tmp_path, "good", seed) for seed in range(5)]
    first = [(0, Finished([], 10.0, {}))]
    monkeypatch.setattr(runner, "ENGINES", {"local": play(first)})
    run_grid(runs[:1], perform, folder=tmp_path / "bench")
    rest: list[tuple[int, Event]] = [
        *((0, 0.5), (1, 0.25), (0, 0.25), (0, 1.0), (0, Finished([], 30.0, {}))),
        *((1, Failed("x", "y")), (2, Finished([], 20.0, {})), (3, 0.5), (3, Failed("x", "y"))),
    ]
    monkeypatch.setattr(runner, "ENGINES", {"local": play(rest)})
    found: list[Standing] = []
    run_grid(runs, perform, folder=tmp_path / "bench", workers=2, progress=found.append)
    assert found == [
        Standing(1.0, 5, 0, 10 * 4 / 2),
        Standing(1.5, 5, 0, 10 * 3.5 / 2),
        Standing(1.75, 5, 0, 10 * 3.25 / 2),
        Standing(1.75, 5, 0, 10 * 3.25 / 2),  # what goes back is not shown
        Standing(2.25, 5, 0, 10 * 2.75 / 2),
        Standing(2.25, 5, 0, 20 * 2.75 / 2),
        Standing(3.0, 5, 1, 20 * 2 / 2),
        Standing(4.0, 5, 1, 20 * 1 / 1),  # one run is for one worker
        Standing(4.5, 5, 1, 20 * 0.5 / 1),
        Standing(5.0, 5, 2, 0.0),
    ]


@pytest.mark.usefixtures("in_this_process")
def test_no_work_reports_less_than_nothing_or_more_than_all(tmp_path: Path) -> None:
    def report(run: RunSpec, folder: Path, progress: Any) -> list[dict[str, Any]]:
        progress(*[(-1, 2), (3, 2), (0, 0)][run.seed], "x")
        return []

    found: list[Standing] = []
    runs = [spec(tmp_path, "good", seed) for seed in range(3)]
    run_grid(runs, report, folder=tmp_path / "bench", progress=found.append)
    assert [each.done for each in found] == [0, 0, 1, 2, 2, 2, 3]


# What cannot be run


def test_what_is_asked_for_wrongly_is_refused(tmp_path: Path) -> None:
    run = spec(tmp_path)
    for name in ("workers", "threads"):
        with pytest.raises(SettingsError, match=f"0 {name}"):
            run_grid([run], perform, folder=tmp_path / "bench", **{name: 0})
    with pytest.raises(SettingsError, match="Did you mean 'local'"):
        run_grid([run], perform, folder=tmp_path / "bench", engine="locl")
    with pytest.raises(DatasetError, match="does not exist"):
        run_grid([run, replace(run, dataset=tmp_path / "none")], perform, folder=tmp_path / "bench")
    (tmp_path / "file").touch()
    with pytest.raises(ContinuadError, match=r"file cannot be read or written \(File exists\)"):
        run_grid([run], perform, folder=tmp_path / "file")
    assert journal(tmp_path) == []


@pytest.mark.usefixtures("in_this_process")
def test_of_two_benches_in_one_folder_the_second_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    with (
        FileLock(tmp_path / "bench/.lock"),
        pytest.raises(ContinuadError, match="Another bench is writing into"),
    ):
        run_grid([spec(tmp_path)], perform, folder=tmp_path / "bench")
    assert len(run_grid([spec(tmp_path)], perform, folder=tmp_path / "bench").finished) == 1


# On Ray


def test_ray_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ContinuadError, match=r'Ray is not installed.*pip install "continuad\[scale\]"'):
        run_grid([spec(tmp_path)], perform, folder=tmp_path / "bench", engine="ray")


class Cluster:
    """As much of Ray as says how large it is."""

    def __init__(self, *cores: int) -> None:
        self._cores = cores

    def nodes(self) -> list[dict[str, Any]]:
        alive = [
            {"Alive": True, "Resources": {"CPU": float(cores)} if cores else {}} for cores in self._cores
        ]
        return [*alive, {"Alive": False, "Resources": {"CPU": 64.0}}]


@pytest.mark.parametrize(
    ("cores", "threads", "fits"), [((8, 2), 8, True), ((8, 8), 9, False), ((0,), 1, False)]
)
def test_a_run_on_ray_fits_into_one_machine(cores: tuple[int, ...], threads: int, fits: bool) -> None:
    with nullcontext() if fits else pytest.raises(ContinuadError, match=f"has {threads} cores"):
        on_ray._check_room(Cluster(*cores), threads)


@pytest.mark.slow
def test_ray_gives_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    methods = ["waits", "fails", "dies"]
    runs = [*(spec(tmp_path, method) for method in methods), spec(tmp_path, "good", 1)]
    standings: list[Standing] = []
    results = run_grid(
        runs, perform, folder=tmp_path / "bench", engine="ray", workers=2, progress=standings.append
    )
    assert results.rows() == table([runs[0], runs[3]])
    assert [each.run for each in results.failed] == runs[1:3]
    assert results.failed[0].problem == "There is no light. Switch it on."
    assert "was lost" in results.failed[1].problem
    assert [each.done for each in standings] == sorted(each.done for each in standings)
    assert (standings[-1].done, standings[-1].failed) == (4, 2)

    def sums(engine: str) -> Results:
        folder = tmp_path / engine
        return run_grid([spec(tmp_path)], count_threads, folder=folder, engine=engine, workers=1)

    assert sums("ray").rows() == sums("local").rows()
