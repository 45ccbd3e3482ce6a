"""What an experiment is to those who execute it: a job that ends finished or failed."""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from continuad import __version__
from continuad.bench.grid import RunSpec
from continuad.bench.table import Row, check_rows
from continuad.errors import ContinuadError
from continuad.progress import Progress

Work: TypeAlias = Callable[[RunSpec, Path, Progress], list[dict[str, Any]]]
"""What a run does: an importable function of the run, a folder for unfinished work and a progress callback.

It returns rows of str, int, float or None. The folder is there and holds whatever an earlier attempt left,
which may have been killed at any time. The callback is told about the whole run, not about its parts.
"""

REPORT_SECONDS = 0.2
"""A worker reports at most this often."""


@dataclass(frozen=True)
class Job:
    """A run with its key and its folder for unfinished work."""

    key: str
    run: RunSpec
    folder: Path


@dataclass(frozen=True)
class Finished:
    """What came of a run.

    Attributes:
        rows: as the work returned them, NaN replaced by None.
        seconds: wall time of the attempt that finished it.
        environment: what it was computed with.
    """

    rows: list[Row]
    seconds: float
    environment: Mapping[str, str | int]


@dataclass(frozen=True)
class Failed:
    """What went wrong: in one line, and at length."""

    problem: str
    trace: str


Event: TypeAlias = float | Finished | Failed
"""How much of a run is done, from 0 to 1, or how it ended."""

Events: TypeAlias = Generator[tuple[str, Event]]

Engine: TypeAlias = Callable[[Work, Sequence[Job], int, int], Events]
"""Executes jobs, at most so many at once, each with so many threads; yields events of keys, one end for each.

Closing it stops all.
"""


def execute(work: Work, job: Job, threads: int, report: Callable[[float], None]) -> Finished | Failed:
    """Do the work of a job in this process; whatever it raises is a failure."""
    started = time.perf_counter()
    last_report = -REPORT_SECONDS

    def progress(done: int, total: int, what: str, /) -> None:  # noqa: ARG001 - as the protocol has it
        nonlocal last_report
        if time.perf_counter() - last_report >= REPORT_SECONDS:
            last_report = time.perf_counter()
            report(min(max(done / total, 0.0), 1.0) if total > 0 else 0.0)

    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        rows = check_rows(work(job.run, job.folder, progress), reserved={*job.run.facts(), "key"})
    except ContinuadError as error:
        return Failed(str(error), traceback.format_exc())
    except Exception as error:
        return Failed(f"{type(error).__name__}: {error}", traceback.format_exc())
    return Finished(rows, time.perf_counter() - started, _environment(threads))


def died(how: str, trace: str) -> Failed:
    """Return the failure of a job whose worker process ended without a word."""
    problem = f"The worker process {how}. If memory ran out, use fewer workers."
    return Failed(problem, trace or f"{problem}\n")


def available_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _environment(threads: int) -> dict[str, str | int]:
    return {
        "continuad": __version__,
        "python": platform.python_version(),
        "torch": version("torch"),
        "numpy": version("numpy"),
        "system": platform.system(),
        "machine": platform.machine(),
        "threads": threads,
    }
