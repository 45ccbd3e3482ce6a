"""`continuad costs`: memory and compute of the AdapTS variants, before anything is learnt."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from continuad.cli.app import app, example
from continuad.cli.options import DEFAULT_BACKBONE, DEFAULT_IMAGE_SIZE, JsonOption, RoutingOption, SetOption
from continuad.cli.output import number, print_json, print_table, right, say
from continuad.cli.settings import parse_settings


@app.command(
    epilog=example(
        "continuad costs --products 10",
        "continuad costs --backbone wide_resnet50_2 --image-size 224 --products 15 --routing avgpool",
    )
)
def costs(
    backbone: Annotated[
        str, typer.Option("--backbone", metavar="NAME", help="The frozen network; see 'continuad methods'.")
    ] = DEFAULT_BACKBONE,
    image_size: Annotated[
        int, typer.Option("--image-size", metavar="PIXELS", min=32, help="Side of the network's input.")
    ] = DEFAULT_IMAGE_SIZE,
    products: Annotated[int, typer.Option("--products", min=1, help="How many are known.")] = 1,
    routing: RoutingOption = None,
    settings: SetOption = None,
    json: JsonOption = False,
) -> None:
    """Account for the memory and compute of AdapTS.

    Added and total memory in MiB, and billions of multiply-accumulates an image: first as the paper counts
    (no prototypes, nothing behind the last adapter; the backbone run twice), then what is held and run.
    """
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
            method.configure(parse_settings(settings or [], method.settings)),
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
