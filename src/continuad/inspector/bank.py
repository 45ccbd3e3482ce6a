"""A bank on disk: a manifest and immutable safetensors files, written whole or not at all.

    bank/
      manifest.json             what there is, with a checksum over itself; replaced atomically
      backbone-<hash>.safetensors
      products/<name>-r<revision>.safetensors
      unfinished/<name>-<key>/  checkpoints of a training that was interrupted, until its product is learnt
      .lock                     held for the moment of a write

Readers need no lock: they read one manifest, and the files that it names never change. A file that no
manifest names any more is removed by the next writer.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from continuad.durable import sync_folder, write_whole
from continuad.errors import BankError
from continuad.inspector.product import Product, file_stem

FORMAT = "continuad-bank"
VERSION = 1
LOCK_SECONDS = 60
DRAFT = ".draft"

RESTORE = "Restore it from a backup; a product can also be learnt again."
BACKBONE_FILE = re.compile(r"backbone-[0-9a-f]{12}\.safetensors")
PRODUCT_FILE = re.compile(r"products/[a-z0-9-]+-r[0-9]+\.safetensors")


@dataclass(frozen=True)
class Manifest:
    """What a bank holds.

    Attributes:
        backbone: name, file and sha256 of the frozen backbone.
        image_size: side in pixels that images are resized to.
        routing: settings of the router as plain values.
        revision: grows with every write.
        products: by name, in the order in which they were learnt.
    """

    backbone: Mapping[str, str]
    image_size: int
    routing: Mapping[str, Any]
    revision: int = 0
    products: Mapping[str, Product] = field(default_factory=dict)

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
        }
        return json.dumps({**content, "sha256": _checksum(content)}, indent=1).encode()

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
            manifest = cls(
                content["backbone"],
                content["image_size"],
                content["routing"],
                content["revision"],
                {product.name: product for product in products},
            )
            inside = [
                BACKBONE_FILE.fullmatch(manifest.backbone["file"]),
                *(PRODUCT_FILE.fullmatch(product.file) for product in products),
            ]
        except (KeyError, TypeError) as error:
            raise damaged from error
        if not all(inside):  # anyone can compute the checksum of a manifest that points elsewhere
            raise BankError(f"{place} names files that no bank has.", "Do not use this bank.")
        return manifest


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class Bank:
    """The files of a bank.

    Args:
        path: its folder.

    Raises:
        BankError: there is no bank, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifest_path = path / "manifest.json"
        self._unfinished = path / "unfinished"
        self._stamp: tuple[int, int, int] | None = None
        self._manifest = self.manifest()

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        backbone: str,
        state: Mapping[str, Tensor],
        image_size: int,
        routing: Mapping[str, Any],
    ) -> Bank:
        """Create a bank without products; `state` is the backbone's state dict, which the bank keeps.

        The folder must not exist or be empty; it appears complete or not at all.
        """
        path = path.absolute()
        data = safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
        digest = hashlib.sha256(data).hexdigest()
        file = f"backbone-{digest[:12]}.safetensors"
        manifest = Manifest({"name": backbone, "file": file, "sha256": digest}, image_size, routing)
        with _writing(path):
            if path.exists() and (not path.is_dir() or any(path.iterdir())):
                raise BankError(f"{path} exists already.", "Open it, or choose another path for a new bank.")
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove_dead_drafts(path)
            draft = Path(tempfile.mkdtemp(prefix=f".{path.name}-", suffix=DRAFT, dir=path.parent))
            try:
                draft.chmod(0o755)
                with FileLock(draft / ".lock"):
                    (draft / "products").mkdir()
                    write_whole(draft / file, data)
                    write_whole(draft / "manifest.json", manifest.to_json())
                    draft.rename(path)
                sync_folder(path.parent)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return cls(path)

    def manifest(self) -> Manifest:
        """Return the manifest as it is on disk now; it is only read again when it has changed."""
        try:
            status = self._manifest_path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                self._manifest = Manifest.from_json(self._manifest_path.read_bytes(), self._manifest_path)
                self._stamp = stamp
        except FileNotFoundError as error:
            raise BankError(
                f"There is no bank at {self.path}.", "Check the path, or create a bank by learning a product."
            ) from error
        except OSError as error:
            raise BankError(
                f"{self._manifest_path} cannot be read: {error.strerror}.", "Check it."
            ) from error
        return self._manifest

    def backbone_file(self) -> Path:
        """Return the path of the backbone's checkpoint, checked against its checksum."""
        entry = self._manifest.backbone
        self._read(entry["file"], entry["sha256"])
        return self.path / entry["file"]

    def state(self, product: Product) -> dict[str, Tensor]:
        """Return the tensors of a product, checked against its checksum."""
        data = self._read(product.file, product.sha256)
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise BankError(f"{self.path / product.file} is no safetensors file.", RESTORE) from error

    def _read(self, file: str, sha256: str) -> bytes:
        path = self.path / file
        try:
            data = path.read_bytes()
        except OSError as error:
            raise BankError(
                f"{path} is named in the manifest but cannot be read: {error.strerror}.", RESTORE
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise BankError(f"{path} is damaged: its checksum does not match.", RESTORE)
        return data

    @contextlib.contextmanager
    def _locked(self) -> Iterator[Manifest]:
        """Hold the bank's lock and yield the manifest of this moment; clean up behind the writer."""
        try:
            with _writing(self.path), FileLock(self.path / ".lock", timeout=LOCK_SECONDS):
                try:
                    yield self.manifest()
                finally:
                    self._sweep()
        except Timeout as error:
            raise BankError(
                f"{self.path} has been locked by another process for {LOCK_SECONDS} s.",
                "Wait until it is done, or end that process.",
            ) from error

    def put(self, product: Product, state: Mapping[str, Tensor], *, expected: Product | None) -> Product:
        """Add or replace a product; returns it with file, bytes and checksum filled in.

        Args:
            product: its entry; `file`, `bytes` and `sha256` are ignored.
            state: its tensors.
            expected: the entry that it replaces, None for a new product.

        Raises:
            BankError: another process has added, changed or removed the product meanwhile.
        """
        data = safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, expected)
            file = f"products/{file_stem(product.name)}-r{manifest.revision + 1}.safetensors"
            write_whole(self.path / file, data)
            digest = hashlib.sha256(data).hexdigest()
            product = replace(product, file=file, bytes=len(data), sha256=digest)
            others = _without(manifest, product.name)
            self._commit(manifest, {**others, product.name: product})
            self._drop_unfinished(product.name)
        return product

    def unfinished(self, name: str, key: str) -> Path:
        """Return the folder for checkpoints of one training; it goes when the product is put or removed.

        Args:
            name: of the product that is being learnt.
            key: tells this training from others that would give another result.
        """
        return self._unfinished / f"{file_stem(name)}-{key}"

    def update(self, product: Product, *, expected: Product) -> None:
        """Change a product's entry without touching its file."""
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, expected)
            self._commit(manifest, {**manifest.products, product.name: product})

    def remove(self, product: Product) -> None:
        """Remove a product and its file."""
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, product)
            self._commit(manifest, _without(manifest, product.name))
            self._drop_unfinished(product.name)

    def discard_if_empty(self) -> None:
        """Remove the whole bank, unless it holds a product or unfinished work by now.

        It leaves its place in one step; what remains after a power cut is removed by the next `create` there.
        """
        with _writing(self.path), FileLock(self.path / ".lock", timeout=LOCK_SECONDS):
            if not self.manifest().products and not self._unfinished.exists():
                draft = tempfile.mkdtemp(prefix=f".{self.path.name}-", suffix=DRAFT, dir=self.path.parent)
                shutil.rmtree(self.path.rename(draft), ignore_errors=True)

    def _commit(self, manifest: Manifest, products: Mapping[str, Product]) -> None:
        """Replace the manifest; the lock is held."""
        manifest = replace(manifest, revision=manifest.revision + 1, products=products)
        write_whole(self._manifest_path, manifest.to_json())

    def _drop_unfinished(self, name: str) -> None:
        """Remove a product's checkpoints; the lock is held."""
        for folder in self._unfinished.glob(f"{file_stem(name)}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # there is none, or it holds other products' work
            self._unfinished.rmdir()

    def _sweep(self) -> None:
        """Remove what no manifest names, left by this writer or one that was killed; the lock is held.

        What cannot be removed stays for the next writer: what was committed is committed.
        """
        named = {product.file for product in self.manifest().products.values()}
        with contextlib.suppress(OSError):
            for file in (self.path / "products").iterdir():
                if f"products/{file.name}" not in named:
                    file.unlink(missing_ok=True)
            for file in self.path.glob("manifest.json.*"):
                file.unlink(missing_ok=True)


def _without(manifest: Manifest, name: str) -> dict[str, Product]:
    """The other products; one that is learnt anew moves to the end, as its prototype does in the router."""
    return {each: product for each, product in manifest.products.items() if each != name}


def _check_unchanged(manifest: Manifest, name: str, expected: Product | None) -> None:
    if manifest.products.get(name) != expected:
        raise BankError(
            f"Another process has changed {name!r} meanwhile; nothing was written.",
            "Look at it and try again.",
        )


def _remove_dead_drafts(path: Path) -> None:
    """Remove what processes left that were killed while they created a bank here; the living hold a lock."""
    for draft in path.parent.glob(f".{glob.escape(path.name)}-*{DRAFT}"):
        with contextlib.suppress(Timeout), FileLock(draft / ".lock", timeout=0):
            shutil.rmtree(draft, ignore_errors=True)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence."""
    try:
        yield
    except OSError as error:
        if isinstance(error, Timeout):
            raise
        raise BankError(
            f"{path} cannot be written: {error.strerror or error}.",
            "Check free space and permissions, and try again.",
        ) from error
