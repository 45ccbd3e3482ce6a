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
    """Copy an OpenVINO export of one product, and give it `count` products.

    The others are copies of its head that differ in a comment, so that each is compiled for itself, and share
    the file of its numbers. They are recognised by the photos as those of growth.py are.
    """
    inspector = Inspector.open(bank)
    (learnt,) = inspector.products.values()
    shutil.copytree(exported, folder)
    manifest = ExportManifest.read(folder)
    product = manifest.products[learnt.name]
    graph, numbers = product.head.files
    text = (folder / graph).read_bytes()
    products = {product.name: product}
    for number, prototype in prototypes(inspector, learnt, photos, first=1, end=count):
        data = text + f"<!-- {number} -->\n".encode()
        file = f"heads/copy-{number:04d}.xml"
        (folder / file).write_bytes(data)
        files = {file: hashlib.sha256(data).hexdigest(), numbers: product.head.files[numbers]}
        copy = replace(
            product,
            name=f"{product.name} {number:04d}",
            head=replace(product.head, files=files),
            prototype=base64.b64encode(prototype.astype("<f4").tobytes()).decode(),
        )
        products[copy.name] = copy
    (folder / MANIFEST).write_bytes(replace(manifest, products=products).to_json())
    return folder
