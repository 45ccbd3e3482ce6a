"""Works off the jobs, one at a time, each in a process of its own: inspection goes on meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy.exc import SQLAlchemyError

from continuad.errors import ContinuadError
from continuad.inspector import Inspector
from continuad.station.jobs import OVER, Job, Jobs

NEWS_SECONDS = 0.2
"""Progress is told this often at most."""

AWAY_SECONDS = 5.0
"""Between two attempts to reach a database that is away."""

CANCEL_SECONDS = 10.0
"""That a cancelled process may take to end, before the answer says that it still runs."""

Files = Callable[[str], list[Path]]
"""The photos of a photo set."""

T = TypeVar("T")


class Teaching:
    """Teaches what the jobs ask for.

    Args:
        bank: its folder.
        inspector: of the bank; only asked what it knows.
        jobs: to work off.
        files: the photos of a photo set.
        report: told about each change of a job, in this thread.
        learnt: told about a job whose product the bank knows, before it is over; after a crash, again.
    """

    def __init__(
        self,
        bank: Path,
        inspector: Inspector,
        jobs: Jobs,
        *,
        files: Files,
        report: Callable[[Job], None],
        learnt: Callable[[Job], None],
    ) -> None:
        self._bank, self._inspector, self._jobs = bank, inspector, jobs
        self._files, self._report, self._learnt = files, report, learnt
        self._changed = threading.Condition()
        self._is_ending = False
        self._cancelled: set[str] = set()
        self._running: str | None = None
        self._process: subprocess.Popen[str] | None = None
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
            if self._process:
                self._process.terminate()
        if self._thread.ident:
            self._thread.join()

    def wake(self) -> None:
        """There is a new job."""
        with self._changed:
            self._changed.notify_all()

    def cancel(self, job: str) -> Job:
        """End a job that waits or runs; what it would have taught is not known then."""
        with self._changed:
            if self._running == job:
                self._cancelled.add(job)
                if self._process:
                    self._process.terminate()
                self._changed.wait_for(lambda: self._running != job, timeout=CANCEL_SECONDS)
                return self._jobs.get(job)
            before = self._jobs.get(job)
            if before.state in OVER:
                return before
            ended = self._jobs.end(job, "cancelled")
        self._report(ended)
        return ended

    def _work(self) -> None:
        while job := self._next():
            self._report(job)
            ended = self._teach(job)
            with self._changed:
                self._running = None
                self._cancelled.discard(job.id)
                self._changed.notify_all()
            if ended:
                self._report(ended)

    def _next(self) -> Job | None:
        """Wait for a job, and begin it; None when the station ends."""
        with self._changed:
            while not self._is_ending:
                if job := self._in_spite(self._jobs.begin):
                    self._running = job.id
                    return job
                if not self._is_ending:
                    self._changed.wait()
            return None

    def _in_spite(self, call: Callable[[], T]) -> T | None:
        """Call what needs the database until it is there and has space; None if the station ends first."""
        with self._changed:
            while True:
                try:
                    return call()
                except (SQLAlchemyError, OSError):
                    if self._is_ending:
                        return None
                    self._changed.wait(AWAY_SECONDS)

    def _teach(self, job: Job) -> Job | None:
        """Do a job; None if the station ends before it does."""
        try:
            return self._attempt(job)
        except ContinuadError as error:
            return self._fail(job, error.problem, error.remedy)
        except OSError as error:
            return self._fail(
                job, f"The machine cannot teach now ({error.strerror}).", "See that it has memory and disk."
            )

    def _attempt(self, job: Job) -> Job | None:
        if job.attempts > 1 and self._head(job) not in (None, job.request["replaces"]):
            return self._succeed(job)  # an earlier attempt came to its end without anybody hearing of it
        files = self._in_spite(lambda: self._files(job.request["photo_set"]))
        if files is None:
            return None
        before = self._head(job)
        status, last = self._run(job, files)
        if "product" in last or self._head(job) not in (None, before):
            return self._succeed(job)
        if job.id in self._cancelled:
            return self._in_spite(lambda: self._jobs.end(job.id, "cancelled"))
        if self._is_ending:
            return None
        problem = last.get("problem", f"The teaching process ended unexpectedly (status {status}).")
        return self._fail(
            job, problem, last.get("remedy", "See that the machine has enough memory, and try again.")
        )

    def _succeed(self, job: Job) -> Job | None:
        def end() -> Job:
            self._learnt(job)
            return self._jobs.end(job.id, "succeeded")

        return self._in_spite(end)

    def _fail(self, job: Job, problem: str, remedy: str) -> Job | None:
        return self._in_spite(lambda: self._jobs.end(job.id, "failed", problem=problem, remedy=remedy))

    def _head(self, job: Job) -> str | None:
        """What the bank knows of the job's product."""
        product = self._inspector.products.get(job.product)
        return None if product is None else product.sha256

    def _run(self, job: Job, files: Sequence[Path]) -> tuple[int, dict[str, Any]]:
        """Teach in a process of its own; its status, and the last thing that it said."""
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
            start_new_session=True,  # Ctrl-C is for the station, which ends it in its own way
        ) as process:
            with self._changed:
                self._process = process
                if self._is_ending or job.id in self._cancelled:
                    process.terminate()
            last = self._listen(job, process, request)
        with self._changed:
            self._process = None
        return process.returncode, last

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
                changed = self._jobs.tell(job, last["done"], last["total"], last["step"])
                if now - told > NEWS_SECONDS or last["done"] == last["total"]:
                    self._report(changed)
                    told = now
        return last
