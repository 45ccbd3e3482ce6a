"""A bank on disk: a manifest and immutable safetensors files, written whole or not at all.

    bank/
      manifest.json             what there is, with a checksum over itself; replaced atomically
      backbone-<hash>.safetensors
      products/<name>-r<revision>.safetensors
      products/<name>-r<revision>.jpg   a few normal photos of it, which inspection does not need
      unfinished/<name>-<key>/  checkpoints of a training that was interrupted, until its product is learnt
      .lock                     held for the moment of a write

Readers need no lock: they read one manifest, and the files that it names never change. A file that no
manifest names any more is removed by the next writer. What it takes to recognise a product stands in the
manifest; its file is read when its head is needed.
"""

from __future__ import annotations

import base64
import contextlib
import glob
import hashlib
import re
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.torch
from filelock import FileLock, Timeout
from torch import Tensor

from continuad.durable import sync_folder, write_whole
from continuad.errors import BankError, ImageError, ProductError
from continuad.inspector.manifest import Manifest
from continuad.inspector.product import Product, file_stem
from continuad.inspector.samples import Photos, decode

LOCK_SECONDS = 60
SETTLED_SECONDS = 2
"""Two writes within this time may leave the same time stamp: that is how coarse FAT is."""
DRAFT = ".draft"
OUR_FILE = re.compile(r"[a-z0-9-]+-r[0-9]+\.(safetensors|jpg)(\.[0-9]+\.tmp)?")

RESTORE = "Restore it from a backup; a product can also be learnt again."


