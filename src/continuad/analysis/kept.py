"""Importances on disk: a file of plain arrays for each product, whole or not there at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from safetensors import safe_open

from continuad.detectors.importance import LayerImportance
from continuad.durable import write_whole
from continuad.errors import ContinuadError, ImageError
from continuad.images import ImageSource, load_image

_ARRAYS = ("explained", "importance", "mean", "std")

# what a killed process may have left behind
_DRAFTS = (
    "importance/*.safetensors.*.tmp",
    "figures/*.svg.*.tmp",
    "figures/*.png.*.tmp",
    "components.csv.*.tmp",
    "report.html.*.tmp",
)


def keep(path: Path, found: Mapping[str, LayerImportance], about: Mapping[str, Any]) -> None:
    """Write the importances of a product's layers; `about` says what they depend on, as plain values.

    The arrays are called LAYER.explained, LAYER.importance, LAYER.mean and LAYER.std; the file's metadata
    holds `about` and the numbers of components as JSON.
    """
    arrays = {f"{layer}.{name}": getattr(each, name) for layer, each in found.items() for name in _ARRAYS}
    components = {layer: [each.components, each.exact] for layer, each in found.items()}
    facts = json.dumps({"about": dict(about), "components": components})
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, safetensors.numpy.save(arrays, metadata={"facts": facts}))


def is_kept(path: Path, about: Mapping[str, Any]) -> bool:
    """Whether the file is there, undamaged, and about the same."""
    try:
        with safe_open(path, framework="numpy") as file:
            return bool(_facts(file).get("about") == json.loads(json.dumps(about)))
    except (OSError, safetensors.SafetensorError, ValueError):
        return False


def load(path: Path) -> dict[str, LayerImportance]:
    """Return the importances, by layer, that `keep` has written."""
    with safe_open(path, framework="numpy") as file:
        return {
            layer: LayerImportance(
                **{name: _array(file, f"{layer}.{name}") for name in _ARRAYS}, components=few, exact=exact
            )
            for layer, (few, exact) in _facts(file)["components"].items()
        }


def digest(images: Sequence[ImageSource]) -> str:
    """SHA-256, in hex, of the bytes of images, in order; neither names nor places count.

    Raises:
        ImageError: one of them cannot be read.
    """
    total = hashlib.sha256()
    for image in images:
        total.update(_bytes_digest(image))
    return total.hexdigest()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Create the folder of an analysis, lock it against others, and turn failures to write into a sentence.

    Raises:
        ContinuadError: it cannot, or another process has locked it.
    """
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock:
            for pattern in _DRAFTS:
                for draft in folder.glob(pattern):
                    draft.unlink(missing_ok=True)
            yield
    except Timeout as error:
        raise ContinuadError(
            f"Another analysis is writing into {folder}.",
            "Wait until it has ended, or give another folder.",
        ) from error
    except OSError as error:
        raise ContinuadError(
            f"{error.filename or folder} cannot be read or written ({error.strerror or error}).",
            "Check free space and permissions; what was found is kept.",
        ) from error


def _facts(file: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((file.metadata() or {}).get("facts", "{}"))
    return facts


def _array(file: Any, name: str) -> NDArray[np.float32]:
    array: NDArray[np.float32] = file.get_tensor(name)
    return array


def _bytes_digest(image: ImageSource) -> bytes:
    if not isinstance(image, str | os.PathLike):
        return hashlib.sha256(load_image(image).tobytes()).digest()
    try:
        with Path(image).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ImageError(
            f"The image {image} cannot be read ({error.strerror}).", "Check its name and permissions."
        ) from error
