"""A detector: learns normal images of a task and gives every pixel of an image an anomaly score."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from continuad.backbones import Backbone
from continuad.errors import SettingsError
from continuad.progress import Progress, silent
from continuad.registry import Registry


class Detector(nn.Module, ABC):
    """The base of all methods.

    The backbone is shared, frozen, and not part of the detector's state: `state_dict` holds what was learnt.

    Attributes:
        taps: the blocks whose features it wants.
        settings: a frozen dataclass.
    """

    taps: tuple[str, ...]
    settings: Any

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self._shared = (backbone,)  # a tuple keeps it out of the modules, and so out of the state

    @property
    def backbone(self) -> Backbone:
        """The frozen backbone that this detector shares with others."""
        return self._shared[0]

    @abstractmethod
    def fit(
        self, images: Tensor, *, seed: int = 0, progress: Progress = silent, checkpoints: Path | None = None
    ) -> None:
        """Learn from normal images. The same images and seed give the same detector.

        Args:
            images: (N, 3, S, S) uint8.
            seed: of all that is random.
            progress: told about long work.
            checkpoints: a folder for unfinished training: the same call goes on with what it finds there. Of
                no other call may it be the folder, and the caller removes it in the end.
        """

    @abstractmethod
    def anomaly_maps(self, images: Tensor, features: Mapping[str, Tensor] | None = None) -> Tensor:
        """Score every pixel; higher is more anomalous.

        Args:
            images: (B, 3, S, S) uint8.
            features: the backbone's outputs at `taps` for these images, where they are already known.

        Returns:
            (B, S, S) float32.
        """

    def image_scores(self, maps: Tensor) -> Tensor:
        """Reduce maps (B, S, S) to one score per image (B,): the mean of the highest pixels."""
        values = maps.flatten(1)
        return values.topk(self.scored_pixels(values.shape[1]), dim=1, sorted=False).values.mean(1)

    def scored_pixels(self, pixels: int) -> int:  # noqa: ARG002 - the maximum is one of any number
        """How many of a map's pixels, the highest, the image score is the mean of."""
        return 1

    def teacher_features(self, images: Tensor, features: Mapping[str, Tensor] | None) -> Mapping[str, Tensor]:
        """Return `features`, or compute the backbone's outputs at `taps`."""
        if features is not None:
            return features
        with torch.no_grad():
            return self.backbone.features(images, self.taps)


@dataclass(frozen=True)
class Method:
    """A named way to build a detector.

    Attributes:
        summary: a line that says what it is.
        detector: called with a backbone and the settings.
        settings: a frozen dataclass.
        backbone: the one that the method is named after and meant for; None for any.
    """

    summary: str
    detector: Any
    settings: Any
    backbone: str | None = None

    def build(self, backbone: Backbone, changes: Mapping[str, Any] | None = None) -> Detector:
        """Return an untrained detector; `changes` replaces single settings by name.

        Raises:
            SettingsError: a setting does not fit, or the method is meant for another backbone.
        """
        if self.backbone not in (None, backbone.name):
            raise SettingsError(
                f"This method is for {self.backbone}, but the backbone is {backbone.name}.",
                f"Use {self.backbone}, or a method for any backbone.",
            )
        settings = self.configure(changes or {})
        with torch.random.fork_rng(devices=[]):  # the caller's random state stays untouched
            detector: Detector = self.detector(backbone, settings)
        return detector

    def configure(self, changes: Mapping[str, Any]) -> Any:
        """Return the settings with some of them replaced.

        Raises:
            SettingsError: a name or a value does not fit.
        """
        return _replace(self.settings, changes)


def _replace(settings: Any, changes: Mapping[str, Any]) -> Any:
    known = [field.name for field in fields(settings)]
    hints = get_type_hints(type(settings))
    values = {}
    for name, value in changes.items():
        if name not in known:
            raise SettingsError(f"There is no setting {name!r}.", f"Choose from: {', '.join(known)}.")
        hint, current = hints[name], getattr(settings, name)
        if is_dataclass(current) and isinstance(value, Mapping):
            value = _replace(current, value)
        elif isinstance(current, tuple) and isinstance(value, list):  # as JSON has it
            value = tuple(value)
        if not _fits(value, hint):
            raise SettingsError(f"{name} is {value!r}.", f"Set {name} to {_described(hint)}.")
        values[name] = value
    return replace(settings, **values)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a settings field is declared with."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is tuple:  # tuple[X, ...]
        return isinstance(value, tuple) and all(_fits(each, arguments[0]) for each in value)
    if origin is Literal:
        return value in arguments
    if arguments:  # X | Y
        return any(_fits(value, each) for each in arguments)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, hint)


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(repr(each) for each in get_args(hint))
    return f"a value of type {hint.__name__ if isinstance(hint, type) else hint}"


def settings_as_dict(detector: Detector) -> dict[str, Any]:
    """The settings of a detector as plain values, enough to build it again with `Method.build`."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(detector.settings)))
    return values


METHODS: Registry[Method] = Registry("method")
