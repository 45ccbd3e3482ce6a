"""What a bank costs as it grows: opening, inspecting and learning with 1 to 1,000 products.

    python benchmarks/growth.py --work FOLDER [--counts 1,10,100,1000] [--repeats 3]

One demo product is learnt with the Inspector's defaults. The others are copies of it under other names,
written with `Bank.put`: the first ones have the embedding of a test image as their prototype, by which that
image is recognised; the rest lie around the learnt prototype, beyond its limit. The banks stay in the work
folder and are used again. Each measurement runs in a fresh process with one thread; the counts take turns, so
that what else the machine does befalls them alike. Writes results/growth.md.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from continuad import Inspector
from continuad.continual import RoutedHeads, RoutingSettings
from continuad.datasets.demo import demo_task
from continuad.images import load_image, load_stack
from continuad.inspector import Product
from continuad.metrics.costs import MIB
from fresh import in_fresh_process, resident_mib

RESULTS = Path(__file__).parent / "results"
PRODUCT = "cap"
IMAGES = 20
"""Test images; each is recognised as a product of its own where there are enough."""
ROUNDS = 2
FIGURES = {
    "start_s": ("process start to products, s", 2),
    "open_ms": ("of it opening the bank, ms", 0),
    "first_ms": ("first verdict, ms", 0),
    "median_ms": ("ms/image, median", 1),
    "p95_ms": ("ms/image, p95", 1),
    "routing_ms": ("of it routing, ms", 2),
    "peak_mib": ("peak RAM, MiB", 0),
    "recalibrate_ms": ("recalibrate, ms", 0),
    "learn_s": ("learn one more, s", 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--counts", default="1,10,100,1000")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--measure", type=Path, metavar="BANK", help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.work, started=arguments.started)))
        return
    arguments.work.mkdir(parents=True, exist_ok=True)
    counts = sorted({1, *map(int, arguments.counts.split(","))})
    banks = build(arguments.work, counts)
    runs: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for _ in range(arguments.repeats):
        for count, bank in banks.items():
            words = ["--work", arguments.work, "--measure", bank]
            runs[count].append(in_fresh_process(Path(__file__), *words))
            print(count, runs[count][-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "growth.md").write_text(markdown(runs, banks))


def build(work: Path, counts: list[int]) -> dict[int, Path]:
    """Make a bank for each count, from the next smaller one; and the test images."""
    task = demo_task(PRODUCT, good=IMAGES, defective=0)
    train, tests = (
        [load_image(image) for image in images]
        for images in (task.train, [sample.image for sample in task.test])
    )
    np.save(work / "train.npy", np.stack(train))
    np.save(work / "tests.npy", np.stack(tests))
    banks: dict[int, Path] = {}
    for count in counts:
        bank = work / f"bank-{count}"
        if not bank.exists() and banks:
            shutil.copytree(list(banks.values())[-1], bank)
        inspector = Inspector.open(bank) if bank.exists() else Inspector.create(bank)
        if PRODUCT not in inspector.products:
            inspector.learn(PRODUCT, train)
        copy(inspector, count, tests)
        banks[count] = bank
    return banks


def copy(inspector: Inspector, count: int, tests: list[Any]) -> None:
    """Add copies of the product until the bank has `count` products."""
    bank = inspector.bank
    product = inspector.product(PRODUCT)
    state = bank.state(product)
    for number, prototype in prototypes(inspector, product, tests, first=len(inspector.products), end=count):
        other = {**state, "prototype": torch.from_numpy(prototype)}
        bank.put(replace(product, name=f"{PRODUCT} {number:04d}"), other, expected=None)


def prototypes(
    inspector: Inspector, product: Product, tests: Sequence[Any], *, first: int, end: int
) -> Iterator[tuple[int, NDArray[np.float32]]]:
    """Number and prototype of further products: a test image's embedding, or one around the learnt one's."""
    heads = RoutedHeads(inspector.backbone, RoutingSettings(**inspector.bank.manifest().routing))
    embeddings = heads.embed(torch.from_numpy(load_stack(tests, inspector.image_size)))
    prototype = inspector.bank.prototype(product)
    for number in range(first, end):
        if number < len(embeddings):
            moved = embeddings[number]
        else:
            direction = np.random.default_rng(number).normal(size=prototype.shape)
            moved = prototype + 1.5 * product.limit * direction / np.linalg.norm(direction)
        yield number, moved.astype(np.float32)


def measure(bank: Path, work: Path, *, started: float) -> dict[str, Any]:
    """Open, inspect, recalibrate, learn one more product and forget it."""
    opening = time.perf_counter()
    inspector = Inspector.open(bank)
    count = len(inspector.products)
    found: dict[str, Any] = {
        "start_s": time.time() - started,
        "open_ms": 1000 * (time.perf_counter() - opening),
    }
    images = list(np.load(work / "tests.npy"))
    found["first_ms"], _ = timed(inspector, images[0])
    warm = [timed(inspector, image)[1] for image in images]
    measured = [timed(inspector, image) for _ in range(ROUNDS) for image in images]
    times = [milliseconds for milliseconds, _ in measured]
    found["median_ms"] = statistics.median(times)
    found["p95_ms"] = float(np.quantile(times, 0.95))
    found["routing_ms"] = statistics.median(verdict.timings["routing"] for _, verdict in measured)
    found["recognised"] = len({verdict.product for verdict in warm} - {None})
    found["peak_mib"] = resident_mib(peak=True)
    begin = time.perf_counter()
    inspector.recalibrate(PRODUCT)
    found["recalibrate_ms"] = 1000 * (time.perf_counter() - begin)
    begin = time.perf_counter()
    inspector.learn("one more", list(np.load(work / "train.npy")[:10]))
    found["learn_s"] = time.perf_counter() - begin
    inspector.forget("one more")
    assert len(inspector.products) == count
    return found


def timed(inspector: Inspector, image: Any) -> tuple[float, Any]:
    begin = time.perf_counter()
    verdict = inspector.inspect(image)
    return 1000 * (time.perf_counter() - begin), verdict


def markdown(runs: dict[int, list[dict[str, Any]]], banks: dict[int, Path]) -> str:
    """A column for each count: medians over the repeats, their range, and their ratio to one product."""
    lines = [
        "# What a bank costs as it grows",
        "",
        "`python benchmarks/growth.py --work FOLDER`",
        "",
        "One learnt product, and copies of its head with other prototypes, written with `Bank.put`. Medians",
        f"of {len(runs[1])} fresh processes of one thread for each number of products, which take turns; in",
        "brackets the smallest, the largest, and the ratio to one product. A process inspects each of",
        f"{IMAGES} images to warm up, and {ROUNDS} times more. Learning: 10 images.",
        f"Python {platform.python_version()}, torch {torch.__version__}.",
        "",
        "| products | " + " | ".join(map(str, runs)) + " |",
        "|---" * (len(runs) + 1) + "|",
        row("of them seen in the images", [str(measured[0]["recognised"]) for measured in runs.values()]),
        row(
            "manifest, KiB",
            [f"{(bank / 'manifest.json').stat().st_size / 1024:.0f}" for bank in banks.values()],
        ),
        row("bank on disk, MiB", [f"{folder_bytes(bank) / MIB:.0f}" for bank in banks.values()]),
    ]
    for key, (title, digits) in FIGURES.items():
        every = [[run[key] for run in measured] for measured in runs.values()]
        lines.append(row(title, [cell(values, statistics.median(every[0]), digits) for values in every]))
    return "\n".join(lines) + "\n"


def row(title: str, cells: list[str]) -> str:
    return f"| {title} | {' | '.join(cells)} |"


def cell(values: list[float], base: float, digits: int) -> str:
    middle, smallest, largest = (f"{f(values):.{digits}f}" for f in (statistics.median, min, max))
    return f"**{middle}** ({smallest} to {largest}; {statistics.median(values) / base:.2f})"


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
