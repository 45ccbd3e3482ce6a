"""Runs a grid of experiments: in parallel, resumable, each run once.

folder/
  runs/KEY.json     a finished run, written whole or not at all
  examples/KEY/     the pictures that it left
  failed/KEY.txt    the traceback of a run's last failure
  work/KEY/         what an unfinished run keeps for its next attempt
  results.csv       the rows of all finished runs of the last grid; results.parquet too where pyarrow is
  .lock             held while a grid is run
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

from filelock import FileLock, Timeout

from continuad.bench.execute import Engine, Failed, Finished, Job, Work
from continuad.bench.fingerprints import Fingerprints
from continuad.bench.grid import RunSpec
from continuad.bench.on_ray import run_on_ray
from continuad.bench.processes import run_in_processes
from continuad.bench.table import Row, write_table
from continuad.durable import write_whole
from continuad.errors import ContinuadError, SettingsError
from continuad.registry import Registry

ENGINES: Registry[Engine] = Registry("engine")
ENGINES.register("local")(run_in_processes)
ENGINES.register("ray")(run_on_ray)


@dataclass(frozen=True)
class FinishedRun:
    """A run that is done.

    Attributes:
        key: `run.key`.
        run: what was run.
        rows: as the work returned them.
        seconds: wall time of the attempt that finished it.
        environment: versions, the kind of machine and the threads that it was computed with.
        examples: folder of the pictures that it left; it may not be there.
    """

    key: str
    run: RunSpec
    rows: Sequence[Row]
    seconds: float
    environment: Mapping[str, str | int]
    examples: Path

    def table(self) -> list[Row]:
        """Return the rows, each behind the facts of the run."""
        return [{**self.run.facts(), **row, "key": self.key} for row in self.rows]


@dataclass(frozen=True)
class FailedRun:
    """A run that failed; the next call tries it again.

    Attributes:
        key: `run.key`.
        run: what was run.
        problem: what went wrong.
        trace: the file with the traceback.
    """

    key: str
    run: RunSpec
    problem: str
    trace: Path


@dataclass(frozen=True)
class Results:
    """What came of a grid: every distinct run is in one of the lists, in the grid's order."""

    finished: Sequence[FinishedRun]
    failed: Sequence[FailedRun]

    def rows(self) -> list[Row]:
        """Return the tidy table: the rows of all finished runs, whatever order they finished in."""
        return [row for run in self.finished for row in run.table()]

    def write(self, path: Path) -> None:
        """Write the table as CSV, or as Parquet if the file ends in ".parquet".

        Raises:
            ContinuadError: see `write_table`.
        """
        write_table(self.rows(), path)


@dataclass(frozen=True)
class Standing:
    """How far a grid is.

    Attributes:
        done: runs that are over, and of the others the parts that are done.
        total: runs in all.
        failed: runs that failed.
        seconds_left: from the mean time of the finished runs; None before there is one.
    """

    done: float
    total: int
    failed: int
    seconds_left: float | None


Ended: TypeAlias = FinishedRun | FailedRun


def ignore_standing(standing: Standing, /) -> None:
    """Do nothing about progress."""


def ignore_run(ended: Ended, /) -> None:
    """Do nothing about a run."""


def run_grid(
    runs: Sequence[RunSpec],
    work: Work,
    *,
    folder: Path,
    engine: str = "local",
    workers: int = 1,
    threads: int = 1,
    fingerprints: Fingerprints | None = None,
    progress: Callable[[Standing], None] = ignore_standing,
    on_done: Callable[[Ended], None] = ignore_run,
) -> Results:
    """Run what is not finished yet; a run that fails does not keep the others from running.

    Interrupted or killed at any time, the same call goes on where it was.

    Args:
        runs: runs with the same key are run once.
        work: see `Work`.
        folder: where everything is kept; see the module's docstring.
        engine: a name in `ENGINES`.
        workers: how many runs at once.
        threads: of each run; results may differ in their last bits with another number.
        fingerprints: of the datasets and weights; to share what they have read, or to see their progress.
        progress: told how far all is; what it raises stops the workers.
        on_done: called with each run that ends within this call.

    Raises:
        SettingsError: there is no such engine, no worker or no thread.
        ContinuadError: a dataset or weights file cannot be read (nothing is run then), the folder cannot be
            written or is in use by another call, or Ray is not to be had.
    """
    for name, number in {"workers": workers, "threads": threads}.items():
        if number < 1:
            raise SettingsError(f"{number} {name} cannot run anything.", "Use one or more.")
    execute_all = ENGINES[engine]
    known = fingerprints or Fingerprints()
    keyed: dict[str, RunSpec] = {}
    for run in runs:
        keyed.setdefault(run.key(known), run)
    with _held(folder):
        store = _Store(folder.absolute(), keyed)
        ended: dict[str, Ended] = store.find_all()
        jobs = [Job(key, run, store.work(key)) for key, run in keyed.items() if key not in ended]
        parts: dict[str, float] = dict.fromkeys(keyed, 0.0) | dict.fromkeys(ended, 1.0)
        progress(_standing(parts, ended, workers))
        if jobs:
            with closing(execute_all(work, jobs, workers, threads)) as events:
                for key, event in events:
                    if isinstance(event, float):
                        parts[key] = max(parts[key], event)
                    else:
                        ended[key] = store.keep(key, event)
                        parts[key] = 1.0
                        on_done(ended[key])
                    progress(_standing(parts, ended, workers))
        results = Results(
            finished=[each for key in keyed if isinstance(each := ended[key], FinishedRun)],
            failed=[each for key in keyed if isinstance(each := ended[key], FailedRun)],
        )
        results.write(folder / "results.csv")
        if find_spec("pyarrow") is not None:
            results.write(folder / "results.parquet")
    return results