class _Reading(NamedTuple):
    """A manifest as it was read; the stamp is None while the file might change without changing its stamp."""

    stamp: tuple[int, int, int] | None
    data: bytes
    manifest: Manifest


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
        self._known = self._read_manifest(None)

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
        """Return the manifest as it is on disk now: the same object for as long as it has not changed."""
        self._known = self._read_manifest(self._known)
        return self._known.manifest

    def _read_manifest(self, known: _Reading | None) -> _Reading:
        """Read the manifest if it may have changed since it was read last, and parse it if it has."""
        try:
            now = time.time()
            status = self._manifest_path.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if known is not None and known.stamp == stamp:
                return known
            data = self._manifest_path.read_bytes()
        except FileNotFoundError as error:
            raise BankError(
                f"There is no bank at {self.path}.", "Check the path, or create a bank by learning a product."
            ) from error
        except OSError as error:
            raise BankError(
                f"{self._manifest_path} cannot be read: {error.strerror}.", "Check it."
            ) from error
        if known is not None and known.data == data:
            manifest = known.manifest
        else:
            manifest = Manifest.from_json(data, self._manifest_path)
        settled = now - status.st_mtime > SETTLED_SECONDS
        return _Reading(stamp if settled else None, data, manifest)

    def backbone_file(self) -> Path:
        """Return the path of the backbone's checkpoint, checked against its checksum."""
        entry = self._known.manifest.backbone
        self._read(entry["file"], entry["sha256"])
        return self.path / entry["file"]

    def state(self, product: Product) -> dict[str, Tensor]:
        """Return the tensors of a product, checked against its checksum."""
        data = self._read(product.file, product.sha256)
        try:
            return safetensors.torch.load(data)
        except safetensors.SafetensorError as error:
            raise BankError(f"{self.path / product.file} is no safetensors file.", RESTORE) from error

    def prototype(self, product: Product) -> npt.NDArray[np.float32]:
        """Return the prototype (D,) of a product; its file is only read if its entry has none."""
        if not product.prototype:
            found: npt.NDArray[np.float32] = self.state(product)["prototype"].numpy()
            return found
        try:
            return np.frombuffer(base64.b64decode(product.prototype, validate=True), "<f4")
        except ValueError as error:
            raise BankError(f"The prototype of {product.name!r} is damaged.", RESTORE) from error

    def samples(self, product: Product) -> Photos:
        """Return the photos (N, S, S, 3) that are kept of a product, checked against their checksum."""
        if not product.samples:
            raise BankError(
                f"The bank keeps no photos of {product.name!r}: it was learnt by an older continuad.",
                "Learn it again.",
            )
        data = self._read(product.samples, product.samples_sha256)
        try:
            return decode(data, self._known.manifest.image_size)
        except ImageError as error:
            raise BankError(
                f"{self.path / product.samples} holds no photos of this bank.", RESTORE
            ) from error

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

    def put(
        self,
        product: Product,
        state: Mapping[str, Tensor],
        *,
        samples: bytes = b"",
        expected: Product | None,
    ) -> Product:
        """Add or replace a product; returns it with files, bytes, checksums and prototype filled in.

        Args:
            product: its entry; what the bank fills in is ignored.
            state: its tensors, "prototype" (D,) float32 among them.
            samples: a few normal photos of it, as `samples.encode` gives them; none if empty.
            expected: the entry that it replaces, None for a new product.

        Raises:
            BankError: another process has added, changed or removed the product meanwhile.
        """
        data = safetensors.torch.save({name: tensor.contiguous().cpu() for name, tensor in state.items()})
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, expected)
            _check_free(manifest.archived, product.name)
            stem = f"products/{file_stem(product.name)}-r{manifest.revision + 1}"
            file, jpeg = f"{stem}.safetensors", f"{stem}.jpg" if samples else ""
            write_whole(self.path / file, data)
            if samples:
                write_whole(self.path / jpeg, samples)
            prototype = base64.b64encode(state["prototype"].cpu().numpy().astype("<f4").tobytes()).decode()
            product = replace(
                product,
                file=file,
                bytes=len(data),
                sha256=hashlib.sha256(data).hexdigest(),
                prototype=prototype,
                samples=jpeg,
                samples_sha256=hashlib.sha256(samples).hexdigest() if samples else "",
            )
            others = _without(manifest.products, product.name)
            self._commit(manifest, products={**others, product.name: product})
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
        """Change a product's entry without touching its files."""
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, expected)
            self._commit(manifest, products={**manifest.products, product.name: product})

    def rename(self, product: Product, name: str) -> Product:
        """Give a product another name; its files and its place among the others stay."""
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, product)
            _check_free({**manifest.products, **manifest.archived}, name)
            renamed = replace(product, name=name)
            entries = [renamed if each == product else each for each in manifest.products.values()]
            self._commit(manifest, products={each.name: each for each in entries})
        return renamed

    def archive(self, product: Product) -> None:
        """Keep a product and its files, but no longer among the products."""
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, product)
            self._commit(
                manifest,
                products=_without(manifest.products, product.name),
                archived={**manifest.archived, product.name: product},
            )

    def restore(self, product: Product) -> None:
        """Make an archived product one of the products again."""
        with self._locked() as manifest:
            _check_unchanged(manifest, product.name, product, archived=True)
            self._commit(
                manifest,
                products={**manifest.products, product.name: product},
                archived=_without(manifest.archived, product.name),
            )

    def remove(self, product: Product) -> None:
        """Remove a product, archived or not, and its files."""
        with self._locked() as manifest:
            archived = product.name in manifest.archived
            _check_unchanged(manifest, product.name, product, archived=archived)
            self._commit(
                manifest,
                products=_without(manifest.products, product.name),
                archived=_without(manifest.archived, product.name),
            )
            self._drop_unfinished(product.name)

    def discard_if_empty(self) -> None:
        """Remove the whole bank, unless it holds a product or unfinished work by now.

        It leaves its place in one step; what remains after a power cut is removed by the next `create` there.
        """
        with _writing(self.path), FileLock(self.path / ".lock", timeout=LOCK_SECONDS):
            if not self.manifest().files and not self._unfinished.exists():
                draft = tempfile.mkdtemp(prefix=f".{self.path.name}-", suffix=DRAFT, dir=self.path.parent)
                shutil.rmtree(self.path.rename(draft), ignore_errors=True)

    def _commit(
        self,
        manifest: Manifest,
        *,
        products: Mapping[str, Product],
        archived: Mapping[str, Product] | None = None,
    ) -> None:
        """Replace the manifest; the lock is held."""
        archived = manifest.archived if archived is None else archived
        manifest = replace(manifest, revision=manifest.revision + 1, products=products, archived=archived)
        write_whole(self._manifest_path, manifest.to_json())

    def _drop_unfinished(self, name: str) -> None:
        """Remove a product's checkpoints; the lock is held."""
        for folder in self._unfinished.glob(f"{file_stem(name)}-*"):
            shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # there is none, or it holds other products' work
            self._unfinished.rmdir()

    def _sweep(self) -> None:
        """Remove what no manifest names, left by this writer or one that was killed; the lock is held.

        What cannot be removed stays for the next writer: what was committed is committed. What no bank would
        have written is left alone, and so is a folder elsewhere that a link leads to.
        """
        named, folder = self.manifest().files, self.path / "products"
        with contextlib.suppress(OSError):
            for file in () if folder.is_symlink() else folder.iterdir():
                if f"products/{file.name}" not in named and OUR_FILE.fullmatch(file.name):
                    file.unlink(missing_ok=True)
            for file in self.path.glob("manifest.json.*"):
                file.unlink(missing_ok=True)


def _without(products: Mapping[str, Product], name: str) -> dict[str, Product]:
    """The other products; one that is learnt anew moves to the end, as its prototype does in the router."""
    return {each: product for each, product in products.items() if each != name}


def _check_free(products: Mapping[str, Product], name: str) -> None:
    if name in products:
        raise ProductError(
            f"The bank has a product called {name!r} already, perhaps archived.", "Choose another name."
        )


def _check_unchanged(
    manifest: Manifest, name: str, expected: Product | None, *, archived: bool = False
) -> None:
    if (manifest.archived if archived else manifest.products).get(name) != expected:
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
