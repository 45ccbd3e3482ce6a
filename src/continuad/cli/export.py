"""`continuad export`: a bank for machines without torch."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.options import BankArgument
from continuad.cli.output import kib, say
from continuad.cli.progress import ProgressBar


class Target(StrEnum):
    """What `runtime.Target` lists, as typer wants it."""

    openvino = "openvino"
    onnx = "onnx"


@app.command(
    epilog=example(
        "continuad export parts.bank parts.edge",
        "continuad export parts.bank parts.edge8 --int8",
        "continuad inspect parts.edge photos/new",
    )
)
def export(
    bank: BankArgument,
    folder: Annotated[
        Path,
        typer.Argument(metavar="FOLDER", help="A new folder, or one that the bank was exported to before."),
    ],
    target: Annotated[
        Target,
        typer.Option("--format", help="openvino: quickest on Intel and AMD; onnx: runs about everywhere."),
    ] = Target.openvino,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8", help="Quantise the backbone: quicker, scores differ a little. Uses the bank's photos."
        ),
    ] = False,
) -> None:
    """Export a bank to a folder that inspects without torch, in milliseconds.

    Give the same command again after products were learnt, recalibrated or forgotten: only what changed is
    exported. Copy the folder to a machine with `pip install "continuad[openvino]"` (or `[onnx]`); there,
    inspect and watch take it in place of a bank, and Python opens it with `continuad.Runtime`.
    """
    try:
        from continuad.export import export as export_bank

        with ProgressBar() as progress:
            report = export_bank(bank, folder, target=target.value, int8=int8, progress=progress)
    except KeyboardInterrupt as interrupt:
        raise UserInterruptError(f"{folder} is as it was.") from interrupt
    products = report.manifest.products
    parts = [
        f"{len(names)} {what}"
        for names, what in (
            (report.exported, "exported"),
            (report.unchanged, "unchanged"),
            (report.dropped, "dropped"),
        )
        if names
    ]
    say(f"{folder}: {len(products)} products ({', '.join(parts)}), {kib(report.manifest.size)} KiB.")
