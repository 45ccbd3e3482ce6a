"""What a detection method costs, whichever it is: its memory, its multiply-accumulates, its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from continuad.detectors.base import Detector
from continuad.detectors.fitted import FittedDetector
from continuad.detectors.trained import schedules
from continuad.errors import ContinuadError
from continuad.metrics.costs import Macs, macs, macs_by_pass, state_bytes
from continuad.metrics.memory import peak_bytes

AnyDetector = TypeVar("AnyDetector", bound=Detector)


@dataclass(frozen=True)
class Costs:
    """Memory in bytes, for one product; multiply-accumulates (half the FLOPs), for one image.

    Training has no costs (None) where a method is not trained by steps, or where they were not asked for.

    Attributes:
        backbone_parameter_bytes: of the frozen backbone up to the method's last tap.
        backbone_buffer_bytes: its batch-norm statistics, with their step counters.
        parameter_bytes: what the method adds, see `StateBytes`.
        buffer_bytes: the same.
        total_bytes: all four.
        macs: of inspecting one image, backbone and method.
        training_macs_forward: of an image's first epoch, when nothing is known of it, with what a training
            does only once, such as calibrating INT8; backward passes left out, as the papers do.
        training_macs: the same with backward passes.
        later_training_macs_forward: of an image's second epoch, which finds what the frozen backbone computes
            for the image itself, but not for a new synthetic anomaly in it.
        later_training_macs: the same with backward passes.
        inspection_peak_bytes: memory for inspecting one image, above what is held already; see `peak_bytes`.
        training_peak_bytes: the same for learning a single minibatch, from nothing to the trained detector.
    """

    backbone_parameter_bytes: int
    backbone_buffer_bytes: int
    parameter_bytes: int
    buffer_bytes: int
    total_bytes: int
    macs: int
    training_macs_forward: int | None = None
    training_macs: int | None = None
    later_training_macs_forward: int | None = None
    later_training_macs: int | None = None
    inspection_peak_bytes: int | None = None
    training_peak_bytes: int | None = None


def method_costs(
    detector: Detector, *, image_size: int, images: int = 200, training: bool = False, peaks: bool = False
) -> Costs:
    """Account for a detector, by running it on noise; random weights cost what any others do.

    Args:
        detector: it stays as it is. Without `training` and `peaks`, it may be on the meta device.
        image_size: side of the network's input in pixels.
        images: of a product; what some methods keep, such as a memory bank, grows with them.
        training: also run two short trainings of a single image.
        peaks: also measure the memory of inspecting an image, and of a minibatch of the settings' size.

    Raises:
        ContinuadError: training or memory cannot be measured on the detector's device.
    """
    backbone = detector.backbone
    device = backbone.mean.device
    if device.type == "meta" and (training or peaks):
        raise ContinuadError(
            "A detector on the meta device can neither be trained nor measured.",
            "Use a backbone with weights='random'.",
        )
    if isinstance(detector, FittedDetector):
        detector = _new(detector, detector.settings)
        detector.reserve(images, image_size)
    last = backbone.order(detector.taps)[-1]
    frozen = backbone.parameter_bytes(last, include_buffers=False)
    statistics = backbone.parameter_bytes(last, include_buffers=True) - frozen
    own = state_bytes(detector)
    image = _noise(1, image_size, device)
    costs = Costs(
        backbone_parameter_bytes=frozen,
        backbone_buffer_bytes=statistics,
        parameter_bytes=own.parameters,
        buffer_bytes=own.buffers,
        total_bytes=frozen + statistics + own.total,
        macs=macs(lambda: detector.anomaly_maps(image)),
    )
    planned = schedules(detector.settings)
    if training and planned:
        first, both = (macs_by_pass(_training(detector, image, steps=steps)) for steps in (1, 2))
        later = Macs(both.forward - first.forward, both.backward - first.backward)
        costs = replace(
            costs,
            training_macs_forward=first.forward,
            training_macs=first.total,
            later_training_macs_forward=later.forward,
            later_training_macs=later.total,
        )
    if peaks:
        detector.anomaly_maps(image)  # libraries set up what they keep
        costs = replace(costs, inspection_peak_bytes=peak_bytes(lambda: detector.anomaly_maps(image), device))
    if peaks and planned:
        batch = _noise(max(each.batch_size for each in planned.values()), image_size, device)
        costs = replace(costs, training_peak_bytes=peak_bytes(_training(detector, batch, steps=1), device))
    return costs


def _noise(count: int, size: int, device: torch.device) -> Tensor:
    """Images (N, 3, S, S) uint8."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, 3, size, size)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8, device="cpu").to(device)


def _training(detector: Detector, images: Tensor, *, steps: int) -> Callable[[], None]:
    """A training of so many steps of a new detector of the same method and settings."""
    shortened = {
        # the rates, which cost nothing, are so low that random weights cannot diverge
        name: replace(each, steps=steps, patience=0, learning_rate=1e-6, final_learning_rate=0.0)
        for name, each in schedules(detector.settings).items()
    }
    new = _new(detector, replace(detector.settings, **shortened))
    return lambda: new.fit(images)


def _new(detector: AnyDetector, settings: Any) -> AnyDetector:
    """An untrained detector of the same method, on the same device."""
    device = detector.backbone.mean.device
    build: Any = type(detector)
    with torch.random.fork_rng(devices=[]), device:
        new: AnyDetector = build(detector.backbone, settings)
    return new.to(device)
