"""What an inspection station answers under load, and what it keeps when it is killed.

    python benchmarks/station.py [--out FILE]
    python benchmarks/station.py --kill

`continuad serve` runs in a process of its own on a bank of one product. Clients on the same machine, in
another process, each post a photo, wait for the answer, and post the next: 1, 8 and 64 of them, first with
nothing else to do for the station, then while it is being taught a second product. Latencies are compared
with the single client's of the same run. Writes results/station.md.

With --kill, the station is killed amid 1,000 inspections and started again; then everything that was
acknowledged must be in its history, with its photo, once. Fails if anything is lost.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from continuad import Inspector
from continuad.client import Station
from continuad.datasets.demo import demo_task
from continuad.files import find_images
from station_process import Server, deliver, load, running
from station_table import Line, markdown

HERE = Path(__file__).parent
PRODUCT, TAUGHT = "cap", "flange"
LEARNT = 24
PHOTOS = 20
WARM_UP = 2.0
KILL_CLIENTS = 8
SAVING: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": 95}}


def main(words: list[str] | None = None) -> None:
    arguments = parsed(words)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.cores])
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        say("rendering and learning")
        task = demo_task(PRODUCT, size=arguments.pixels, train=LEARNT, good=PHOTOS, defective=0)
        photos = write([sample.image for sample in task.test], work / "photos", arguments.format)
        Inspector.create(work / "bank").learn(PRODUCT, list(task.train))
        if arguments.kill:
            with running(work / "bank") as server:
                survive(server, photos, arguments.count)
            return
        other = None
        if arguments.taught:
            task = demo_task(TAUGHT, size=arguments.pixels, train=arguments.taught, good=0, defective=0)
            other = write(task.train, work / "other", arguments.format)
        with running(work / "bank") as server:
            lines = [under_load(server, photos, count, arguments.seconds) for count in arguments.clients]
            alone = teaching_seconds(server, other) if other else None
            if other:
                lines += [while_taught(server, photos, count, other) for count in arguments.clients]
    side = arguments.pixels
    text = markdown(
        lines,
        alone_s=alone,
        cores=arguments.cores,
        photos=f"{arguments.format.upper()} photos of {side} x {side} pixels.",
        command=arguments.command,
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    say(f"{arguments.out} is written")


def parsed(words: list[str] | None) -> argparse.Namespace:
    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "station.md")
    parser.add_argument("--clients", type=numbers, default="1,8,64")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each number of clients")
    parser.add_argument("--pixels", type=int, default=640, help="a side of the photos")
    parser.add_argument("--format", choices=tuple(SAVING), default="png")
    parser.add_argument("--taught", type=int, default=50, help="photos to teach from meanwhile; 0: do not")
    parser.add_argument("--cores", type=int, default=2, help="for the station and the clients together")
    parser.add_argument("--kill", action="store_true", help="count what a killed station has kept")
    parser.add_argument("--count", type=int, default=1000, help="inspections amid which it is killed")
    arguments = parser.parse_args(words)
    usual = vars(parser.parse_args([]))
    command = ["python benchmarks/station.py"]
    for name, value in vars(arguments).items():
        if name != "out" and value != usual[name]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            command.append(f"--{name} {text}")
    arguments.command = " ".join(command)
    return arguments


def write(images: Sequence[Any], folder: Path, kind: str) -> Path:
    folder.mkdir()
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{number:03d}.{kind}", **SAVING[kind])
    return folder


def under_load(server: Server, photos: Path, clients: int, seconds: float) -> Line:
    """Clients for some seconds, and nothing else."""
    seen = load(server, photos, clients=clients, warm_up=WARM_UP, wait=lambda: time.sleep(seconds))
    return as_line(server, clients, None, seen)


def while_taught(server: Server, photos: Path, clients: int, other: Path) -> Line:
    """Clients for as long as a product is being taught."""
    took: list[float] = []
    seen = load(
        server,
        photos,
        clients=clients,
        warm_up=WARM_UP,
        wait=lambda: took.append(teaching_seconds(server, other)),
    )
    return as_line(server, clients, took[0], seen)


def teaching_seconds(server: Server, photos: Path) -> float:
    """Teach, and return how long the station says that it took."""
    with Station(server.url) as station:
        job = station.teach(TAUGHT, photos, replace=True)
    assert job.started
    assert job.finished
    return (job.finished - job.started).total_seconds()


def as_line(server: Server, clients: int, taught_s: float | None, seen: dict[str, Any]) -> Line:
    del seen["since"]
    found = Line(clients, taught_s, rss_mib=server.rss_mib, **seen)
    say(str(found))
    return found


def survive(server: Server, photos: Path, count: int) -> None:
    """Kill the station amid so many inspections, start it again, and look for what it has acknowledged."""
    acknowledged: dict[int, dict[str, Any]] = {}
    before = 0
    for made in deliver(server, photos, clients=KILL_CLIENTS, count=count):
        acknowledged[made["id"]] = made
        if not before and len(acknowledged) >= count // 2:
            server.kill()
            before = len(acknowledged)
            server.restart()
    sent = [path.read_bytes() for path in find_images(photos)]
    with Station(server.url) as station, httpx.Client(base_url=server.url) as http:
        kept = {each.id: each for each in station.history()}
        found = 0
        for number, made in acknowledged.items():
            each = kept.get(number)
            picture = http.get(f"/api/v1/inspections/{number}/picture", params={"original": True})
            while picture.status_code == 429:
                time.sleep(float(picture.headers["retry-after"]))
                picture = http.get(f"/api/v1/inspections/{number}/picture", params={"original": True})
            found += (
                each is not None
                and (each.reference, each.score) == (made["reference"], made["score"])
                and picture.content == sent[int(made["reference"]) % len(sent)]
            )
    times = Counter(each.reference for each in kept.values())
    twice = sum(number > 1 for number in times.values())
    lost = len(acknowledged) - found
    say(
        f"killed after {before} of {count} acknowledged inspections: "
        f"{len(acknowledged)} acknowledged, {found} found, {lost} lost, {twice} stored twice"
    )
    if lost or twice or len(acknowledged) != count:
        sys.exit(1)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
