"""`continuad methods`: what there is to choose from."""

from __future__ import annotations

import inspect
from dataclasses import asdict

from continuad.cli.app import app, example
from continuad.cli.options import JsonOption
from continuad.cli.output import print_json, print_table, say

AUTO_SUMMARY = "The default: the compact memory bank or context regression, as suits the product."


@app.command(epilog=example("continuad methods"))
def methods(json: JsonOption = False) -> None:
    """List all methods (heads) and backbones."""
    from continuad.backbones import BACKBONES
    from continuad.detectors import METHODS

    backbones = {name: (inspect.getdoc(entry) or "").partition("\n")[0] for name, entry in BACKBONES.items()}
    if json:
        for name, method in METHODS.items():
            settings = asdict(method.settings)
            print_json({"kind": "method", "name": name, "summary": method.summary, "settings": settings})
        for name, summary in backbones.items():
            print_json({"kind": "backbone", "name": name, "summary": summary})
        return
    heads = {"auto": AUTO_SUMMARY, **{name: method.summary for name, method in METHODS.items()}}
    print_table(("method (--head)", ""), heads.items())
    say()
    print_table(("backbone (--backbone)", ""), backbones.items())
