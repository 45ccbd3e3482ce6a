"""An exported folder: backbone and heads as programs, and a manifest of what they need beside them."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from continuad.errors import ExportError
from continuad.router import Vectors

Target = Literal["openvino", "onnx"]

KIND = "continuad-export"
VERSION = 1
MANIFEST = "manifest.json"
EXPORT_AGAIN = "Export the bank again."

SUFFIXES: Mapping[Target, tuple[str, ...]] = {"openvino": (".xml", ".bin"), "onnx": (".onnx",)}
"""The files that a program consists of; the first is the one to open."""

_FILE = re.compile(r"(backbone|heads/[a-z0-9-]+)-[0-9a-z]+\.(xml|bin|onnx|npz)")
SIZES = range(32, 2049)


@dataclass(frozen=True)
class Program:
    """A network as files.

    Attributes:
        files: relative to the folder, the one to open first; each with its sha256.
        inputs: the names of what it takes.
        bytes: of all files.
    """

    files: Mapping[str, str]
    inputs: tuple[str, ...]
    bytes: int


@dataclass(frozen=True)
class ExportedProduct:
    """What it takes to inspect a product.

    Attributes:
        name: what the user calls it.
        method: the name of its detector's method.
        images: normal images that it was trained on.
        seconds: how long that took.
        source: sha256 of the bank's file that it was exported from.
        kind: heads of the same kind share a program.
        head: takes the backbone's features, and the state if there is one; gives a map.
        state: the file of arrays by which the head differs from others of its kind; None if by its program.
        scored_pixels: of the map, how many of its highest pixels the score is the mean of.
        threshold: the score above which an image is anomalous.
        limit: how far from the prototype an image may lie.
        prototype: mean embedding, float32 in little endian, in base64.
    """

    name: str
    method: str
    images: int
    seconds: float
    source: str
    kind: str
    head: Program
    state: Program | None
    scored_pixels: int
    threshold: float
    limit: float
    prototype: str = field(repr=False)

    @property
    def bytes(self) -> int:
        """What it takes on disk, without a program that it shares."""
        return self.head.bytes if self.state is None else self.state.bytes

    def vector(self) -> Vectors:
        """The prototype (D,) float32."""
        return np.frombuffer(base64.b64decode(self.prototype), "<f4")


@dataclass(frozen=True)
class ExportManifest:
    """What an exported folder holds.

    Attributes:
        target: what its programs are written for.
        int8: whether the backbone was quantised.
        image_size: side in pixels that images are resized to.
        source: sha256 of the bank's backbone, and the settings of its router.
        backbone: takes an image (1, S, S, 3) uint8, gives "embedding" (1, D) and the features at `taps`.
        taps: names of the blocks whose features it gives.
        products: by name, in the order in which they were learnt.
    """

    target: Target
    int8: bool
    image_size: int
    source: Mapping[str, str]
    backbone: Program
    taps: tuple[str, ...]
    products: Mapping[str, ExportedProduct]

    def files(self) -> set[str]:
        """All files that it names."""
        return {name for program in self._programs() for name in program.files}

    def _programs(self) -> list[Program]:
        heads = [product.head for product in self.products.values()]
        states = [product.state for product in self.products.values() if product.state]
        return [self.backbone, *heads, *states]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum({tuple(each.files): each.bytes for each in self._programs()}.values())

    def to_json(self) -> bytes:
        """The manifest as it lies on disk."""
        content = {**asdict(self), "products": [asdict(product) for product in self.products.values()]}
        return json.dumps({"kind": KIND, "version": VERSION, **content}, indent=1).encode()

    @classmethod
    def read(cls, folder: Path) -> ExportManifest:
        """Read the manifest of a folder.

        Raises:
            ExportError: there is none, it is damaged, or written by a newer continuad.
        """
        path = folder / MANIFEST
        try:
            content = json.loads(path.read_bytes())
        except FileNotFoundError as error:
            raise ExportError(
                f"There is no exported bank at {folder}.", "Make one: continuad export BANK FOLDER."
            ) from error
        except OSError as error:
            raise ExportError(f"{path} cannot be read: {error.strerror}.", "Check it.") from error
        except (ValueError, RecursionError) as error:
            raise ExportError(f"{path} is damaged.", EXPORT_AGAIN) from error
        if not isinstance(content, dict) or content.pop("kind", None) != KIND:
            raise ExportError(f"{path} does not belong to an exported bank.", "Check the path.")
        if (version := content.pop("version", None)) != VERSION:
            raise ExportError(
                f"{path} has format version {version}; this continuad reads {VERSION}.", "Upgrade continuad."
            )
        try:
            manifest = cls._from_plain(content)
        except (KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{path} is damaged.", EXPORT_AGAIN) from error
        if manifest.target not in get_args(Target) or not all(map(_FILE.fullmatch, manifest.files())):
            raise ExportError(f"{path} names what no exported bank has.", "Do not use this folder.")
        if manifest.image_size not in SIZES:
            raise ExportError(f"{path} is damaged.", EXPORT_AGAIN)
        return manifest

    @classmethod
    def _from_plain(cls, content: dict[str, Any]) -> ExportManifest:
        products = [
            ExportedProduct(
                **{
                    **each,
                    "head": _program(each["head"]),
                    "state": _program(each["state"]) if each["state"] else None,
                }
            )
            for each in content["products"]
        ]
        return cls(
            **{
                **content,
                "backbone": _program(content["backbone"]),
                "taps": tuple(content["taps"]),
                "products": {product.name: product for product in products},
            }
        )


def _program(content: Mapping[str, Any]) -> Program:
    return Program(dict(content["files"]), tuple(content["inputs"]), int(content["bytes"]))


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported bank, whole or damaged."""
    try:
        return KIND.encode() in (folder / MANIFEST).read_bytes()[:200]
    except OSError:
        return False


def read_program(folder: Path, program: Program) -> list[bytes]:
    """Return the contents of a program's files, checked against their checksums."""
    contents = []
    for name, sha256 in program.files.items():
        try:
            data = (folder / name).read_bytes()
        except OSError as error:
            raise ExportError(
                f"{folder / name} is named in the manifest but cannot be read: {error.strerror}.",
                EXPORT_AGAIN,
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ExportError(f"{folder / name} is damaged: its checksum does not match.", EXPORT_AGAIN)
        contents.append(data)
    return contents
