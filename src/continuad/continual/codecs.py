"""How replayed items are stored: feature maps exactly, in 16 or 8 bits or by principal components; images.

A codec turns the items of one task into one small set of tensors per item, and what the items share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from continuad.errors import SettingsError
from continuad.registry import Registry

Parts = Mapping[str, Tensor]


class Codec(Protocol):
    """A way to store the items of one task."""

    def encode(self, items: Tensor) -> Encoded:
        """Encode items (N, C, H, W) of one task: float32 feature maps or, if they are images, uint8.

        Raises:
            SettingsError: these are not the items that it is for.
        """

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """Return one item (C, H, W) from its own tensors and the shared ones, in the dtype it came in."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded items of one task, on the CPU; no two tensors share memory.

    Attributes:
        codec: what decodes them.
        items: the tensors of each item.
        shared: tensors that all of the items need.
    """

    codec: Codec
    items: Sequence[Parts]
    shared: Parts = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def bytes(self) -> int:
        """The size of all tensors: values, and whatever else is needed to decode them."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def decode(self, indices: Sequence[int]) -> Tensor:
        """Return these items (n, C, H, W), at least one."""
        return torch.stack([self.codec.decode(self.items[index], self.shared) for index in indices])

    def keep(self, indices: Sequence[int]) -> Encoded:
        """Return these items alone; they are not encoded anew, and stay the same to the last bit."""
        return Encoded(self.codec, [self.items[index] for index in indices], self.shared)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, for `from_tensors`."""
        named = {f"shared.{name}": tensor for name, tensor in self.shared.items()}
        for index, parts in enumerate(self.items):
            named |= {f"{index}.{name}": tensor for name, tensor in parts.items()}
        return named

    @classmethod
    def from_tensors(cls, codec: Codec, tensors: Parts) -> Encoded:
        """The inverse of `tensors`."""
        groups: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            owner, _, part = name.partition(".")
            groups.setdefault(owner, {})[part] = tensor
        shared = groups.pop("shared", {})
        return cls(codec, [groups[str(index)] for index in range(len(groups))], shared)


CODECS: Registry[Codec] = Registry("codec")


@dataclass(frozen=True)
class Floats:
    """Feature maps as floating-point numbers of type `dtype`."""

    dtype: torch.dtype

    def encode(self, items: Tensor) -> Encoded:
        """Encode maps, refusing values that `dtype` cannot hold."""
        stored = _maps(items).to(self.dtype)
        if not stored.isfinite().all():
            raise SettingsError(
                f"The feature maps reach {items.abs().max():.3g}, too much for {self.dtype}.",
                "Store them with the codec 'none'.",
            )
        return Encoded(self, [{"values": each.clone()} for each in stored])

    def decode(self, parts: Parts, shared: Parts) -> Tensor:  # noqa: ARG002 - nothing is shared
        """Return one map as float32."""
        return parts["values"].float()


@dataclass(frozen=True)
class Images:
    """Images (3, S, S) uint8 as they are."""

    def encode(self, items: Tensor) -> Encoded:
        """Encode images."""
        if items.dtype != torch.uint8 or items.ndim != 4 or items.shape[1] != 3:
            raise SettingsError(
                f"These are no images but {_described(items)}.",
                "Give (N, 3, S, S) uint8, or store feature maps with another codec.",
            )
        return Encoded(self, [{"pixels": each.clone()} for each in items.cpu().contiguous()])

    def decode(self, parts: Parts, shared: Parts) -> Tensor:  # noqa: ARG002 - nothing is shared
        """Return one image as uint8."""
        return parts["pixels"]


@dataclass(frozen=True)
class EightBit:
    """Feature maps on 256 levels between a minimum and a maximum, which moves no value by over half a level.

    Attributes:
        per: whose minimum and maximum: the whole map's (thesis), or those of each of its channels.
    """

    per: Literal["map", "channel"]

    def encode(self, items: Tensor) -> Encoded:
        """Encode maps: codes uint8, lowest value and step float32."""
        maps = _maps(items)
        dims = (1, 2, 3) if self.per == "map" else (2, 3)
        low = maps.amin(dims, keepdim=True)
        scale = (maps.amax(dims, keepdim=True) - low) / 255
        scale[scale == 0] = 1  # a constant map
        codes = ((maps - low) / scale).round().clamp(0, 255).to(torch.uint8)
        parts = zip(codes, low, scale, strict=True)
        return Encoded(
            self, [{"codes": c.clone(), "low": m.clone(), "scale": s.clone()} for c, m, s in parts]
        )

    def decode(self, parts: Parts, shared: Parts) -> Tensor:  # noqa: ARG002 - nothing is shared
        """Return one map: codes * scale + low."""
        return parts["codes"].float() * parts["scale"] + parts["low"]


@dataclass(frozen=True)
class Pca:
    """Feature maps as scores on principal components over channels; each position is an observation.

    Attributes:
        per: fit a basis to each map (thesis), or one to all maps of the task, which is stored once.
        variance: keep the fewest components that together explain at least this share of the variance.
    """

    per: Literal["map", "task"]
    variance: float = 0.98

    def __post_init__(self) -> None:
        if not 0 < self.variance <= 1:
            raise SettingsError(
                f"A share of {self.variance} of the variance cannot be kept.", "Give one above 0, up to 1."
            )

    def encode(self, items: Tensor) -> Encoded:
        """Encode maps, all float32: scores (n, H, W), components (n, C) and mean (C,)."""
        maps = _maps(items)
        if self.per == "task":
            basis = self._fit(maps)
            return Encoded(self, [{"scores": _project(each, basis)} for each in maps], basis)
        bases = [self._fit(each[None]) for each in maps]
        parts = zip(maps, bases, strict=True)
        return Encoded(self, [{**basis, "scores": _project(each, basis)} for each, basis in parts])

    def decode(self, parts: Parts, shared: Parts) -> Tensor:
        """Return one map: scores on components, plus the mean."""
        every = {**shared, **parts}
        return (
            torch.einsum("nhw,nc->chw", every["scores"], every["components"]) + every["mean"][:, None, None]
        )

    def _fit(self, maps: Tensor) -> dict[str, Tensor]:
        """Components and mean over all positions of these maps."""
        rows = _rows(maps)
        mean = rows.mean(0)
        rows -= mean
        variances, axes = np.linalg.eigh(rows.T @ rows)  # ascending
        explained = np.cumsum([0.0, *variances[::-1].clip(0)])  # none at all will do for a constant map
        count = int(np.searchsorted(explained, self.variance * explained[-1]))
        return {"components": _stored(axes.T[::-1][:count]), "mean": _stored(mean)}


def _project(item: Tensor, basis: Parts) -> Tensor:
    """Scores (n, H, W) of a map (C, H, W) on a basis."""
    scores = (_rows(item[None]) - basis["mean"].numpy()) @ basis["components"].numpy().T
    return _stored(scores.T.reshape(scores.shape[1], *item.shape[1:]))


def _stored(values: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(values.astype(np.float32, order="C"))


def _rows(maps: Tensor) -> NDArray[np.float64]:
    """Maps (N, C, H, W) as observations (N H W, C)."""
    return np.asarray(maps.permute(0, 2, 3, 1).flatten(0, 2).numpy(), np.float64)


def _maps(items: Tensor) -> Tensor:
    """Check that items are feature maps, and return them on the CPU."""
    if items.dtype != torch.float32 or items.ndim != 4:
        raise SettingsError(
            f"These are no feature maps but {_described(items)}.",
            "Give (N, C, H, W) float32, or store images with the codec 'uint8-image'.",
        )
    if not items.isfinite().all():
        raise SettingsError(
            "A feature map holds a value that is infinite or not a number.", "Check the backbone's weights."
        )
    return items.detach().cpu().contiguous()


def _described(items: Tensor) -> str:
    return f"{tuple(items.shape)} {str(items.dtype).removeprefix('torch.')}"


CODECS.register("none")(Floats(torch.float32))
CODECS.register("float16")(Floats(torch.float16))
CODECS.register("int8-map")(EightBit("map"))
CODECS.register("int8-channel")(EightBit("channel"))
CODECS.register("pca-map")(Pca("map"))
CODECS.register("pca-task")(Pca("task"))
CODECS.register("uint8-image")(Images())
