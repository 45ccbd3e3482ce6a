"""`continuad costs`: memory and compute of any method, before anything is learnt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from continuad.cli.app import app, example
from continuad.cli.opening import check_device
from continuad.cli.options import (
    DEFAULT_BACKBONE,
    DEFAULT_IMAGE_SIZE,
    BackboneOption,
    DeviceOption,
    JsonOption,
    RoutingOption,
    SetOption,
    names,
)
from continuad.cli.output import number, print_json, print_table, right, say
from continuad.cli.settings import parse_settings
from continuad.errors import SettingsError

if TYPE_CHECKING:
    from continuad.detectors.costs import Costs


@app.command(
    epilog=example(
        "continuad costs --products 10",
        "continuad costs --backbone wide_resnet50_2 --image-size 224 --products 15 --routing avgpool",
        "continuad costs --method adapts-s,stfpm,paste --backbone mobilenet_v2 --image-size 224",
        "continuad costs --method stfpm-mcunet,paste-mcunet --set training.batch_size=4 --measure",
    )
)
def costs(
    method: Annotated[
        str | None,
        typer.Option(
            "--method",
            "--head",
            metavar="A,B",
            show_default="AdapTS by the paper's tables",
            help="Which ones; see 'continuad methods'.",
        ),
    ] = None,
    backbone: BackboneOption = None,
    image_size: Annotated[
        int, typer.Option("--image-size", metavar="PIXELS", min=32, help="Side of the network's input.")
    ] = DEFAULT_IMAGE_SIZE,
    products: Annotated[
        int | None,
        typer.Option(
            "--products", metavar="N", min=1, show_default="1", help="How many are known; not with --method."
        ),
    ] = None,
    routing: RoutingOption = None,
    settings: SetOption = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Also measure the peak memory of inspecting an image and of training on a minibatch.",
        ),
    ] = False,
    device: DeviceOption = "cpu",
    json: JsonOption = False,
) -> None:
    """Account for memory and compute; weights do not matter, and none are loaded.

    Without --method, it is AdapTS: added and total memory in MiB, and billions of multiply-accumulates an
    image: first as the paper counts (no prototypes, nothing behind the last adapter; the backbone run twice),
    then what is held and run.

    With --method, each method is run on noise. Memory in MiB, for one product: the frozen backbone as far as
    it is used, the parameters that the method adds to it, their buffers (such as batch-norm statistics), the
    total and, with --measure, what work needs above that. Millions of multiply-accumulates an image: to
    inspect it; to train on it in the first epoch, forward and with the backward pass; and in the second,
    when what the frozen backbone says of the image is known.
    """
    changes = settings or []
    if method is None:
        if measure or device != "cpu":
            raise SettingsError(
                "--measure and --device need a method to run.", "Add --method, or leave them out."
            )
        _account_for_adapts(
            backbone or DEFAULT_BACKBONE,
            image_size=image_size,
            products=products or 1,
            routing=routing,
            settings=changes,
            json=json,
        )
        return
    if products is not None or routing is not None:
        raise SettingsError(
            "--products and --routing do not go with --method, which accounts for one product.",
            "Leave them out.",
        )
    methods = names(method)
    if methods is None:
        raise SettingsError("--method names no method.", "Choose from 'continuad methods'.")
    _account_for(
        methods,
        backbone,
        image_size=image_size,
        settings=changes,
        measure=measure,
        device=device,
        json=json,
    )


def _account_for(
    methods: Sequence[str],
    backbone: str | None,
    *,
    image_size: int,
    settings: Sequence[str],
    measure: bool,
    device: str,
    json: bool,
) -> None:
    """Run methods and print what they cost; without a backbone, each has its own or the default."""
    from continuad.backbones import create_backbone
    from continuad.detectors import METHODS
    from continuad.detectors.costs import method_costs

    check_device(device)
    entries = {name: METHODS[name] for name in methods}
    networks = {name: backbone or entry.backbone or DEFAULT_BACKBONE for name, entry in entries.items()}
    changes = {name: parse_settings(settings, entry.settings) for name, entry in entries.items()}
    found = {}
    for name, entry in entries.items():
        network = create_backbone(networks[name], weights="random").to(device)
        detector = entry.build(network, changes[name]).to(device)
        found[name] = method_costs(detector, image_size=image_size, training=True, peaks=measure)
        if json:
            facts = {"method": name, "backbone": network.name, "image_size": image_size}
            print_json({**facts, **asdict(found[name])})
    if not json:
        _print_memory(found, measure=measure)
        say(f"MiB for one product; {', '.join(dict.fromkeys(networks.values()))} at {image_size} pixels.")
        say()
        _print_compute(found)
        say("Millions of multiply-accumulates for one image.")


def _print_memory(found: Mapping[str, Costs], *, measure: bool) -> None:
    from continuad.metrics.costs import MIB

    columns: dict[str, Callable[[Costs], int | None]] = {
        "backbone": lambda cost: cost.backbone_parameter_bytes + cost.backbone_buffer_bytes,
        "parameters": lambda cost: cost.parameter_bytes,
        "buffers": lambda cost: cost.buffer_bytes,
        "total": lambda cost: cost.total_bytes,
    }
    if measure:
        columns |= {
            "inspecting": lambda cost: cost.inspection_peak_bytes,
            "training": lambda cost: cost.training_peak_bytes,
        }
    _print_costs(found, columns, unit=MIB, digits=3)


def _print_compute(found: Mapping[str, Costs]) -> None:
    columns: dict[str, Callable[[Costs], int | None]] = {
        "inspecting": lambda cost: cost.macs,
        "training\nforward": lambda cost: cost.training_macs_forward,
        "training": lambda cost: cost.training_macs,
        "later\nforward": lambda cost: cost.later_training_macs_forward,
        "later": lambda cost: cost.later_training_macs,
    }
    _print_costs(found, columns, unit=10**6, digits=1)


def _print_costs(
    found: Mapping[str, Costs],
    columns: Mapping[str, Callable[[Costs], int | None]],
    *,
    unit: int,
    digits: int,
) -> None:
    """Print a row for each method; None is a dash."""

    def cell(value: int | None) -> str:
        return number(None if value is None else value / unit, digits)

    rows = [[name, *(cell(of(cost)) for of in columns.values())] for name, cost in found.items()]
    print_table(("method", *map(right, columns)), rows, narrow=True)


def _account_for_adapts(
    backbone: str,
    *,
    image_size: int,
    products: int,
    routing: str | None,
    settings: Sequence[str],
    json: bool,
) -> None:
    """Print what the variants of AdapTS cost, as the paper counts and as they are."""
    import torch

    from continuad.backbones import BACKBONES
    from continuad.continual import RoutingSettings
    from continuad.continual.routing import routing_cost
    from continuad.detectors import METHODS
    from continuad.detectors.adapts import AdapTSSettings
    from continuad.detectors.adapts_costs import adapts_costs
    from continuad.metrics.costs import MIB

    with torch.device("meta"):
        network = BACKBONES[backbone]()
    router = RoutingSettings(routing or network.stage(16))
    found = {
        name: adapts_costs(
            network,
            method.configure(parse_settings(settings, method.settings)),
            products=products,
            image_size=image_size,
            router_tap=router.tap,
            prototype_bytes=routing_cost(network, router),
        )
        for name, method in METHODS.items()
        if isinstance(method.settings, AdapTSSettings)
    }
    if json:
        for name, cost in found.items():
            print_json({"method": name, **asdict(cost)})
        return
    headers = ("added\n(paper)", "total\n(paper)", "GMACs\n(paper)", "added", "total", "GMACs")
    rows = [
        [
            name,
            number(cost.additional_bytes_paper / MIB, 2),
            number(cost.total_bytes_paper / MIB, 2),
            number(cost.macs_paper / 1e9, 3),
            number(cost.additional_bytes / MIB, 2),
            number(cost.total_bytes / MIB, 2),
            number(cost.macs / 1e9, 3),
        ]
        for name, cost in found.items()
    ]
    print_table(("method", *map(right, headers)), rows)
    say(f"Memory in MiB for {products} product{'s' * (products != 1)}; {backbone} at {image_size} pixels.")
