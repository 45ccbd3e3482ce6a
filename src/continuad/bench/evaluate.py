"""The continual protocol: learn all products one after another into one bank, then test on all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import numpy as np

from continuad.datasets import Task
from continuad.detectors import METHODS
from continuad.detectors.base import settings_as_dict
from continuad.errors import BankError
from continuad.images import load_image, load_mask, resize, resize_mask
from continuad.inspector import AUTO, CHOSEN, Inspector, Product, method_of
from continuad.metrics import ImageScores, PixelMetrics, PixelScores, binomial_interval, image_scores
from continuad.progress import Progress, silent
from continuad.runtime import Runtime


@dataclass(frozen=True)
class ProductReport:
    """How well one product is inspected among all the others; rates lie in [0, 1].

    A rate over no image, and a metric that lacks one of its classes, is NaN.

    Attributes:
        product: its name.
        method: its head, a name in `METHODS`.
        train_images: normal images that its head was trained on; not those that set the threshold.
        image: metrics of the image scores; an image sent to another product's head counts with the score that
            it got there.
        pixel: metrics of the anomaly maps at the network's input size, masks resized by nearest neighbour;
            over normal images and over defective ones that have a mask.
        routing_accuracy: share of its test images that were recognised as this product.
        unknown_rate: share of its test images that would be rejected as unknown.
        false_alarm_rate: share of its normal test images called anomalous at the calibrated threshold.
        false_alarm_interval: 95 % Wilson interval of that rate.
        recall: share of its defective test images called anomalous at the calibrated threshold.
        recall_interval: 95 % Wilson interval of that rate.
        learn_seconds: wall time of learning.
        kib: size of its file in the bank.
        ms_per_image: median over its test images, one at a time, from an image in memory at the network's
            input size to the verdict; reading, decoding and resizing a file are not in it.
    """

    product: str
    method: str
    train_images: int
    image: ImageScores
    pixel: PixelScores
    routing_accuracy: float
    unknown_rate: float
    false_alarm_rate: float
    false_alarm_interval: tuple[float, float]
    recall: float
    recall_interval: tuple[float, float]
    learn_seconds: float
    kib: float
    ms_per_image: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, all on one level; NaN becomes None."""
        values = {**vars(self), **vars(self.image), **vars(self.pixel)}
        del values["image"], values["pixel"]
        for name in ("false_alarm_interval", "recall_interval"):
            values[name] = list(values[name])
        return {key: None if value != value else value for key, value in values.items()}


def mean_report(reports: Sequence[ProductReport]) -> dict[str, float | None]:
    """The mean of each measure over the products, leaving out NaN; None where no product has a value.

    The keys are those of `ProductReport.as_dict` that hold one measured number.
    """
    means: dict[str, float | None] = {}
    for key in _MEASURES:
        values = [value for report in reports if (value := report.as_dict()[key]) is not None]
        means[key] = math.fsum(values) / len(values) if values else None
    return means


_MEASURES = (
    *("i_auroc", "i_ap", "i_f1max", "p_auroc", "p_ap", "p_f1max", "aupro"),
    *("routing_accuracy", "unknown_rate", "false_alarm_rate", "recall"),
    *("learn_seconds", "kib", "ms_per_image"),
)


def ignore(product: Product, /) -> None:
    """Do nothing about a product."""


def evaluate(
    inspector: Inspector,
    tasks: Sequence[Task],
    *,
    head: str,
    settings: Mapping[str, Any] | None = None,
    false_alarm_rate: float = 0.01,
    seed: int = 0,
    progress: Progress = silent,
    learnt: Callable[[Product], None] = ignore,
) -> list[ProductReport]:
    """Learn the tasks one after another, then inspect the test images of all of them.

    Args:
        inspector: its bank may hold some of the products already, as an interrupted evaluation leaves it;
            they are not learnt again. Whatever else it holds takes part in the routing.
        tasks: in the order in which they are learnt.
        head: "auto", or a name in `METHODS`.
        settings: changes to the method's settings by name.
        false_alarm_rate: thresholds are calibrated for it.
        seed: of learning.
        progress: told about learning and inspection.
        learnt: called with each product that was learnt in this call.

    Returns:
        One report per task.

    Raises:
        BankError: a product in the bank was learnt otherwise than asked for; nothing was learnt then.
    """
    learn_tasks(
        inspector,
        tasks,
        head=head,
        settings=settings,
        false_alarm_rate=false_alarm_rate,
        seed=seed,
        progress=progress,
        learnt=learnt,
    )
    return [measure(inspector, task, progress=progress) for task in tasks]


