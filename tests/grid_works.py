"""Works for grids of experiments, in a module of their own so that worker processes can import them."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import FileLock

from continuad.bench.execute import Events, Job, Work, execute
from continuad.bench.grid import RunSpec
from continuad.errors import DatasetError
from continuad.progress import Progress

WAIT_SECONDS = 60.0


def dataset(root: Path, *products: str) -> Path:
    """A dataset in the MVTec layout whose images no one may decode."""
    for product in products or ("bolt",):
        for name in ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/crack/0.png"):
            put(root / product / name, f"{product} {name}")
        put(root / product / "ground_truth/crack/0_mask.png", f"{product} mask")
    return root


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def spec(root: Path, method: str = "good", seed: int = 0, **changes: Any) -> RunSpec:
    """A run whose method says what `perform` does; `root` holds the dataset and the journal."""
    place = root / "data"
    if not place.exists():
        dataset(place)
    names = {"backbone": "tiny", "strategy": "joint", "scenario": "continual"}
    return RunSpec(**{**names, "method": method, "seed": seed, "dataset": place, **changes})


def journal(root: Path) -> list[str]:
    """What was started and what was ended, in this order, by all processes."""
    file = root / "journal"
    return file.read_text().splitlines() if file.exists() else []


def perform(run: RunSpec, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """Do what the method says; once there is a file "mended", all methods are good."""
    root = run.dataset.parent
    with FileLock(folder / "lock", timeout=WAIT_SECONDS):  # never two attempts at one run at a time
        _note(root, f"start {run.method} {run.seed}")
        (folder / "kept").touch()
        progress(1, 2, "half")
        if not (root / "mended").exists():
            _misbehave(run.method, root, finished=folder.parent.parent / "runs")
        _note(root, f"end {run.method} {run.seed}")
    return expected_rows(run)


def expected_rows(run: RunSpec) -> list[dict[str, Any]]:
    """Two rows that depend on the run alone, to the last bit."""
    numbers = np.random.default_rng([run.seed, *run.method.encode()]).random(2)
    return [
        {"product": name, "auroc": float(number), "images": run.seed, "remark": None}
        for name, number in zip(("bolt", "nut, left"), numbers, strict=True)
    ]


def count_threads(run: RunSpec, folder: Path, progress: Progress) -> list[dict[str, Any]]:
    """Say how many threads there are; leave one behind that would keep the process alive."""
    threading.Thread(target=time.sleep, args=(WAIT_SECONDS,)).start()
    generator = torch.Generator().manual_seed(run.seed)
    matrix = torch.rand((256, 256), generator=generator)
    return [{"torch": torch.get_num_threads(), "sum": float((matrix @ matrix).sum())}]


def inline(work: Work, jobs: list[Job], workers: int, threads: int) -> Events:
    """An engine that executes one job after another in this process."""
    for job in jobs:
        reports: list[float] = []
        end = execute(work, job, threads, reports.append)
        yield from ((job.key, report) for report in reports)
        yield job.key, end


def _misbehave(method: str, root: Path, finished: Path) -> None:
    match method:
        case "fails":
            raise DatasetError("There is no light.", "Switch it on.")
        case "breaks":
            raise ZeroDivisionError("one by none")
        case "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        case "assassinates":
            (root / "mended").touch()
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(WAIT_SECONDS)
        case "sleeps":
            time.sleep(WAIT_SECONDS)
        case "waits":
            while not any(finished.glob("*.json")):
                time.sleep(0.01)


def _note(root: Path, line: str) -> None:
    with (root / "journal").open("a") as stream:
        stream.write(f"{line}\n")
