"""`continuad products`, `rename`, `archive`, `restore`, `forget` and `recalibrate`: what a bank holds."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from continuad.cli.app import app, example
from continuad.cli.options import BankArgument, JsonOption, NameArgument
from continuad.cli.output import kib, print_json, print_table, right, say, stderr
from continuad.cli.places import all_images
from continuad.cli.progress import ProgressBar
from continuad.errors import SettingsError


@app.command(epilog=example("continuad products parts.bank"))
def products(bank: BankArgument, json: JsonOption = False) -> None:
    """List the products of a bank."""
    from continuad.inspector.bank import Bank

    manifest = Bank(bank.absolute()).manifest()
    if json:
        for product in (*manifest.products.values(), *manifest.archived.values()):
            facts = product.as_dict()
            del facts["prototype"]  # 600 characters of nothing to read
            print_json({**facts, "archived": product.name in manifest.archived})
        return
    if manifest.products:
        print_table(
            (
                *("product", "head", right("images"), right("threshold")),
                *(right("false\nalarms"), right("learn\ns"), right("KiB"), "learnt"),
            ),
            (
                (
                    product.name,
                    product.method,
                    str(product.images + len(product.calibration.scores)),
                    f"{product.calibration.threshold:.4g}",
                    f"{product.calibration.false_alarm_rate:g}",
                    f"{product.seconds:.1f}",
                    kib(product.bytes),
                    product.learnt[:10],
                )
                for product in manifest.products.values()
            ),
        )
    say(
        f"{len(manifest.products)} product{'s' * (len(manifest.products) != 1)} on "
        f"{manifest.backbone['name']} at {manifest.image_size} pixels.",
        console=stderr,
    )
    if manifest.archived:
        say(f"Archived: {', '.join(manifest.archived)}.", console=stderr)


@app.command(epilog=example("continuad rename parts.bank bottle 'bottle 0.5 l'"))
def rename(
    bank: BankArgument,
    name: NameArgument,
    new: Annotated[str, typer.Argument(metavar="NEW", help="What to call it from now on.")],
) -> None:
    """Give a product another name; what it has learnt stays as it is."""
    from continuad.inspector import Inspector

    product = Inspector.open(bank).rename(name, new)
    say(f"{name!r} is called {product.name!r} now.")


@app.command(epilog=example("continuad archive parts.bank bottle"))
def archive(bank: BankArgument, name: NameArgument) -> None:
    """Neither recognise nor inspect a product any more, but keep what it has learnt."""
    from continuad.inspector import Inspector

    Inspector.open(bank).archive(name)
    say(f"Archived {name!r}.")


@app.command(epilog=example("continuad restore parts.bank bottle"))
def restore(bank: BankArgument, name: NameArgument) -> None:
    """Recognise and inspect an archived product again."""
    from continuad.inspector import Inspector

    Inspector.open(bank).restore(name)
    say(f"Restored {name!r}.")


@app.command(epilog=example("continuad forget parts.bank bottle"))
def forget(
    bank: BankArgument,
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a product; the others are not touched."""
    from continuad.inspector import Inspector

    inspector = Inspector.open(bank)
    product = inspector.archived.get(name) or inspector.product(name)
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError(
                f"{name!r} was not removed: there is no terminal to ask for confirmation.", "Give --yes."
            )
        question = f"Remove {name!r}, learnt {product.learnt[:10]} from {product.images} photos, for good?"
        if not typer.confirm(question, err=True):
            say("Nothing was removed.", console=stderr)
            raise typer.Exit(1)
    inspector.forget(name)
    say(f"Removed {name!r}.")


@app.command(
    epilog=example(
        "continuad recalibrate parts.bank bottle --false-alarm-rate 0.001",
        "continuad recalibrate parts.bank bottle --images photos/bottle/this_week",
    )
)
def recalibrate(
    bank: BankArgument,
    name: NameArgument,
    false_alarm_rate: Annotated[
        float | None,
        typer.Option(
            "--false-alarm-rate",
            metavar="RATE",
            show_default="as it is",
            help="Share of good parts that may be called anomalous.",
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            "--images",
            metavar="PLACE",
            show_default="those held out when it was learnt",
            help="Good parts to calibrate on: a file, folder or glob pattern; may be repeated.",
        ),
    ] = None,
) -> None:
    """Set a product's threshold anew.

    What was learnt and the raw scores stay as they are.
    """
    from continuad.inspector import Inspector

    if false_alarm_rate is None and not images:
        raise SettingsError("There is nothing to change.", "Give --false-alarm-rate, --images or both.")
    photos = all_images(images) if images else None
    inspector = Inspector.open(bank)
    before = inspector.product(name).calibration
    with ProgressBar() as progress:
        after = inspector.recalibrate(
            name, false_alarm_rate=false_alarm_rate, images=photos, progress=progress
        ).calibration
    for when, calibration in (("before", before), ("now", after)):
        say(
            f"{when:6}  threshold {calibration.threshold:.4g} for a false-alarm rate of "
            f"{calibration.false_alarm_rate:g}, from {len(calibration.scores)} photos"
        )
