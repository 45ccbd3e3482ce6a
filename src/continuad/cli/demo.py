"""`continuad demo`: everything at once, on rendered products."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from continuad.cli.app import app, example
from continuad.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_HEAD,
    DEFAULT_IMAGE_SIZE,
    BackboneOption,
    HeadOption,
    ImageSizeOption,
    SeedOption,
    SetOption,
    WeightsOption,
    names,
)
from continuad.cli.output import print_reports, say, say_learnt
from continuad.cli.progress import ProgressBar
from continuad.cli.settings import parse_settings

if TYPE_CHECKING:
    from continuad.bench import DemoReport


PRODUCTS = "blister, cap, circuit, fabric, flange, leather, screw, wood"


@app.command(epilog=example("continuad demo", "continuad demo --products cap,wood --out small_demo"))
def demo(
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder for bank, photos and contact sheet.")
    ] = Path("demo"),
    products: Annotated[
        str | None,
        typer.Option(
            "--products",
            metavar="A,B",
            show_default="all but one",
            help=f"Which ones to learn, in this order: {PRODUCTS}.",
        ),
    ] = None,
    train: Annotated[int, typer.Option("--train", min=6, help="Photos that each is learnt from.")] = 60,
    good: Annotated[int, typer.Option("--good", min=0, help="Normal test photos of each.")] = 10,
    defective: Annotated[int, typer.Option("--defective", min=0, help="Defective test photos of each.")] = 20,
    head: HeadOption = DEFAULT_HEAD,
    settings: SetOption = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    image_size: ImageSizeOption = None,
    seed: SeedOption = 0,
) -> None:
    """Learn rendered products and inspect them.

    They are learnt one after another, then all are inspected, and the first is shown not to be forgotten.
    Needs no data and, with the default backbone, no network.
    """
    from continuad.bench import mean_report, run_demo
    from continuad.detectors import METHODS
    from continuad.inspector import method_of

    changes = parse_settings(settings or [], METHODS[method_of(head)].settings)
    with ProgressBar() as progress:
        report = run_demo(
            out,
            products=names(products),
            backbone=backbone or DEFAULT_BACKBONE,
            weights=weights or "auto",
            head=head,
            settings=changes,
            image_size=DEFAULT_IMAGE_SIZE if image_size is None else image_size,
            train=train,
            good=good,
            defective=defective,
            seed=seed,
            progress=progress,
            learnt=say_learnt,
        )
    print_reports([each.as_dict() for each in report.products], mean_report(report.products))
    _tell(report)


def _tell(report: DemoReport) -> None:
    memory, stranger = report.memory, report.stranger
    same, different = "Identical to the last bit: nothing was forgotten.", "They differ: IT WAS FORGOTTEN."
    say(f"\nSHA-256 over {memory.images} scores and anomaly maps of the first product, {memory.product}:")
    say(f"  then  {memory.before}")
    say(f"  now   {memory.after}")
    say(f"  {same if memory.nothing_forgotten else different}")
    say(f"{stranger.product}, never learnt: {stranger.unknown} of {stranger.images} photos called unknown.")
    say(f"\nLook at {report.contact_sheet}. Everything took {report.seconds:.0f} s.\n")
    bank, photos = (shlex.quote(str(path)) for path in (report.bank, report.photos / stranger.product))
    say("Go on, with these photos or your own:")
    say(f"  continuad learn {bank} {stranger.product} {photos}/train/good")
    say(f"  continuad inspect {bank} {photos}/test")
