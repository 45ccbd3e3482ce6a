"""Exported banks of many products, without tracing each."""

from __future__ import annotations

import base64
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from continuad import Inspector
from continuad.runtime.folder import MANIFEST, ExportManifest
from growth import prototypes


def crowd(bank: Path, exported: Path, folder: Path, count: int, photos: list[Any]) -> Path:
    """Copy an export of one product, and give it `count` products.

    The others share its program and have states of their own, copies but for bytes behind the end. They are
    recognised by the photos as those of growth.py are.
    """
    inspector = Inspector.open(bank)
    (learnt,) = inspector.products.values()
    shutil.copytree(exported, folder)
    manifest = ExportManifest.read(folder)
    product = manifest.products[learnt.name]
    if product.state is None:
        raise ValueError(f"{product.method} has a program of its own, not a state")
    (original,) = product.state.files
    products = {product.name: product}
    for number, prototype in prototypes(inspector, learnt, photos, first=1, end=count):
        data = (folder / original).read_bytes() + number.to_bytes(2)
        file = f"heads/copy-{number:04d}.npz"
        (folder / file).write_bytes(data)
        files = {file: hashlib.sha256(data).hexdigest()}
        copy = replace(
            product,
            name=f"{product.name} {number:04d}",
            state=replace(product.state, files=files),
            prototype=base64.b64encode(prototype.astype("<f4").tobytes()).decode(),
        )
        products[copy.name] = copy
    (folder / MANIFEST).write_bytes(replace(manifest, products=products).to_json())
    return folder
