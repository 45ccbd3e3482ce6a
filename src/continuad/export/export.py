"""Exporting a bank: a folder that the runtime inspects with, kept up to date product by product."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from continuad import __version__
from continuad.continual import RoutingSettings
from continuad.durable import write_whole
from continuad.errors import BankError, ExportError
from continuad.export.convert import convert
from continuad.export.graphs import Pixels, backbone_graph, head_graph, head_state
from continuad.inspector import Inspector, Product
from continuad.inspector.product import file_stem
from continuad.progress import Progress, silent
from continuad.runtime.folder import (
    MANIFEST,
    ExportedProduct,
    ExportManifest,
    Program,
    Target,
)

SAMPLES = 64
"""Images, at most, that the ranges of a quantised backbone are taken from: equally many of each product."""

OUR_FILE = re.compile(r"(backbone|heads/[a-z0-9-]+)-[0-9a-f]{12}\.(xml|bin|onnx|npz)")
LOCK_SECONDS = 10


@dataclass(frozen=True)
class ExportReport:
    """What an export did.

    Attributes:
        manifest: of the folder as it is now.
        backbone: whether the backbone was exported, rather than found there.
        exported: the products whose heads were.
        unchanged: the products whose heads were there already.
        dropped: products that the bank no longer has.
    """

    manifest: ExportManifest
    backbone: bool
    exported: tuple[str, ...]
    unchanged: tuple[str, ...]
    dropped: tuple[str, ...]


def export(
    bank: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    target: Target = "openvino",
    int8: bool = False,
    progress: Progress = silent,
) -> ExportReport:
    """Write what it takes to inspect a bank's products without torch, or bring it up to date.

    What is there and still true stays: a bank that has learnt another product costs the export of its head,
    and one that was recalibrated the writing of its threshold. The folder is usable at any moment.

    Args:
        bank: the folder of a bank with at least one product.
        folder: a new or empty folder, or one that this bank was exported to for the same target.
        target: "openvino" or "onnx".
        int8: quantise the backbone, with ranges taken from the photos that the bank keeps.
        progress: told about each program.

    Raises:
        BankError: there is no bank, or no product in it.
        ExportError: the folder holds something else, or cannot be written.
    """
    inspector = Inspector.open(bank)
    products = dict(inspector.products)
    if not products:
        raise BankError(f"The bank {inspector.bank.path} has no product yet.", "Learn one first.")
    draft = _Draft(Path(folder).absolute(), target)
    with draft.locked():
        before = draft.manifest(_source(inspector), int8=int8)
        taps = _taps(inspector, products.values())
        has_backbone = before is not None and set(taps) <= set(before.taps)
        stale = [name for name, each in products.items() if not _is_exported(before, each)]
        steps = len(stale) + (not has_backbone)
        if before is not None and has_backbone:
            backbone, taps = before.backbone, before.taps
        else:
            progress(0, steps, "exporting the backbone")
            routing = RoutingSettings(**inspector.bank.manifest().routing)
            graph = backbone_graph(inspector.backbone, routing, taps, image_size=inspector.image_size)
            backbone = draft.add("backbone", graph, samples=_samples(inspector) if int8 else None)
        heads = {each.kind: each.head for each in before.products.values()} if before else {}
        entries: dict[str, ExportedProduct] = {}
        for name, product in products.items():
            if before is not None and name not in stale:
                entries[name] = replace(before.products[name], threshold=product.calibration.threshold)
            else:
                progress(len(entries.keys() & set(stale)) + (not has_backbone), steps, f"exporting {name}")
                entries[name] = _exported(inspector, product, draft, heads)
        progress(steps, steps, "exported")
        manifest = ExportManifest(
            target, int8, inspector.image_size, _source(inspector), backbone, taps, entries
        )
        draft.commit(manifest)
    known = set(before.products) if before else set()
    return ExportReport(
        manifest,
        not has_backbone,
        tuple(stale),
        tuple(name for name in products if name not in stale),
        tuple(sorted(known - products.keys())),
    )


def _source(inspector: Inspector) -> dict[str, str]:
    """What all heads of an export must share."""
    manifest = inspector.bank.manifest()
    return {
        "backbone": manifest.backbone["name"],
        "sha256": manifest.backbone["sha256"],
        "routing": json.dumps(dict(manifest.routing), sort_keys=True),
        "image_size": str(manifest.image_size),
    }


def _taps(inspector: Inspector, products: Collection[Product]) -> tuple[str, ...]:
    """The blocks that the heads look at, and those of a head that is learnt by default."""
    backbone = inspector.backbone
    return backbone.order({tap for product in products for tap in product.taps})


def _is_exported(before: ExportManifest | None, product: Product) -> bool:
    return (
        before is not None
        and product.name in before.products
        and before.products[product.name].source == product.sha256
    )


def _samples(inspector: Inspector) -> Pixels:
    """Photos (N, S, S, 3) that the bank keeps, equally many of each product."""
    names = list(inspector.products)
    each = max(1, SAMPLES // len(names))
    return np.concatenate([inspector.samples(name)[:each] for name in names[:SAMPLES]])


def _exported(
    inspector: Inspector, product: Product, draft: _Draft, heads: dict[str, Program]
) -> ExportedProduct:
    """Write what a product takes; `heads` are the programs written so far, by kind."""
    detector, size = inspector.head(product.name), inspector.image_size
    state = head_state(detector)
    kind = _kind(product, state) if state else product.sha256
    if kind not in heads:
        stem = product.method if state else file_stem(product.name)
        heads[kind] = draft.add(f"heads/{stem}", head_graph(detector, image_size=size))
    prototype = inspector.bank.prototype(product).astype("<f4").tobytes()
    return ExportedProduct(
        name=product.name,
        method=product.method,
        images=product.images,
        seconds=product.seconds,
        source=product.sha256,
        kind=kind,
        head=heads[kind],
        state=draft.add_state(f"heads/{file_stem(product.name)}", state) if state else None,
        scored_pixels=detector.scored_pixels(size**2),
        threshold=product.calibration.threshold,
        limit=product.limit,
        prototype=base64.b64encode(prototype).decode(),
    )


def _kind(product: Product, state: Mapping[str, NDArray[Any]]) -> str:
    """What heads have in common whose programs are the same."""
    shapes = {name: (str(array.dtype), array.shape) for name, array in state.items()}
    facts = [__version__, product.method, product.settings, product.taps, shapes]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class _Draft:
    """Writes an exported folder: programs first, then the manifest that names them, then what it no longer
    names goes.
    """

    def __init__(self, folder: Path, target: Target) -> None:
        self.folder = folder
        self.target = target

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder and keep other exports out of it."""
        try:
            (self.folder / "heads").mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".lock", timeout=LOCK_SECONDS):
                yield
        except Timeout as error:
            raise ExportError(
                f"Another process is exporting to {self.folder}.", "Wait until it is done."
            ) from error
        except OSError as error:
            raise ExportError(
                f"{self.folder} cannot be written: {error.strerror or error}.",
                "Check free space and permissions, and try again.",
            ) from error

    def manifest(self, source: Mapping[str, str], *, int8: bool) -> ExportManifest | None:
        """What the folder holds; None if nothing."""
        if (self.folder / "heads").is_symlink():
            raise ExportError(f"The heads in {self.folder} are a link elsewhere.", "Choose a new folder.")
        if not (self.folder / MANIFEST).exists():
            found = {path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*")}
            if strange := {name for name in found if not _is_ours(name) and name not in ("heads", ".lock")}:
                raise ExportError(
                    f"{self.folder} holds {min(strange)!r}, which is no export.", "Choose a new folder."
                )
            return None
        manifest = ExportManifest.read(self.folder)
        for ours, theirs, what in (
            (self.target, manifest.target, "for another runtime"),
            (int8, manifest.int8, "in another precision"),
            (source, manifest.source, "of another bank"),
        ):
            if ours != theirs:
                raise ExportError(f"{self.folder} holds an export {what}.", "Choose a new folder.")
        return manifest

    def add(self, stem: str, graph: onnx.ModelProto, *, samples: Pixels | None = None) -> Program:
        """Write a program; nothing names it yet."""
        inputs = [each.name for each in graph.graph.input]
        return self._write(stem, convert(graph, self.target, samples=samples), inputs)

    def add_state(self, stem: str, arrays: Mapping[str, NDArray[Any]]) -> Program:
        """Write arrays; nothing names them yet."""
        data = BytesIO()
        np.savez(data, **arrays)  # type: ignore[arg-type]
        return self._write(stem, {".npz": data.getvalue()}, [])

    def _write(self, stem: str, contents: Mapping[str, bytes], inputs: Collection[str]) -> Program:
        digest = hashlib.sha256(b"".join(contents.values())).hexdigest()
        files = {}
        for suffix, data in contents.items():
            name = f"{stem}-{digest[:12]}{suffix}"
            write_whole(self.folder / name, data)
            files[name] = hashlib.sha256(data).hexdigest()
        return Program(files, tuple(inputs), sum(map(len, contents.values())))

    def commit(self, manifest: ExportManifest) -> None:
        """Put the manifest in place, and remove what it does not name."""
        write_whole(self.folder / MANIFEST, manifest.to_json())
        named = manifest.files()
        with contextlib.suppress(OSError):  # what cannot be removed stays for the next export
            for path in (*self.folder.glob("backbone-*"), *self.folder.glob("heads/*")):
                name = path.relative_to(self.folder).as_posix()
                if name not in named and _is_ours(name):
                    path.unlink()


def _is_ours(name: str) -> bool:
    """Whether an export may have written a file, or what a killed one leaves of it."""
    whole = re.sub(r"\.[0-9]+\.tmp$", "", name)
    return whole == MANIFEST or OUR_FILE.fullmatch(whole) is not None
