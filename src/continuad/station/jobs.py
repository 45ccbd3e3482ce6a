"""Long work as a resource: it is asked for, watched and cancelled, and outlives the process."""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import sqlalchemy as sql
from sqlalchemy import Connection, Row
from sqlalchemy.exc import IntegrityError

from continuad.station.database import Database, as_text, jobs, now, requests
from continuad.station.faults import ConflictError, NotFoundError

State: TypeAlias = Literal["queued", "running", "succeeded", "failed", "cancelled"]
OVER = ("succeeded", "failed", "cancelled")

MAX_ATTEMPTS = 3
"""Times that a job is begun, if the station ends in the middle of it again and again."""


@dataclass(frozen=True)
class Job:
    """Long work.

    Attributes:
        id: of the job.
        kind: "teach".
        state: how far it is.
        product: that it is about.
        request: what was asked for, plain values.
        created: microseconds since 1970, like `started` and `finished`.
        started: None while it waits.
        finished: None until it is over.
        attempts: how often it was begun.
        problem: what went wrong.
        remedy: what to do about it.
        step: what is being done.
        done: steps done.
        total: steps in all; 0 while nobody knows.
    """

    id: str
    kind: str
    state: State
    product: str
    request: Mapping[str, Any] = field(repr=False)
    created: int
    started: int | None
    finished: int | None
    attempts: int
    problem: str | None
    remedy: str | None
    step: str = ""
    done: int = 0
    total: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        times = {each: getattr(self, each) for each in ("created", "started", "finished")}
        shown = {name: None if time is None else as_text(time) for name, time in times.items()}
        values = {name: value for name, value in vars(self).items() if name != "request"}
        return {**values, **shown}


class Jobs:
    """The jobs, in the database; how far the running one is, in memory."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._progress: dict[str, tuple[int, int, str]] = {}

    def create(
        self,
        *,
        kind: str,
        product: str,
        request: Mapping[str, Any],
        key: str | None = None,
        fingerprint: str = "",
    ) -> Job:
        """Queue a job; with a key that was used before, return the job that it made.

        Raises:
            ConflictError: the key was used for something else.
        """
        job = secrets.token_hex(8)
        try:
            with self._database.write() as connection:
                if key is not None:
                    values = {
                        "key": key,
                        "fingerprint": fingerprint,
                        "kind": kind,
                        "made": job,
                        "created": now(),
                    }
                    connection.execute(requests.insert().values(values))
                connection.execute(
                    jobs.insert().values(
                        id=job,
                        kind=kind,
                        state="queued",
                        product=product,
                        request=json.dumps(request),
                        created=now(),
                        attempts=0,
                    )
                )
        except IntegrityError:
            earlier = None if key is None else self.made_by(key, fingerprint)
            if earlier is None:
                raise
            return earlier
        return self.get(job)

    def made_by(self, key: str, fingerprint: str) -> Job | None:
        """The job that a request with this idempotency key has made.

        Raises:
            ConflictError: the key was used for another request.
        """
        with self._database.read() as connection:
            earlier = connection.execute(sql.select(requests).where(requests.c.key == key)).first()
        if earlier is None:
            return None
        if (earlier.kind, earlier.fingerprint) != ("teach", fingerprint):
            raise ConflictError(
                f"The idempotency key {key!r} was used for another request.", "Give each request its own key."
            )
        return self.get(earlier.made)

    def get(self, job: str) -> Job:
        """Return a job.

        Raises:
            NotFoundError: there is none.
        """
        with self._database.read() as connection:
            row = connection.execute(sql.select(jobs).where(jobs.c.id == job)).first()
        if row is None:
            raise NotFoundError(f"There is no job {job}.", "List the jobs.")
        return self._as_job(row)

    def latest(self, limit: int = 50) -> list[Job]:
        """The jobs, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(sql.select(jobs).order_by(jobs.c.created.desc()).limit(limit)).all()
        return [self._as_job(row) for row in rows]

    def unfinished(self) -> list[Job]:
        """The jobs that wait or run, oldest first."""
        query = sql.select(jobs).where(jobs.c.state.not_in(OVER)).order_by(jobs.c.created)
        with self._database.read() as connection:
            return [self._as_job(row) for row in connection.execute(query).all()]

    def begin(self) -> Job | None:
        """Take the next job that waits, and call it running."""
        with self._database.write() as connection:
            waiting = sql.select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.created).limit(1)
            row = connection.execute(waiting).first()
            if row is None:
                return None
            begun: dict[str, Any] = {"state": "running", "started": now(), "attempts": row.attempts + 1}
            _change(connection, row.id, **begun)
        return replace(self._as_job(row), **begun)

    def tell(self, job: Job, done: int, total: int, step: str) -> Job:
        """Say how far the running job is."""
        self._progress[job.id] = done, total, step
        return replace(job, done=done, total=total, step=step)

    def end(self, job: str, state: State, *, problem: str | None = None, remedy: str | None = None) -> Job:
        """Say how a job ended; one that is over stays as it is."""
        with self._database.write() as connection:
            _change(connection, job, state=state, finished=now(), problem=problem, remedy=remedy)
        self._progress.pop(job, None)
        return self.get(job)

    def resume(self) -> None:
        """Queue again what was running when the station ended; what never gets through has failed."""
        for job in self.unfinished():
            if job.state != "running":
                continue
            if job.attempts < MAX_ATTEMPTS:
                with self._database.write() as connection:
                    _change(connection, job.id, state="queued", started=None)
            else:
                self.end(
                    job.id,
                    "failed",
                    problem=f"The station ended {job.attempts} times in the middle of it.",
                    remedy="See that the machine has enough memory and stays on, and try again.",
                )

    def _as_job(self, row: Row[Any]) -> Job:
        values = dict(row._mapping)
        values["request"] = json.loads(values["request"])
        done, total, step = self._progress.get(row.id, (0, 0, ""))
        return Job(**values, done=done, total=total, step=step)


def _change(connection: Connection, job: str, **values: Any) -> None:
    """Change a job that is not over."""
    still = jobs.c.state.not_in(OVER)
    connection.execute(jobs.update().where(jobs.c.id == job, still).values(**values))
