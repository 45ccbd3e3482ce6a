"""The manifest of a bank: what there is, as JSON with a checksum over itself."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from continuad.errors import BankError
from continuad.inspector.product import Product

FORMAT = "continuad-bank"
VERSION = 1

SMALLEST, LARGEST = 32, 2048
"""Sides that images may be resized to, in pixels."""

BACKBONE_FILE = re.compile(r"backbone-[0-9a-f]{12}\.safetensors")
PRODUCT_FILE = re.compile(r"products/[a-z0-9-]+-r[0-9]+\.safetensors")
SAMPLES_FILE = re.compile(r"(products/[a-z0-9-]+-r[0-9]+\.jpg)?")


@dataclass(frozen=True)
class Manifest:
    """What a bank holds.

    Attributes:
        backbone: name, file and sha256 of the frozen backbone.
        image_size: side in pixels that images are resized to.
        routing: settings of the router as plain values.
        revision: grows with every write.
        products: by name, in the order in which they were learnt.
        archived: products that are kept, but neither recognised nor inspected.
    """

    backbone: Mapping[str, str]
    image_size: int
    routing: Mapping[str, Any]
    revision: int = 0
    products: Mapping[str, Product] = field(default_factory=dict)
    archived: Mapping[str, Product] = field(default_factory=dict)

    @property
    def files(self) -> set[str]:
        """What the manifest names of the products' files, relative to the bank."""
        known = (*self.products.values(), *self.archived.values())
        return {file for product in known for file in (product.file, product.samples) if file}

    def to_json(self) -> bytes:
        """The manifest as it lies on disk."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "backbone": dict(self.backbone),
            "image_size": self.image_size,
            "routing": dict(self.routing),
            "revision": self.revision,
            "products": [product.as_dict() for product in self.products.values()],
            "archived": [product.as_dict() for product in self.archived.values()],
        }
        return json.dumps({**content, "sha256": _checksum(content)}).encode()

    @classmethod
    def from_json(cls, data: bytes, place: Path) -> Manifest:
        """The inverse of `to_json`; `place` is for messages.

        Raises:
            BankError: it is damaged, or written by a newer continuad.
        """
        damaged = BankError(f"{place} is damaged.", "Restore the bank from a backup, or create a new one.")
        try:
            content = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise damaged from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise BankError(f"{place} does not belong to a continuad bank.", "Check the path.")
        if content.get("version") != VERSION:
            raise BankError(
                f"{place} has format version {content.get('version')}; this continuad reads {VERSION}.",
                "Upgrade continuad.",
            )
        if content.pop("sha256", None) != _checksum(content):
            raise damaged
        try:
            products = [Product.from_dict(entry) for entry in content["products"]]
            archived = [Product.from_dict(entry) for entry in content.get("archived", ())]
            manifest = cls(
                content["backbone"],
                content["image_size"],
                content["routing"],
                content["revision"],
                {product.name: product for product in products},
                {product.name: product for product in archived},
            )
            if type(manifest.image_size) is not int or not SMALLEST <= manifest.image_size <= LARGEST:
                raise damaged
            inside = [
                BACKBONE_FILE.fullmatch(manifest.backbone["file"]),
                *(PRODUCT_FILE.fullmatch(product.file) for product in (*products, *archived)),
                *(SAMPLES_FILE.fullmatch(product.samples) for product in (*products, *archived)),
            ]
        except (KeyError, TypeError) as error:
            raise damaged from error
        if not all(inside):  # anyone can compute the checksum of a manifest that points elsewhere
            raise BankError(f"{place} names files that no bank has.", "Do not use this bank.")
        return manifest


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
