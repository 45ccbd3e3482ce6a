"""Arguments and options that several commands share.

Defaults repeat those of the Python API, which cannot be imported here without torch; the tests compare them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_BACKBONE = "efficientnet_lite0"
DEFAULT_HEAD = "auto"
DEFAULT_IMAGE_SIZE = 384
DEFAULT_FALSE_ALARM_RATE = 0.01

BankArgument = Annotated[Path, typer.Argument(metavar="BANK", help="Folder of the bank.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The product's name.")]
HeadOption = Annotated[
    str,
    typer.Option("--head", "--method", metavar="NAME", help="'auto', or a method; see 'continuad methods'."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        show_default=False,
        help="Change a setting of the method, such as training.epochs=10; may be repeated.",
    ),
]
FalseAlarmRateOption = Annotated[
    float,
    typer.Option(
        "--false-alarm-rate", metavar="RATE", help="Share of good parts that may be called anomalous."
    ),
]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="The same seed gives the same result.")]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="Where to compute, such as cpu or cuda.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, one object a line.")]

EveryOption = Annotated[
    float | None,
    typer.Option(
        "--every",
        metavar="SECONDS",
        show_default="all",
        help="Inspect at most one frame of a video or camera in so many seconds.",
    ),
]
MqttOption = Annotated[
    str | None,
    typer.Option(
        "--mqtt",
        metavar="URL",
        envvar="CONTINUAD_MQTT",
        show_default=False,
        help="Publish verdicts: mqtt://user:password@host:1883/topic, or mqtts:// with TLS.",
    ),
]

# None: the user has no wish. A bank that exists has its own values, a new one gets the defaults.
BackboneOption = Annotated[
    str | None,
    typer.Option(
        "--backbone",
        metavar="NAME",
        show_default=f"the method's own, if it has one, or {DEFAULT_BACKBONE}",
        help="The frozen network; see 'continuad methods'.",
    ),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        "--weights",
        metavar="SOURCE",
        show_default="auto",
        help="Its weights: auto, random, a file, or a URL with #sha256=.",
    ),
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        "--image-size",
        metavar="PIXELS",
        show_default=str(DEFAULT_IMAGE_SIZE),
        help="Side that images are resized to.",
    ),
]
RoutingOption = Annotated[
    str | None,
    typer.Option(
        "--routing",
        metavar="BLOCK",
        show_default="the last one of stride 16",
        help="Block of the backbone that tells products apart.",
    ),
]


def names(text: str | None) -> list[str] | None:
    """Split a comma-separated list; None if there is nothing in it."""
    return [name.strip() for name in (text or "").split(",") if name.strip()] or None
