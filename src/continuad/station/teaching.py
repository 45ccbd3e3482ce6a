"""Works off the jobs, one at a time, each in a process of its own: inspection goes on meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from continuad.errors import ContinuadError
from continuad.inspector import Inspector
from continuad.station.jobs import Job, Jobs

NEWS_SECONDS = 0.2
"""Progress is told this often at most."""

AWAY_SECONDS = 5.0
"""Between two attempts to reach a database that is away."""

Files = Callable[[str], list[Path]]
"""The photos of a photo set."""


class Teaching:
    """Teaches what the jobs ask for.

    Args:
        bank: its folder.
        inspector: of the bank; only asked what it knows.
        jobs: to work off.
        files: the photos of a photo set.
        report: told about each change of a job, in this thread.
    """

    def __init__(
        self, bank: Path, inspector: Inspector, jobs: Jobs, *, files: Files, report: Callable[[Job], None]
    ) -> None:
        self._bank, self._inspector, self._jobs = bank, inspector, jobs
        self._files, self._report = files, report
        self._changed = threading.Condition()
        self._is_ending = False
        self._cancelled: set[str] = set()
        self._running: tuple[str, subprocess.Popen[str]] | None = None
        self._thread = threading.Thread(target=self._work, name="teaching", daemon=True)

    def start(self) -> None:
        """Begin with what was left unfinished."""
        self._jobs.resume()
        self._thread.start()

    def stop(self) -> None:
        """Interrupt what is running; it goes on at the next start."""
        with self._changed:
            self._is_ending = True
            self._changed.notify_all()
            if self._running:
                self._running[1].terminate()
        if self._thread.ident:
            self._thread.join()

    def wake(self) -> None:
        """There is a new job."""
        with self._changed:
            self._changed.notify_all()

    def cancel(self, job: str) -> Job:
        """End a job that waits or runs; what it would have taught is not known then."""
        with self._changed:
            if self._running and self._running[0] == job:
                self._cancelled.add(job)
                self._running[1].terminate()
                self._changed.wait_for(lambda: self._running is None or self._running[0] != job, timeout=10)
                return self._jobs.get(job)
        ended = self._jobs.end(job, "cancelled")
        self._report(ended)
        return ended

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._is_ending:
                    return
                try:
                    job = self._jobs.begin()
                except SQLAlchemyError:  # the database is away; what runs there comes back
                    self._changed.wait(AWAY_SECONDS)
                    continue
                if job is None:
                    self._changed.wait()
                    continue
            self._report(job)
            ended = self._teach(job)
            with self._changed:
                self._running = None
                self._changed.notify_all()
            if ended:
                self._report(ended)

    def _teach(self, job: Job) -> Job | None:
        """Do a job; None if the station ends before it does."""
        if job.attempts > 1 and self._is_known(job):
            return self._jobs.end(job.id, "succeeded")
        try:
            files = self._files(job.request["photo_set"])
        except ContinuadError as error:
            return self._jobs.end(job.id, "failed", problem=error.problem, remedy=error.remedy)
        request = {
            "bank": str(self._bank),
            "name": job.product,
            "files": [str(file) for file in files],
            "false_alarm_rate": job.request["false_alarm_rate"],
            "replace": job.request["replace"],
        }
        with subprocess.Popen(
            [sys.executable, "-m", "continuad.station.teacher"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        ) as process:
            with self._changed:
                self._running = job.id, process
                if self._is_ending:
                    process.terminate()
            last = self._listen(job, process, request)
        if self._is_ending and "product" not in last:
            return None
        if job.id in self._cancelled:
            self._cancelled.discard(job.id)
            if "product" not in last:
                return self._jobs.end(job.id, "cancelled")
        if "product" in last:
            return self._jobs.end(job.id, "succeeded")
        return self._jobs.end(
            job.id,
            "failed",
            problem=last.get(
                "problem", f"The teaching process ended unexpectedly (status {process.returncode})."
            ),
            remedy=last.get("remedy", "See that the machine has enough memory, and try again."),
        )

    def _listen(self, job: Job, process: subprocess.Popen[str], request: dict[str, Any]) -> dict[str, Any]:
        """Hand over the request and tell the progress; returns the last thing that was said."""
        assert process.stdin is not None and process.stdout is not None  # noqa: S101, PT018
        last: dict[str, Any] = {}
        told = 0.0
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return last
        for line in process.stdout:
            last = json.loads(line)
            if "step" in last:
                now = time.monotonic()
                changed = self._jobs.tell(job.id, last["done"], last["total"], last["step"])
                if now - told > NEWS_SECONDS or last["done"] == last["total"]:
                    self._report(changed)
                    told = now
        return last

    def _is_known(self, job: Job) -> bool:
        """Whether an earlier attempt came to its end without anybody hearing of it."""
        product = self._inspector.products.get(job.product)
        return product is not None and product.sha256 != job.request["replaces"]
