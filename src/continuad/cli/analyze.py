"""`continuad analyze`: what a teacher's features are for."""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.options import DEFAULT_BACKBONE, SeedOption, WeightsOption, names
from continuad.cli.output import print_table, right, say, stderr
from continuad.cli.progress import ProgressBar

if TYPE_CHECKING:
    from continuad.analysis import Analysis


@app.command(
    epilog=example(
        "continuad analyze datasets/mvtec_ad --products bottle,cable --out features",
        "continuad analyze datasets/mvtec_ad --backbone resnet18 --layers layer1,layer2,layer3",
        "continuad analyze datasets/mvtec_ad --products bottle,cable --percent 10 --images test",
    )
)
def analyze(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            envvar="CONTINUAD_DATA",
            help="Folder of a product, of a dataset, or of several datasets.",
        ),
    ],
    products: Annotated[
        str | None,
        typer.Option("--products", metavar="A,B", show_default="all", help="Which ones, in this order."),
    ] = None,
    layout: Annotated[
        str,
        typer.Option(
            "--layout", help="Arrangement of the folder: auto, mvtec, btad, visa, good-bad, images."
        ),
    ] = "auto",
    images: Annotated[
        str,
        typer.Option(
            "--images",
            metavar="WHICH",
            help="train: the normal images, as the thesis says; test: all test images, defects too.",
        ),
    ] = "train",
    backbone: Annotated[
        str, typer.Option("--backbone", metavar="NAME", help="The teacher; see 'continuad methods'.")
    ] = DEFAULT_BACKBONE,
    weights: WeightsOption = None,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers",
            metavar="A,B",
            show_default="those that STFPM takes",
            help="Blocks of the backbone to look at.",
        ),
    ] = None,
    percent: Annotated[
        float,
        typer.Option(
            "--percent",
            metavar="SHARE",
            help="How many of the channels at each position are selected: the most important ones.",
        ),
    ] = 1.0,
    image_size: Annotated[
        int,
        typer.Option("--image-size", metavar="PIXELS", min=32, help="Side that images are resized to."),
    ] = 256,
    seed: SeedOption = 0,
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Where everything is written.")] = Path(
        "analysis"
    ),
) -> None:
    """See what a frozen backbone's features are for, on each product.

    At every position of a layer, a principal component analysis over the images of a product says how many
    components explain 80 % of the variance, and how important each channel is to these. The most important
    channels are selected; two classifiers and a t-SNE show whether they tell the products apart.

    Printed are the numbers of components by product and layer: as estimated at a tenth of the positions and,
    in brackets, as counted at all of them.

    \b
    The folder gets
      report.html                      everything on one page
      figures/                         each figure as SVG and as PNG
      components.csv                   the numbers of components
      importance/PRODUCT.safetensors   importance, mean and deviation of each
                                       feature, and the explained variance

    A product's importances are kept as soon as they are found: interrupted or killed, the same command goes
    on with the product that it was at. Another percentage, or one more product, needs no more than what is
    new.

    One product's importances are in memory at a time, and to tell products apart, of all images what is
    selected: 100 MB for 1,000 images and 25,000 features, and that again to classify them.
    """  # noqa: D301 - \\b is the character that keeps lines together
    from continuad.analysis import StudySettings
    from continuad.analysis import analyze as run
    from continuad.backbones import create_backbone
    from continuad.datasets import load_tasks

    tasks = load_tasks(dataset, layout=layout, products=names(products))
    try:
        with ProgressBar() as progress:
            teacher = create_backbone(backbone, weights=weights or "auto", progress=progress)
            analysis = run(
                teacher,
                tasks,
                StudySettings(
                    layers=tuple(names(layers) or teacher.group("stfpm")),
                    images=images,
                    image_size=image_size,
                    percent=percent,
                    seed=seed,
                ),
                out,
                command=shlex.join(["continuad", *sys.argv[1:]]),
                progress=progress,
                found=_Stopwatch(),
            )
    except KeyboardInterrupt as interrupt:
        raise UserInterruptError(f"What was found is in {out}; the same command goes on.") from interrupt
    _print(analysis)
    say(f"Report: {out / 'report.html'}", console=stderr)


class _Stopwatch:
    """Notes on stderr that the importances of a product were found, and how long it took."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __call__(self, product: str, /) -> None:
        now = time.monotonic()
        say(f"{product}: found in {now - self._start:.1f} s", console=stderr)
        self._start = now


def _print(analysis: Analysis) -> None:
    """Print the numbers of components, and what else came of it."""
    uses = analysis.uses
    layers = next(iter(uses.values()))
    print_table(
        ("product", *(right(f"{layer}\nof {len(use.mask)}") for layer, use in layers.items())),
        (
            [name, *(f"{use.components} ({use.exact})" for use in each.values())]
            for name, each in uses.items()
        ),
    )
    say()
    for sentence in analysis.sentences():
        say(f"- {sentence}")
