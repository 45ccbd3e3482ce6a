"""What a bank knows about one product."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from continuad.errors import BankError, ProductError

MAX_NAME = 80


@dataclass(frozen=True)
class Calibration:
    """Where a product's threshold comes from; changing it does not touch the model.

    Attributes:
        scores: raw scores of normal images that were held out of training.
        false_alarm_rate: the stated rate.
        threshold: the score above which an image is anomalous.
    """

    scores: tuple[float, ...]
    false_alarm_rate: float
    threshold: float


@dataclass(frozen=True)
class Product:
    """One product of a bank.

    Attributes:
        name: what the user calls it.
        method: the detector's name in `METHODS`.
        settings: the detector's settings as plain values.
        taps: the blocks whose features its head wants.
        images: normal images that it was trained on.
        seed: of the training and of the held-out split.
        learnt: when, ISO 8601, UTC.
        seconds: how long learning took.
        limit: how far from the prototype an image may lie.
        calibration: threshold and false-alarm rate.
        file: its safetensors file, relative to the bank.
        bytes: size of that file.
        sha256: of that file.
        prototype: the mean embedding of its images, float32 in little endian, in base64; empty in an entry
            that was written before entries had one.
        reason: why its head scores as it does, where that was chosen automatically.
        samples: the file of a few of its normal photos, relative to the bank; empty in an entry that was
            written before banks kept any.
        samples_sha256: of that file.
    """

    name: str
    method: str
    settings: Mapping[str, Any]
    taps: tuple[str, ...]
    images: int
    seed: int
    learnt: str
    seconds: float
    limit: float
    calibration: Calibration
    file: str
    bytes: int
    sha256: str
    prototype: str = field(default="", repr=False)
    reason: str = ""
    samples: str = ""
    samples_sha256: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Plain values for the manifest."""
        return {**vars(self), "calibration": {**vars(self.calibration)}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Product:
        """The inverse of `as_dict`."""
        try:
            calibration = dict(values["calibration"])
            calibration["scores"] = tuple(calibration["scores"])
            values = {"prototype": "", "reason": "", "samples": "", "samples_sha256": "", **values}
            plain = {field.name: values[field.name] for field in fields(cls)}
            plain |= {"taps": tuple(values["taps"]), "calibration": Calibration(**calibration)}
            check_name(plain["name"])
            numbers = (plain["limit"], *calibration["scores"], calibration["threshold"])
            if not all(math.isfinite(number) for number in numbers):
                raise TypeError("a number that is none")
        except (KeyError, TypeError, AttributeError, ProductError) as error:
            raise BankError(
                f"The bank's entry of a product is damaged ({error}).", "Restore the bank from a backup."
            ) from error
        return cls(**plain)


def check_name(name: str) -> str:
    """Return the name of a product without surrounding blanks.

    Raises:
        ProductError: it is empty, too long, or holds control characters.
    """
    stripped = name.strip()
    if not stripped or len(stripped) > MAX_NAME or not stripped.isprintable():
        raise ProductError(
            f"{name!r} cannot be the name of a product.", f"Use 1 to {MAX_NAME} printable characters."
        )
    return stripped


def file_stem(name: str) -> str:
    """A file name for a product: readable, portable, and different for different names."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}".lstrip("-")