def _standing(parts: Mapping[str, float], ended: Mapping[str, Ended], workers: int) -> Standing:
    done, total = sum(parts.values()), len(parts)
    seconds = [each.seconds for each in ended.values() if isinstance(each, FinishedRun)]
    left: float | None = None
    if seconds:
        at_once = max(1, min(workers, total - len(ended)))
        left = sum(seconds) / len(seconds) * (total - done) / at_once
    return Standing(done, total, len(ended) - len(seconds), left)


class _Store:
    """The files of runs."""

    def __init__(self, folder: Path, runs: Mapping[str, RunSpec]) -> None:
        self._folder = folder
        self._runs = runs
        with _using(folder):
            for name in ("runs", "examples", "failed", "work"):
                (folder / name).mkdir(exist_ok=True)

    def work(self, key: str) -> Path:
        """The folder for what a run has not finished."""
        return self._folder / "work" / key

    def find_all(self) -> dict[str, Ended]:
        """The finished runs whose files are whole."""
        with _using(self._folder):
            return {key: found for key in self._runs if (found := self._find(key)) is not None}

    def _find(self, key: str) -> FinishedRun | None:
        try:
            record = json.loads(self._record(key).read_bytes())
            if record.pop("sha256") != _checksum(record) or record["key"] != key:
                return None
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return self._finished(key, record["rows"], record["seconds"], record["environment"])

    def keep(self, key: str, end: Finished | Failed) -> Ended:
        """Put down how a run ended."""
        run, trace = self._runs[key], self._folder / "failed" / f"{key}.txt"
        with _using(self._folder):
            if isinstance(end, Failed):
                trace.write_text(f"{run}\n\n{end.trace}", encoding="utf-8")
                return FailedRun(key, run, end.problem, trace)
            self._keep_examples(key)
            record = {"key": key, "run": run.facts(), **vars(end)}
            text = json.dumps({"sha256": _checksum(record), **record}, indent=1, allow_nan=False)
            write_whole(self._record(key), text.encode())
            trace.unlink(missing_ok=True)
        shutil.rmtree(self.work(key), ignore_errors=True)  # what stays of it does no harm
        return self._finished(key, **vars(end))

    def _finished(
        self, key: str, rows: Sequence[Row], seconds: float, environment: Mapping[str, str | int]
    ) -> FinishedRun:
        return FinishedRun(key, self._runs[key], rows, seconds, environment, self._examples(key))

    def _keep_examples(self, key: str) -> None:
        """Move the pictures of a run that is about to be put down as finished."""
        drawn = self.work(key) / "examples"
        if drawn.is_dir():
            shutil.rmtree(self._examples(key), ignore_errors=True)
            drawn.replace(self._examples(key))

    def _examples(self, key: str) -> Path:
        return self._folder / "examples" / key

    def _record(self, key: str) -> Path:
        return self._folder / "runs" / f"{key}.json"


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Create the folder and lock it against other calls."""
    lock = FileLock(folder / ".lock", timeout=0)
    with _using(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout as error:
            raise ContinuadError(
                f"Another bench is writing into {folder}.", "Wait until it has ended, or give another folder."
            ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _using(folder: Path) -> Iterator[None]:
    """Turn a failure to read or write into a sentence."""
    try:
        yield
    except OSError as error:
        raise ContinuadError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}).",
            "Check free space and permissions; finished runs are kept.",
        ) from error
