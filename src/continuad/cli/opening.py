"""Opening a bank, or creating it for the first product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from continuad.cli.options import DEFAULT_BACKBONE, DEFAULT_IMAGE_SIZE
from continuad.errors import BankError, SettingsError
from continuad.progress import Progress

if TYPE_CHECKING:
    from continuad.inspector import Inspector
    from continuad.runtime import Runtime


@dataclass(frozen=True)
class Foundation:
    """What is settled when a bank is created; None where the user has no wish.

    Attributes:
        backbone: a name in `BACKBONES`.
        weights: as for `load_weights`.
        image_size: pixels.
        routing: the block that prototypes are taken from.
    """

    backbone: str | None = None
    weights: str | None = None
    image_size: int | None = None
    routing: str | None = None


@contextmanager
def open_or_create(
    path: Path, foundation: Foundation, *, head: str, device: str, progress: Progress
) -> Iterator[Inspector]:
    """Give the bank, created if there is none; a new one that ends up without a product is removed again.

    Where the user names no backbone, a new bank gets the one that the method `head` is named after.

    Raises:
        BankError: it cannot be opened, or was created on another foundation.
    """
    from continuad.continual import RoutingSettings
    from continuad.detectors import METHODS
    from continuad.inspector import Inspector, method_of

    check_device(device)
    if not is_free(path):
        inspector = Inspector.open(path, device=device)
        _check_foundation(inspector, foundation)
        yield inspector
        return
    inspector = Inspector.create(
        path,
        backbone=foundation.backbone or METHODS[method_of(head)].backbone or DEFAULT_BACKBONE,
        weights=foundation.weights or "auto",
        image_size=foundation.image_size if foundation.image_size is not None else DEFAULT_IMAGE_SIZE,
        routing=RoutingSettings(foundation.routing) if foundation.routing else None,
        device=device,
        progress=progress,
    )
    try:
        yield inspector
    finally:
        with suppress(BankError):  # an empty bank that stays does no harm
            inspector.bank.discard_if_empty()


def open_to_inspect(path: Path, *, device: str) -> Inspector | Runtime:
    """Open what can inspect: a bank, or an exported one.

    Raises:
        BankError: there is none, or it is damaged.
        ExportError: it was exported, and is damaged.
    """
    from continuad.runtime import Runtime, is_exported

    if is_exported(path):
        if device != "cpu":
            raise SettingsError("An exported bank inspects on the CPU.", "Leave out --device.")
        return Runtime.open(path)
    from continuad.inspector import Inspector

    check_device(device)
    return Inspector.open(path, device=device)


def is_free(path: Path) -> bool:
    """Whether a new bank can be created there."""
    try:
        return not any(path.iterdir())
    except FileNotFoundError:
        return True
    except OSError:  # whoever opens it will say why
        return False


def check_device(device: str) -> None:
    """Raise a `SettingsError` unless torch can compute there."""
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise SettingsError(
            f"Torch cannot compute on the device {device!r}.", "Use cpu, or install a torch for that device."
        ) from error


def _check_foundation(inspector: Inspector, wanted: Foundation) -> None:
    """Raise a `BankError` if the bank was created otherwise than wanted."""
    from continuad.backbones import create_backbone, fingerprint

    manifest = inspector.bank.manifest()
    name = manifest.backbone["name"]
    for option, ours, theirs in (
        ("--backbone", wanted.backbone, name),
        ("--image-size", wanted.image_size, manifest.image_size),
        ("--routing", wanted.routing, manifest.routing["tap"]),
    ):
        if ours is not None and ours != theirs:
            raise _other_foundation(inspector, option, f"{theirs}, not {ours}")
    if wanted.weights is not None:
        backbone = create_backbone(name, weights=wanted.weights)
        if fingerprint(backbone) != fingerprint(inspector.backbone):
            raise _other_foundation(inspector, "--weights", f"weights other than {wanted.weights}")


def _other_foundation(inspector: Inspector, option: str, fact: str) -> BankError:
    return BankError(
        f"The bank {inspector.bank.path} was created with {option} {fact}.",
        f"Leave out {option}, or learn into a new bank.",
    )
