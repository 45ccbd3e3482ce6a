"""The page that runtime.py writes."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

Figures = dict[str, Any]
Runs = Sequence[Figures]
STAGES = ("reading", "backbone", "routing", "head", "map")


@dataclass(frozen=True)
class Case:
    """A line of the table.

    Attributes:
        engine: and its precision, where that is not float32.
        head: a method.
        backbone: by name.
        size: pixels a side of the network's input.
        place: a bank, or an exported one.
        bytes: on disk, of the backbone and of the head.
        macs: of an image, in the backbone and in the head.
    """

    engine: str
    head: str
    backbone: str
    size: int
    place: Path
    bytes: tuple[int, int]
    macs: tuple[int, int]

    @property
    def subject(self) -> tuple[str, str, int]:
        """What cases that differ only in their engine share."""
        return self.head, self.backbone, self.size


def markdown(
    runs: Mapping[Case, Runs],
    crowds: Mapping[int, Runs],
    streams: Mapping[str, Figures],
    *,
    rate: float,
    threads: int,
    images: int,
    stream: int,
    command: str,
) -> str:
    """All tables, with what they show."""
    rounds = len(next(iter(runs.values())))
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "openvino", "onnxruntime"))
    lines = [
        "# What inspection costs",
        "",
        f"`{command}`",
        "",
        f"Threads: {threads}. Python {platform.python_version()}, {versions}, {platform.machine()}.",
        f"Medians of {rounds} fresh processes for each line, which take turns.",
        "",
        f"- p50, p95: milliseconds for one image after the other, {images} of them, from an array in memory",
        "  to the verdict with its map. `of torch`: p50 as a share of torch's in the same round, in brackets",
        "  the smallest and the largest.",
        "- images/s: of as many at a time as there are threads (mode `throughput`); torch: in batches.",
        "- RAM: the most that the process has had resident by then, with the photos. cold s: from the start",
        "  of the process to its first verdict, about a photo in a file.",
        "- KiB: on disk. int8 is the backbone's precision; heads are exported as they are.",
        "- reading (to the network's size), backbone, routing, head, map (to the photo's size): ms, medians.",
        f"- bound: ms for the multiply-accumulates of backbone + head at {rate / 1e9:.0f} billion a second,",
        "  the most that a float32 matrix product with these threads has reached here; int8 may go below.",
        "",
        *table(runs, rate),
        *sizes(runs),
        *products(crowds),
        *memory(streams, stream),
    ]
    return "\n".join(lines) + "\n"


def table(runs: Mapping[Case, Runs], rate: float) -> list[str]:
    """A line for each case."""
    heads = ["head", "backbone", "px", "engine", "p50", "p95", "of torch", "images/s", "RAM MiB", "cold s"]
    heads += ["KiB backbone", "KiB head", *(f"{stage} ms" for stage in STAGES), "bound"]
    lines = [line(heads), line(["---"] * len(heads))]
    torch = {case.subject: found for case, found in runs.items() if case.engine == "torch"}
    for case, found in runs.items():
        ratios = [
            run["p50_ms"] / base["p50_ms"] for run, base in zip(found, torch[case.subject], strict=True)
        ]
        low, middle, high = (f"{f(ratios):.2f}" for f in (min, statistics.median, max))
        cells = [case.head, case.backbone, str(case.size), case.engine]
        cells += [f"**{middle_of(found, 'p50_ms'):.1f}**", f"{middle_of(found, 'p95_ms'):.1f}"]
        cells += ["1" if case.engine == "torch" else f"**{middle}** ({low} to {high})"]
        cells += [f"{middle_of(found, 'images_per_s'):.0f}", f"{middle_of(found, 'peak_mib'):.0f}"]
        cells += [f"{middle_of(found, 'cold_s'):.2f}", *(f"{size / 1024:,.0f}" for size in case.bytes)]
        cells += [f"{middle_of(found, f'{stage}_ms'):.1f}" for stage in STAGES]
        lines.append(line([*cells, " + ".join(f"{1000 * count / rate:.1f}" for count in case.macs)]))
    return lines


def sizes(runs: Mapping[Case, Runs]) -> list[str]:
    """How the first head's time on the first backbone grows with the image."""
    first = next(iter(runs))
    same = [case for case in runs if (case.head, case.backbone) == (first.head, first.backbone)]
    widths = list(dict.fromkeys(case.size for case in same))
    lines = ["", "## Growth with the image", "", f"{first.head} on {first.backbone}: p50, ms, and its ratio."]
    lines += ["", line(["pixels a side", *map(str, widths)]), line(["---"] * (1 + len(widths)))]
    lines.append(line(["pixels", *(f"{(width / widths[0]) ** 2:.2f}" for width in widths)]))
    for engine in dict.fromkeys(case.engine for case in same):
        times = [middle_of(runs[case], "p50_ms") for case in same if case.engine == engine]
        lines.append(line([engine, *(f"**{time:.1f}** ({time / times[0]:.2f})" for time in times)]))
    return lines


def products(crowds: Mapping[int, Runs]) -> list[str]:
    """How an exported bank grows with its products."""
    if not crowds:
        return []
    rows = {
        "products in the photos": ("products_seen", 0),
        "opening, ms": ("open_ms", 0),
        "start to first verdict, s": ("cold_s", 2),
        "first image of a product, ms": ("first_ms", 1),
        "p50, ms": ("p50_ms", 1),
        "p95, ms": ("p95_ms", 1),
        "of it routing, ms": ("routing_ms", 2),
        "RAM, MiB": ("peak_mib", 0),
        "images/s": ("images_per_s", 0),
    }
    lines = ["", "## Growth with the products", ""]
    lines += ["OpenVINO; copies of one head with other prototypes, by which the photos are told apart.", ""]
    lines += [line(["products", *map(str, crowds)]), line(["---"] * (1 + len(crowds)))]
    for title, (key, digits) in rows.items():
        lines.append(line([title, *(f"{middle_of(found, key):.{digits}f}" for found in crowds.values())]))
    return lines


def memory(streams: Mapping[str, Figures], count: int) -> list[str]:
    """Whether a long stream takes more memory than a short one."""
    lines = ["", f"## A folder of {count} photos in one stream", ""]
    heads = ["engine", f"MiB after {count // 10}", f"MiB after {count}", "MiB at most", "images/s from files"]
    lines += [line(heads), line(["---"] * len(heads))]
    for engine, found in streams.items():
        cells = [f"{found[key]:.0f}" for key in ("tenth_mib", "all_mib", "peak_mib", "images_per_s")]
        lines.append(line([engine, *cells]))
    return lines


def middle_of(runs: Runs, key: str) -> float:
    return float(statistics.median(run[key] for run in runs))


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
