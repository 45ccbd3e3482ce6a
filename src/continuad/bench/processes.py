"""Runs in processes of this machine."""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import connection, get_context, parent_process
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from continuad.bench.execute import Event, Events, Job, Work, died, execute

EXIT_SECONDS = 10.0


def run_in_processes(work: Work, jobs: Sequence[Job], workers: int, threads: int) -> Events:
    """Execute each job in a fresh process of this machine.

    A process that dies is a failure of its job alone. None outlives this one, even if it is killed.
    """
    context = get_context("spawn")
    waiting = deque(jobs)
    running: dict[Connection, tuple[Job, SpawnProcess]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                task = pickle.dumps((work, job))
                receiver, sender = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(task, threads, sender))
                running[receiver] = job, process
                with _environment_variable("OMP_NUM_THREADS", str(threads)):
                    process.start()
                sender.close()
            ready = connection.wait(list(running))
            for receiver in [each for each in running if each in ready]:
                job, process = running[receiver]
                event = _receive(receiver, process)
                if not isinstance(event, float):
                    _end(process)
                    receiver.close()
                    del running[receiver]
                yield job.key, event
    finally:
        started = [process for _, process in running.values() if process.pid is not None]
        for process in started:
            process.kill()
        for process in started:
            process.join()


def _serve(task: bytes, threads: int, sender: Connection) -> None:
    """Be a worker process: execute one job and send its events."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all processes; the parent ends this one
    threading.Thread(target=_die_with_parent, daemon=True).start()
    work, job = pickle.loads(task)  # noqa: S301 - our parent's
    sender.send(execute(work, job, threads, sender.send))


def _die_with_parent() -> None:
    """End this process as soon as its parent is no more."""
    parent = parent_process()
    assert parent is not None  # noqa: S101 - this runs in workers only
    connection.wait([parent.sentinel])
    os._exit(1)


def _receive(receiver: Connection, process: SpawnProcess) -> Event:
    """Take an event from a worker; that it closed its end without one is a failure."""
    try:
        event: Event = receiver.recv()
    except (EOFError, OSError):  # at once, or within a message
        _end(process)
        code = process.exitcode or 0
        how = f"exited with status {code}"
        if code < 0:
            how = f"was killed by signal {-code} ({signal.strsignal(-code)})"
        return died(how, "")
    return event


def _end(process: SpawnProcess) -> None:
    """Wait for a process that is done; one that threads of the work keep alive is killed."""
    process.join(EXIT_SECONDS)
    process.kill()
    process.join()


@contextmanager
def _environment_variable(name: str, value: str) -> Iterator[None]:
    """Set it for the processes started within: numpy and torch read it when they are loaded."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