def learn_tasks(
    inspector: Inspector,
    tasks: Sequence[Task],
    *,
    head: str,
    settings: Mapping[str, Any] | None = None,
    false_alarm_rate: float = 0.01,
    seed: int = 0,
    progress: Progress = silent,
    learnt: Callable[[Product], None] = ignore,
) -> None:
    """Learn the tasks that the bank does not hold yet, one after another; see `evaluate`."""
    wanted = settings_as_dict(METHODS[method_of(head)].build(inspector.backbone, settings))
    known = inspector.products
    for task in tasks:
        if task.name in known:
            _check_learnt_alike(known[task.name], task, head, wanted, false_alarm_rate, seed)
    for task in tasks:
        if task.name in known:
            continue
        product = inspector.learn(
            task.name,
            task.train,
            head=head,
            settings=settings,
            false_alarm_rate=false_alarm_rate,
            seed=seed,
            progress=partial(_about, progress, task.name),
        )
        learnt(product)


def measure(inspector: Inspector | Runtime, task: Task, *, progress: Progress = silent) -> ProductReport:
    """Inspect a task's test images one by one, routed among all products, none rejected.

    Raises:
        ProductError: the bank, or export, does not hold the product.
    """
    product = inspector.product(task.name)
    size = inspector.image_size
    pixels = PixelMetrics()
    verdicts = []
    for done, sample in enumerate(task.test):
        progress(done, len(task.test), f"{task.name}: inspecting")
        small = resize(load_image(sample.image), size)
        verdict = inspector.inspect(small, reject_unknown=False)
        assert verdict.anomaly_map is not None  # noqa: S101 - nothing is rejected
        if not sample.is_anomalous:
            pixels.update(verdict.anomaly_map[None], np.zeros((1, size, size), np.bool_))
        elif sample.mask is not None:
            pixels.update(verdict.anomaly_map[None], resize_mask(load_mask(sample.mask), size)[None])
        verdicts.append(verdict)
    progress(len(task.test), len(task.test), f"{task.name}: inspecting")

    defective = [sample.is_anomalous for sample in task.test]
    alarms = [verdict.is_anomalous is True for verdict in verdicts]
    false_alarms = [alarm for alarm, is_defective in zip(alarms, defective, strict=True) if not is_defective]
    found = [alarm for alarm, is_defective in zip(alarms, defective, strict=True) if is_defective]
    return ProductReport(
        product=product.name,
        method=product.method,
        train_images=product.images,
        image=image_scores([verdict.score for verdict in verdicts], np.array(defective, np.bool_)),
        pixel=pixels.compute(),
        routing_accuracy=_rate([verdict.product == product.name for verdict in verdicts]),
        unknown_rate=_rate([verdict.distance > 1 for verdict in verdicts]),
        false_alarm_rate=_rate(false_alarms),
        false_alarm_interval=binomial_interval(sum(false_alarms), len(false_alarms)),
        recall=_rate(found),
        recall_interval=binomial_interval(sum(found), len(found)),
        learn_seconds=product.seconds,
        kib=product.bytes / 1024,
        ms_per_image=median(sum(verdict.timings.values()) for verdict in verdicts) if verdicts else math.nan,
    )


def _check_learnt_alike(
    product: Product,
    task: Task,
    head: str,
    settings: Mapping[str, Any],
    false_alarm_rate: float,
    seed: int,
) -> None:
    """Refuse to take over a product that was learnt otherwise than this evaluation would."""
    calibration = product.calibration
    facts = {
        "head": (AUTO if product.reason else product.method, head),
        "number of images": (product.images + len(calibration.scores), len(task.train)),
        "seed": (product.seed, seed),
        "false-alarm rate": (calibration.false_alarm_rate, false_alarm_rate),
    }
    if product.method == method_of(head):
        facts |= {
            f"{name!r} setting": (product.settings.get(name), value)
            for name, value in settings.items()
            if head != AUTO or name not in CHOSEN
        }
    for what, (has, wants) in facts.items():
        if has != wants:
            raise BankError(
                f"The bank holds {product.name!r}, learnt with another {what}: {has}, not {wants}.",
                "Evaluate into a new bank, or let this one forget the product.",
            )


def _about(progress: Progress, name: str, done: int, total: int, what: str, /) -> None:
    progress(done, total, f"{name}: {what}")


def _rate(hits: Sequence[bool]) -> float:
    return sum(hits) / len(hits) if hits else math.nan
