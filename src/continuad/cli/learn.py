"""`continuad learn`: a product from photos of good parts."""

from __future__ import annotations

from typing import Annotated

import typer

from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.opening import Foundation, open_or_create
from continuad.cli.options import (
    DEFAULT_FALSE_ALARM_RATE,
    DEFAULT_HEAD,
    BackboneOption,
    BankArgument,
    DeviceOption,
    FalseAlarmRateOption,
    HeadOption,
    ImageSizeOption,
    NameArgument,
    RoutingOption,
    SeedOption,
    SetOption,
    WeightsOption,
)
from continuad.cli.output import kib, say
from continuad.cli.places import all_images
from continuad.cli.progress import ProgressBar
from continuad.cli.settings import parse_settings


@app.command(
    epilog=example(
        "continuad learn parts.bank bottle photos/bottle/good",
        "continuad learn parts.bank cap 'photos/*_ok.jpg' --false-alarm-rate 0.001",
    )
)
def learn(
    bank: BankArgument,
    name: NameArgument,
    images: Annotated[
        list[str], typer.Argument(metavar="IMAGES", help="Good parts: files, folders, glob patterns.")
    ],
    head: HeadOption = DEFAULT_HEAD,
    settings: SetOption = None,
    false_alarm_rate: FalseAlarmRateOption = DEFAULT_FALSE_ALARM_RATE,
    replace: Annotated[bool, typer.Option("--replace", help="Learn a known product anew.")] = False,
    seed: SeedOption = 0,
    device: DeviceOption = "cpu",
    backbone: BackboneOption = None,
    weights: WeightsOption = None,
    image_size: ImageSizeOption = None,
    routing: RoutingOption = None,
) -> None:
    """Learn a product from photos of good parts.

    At least 6 photos, better 50. The bank is created if there is none; backbone, weights, image size and
    routing are settled then, for all of its products. The product appears when everything is learnt; a long
    training that was interrupted goes on when the same command is given again.
    """
    try:
        from continuad.detectors import METHODS
        from continuad.inspector import method_of

        changes = parse_settings(settings or [], METHODS[method_of(head)].settings)
        photos = all_images(images)
        foundation = Foundation(backbone, weights, image_size, routing)
        with (
            ProgressBar() as progress,
            open_or_create(bank, foundation, head=head, device=device, progress=progress) as inspector,
        ):
            product = inspector.learn(
                name,
                photos,
                head=head,
                settings=changes,
                false_alarm_rate=false_alarm_rate,
                replace_existing=replace,
                seed=seed,
                progress=progress,
            )
    except KeyboardInterrupt as interrupt:
        saved = (bank / "unfinished").exists()
        hope = "the same command goes on from its last checkpoint" if saved else f"{bank} is as it was"
        raise UserInterruptError(f"Nothing was learnt; {hope}.") from interrupt
    say(
        f"Learnt {product.name!r} from {len(photos)} photos in {product.seconds:.1f} s: "
        f"{kib(product.bytes)} KiB, threshold {product.calibration.threshold:.4g}."
    )
    if product.reason:
        say(product.reason)
