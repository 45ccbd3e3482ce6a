"""`continuad inspect`: verdicts about images."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from continuad.cli.app import ANOMALOUS, REFUSED, app, example
from continuad.cli.heatmaps import HeatmapFolder
from continuad.cli.opening import open_to_inspect
from continuad.cli.options import BankArgument, DeviceOption, JsonOption
from continuad.cli.output import complain, print_json, say, stderr
from continuad.cli.places import STDIN, each_image
from continuad.cli.progress import ProgressBar
from continuad.errors import ImageError

if TYPE_CHECKING:
    from continuad.verdict import Verdict

COLOURS = {"normal": "green", "anomalous": "bold red", "unknown": "yellow"}


@app.command(
    epilog=example(
        "continuad inspect parts.bank photos/new --heatmaps overlays",
        "find /camera -name '*.jpg' | continuad inspect parts.bank - --json",
    )
)
def inspect(
    bank: BankArgument,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGES", help="Files, folders, glob patterns; - reads a list of files from stdin."
        ),
    ],
    product: Annotated[
        str | None,
        typer.Option(
            "--product",
            metavar="NAME",
            show_default="recognise it",
            help="Inspect all images as this product.",
        ),
    ] = None,
    nearest: Annotated[
        bool,
        typer.Option("--nearest", help="Inspect images of unknown products as the nearest known one."),
    ] = False,
    json: JsonOption = False,
    heatmaps: Annotated[
        Path | None,
        typer.Option(
            "--heatmaps",
            metavar="DIR",
            show_default=False,
            help="Write an overlay of each image there; no file is overwritten.",
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option("--strict/--keep-going", help="Stop at an image that cannot be read, or go on."),
    ] = False,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 1 if an image is anomalous or unknown.")
    ] = False,
    device: DeviceOption = "cpu",
) -> None:
    """Inspect images of any products in the bank.

    Each verdict is printed as soon as it is there; a score of 1.8x is 1.8 times the threshold. Exit status: 0
    if all images were inspected, 2 if one could not be; with --exit-code, 1 if one is anomalous or unknown.
    """
    inspector = open_to_inspect(bank, device=device)
    folder = HeatmapFolder(heatmaps) if heatmaps else None
    printer = _Objects() if json else _Lines(max(map(len, inspector.products), default=0))
    counts: Counter[str] = Counter()
    jobs = each_image(images)
    total = None
    if STDIN not in images and not sys.stdout.isatty():  # on a terminal the lines show the progress
        listed = list(jobs)
        jobs, total = iter(listed), len(listed)
    with ProgressBar() as progress:
        for image, problem in jobs:
            try:
                if problem:
                    raise problem
                verdict = inspector.inspect(image, product=product, reject_unknown=not nearest)
                written = folder.write(image, verdict) if folder else None
            except ImageError as error:
                if strict:
                    raise
                counts["not readable"] += 1
                printer.failure(image, error)
            else:
                counts[verdict.label] += 1
                printer.verdict(image, verdict, written)
            if total:
                progress(counts.total(), total, "inspecting")
    say(f"{counts.total()} images: {', '.join(f'{n} {what}' for what, n in counts.items())}.", console=stderr)
    if counts["not readable"]:
        raise typer.Exit(REFUSED)
    if exit_code and (counts["anomalous"] or counts["unknown"]):
        raise typer.Exit(ANOMALOUS)


class _Objects:
    """Verdicts as JSON lines."""

    def verdict(self, image: Path, verdict: Verdict, heatmap: Path | None) -> None:
        drawn = {} if heatmap is None else {"heatmap": str(heatmap)}
        print_json({"image": str(image), **verdict.as_dict(), **drawn})

    def failure(self, image: Path, error: ImageError) -> None:
        print_json({"image": str(image), "error": str(error)})


class _Lines:
    """Verdicts as lines in columns; `width` is that of the longest product name."""

    def __init__(self, width: int) -> None:
        self._width = max(7, min(width + 1, 20))
        self._has_header = False

    def verdict(self, image: Path, verdict: Verdict, heatmap: Path | None) -> None:  # noqa: ARG002
        if not self._has_header:
            say(Text(f"{'verdict':9}  {'product':{self._width}}  {'score':>7}  {'ms':>6}  image", "dim"))
            self._has_header = True
        name = f"{verdict.nearest}?" if verdict.product is None else verdict.product
        score = "-" if verdict.product is None else f"{verdict.score / verdict.threshold:.2f}x"
        milliseconds = f"{sum(verdict.timings.values()):.1f}"
        columns = f"  {name:{self._width}}  {score:>7}  {milliseconds:>6}  {image}"
        say(Text.assemble((f"{verdict.label:9}", COLOURS[verdict.label]), columns))

    def failure(self, image: Path, error: ImageError) -> None:  # noqa: ARG002
        complain(error.problem, error.remedy)
