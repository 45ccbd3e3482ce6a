"""What inspection costs with torch, OpenVINO and ONNX Runtime, by head, backbone, image size and products.

    python benchmarks/runtime.py [--data FOLDER] [--out FILE]

The first head on the first backbone is measured with every engine and at every image size; the other heads
on that backbone, and the other backbones with that head, at the first size with torch and OpenVINO. Trained
heads learn for two steps, and backbones other than the default have random weights: neither changes what
inspection costs. Photos are those of the first product of the dataset, or rendered.

Every measurement is a process of its own, see runtime_process.py. They take turns, in several rounds, so that
what else the machine does befalls them alike. Writes results/runtime.md.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from continuad import Inspector
from continuad.backbones import BACKBONES
from continuad.continual import RoutingSettings
from continuad.datasets import load_tasks
from continuad.datasets.demo import demo_task
from continuad.detectors import METHODS, Detector
from continuad.detectors.compact import CompactBank
from continuad.detectors.trained import schedules
from continuad.export import export
from continuad.images import load_image
from continuad.inspector.inspector import DEFAULT_BACKBONE
from continuad.metrics.costs import macs
from fresh import in_fresh_process
from runtime_crowd import crowd
from runtime_table import Case, Figures, markdown

HERE = Path(__file__).parent
PRODUCT = "cap"
LEARNT = 24
"""Photos to learn from, enough to fill the default head's budget from 128 pixels on."""
PHOTOS = 20
RENDERED = 512
"""Pixels a side of photos that are rendered."""
STEPS = 2
EXPORTS: dict[str, dict[str, Any]] = {
    "openvino": {"target": "openvino"},
    "openvino int8": {"target": "openvino", "int8": True},
    "onnx": {"target": "onnx"},
    "onnx int8": {"target": "onnx", "int8": True},
}
ENGINES = ("torch", *EXPORTS)
FEW = ("torch", "openvino")
CROWD = "openvino"
"""The engine that banks of many products are measured with."""
LIGHT = "efficientnet_lite0,mobilenet_v2,mcunet_in3,phinet,micronet_m1"


@dataclass(frozen=True)
class Subject:
    """What is learnt and exported once, and measured with several engines."""

    head: str
    backbone: str
    size: int


def main(words: list[str] | None = None) -> None:
    arguments = parsed(words)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        train, tests = photos(arguments.data)
        write(tests, work / "photos", PHOTOS)
        write(tests, work / "stream", arguments.stream)
        cases: list[Case] = []
        for subject, engines in grid(arguments).items():
            say(f"learning and exporting {subject}")
            folder = work / f"{subject.head} {subject.backbone} {subject.size}"
            cases += prepare(subject, engines, train, folder)
        first = cases[0].place.parent
        crowds = {
            count: crowd(first / "bank", first / CROWD, work / f"crowd {count}", count, tests[:PHOTOS])
            for count in arguments.products
            if CROWD in arguments.engines
        }
        places = [*(case.place for case in cases), *crowds.values()]
        runs, rate = take_turns(places, work / "photos", arguments)
        streams = {}
        for case in cases:
            if case.place.parent == first and case.engine in FEW:
                say(f"a stream of {arguments.stream} photos with {case.engine}")
                streams[case.engine] = measure("stream", arguments, place=case.place, photos=work / "stream")
        text = markdown(
            {case: runs[case.place] for case in cases},
            {count: runs[place] for count, place in crowds.items()},
            streams,
            rate=rate,
            threads=arguments.threads,
            images=arguments.images,
            stream=arguments.stream,
            command=arguments.command,
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(text)
    say(f"{arguments.out} is written")


def parsed(words: list[str] | None) -> argparse.Namespace:
    def names(text: str) -> tuple[str, ...]:
        return tuple(text.split(","))

    def numbers(text: str) -> tuple[int, ...]:
        return tuple(map(int, text.split(",")))

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=HERE / "results" / "runtime.md")
    parser.add_argument("--data", default=os.environ.get("CONTINUAD_DATA"))
    parser.add_argument("--heads", type=names, default="compact,context,padim,adapts-s,adapts-l,stfpm")
    parser.add_argument("--backbones", type=names, default=LIGHT)
    parser.add_argument("--engines", type=names, default=",".join(ENGINES))
    parser.add_argument("--image-sizes", type=numbers, default="256,384")
    parser.add_argument("--products", type=numbers, default="1,100,1000")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--images", type=int, default=50, help="inspections that are timed in each process")
    parser.add_argument("--stream", type=int, default=1000, help="photos of a folder that is streamed")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(words)
    for given, known in (
        (arguments.heads, METHODS),
        (arguments.backbones, BACKBONES),
        (arguments.engines, ENGINES),
    ):
        if unknown := set(given) - set(known):
            parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(known)}")
    if "torch" not in arguments.engines:
        parser.error("the other engines are compared with torch: name it, too")
    usual = vars(parser.parse_args([]))
    command = ["python benchmarks/runtime.py", *(["--data FOLDER"] if arguments.data else [])]
    for name, value in vars(arguments).items():
        if name not in ("out", "data") and value != usual[name]:
            text = ",".join(map(str, value)) if isinstance(value, tuple) else value
            command += [f"--{name.replace('_', '-')}", shlex.quote(str(text))]
    arguments.command = " ".join(command)
    return arguments


