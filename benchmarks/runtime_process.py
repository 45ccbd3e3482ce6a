"""One measurement of runtime.py, in a process of its own, which prints its figures as a line of JSON.

Nothing is imported here that whoever inspects would not import, too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

import continuad
from continuad.images import find_images, load_image
from continuad.runtime import is_exported
from continuad.runtime.runtime import Mode
from fresh import resident_mib

WARM_UP = 5
SIDE, PRODUCTS = 1024, 100
"""Of the matrices whose product shows how quickly this machine multiplies and adds: so small that some of
them are not interrupted."""


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=MEASUREMENTS)
    parser.add_argument("--place", type=Path, help="a bank, or an exported one")
    parser.add_argument("--photos", type=Path, help="a folder")
    parser.add_argument("--images", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--started", type=float)
    arguments = parser.parse_args(words)
    print(json.dumps(MEASUREMENTS[arguments.what](arguments)))


def inspect(arguments: argparse.Namespace) -> dict[str, Any]:
    """Cold start, one image after the other, and as many as there are at a time.

    Only the first photo is read from its file; the others are in memory before they are timed.
    """
    opening = time.perf_counter()
    subject = opened(arguments, mode="latency")
    found: dict[str, Any] = {"open_ms": 1000 * (time.perf_counter() - opening)}
    paths = find_images(arguments.photos)
    verdict = subject.inspect(paths[0], reject_unknown=False)
    found["cold_s"] = time.time() - arguments.started
    photos = [load_image(path) for path in paths]
    first = [timed(subject, photo) for photo in photos[1:]]
    found["first_ms"] = statistics.median(ms for ms, _ in first)
    for photo in islice(cycle(photos), WARM_UP):
        timed(subject, photo)
    measured = [timed(subject, photo) for photo in islice(cycle(photos), arguments.images)]
    times = [ms for ms, _ in measured]
    found["p50_ms"], found["p95_ms"] = (float(np.quantile(times, share)) for share in (0.5, 0.95))
    for stage in measured[0][1].timings:
        found[f"{stage}_ms"] = statistics.median(verdict.timings[stage] for _, verdict in measured)
    found["products_seen"] = len({verdict.product, *(other.product for _, other in first)})
    found["peak_mib"] = resident_mib(peak=True)
    del subject
    subject = opened(arguments, mode="throughput")
    for count in (len(photos), arguments.images):  # the first to warm up
        begin = time.perf_counter()
        for _ in subject.stream(islice(cycle(photos), count), reject_unknown=False):
            pass
        found["images_per_s"] = count / (time.perf_counter() - begin)
    return found


def stream(arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory while a folder of photos is inspected: after a tenth of them, and after all."""
    paths = find_images(arguments.photos)
    subject = opened(arguments, mode="throughput")
    begin = time.perf_counter()
    found = {}
    for number, _ in enumerate(subject.stream(paths, reject_unknown=False), start=1):
        if number == len(paths) // 10:
            found["tenth_mib"] = resident_mib(peak=False)
    return {
        **found,
        "all_mib": resident_mib(peak=False),
        "peak_mib": resident_mib(peak=True),
        "images_per_s": len(paths) / (time.perf_counter() - begin),
    }


def rate(arguments: argparse.Namespace) -> dict[str, Any]:
    """Float32 multiply-accumulates per second in a large matrix product, the best of many."""
    del arguments  # the threads are those of the environment
    matrix = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    best = 0.0
    for _ in range(PRODUCTS):
        begin = time.perf_counter()
        matrix @ matrix
        best = max(best, SIDE**3 / (time.perf_counter() - begin))
    return {"macs_per_s": best}


def opened(arguments: argparse.Namespace, *, mode: Mode) -> Any:
    """A Runtime or an Inspector, whichever the place is for."""
    if is_exported(arguments.place):
        return continuad.Runtime.open(arguments.place, mode=mode, threads=arguments.threads)
    import torch

    torch.set_num_threads(arguments.threads)
    return continuad.Inspector.open(arguments.place)


def timed(subject: Any, photo: Any) -> tuple[float, continuad.Verdict]:
    begin = time.perf_counter()
    verdict = subject.inspect(photo, reject_unknown=False)
    return 1000 * (time.perf_counter() - begin), verdict


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "inspect": inspect,
    "stream": stream,
    "rate": rate,
}

if __name__ == "__main__":
    main()
