"""`continuad evaluate`: how good a method is on a dataset."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continuad import __version__
from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.opening import Foundation, open_or_create
from continuad.cli.options import (
    DEFAULT_FALSE_ALARM_RATE,
    DEFAULT_HEAD,
    BackboneOption,
    DeviceOption,
    FalseAlarmRateOption,
    HeadOption,
    ImageSizeOption,
    RoutingOption,
    SeedOption,
    SetOption,
    WeightsOption,
    names,
)
from continuad.cli.output import print_reports, say, say_learnt, stderr
from continuad.cli.progress import ProgressBar
from continuad.cli.settings import parse_settings
from continuad.errors import ContinuadError, SettingsError

if TYPE_CHECKING:
    from continuad.bench.evaluate import ProductReport


@app.command(
    epilog=example(
        "continuad evaluate datasets/mvtec_ad --products bottle,cable --out result.json",
        "continuad evaluate datasets/visa --head adapts-l --bank visa.bank",
    )
)
def evaluate(
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
    head: HeadOption = DEFAULT_HEAD,
    settings: SetOption = None,
    false_alarm_rate: FalseAlarmRateOption = DEFAULT_FALSE_ALARM_RATE,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    bank: Annotated[
        Path | None,
        typer.Option(
            "--bank",
            metavar="BANK",
            show_default="a temporary one",
            help="Learn into this bank; products that it holds already are not learnt again.",
        ),
    ] = None,
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    image_size: ImageSizeOption = None,
    routing: RoutingOption = None,
    exported: Annotated[
        Path | None,
        typer.Option(
            "--exported",
            metavar="FOLDER",
            show_default=False,
            help="Measure what this exported bank says, and learn nothing.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Write all figures there as JSON.")
    ] = Path("result.json"),
) -> None:
    """Measure a method on a dataset.

    The products are learnt one after another, then the test images of all are inspected. With --bank, the
    same command given again goes on where it was interrupted. With --exported, nothing is learnt: compare
    with what the bank says, to see what int8 costs.
    """
    from continuad.bench import evaluate as run
    from continuad.datasets import load_tasks
    from continuad.detectors import METHODS
    from continuad.inspector import method_of

    if exported is not None:
        if bank or settings or backbone or weights or image_size or routing:
            raise SettingsError("An export is measured as it is.", "Give no option about banks or learning.")
        _measure_exported(exported, dataset, layout=layout, products=names(products), out=out)
        return
    changes = parse_settings(settings or [], METHODS[method_of(head)].settings)
    tasks = load_tasks(dataset, layout=layout, products=names(products))
    foundation = Foundation(backbone, weights, image_size, routing)
    _write(out, None)
    with (
        _kept_or_temporary(bank) as path,
        ProgressBar() as progress,
        open_or_create(path, foundation, head=head, device=device, progress=progress) as inspector,
    ):
        reports = run(
            inspector,
            tasks,
            head=head,
            settings=changes,
            false_alarm_rate=false_alarm_rate,
            seed=seed,
            progress=progress,
            learnt=say_learnt,
        )
        manifest = inspector.bank.manifest()
    facts = {
        "backbone": dict(manifest.backbone),
        "image_size": manifest.image_size,
        "routing": dict(manifest.routing),
        "head": head,
        "settings": dict(manifest.products[tasks[0].name].settings),
        "false_alarm_rate": false_alarm_rate,
        "seed": seed,
    }
    _show(reports, dataset, facts, out)


def _measure_exported(
    folder: Path, dataset: Path, *, layout: str, products: Sequence[str] | None, out: Path
) -> None:
    from continuad.bench.evaluate import measure
    from continuad.datasets import load_tasks
    from continuad.runtime import Runtime

    runtime = Runtime.open(folder)
    tasks = load_tasks(dataset, layout=layout, products=products)
    for task in tasks:
        runtime.product(task.name)  # or it says which there are, before anything is inspected
    _write(out, None)
    with ProgressBar() as progress:
        reports = [measure(runtime, task, progress=progress) for task in tasks]
    _show(reports, dataset, {"exported": str(folder), "image_size": runtime.image_size}, out)


def _show(reports: Sequence[ProductReport], dataset: Path, facts: Mapping[str, Any], out: Path) -> None:
    """Print what was measured, and write it with the facts that it depends on."""
    from continuad.bench import mean_report

    rows, mean = [report.as_dict() for report in reports], mean_report(reports)
    print_reports(rows, mean)
    common = {"continuad": __version__, "dataset": str(dataset)}
    _write(out, {**common, **facts, "products": rows, "mean": mean})
    say(f"All figures are in {out}.", console=stderr)


@contextmanager
def _kept_or_temporary(bank: Path | None) -> Iterator[Path]:
    """Give the user's bank, or a place for one that is removed in the end."""
    if bank is None:
        with tempfile.TemporaryDirectory(prefix="continuad-") as folder:
            yield Path(folder, "bank")
        return
    try:
        yield bank
    except KeyboardInterrupt as interrupt:
        raise UserInterruptError(f"The same command goes on with what {bank} holds.") from interrupt


def _write(path: Path, result: dict[str, Any] | None) -> None:
    """Write a JSON file whole or not at all; None only tries whether it could be written."""
    draft = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(json.dumps(result, indent=1), encoding="utf-8")
        if result is None:
            draft.unlink()
        else:
            draft.replace(path)
    except OSError as error:
        raise ContinuadError(
            f"{path} cannot be written ({error.strerror}).", "Give another file with --out."
        ) from error
