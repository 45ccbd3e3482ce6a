"""Runs on a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Sequence
from typing import Any

from continuad.bench.execute import (
    REPORT_SECONDS,
    Events,
    Failed,
    Finished,
    Job,
    Work,
    available_cores,
    died,
    execute,
)
from continuad.errors import ContinuadError
from continuad.needs import needed


def run_on_ray(work: Work, jobs: Sequence[Job], workers: int, threads: int) -> Events:
    """Execute each job in a fresh worker process of a Ray cluster.

    It is the one this process is connected to, else the one at `RAY_ADDRESS`, else one started here that ends
    with the runs. Its machines need continuad, the work's module, and the datasets and folders under the same
    paths.

    Raises:
        ContinuadError: Ray is not installed, the cluster cannot be reached, or no machine has the cores.
    """
    ray = needed("ray")
    is_ours = not ray.is_initialized()
    if is_ours:
        _connect(ray)
    waiting = deque(jobs)
    running: dict[Any, Job] = {}
    try:
        _check_room(ray, threads)
        mailbox = ray.remote(num_cpus=0)(_Mailbox).remote()
        remote = ray.remote(num_cpus=threads, max_calls=1, max_retries=0)(_execute_on_ray)
        while waiting or running:
            while waiting and len(running) < workers:
                job = waiting.popleft()
                running[remote.remote(work, job, threads, mailbox)] = job
            ready, _ = ray.wait(list(running), timeout=REPORT_SECONDS)
            reported = ray.get(mailbox.take.remote())
            yield from ((job.key, reported[job.key]) for job in running.values() if job.key in reported)
            for reference in ready:
                job = running.pop(reference)
                try:
                    yield job.key, ray.get(reference)
                except ray.exceptions.RayError as error:
                    yield job.key, died(f"was lost ({type(error).__name__})", str(error))
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        if is_ours:
            ray.shutdown()


class _Mailbox:
    """An actor that keeps what each job reported last until it is asked for."""

    def __init__(self) -> None:
        self._latest: dict[str, float] = {}

    def put(self, key: str, fraction: float) -> None:
        self._latest[key] = fraction

    def take(self) -> dict[str, float]:
        latest, self._latest = self._latest, {}
        return latest


def _execute_on_ray(work: Work, job: Job, threads: int, mailbox: Any) -> Finished | Failed:
    import torch

    torch.set_num_threads(threads)  # a cluster may have set OMP_NUM_THREADS otherwise
    return execute(work, job, threads, lambda fraction: mailbox.put.remote(job.key, fraction))


def _connect(ray: Any) -> None:
    """Connect to the cluster at `RAY_ADDRESS`, or start one here."""
    address = os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            ray.init(
                address="local",
                num_cpus=available_cores(),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ContinuadError(
            f"No Ray cluster could be {'reached at ' + address if address else 'started'} ({error}).",
            "Check RAY_ADDRESS, or unset it to start a cluster here.",
        ) from error


def _check_room(ray: Any, threads: int) -> None:
    """Refuse runs that would wait for ever."""
    cores = [int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]]
    if threads > max(cores, default=0):
        raise ContinuadError(
            f"No machine of the Ray cluster has {threads} cores.", "Use fewer threads, or add a machine."
        )