def grid(arguments: argparse.Namespace) -> dict[Subject, tuple[str, ...]]:
    """The engines for each subject, the default one first."""
    (head, *heads), (backbone, *backbones) = arguments.heads, arguments.backbones
    (size, *_) = arguments.image_sizes
    few = tuple(engine for engine in FEW if engine in arguments.engines)
    subjects = {Subject(head, backbone, each): arguments.engines for each in arguments.image_sizes}
    subjects |= {Subject(each, backbone, size): few for each in heads}
    return subjects | {Subject(head, each, size): few for each in backbones}


def photos(data: str | None) -> tuple[list[Any], list[Any]]:
    """Photos to learn from, and to inspect."""
    if data:
        task = load_tasks(data)[0]
    else:
        task = demo_task(PRODUCT, size=RENDERED, train=LEARNT, good=PHOTOS, defective=0)
    tests = [sample.image for sample in task.test] or list(task.train)
    return list(task.train)[:LEARNT], tests


def write(images: list[Any], folder: Path, count: int) -> None:
    """Write so many photos, the same ones over and over if there are no more."""
    folder.mkdir()
    for number, image in enumerate(images[:count]):
        Image.fromarray(load_image(image)).save(folder / f"{number:05d}.png", compress_level=1)
    for number in range(len(images), count):
        shutil.copy(folder / f"{number % len(images):05d}.png", folder / f"{number:05d}.png")


def prepare(subject: Subject, engines: tuple[str, ...], train: list[Any], folder: Path) -> list[Case]:
    """Learn, and export for each engine."""
    bank = folder / "bank"
    inspector = Inspector.create(
        bank,
        backbone=subject.backbone,
        weights="auto" if subject.backbone == DEFAULT_BACKBONE else "random",
        image_size=subject.size,
    )
    short = {name: {"steps": STEPS, "patience": 0} for name in schedules(METHODS[subject.head].settings)}
    product = inspector.learn(PRODUCT, train, head=subject.head, settings=short)
    detector = inspector.head(PRODUCT)
    work = backbone_macs(inspector, detector), head_macs(detector, subject.size)
    backbone_bytes = inspector.bank.backbone_file().stat().st_size
    cases = []
    for engine in engines:
        if engine == "torch":
            place, sizes = bank, (backbone_bytes, product.bytes)
        else:
            place = folder / engine
            manifest = export(bank, place, **EXPORTS[engine]).manifest
            sizes = manifest.backbone.bytes, manifest.products[PRODUCT].bytes
        cases.append(
            Case(engine, subject.head, subject.backbone, subject.size, place, bytes=sizes, macs=work)
        )
    return cases


def backbone_macs(inspector: Inspector, detector: Detector) -> int:
    """Of an image, up to the last block that the router or the head looks at."""
    routing = RoutingSettings(**inspector.bank.manifest().routing)
    last = inspector.backbone.order({routing.tap, *detector.taps})[-1]
    blocks = inspector.backbone.macs(inspector.image_size)
    names = list(blocks)
    return sum(blocks[name] for name in names[: names.index(last) + 1])


def head_macs(detector: Detector, size: int) -> int:
    """Of an image, beyond the backbone."""
    if isinstance(detector, CompactBank):  # its search is an operator that `macs` does not look into
        patches, dimensions = detector.grid(size), detector.dimensions
        return patches * dimensions * (dimensions + len(detector.codes))
    image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    with torch.no_grad():
        features: Mapping[str, torch.Tensor] = detector.backbone.features(image, detector.taps)
        return macs(lambda: detector.anomaly_maps(image, features))


def take_turns(
    places: list[Path], folder: Path, arguments: argparse.Namespace
) -> tuple[dict[Path, list[Figures]], float]:
    """Measure each place in each round, every other round backwards; and how quickly the machine computes."""
    runs: dict[Path, list[Figures]] = {place: [] for place in places}
    rates = []
    for number in range(arguments.rounds):
        rates.append(measure("rate", arguments)["macs_per_s"])
        for done, place in enumerate(places[:: -1 if number % 2 else 1], start=1):
            found = measure("inspect", arguments, place=place, photos=folder)
            runs[place].append(found)
            turn = f"round {number + 1} of {arguments.rounds}, {done} of {len(places)}"
            say(f"{turn}: {place.relative_to(folder.parent)}: {found['p50_ms']:.1f} ms")
    return runs, max(rates)


def measure(what: str, arguments: argparse.Namespace, **folders: Path) -> Figures:
    count = {"images": arguments.images, "threads": arguments.threads}
    words = [word for name, value in {**count, **folders}.items() for word in (f"--{name}", value)]
    return in_fresh_process(HERE / "runtime_process.py", what, *words, threads=arguments.threads)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
