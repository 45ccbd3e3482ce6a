"""Verdicts on their way out: they wait in the database until a target has confirmed them.

A delivery is written in the transaction of its inspection and deleted after its confirmation: each arrives in
order and at least once, whatever is switched off in between. What was confirmed but not yet deleted when the
power went is sent again; the inspection's id tells.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sql
from sqlalchemy.exc import SQLAlchemyError

from continuad.errors import SettingsError
from continuad.station.database import Database, deliveries
from continuad.station.target import RefusedError, SendError, Target
from continuad.watching.sighting import Note

__all__ = ["Deliveries", "DeliverySettings", "RefusedError", "SendError", "Target", "TargetStatus"]


@dataclass(frozen=True)
class DeliverySettings:
    """How patiently messages are delivered.

    Attributes:
        batch: messages that are sent at once.
        waits: seconds between attempts while a target is away: at first, and at most.
        longest: seconds that a target is left alone at most, even if it asks for more.
        linger: seconds that what is on its way has at the end.
    """

    batch: int = 50
    waits: tuple[float, float] = (1, 60)
    longest: float = 300
    linger: float = 2


@dataclass(frozen=True)
class TargetStatus:
    """How a target fares.

    Attributes:
        target: its name in the database.
        waiting: messages that it has not confirmed.
        delivered: messages that it has confirmed since the start.
        dropped: messages since the start that it refused, or that waited too long.
        problem: what is wrong; None if nothing is.
    """

    target: str
    waiting: int
    delivered: int
    dropped: int
    problem: str | None


class Deliveries:
    """Sends what waits in the database, each target in a thread of its own.

    Args:
        database: where the messages are.
        targets: by the name that their messages have in the database. They are closed at the end.
        note: told, from other threads, how the targets fare.
        limit: messages that wait for a target at most; beyond it the oldest are dropped.
        settings: batches and waits.

    Raises:
        SettingsError: the limit leaves room for nothing.
    """

    def __init__(
        self,
        database: Database,
        targets: Mapping[str, Target],
        *,
        note: Note,
        limit: int = 100_000,
        settings: DeliverySettings | None = None,
    ) -> None:
        if limit < 1:
            raise SettingsError(f"{limit} messages cannot wait for a target.", "Give a limit of at least 1.")
        self._database = database
        self._settings = settings or DeliverySettings()
        self._couriers = [
            _Courier(key, target, database, limit=limit, note=note, settings=self._settings)
            for key, target in targets.items()
        ]

    def start(self) -> None:
        """Begin with what waits already."""
        for courier in self._couriers:
            courier.thread.start()

    def wake(self) -> None:
        """Say that there is something new. From any thread; returns at once."""
        for courier in self._couriers:
            courier.woken.set()

    def stop(self) -> None:
        """End all threads; what is not confirmed by then is sent again after the next start."""
        for courier in self._couriers:
            courier.end()
        until = time.monotonic() + self._settings.linger
        for courier in self._couriers:
            courier.join(until)

    def status(self) -> list[TargetStatus]:
        """How each target fares."""
        query = sql.select(deliveries.c.target, sql.func.count().label("number")).group_by(
            deliveries.c.target
        )
        with self._database.read() as connection:
            waiting = {row.target: row.number for row in connection.execute(query)}
        return [courier.status(waiting.get(courier.key, 0)) for courier in self._couriers]


class _Waiting(NamedTuple):
    id: int
    payload: str


class _Courier:
    """Serves one target in one thread.

    Attributes:
        key: the target's name in the database.
        thread: does the work.
        woken: set when there is something to do.
    """

    def __init__(
        self,
        key: str,
        target: Target,
        database: Database,
        *,
        limit: int,
        note: Note,
        settings: DeliverySettings,
    ) -> None:
        self.key = key
        self._target, self._database, self._limit = target, database, limit
        self._note, self._settings = note, settings
        self.woken = threading.Event()
        self._ending = threading.Event()
        self._deleting = threading.Lock()
        self._is_abandoned = False
        self._delivered = self._dropped = self._overflow = self._failures = 0
        self._problem: str | None = None
        self._is_away = False
        self._refusals: set[str] = set()  # that were said
        self.thread = threading.Thread(target=self._run, name=f"deliveries to {key}", daemon=True)

    def status(self, waiting: int) -> TargetStatus:
        return TargetStatus(self.key, waiting, self._delivered, self._dropped, self._problem)

    def end(self) -> None:
        """Ask the thread to end after what it is at."""
        self._ending.set()
        self.woken.set()

    def join(self, until: float) -> None:
        """Wait for the thread, and leave it to itself after that."""
        if self.thread.ident is not None:
            self.thread.join(max(0.0, until - time.monotonic()))
        self._target.close()
        with self._deleting:
            self._is_abandoned = True

    def _run(self) -> None:
        while True:
            self.woken.clear()
            if self._ending.is_set():
                return
            try:
                pause = 0.0
                if not self._step():
                    self.woken.wait()
            except SendError as error:
                self._fail(error.problem)
                pause = self._pause(error.wait)
            except SQLAlchemyError as error:
                self._fail(f"cannot be served: the station's database fails ({type(error).__name__})")
                pause = self._pause(None)
            except Exception as error:  # one that a target has not foreseen; the rest shall not wait for ever
                self._fail(f"fails ({type(error).__name__})")
                pause = self._pause(None)
            self._ending.wait(pause)

    def _step(self) -> bool:
        """Send the oldest messages; False if there are none."""
        self._drop_oldest()
        rows = self._oldest()
        if not rows:
            self._say_overflow()
            return False
        try:
            self._target.send([row.payload for row in rows])
        except RefusedError as error:
            self._delete(rows[: error.sent + 1])
            self._delivered += error.sent
            self._dropped += 1
            self._refuse(error.problem)
        except SendError as error:
            self._delete(rows[: error.sent])
            self._delivered += error.sent
            if error.sent:
                self._failures = 0
            raise
        else:
            self._delete(rows)
            self._delivered += len(rows)
            self._succeed()
        return True

    def _oldest(self) -> list[_Waiting]:
        query = (
            sql.select(deliveries.c.id, deliveries.c.payload)
            .where(deliveries.c.target == self.key)
            .order_by(deliveries.c.id)
            .limit(self._settings.batch)
        )
        with self._database.read() as connection:
            return [_Waiting(*row) for row in connection.execute(query)]

    def _delete(self, rows: Sequence[_Waiting]) -> None:
        """Forget what has arrived, unless another thread may have taken over: ids can come again."""
        with self._deleting:
            if rows and not self._is_abandoned:
                with self._database.write() as connection:
                    connection.execute(
                        deliveries.delete().where(deliveries.c.id.in_([row.id for row in rows]))
                    )

    def _drop_oldest(self) -> None:
        """Keep to the limit."""
        own = deliveries.c.target == self.key
        beyond = sql.select(deliveries.c.id).where(own).order_by(deliveries.c.id.desc()).offset(self._limit)
        with self._database.read() as connection:
            newest = connection.execute(beyond.limit(1)).scalar()
        if newest is None:
            return
        with self._database.write() as connection:
            count = connection.execute(deliveries.delete().where(own, deliveries.c.id <= newest)).rowcount
        if not self._overflow:
            self._note(
                f"More than {self._limit} messages wait for {self._target.name}; the oldest are dropped."
            )
        self._overflow += count
        self._dropped += count

    def _say_overflow(self) -> None:
        if self._overflow:
            self._note(f"No message waits for {self._target.name} any more; {self._overflow} were dropped.")
            self._overflow = 0

    def _succeed(self) -> None:
        if self._is_away:
            self._note(f"{self._sentence('takes messages again')}.")
        self._is_away, self._failures, self._problem = False, 0, None

    def _refuse(self, problem: str) -> None:
        """Drop a message that would stand in the way for ever, and say so once."""
        self._failures = 0
        self._problem = f"{self._sentence(problem)}; the message was dropped."
        if problem not in self._refusals:
            self._refusals.add(problem)
            self._note(f"{self._sentence(problem)} to a message; such messages are dropped.")

    def _fail(self, problem: str) -> None:
        """Say it if it is new."""
        if self._ending.is_set():
            return
        if not self._is_away:
            self._note(f"{self._sentence(problem)}; messages wait for it.")
        self._is_away = True
        self._failures += 1
        self._problem = f"{self._sentence(problem)}."

    def _pause(self, wanted: float | None) -> float:
        """Seconds until the next attempt; more and more of them while nothing gets through."""
        first, most = self._settings.waits
        if wanted is not None:
            return max(first, min(wanted, self._settings.longest))
        return float(min(most, first * 2 ** min(self._failures - 1, 30)))

    def _sentence(self, rest: str) -> str:
        name = self._target.name
        return f"{name[0].upper()}{name[1:]} {rest}"
