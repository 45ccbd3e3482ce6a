"""The demo: learn rendered products one after another, inspect them all, prove that nothing was forgotten."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from continuad.bench.evaluate import ProductReport, ignore, learn_tasks, mean_report, measure
from continuad.datasets import Sample, Task
from continuad.datasets.demo import DEMO_PRODUCTS, demo_task, write_mvtec
from continuad.drawing import Pixels, SheetCell, SheetRow, contact_sheet, describe
from continuad.errors import DatasetError, SettingsError
from continuad.images import load_image, load_mask
from continuad.inspector import Inspector, Product
from continuad.inspector.inspector import DEFAULT_BACKBONE, DEFAULT_HEAD
from continuad.progress import Progress, silent

STRANGER = "screw"
"""The product that the demo does not learn, unless it is told to."""

SHOWN = 4
"""Images of each product on the contact sheet and among the photos: one normal, the rest defective."""

TILE = 160
MARKER = ".continuad-demo"


@dataclass(frozen=True)
class MemoryProof:
    """Two inspections of the first product's test images, compared bit for bit.

    Attributes:
        product: the product that was learnt first.
        images: how many test images.
        products_since: how many products were learnt between the two inspections.
        before: SHA-256 over the scores and anomaly maps, right after the product was learnt.
        after: the same at the end, from the bank as it is on disk.
    """

    product: str
    images: int
    products_since: int
    before: str
    after: str

    @property
    def nothing_forgotten(self) -> bool:
        """Whether not a single bit has changed."""
        return self.before == self.after


@dataclass(frozen=True)
class StrangerReport:
    """Images of a product that was never learnt, and how many of them were called unknown."""

    product: str
    images: int
    unknown: int


@dataclass(frozen=True)
class DemoReport:
    """What the demo did and where it lies.

    Attributes:
        products: one report for each product, in the order of learning.
        memory: the proof that the first one was not forgotten.
        stranger: what became of a product that was never learnt.
        seconds: wall time of the whole demo.
        bank: the folder of the bank.
        contact_sheet: a PNG of photos, true defects and heatmaps.
        photos: some of the rendered photos, a folder per product; all that it takes to learn the stranger.
    """

    products: Sequence[ProductReport]
    memory: MemoryProof
    stranger: StrangerReport
    seconds: float
    bank: Path
    contact_sheet: Path
    photos: Path

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; NaN becomes None."""
        return {
            "products": [product.as_dict() for product in self.products],
            "mean": mean_report(self.products),
            "memory": {**asdict(self.memory), "nothing_forgotten": self.memory.nothing_forgotten},
            "stranger": asdict(self.stranger),
            "seconds": round(self.seconds, 3),
            "bank": str(self.bank),
            "contact_sheet": str(self.contact_sheet),
            "photos": str(self.photos),
        }


def run_demo(
    out: Path,
    *,
    products: Sequence[str] | None = None,
    backbone: str = DEFAULT_BACKBONE,
    weights: str = "auto",
    head: str = DEFAULT_HEAD,
    settings: Mapping[str, Any] | None = None,
    image_size: int = 256,
    train: int = 60,
    good: int = 10,
    defective: int = 20,
    seed: int = 0,
    progress: Progress = silent,
    learnt: Callable[[Product], None] = ignore,
) -> DemoReport:
    """Run the demo into a folder: `bank`, `photos`, `contact_sheet.png` and `report.json`.

    Args:
        out: a folder that is new, empty or an earlier demo's; the earlier demo is replaced.
        products: names in `DEMO_PRODUCTS` in the order of learning, at least one of them left out; all but
            `STRANGER` if not given.
        backbone: a name in `BACKBONES`.
        weights: where its weights come from.
        head: a name in `METHODS`.
        settings: changes to the method's settings by name.
        image_size: side in pixels, both of the photos and of the network's input.
        train: photos that each product is learnt from.
        good: normal test photos of each product.
        defective: defective test photos of each product.
        seed: of the photos and of learning.
        progress: told about rendering, learning and inspection.
        learnt: called with each product once it is learnt.

    Raises:
        SettingsError: the folder holds something else, or the products do not make a demo.
        DatasetError: the folder cannot be written.
    """
    started = time.perf_counter()
    names, stranger = _cast(products)
    render = partial(demo_task, size=image_size, train=train, good=good, seed=seed, progress=progress)
    _clear(out)
    inspector = Inspector.create(
        out / "bank", backbone=backbone, weights=weights, image_size=image_size, progress=progress
    )
    tests: list[Task] = []
    before = ""
    for name in names:
        task = render(name, defective=defective)
        learn_tasks(
            inspector, [task], head=head, settings=settings, seed=seed, progress=progress, learnt=learnt
        )
        tests.append(replace(task, train=[]))
        before = before or fingerprint(inspector, task)

    inspector = Inspector.open(out / "bank")
    after = fingerprint(inspector, tests[0])
    memory = MemoryProof(names[0], len(tests[0].test), len(names) - 1, before, after)
    reports = [measure(inspector, task, progress=progress) for task in tests]
    unlearnt = render(stranger, defective=SHOWN - 1)
    verdicts = inspector.inspect([sample.image for sample in unlearnt.test])
    rows = [_row(inspector, task, report) for task, report in zip(tests, reports, strict=True)]
    rows.append(_row(inspector, unlearnt, None))
    heading = (
        f"{len(names)} products learnt one after another{', nothing forgotten' * memory.nothing_forgotten}"
    )
    _write(out, contact_sheet(rows, tile=TILE, heading=heading), [*tests, unlearnt])
    report = DemoReport(
        products=reports,
        memory=memory,
        stranger=StrangerReport(stranger, len(verdicts), sum(v.product is None for v in verdicts)),
        seconds=time.perf_counter() - started,
        bank=out / "bank",
        contact_sheet=out / "contact_sheet.png",
        photos=out / "photos",
    )
    with _writing(out):
        (out / "report.json").write_text(json.dumps(report.as_dict(), indent=1), encoding="utf-8")
    return report


def fingerprint(inspector: Inspector, task: Task) -> str:
    """SHA-256 over the scores and anomaly maps that a product's own head gives its test images."""
    digest = hashlib.sha256()
    for sample in task.test:
        verdict = inspector.inspect(sample.image, product=task.name)
        digest.update(np.float64(verdict.score).tobytes())
        digest.update(np.asarray(verdict.anomaly_map).tobytes())
    return digest.hexdigest()


def _cast(products: Sequence[str] | None) -> tuple[list[str], str]:
    """The products to learn, in order, and the one that is not."""
    if products is None:
        return [name for name in DEMO_PRODUCTS if name != STRANGER], STRANGER
    names = [DEMO_PRODUCTS[name].name for name in products]
    strangers = [name for name in (STRANGER, *DEMO_PRODUCTS) if name not in names]
    if not names or len(set(names)) < len(names) or not strangers:
        raise SettingsError(
            f"The products {', '.join(names) or 'none'} do not make a demo.",
            "Name at least one, none twice, and leave one out, which is shown as a product never learnt.",
        )
    return names, strangers[0]


def _clear(out: Path) -> None:
    """Make `out` a folder without an earlier demo's files, and mark it as a demo's."""
    marker = out / MARKER
    if out.exists() and not marker.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"{out} exists and is not an earlier demo's folder.", "Choose another folder.")
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for folder in ("bank", "photos"):
            if (out / folder).exists():
                shutil.rmtree(out / folder)
        for file in ("contact_sheet.png", "report.json"):
            (out / file).unlink(missing_ok=True)


def _write(out: Path, sheet: Pixels, tasks: Sequence[Task]) -> None:
    """Save the contact sheet, and the shown photos of each task beside those that it is to be learnt from."""
    with _writing(out):
        Image.fromarray(sheet).save(out / "contact_sheet.png")
        for task in tasks:
            write_mvtec(replace(task, test=_shown(task)), out / "photos" / task.name)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turn a failure to write into a sentence."""
    try:
        yield
    except OSError as error:
        raise DatasetError(
            f"{error.filename or out} cannot be written ({error.strerror or error}).",
            "Check free space and permissions.",
        ) from error


def _shown(task: Task) -> list[Sample]:
    """The first normal test image and the first few defective ones, which are of different kinds."""
    normal = [sample for sample in task.test if not sample.is_anomalous]
    defective = [sample for sample in task.test if sample.is_anomalous]
    return [*normal[:1], *defective[: SHOWN - 1]]


def _row(inspector: Inspector, task: Task, report: ProductReport | None) -> SheetRow:
    """A product's row on the contact sheet; without a report, that of a product never learnt."""
    cells = []
    samples = _shown(task)
    for sample, verdict in zip(samples, inspector.inspect([each.image for each in samples]), strict=True):
        label = f"{sample.defect.replace('_', ' ')} · {describe(verdict)}"
        if verdict.product not in (None, task.name):
            label += f" as {verdict.product}"
        is_correct = verdict.product is None
        if report is not None:
            is_correct = verdict.product == task.name and verdict.is_anomalous == sample.is_anomalous
        mask = None if sample.mask is None else load_mask(sample.mask)
        cells.append(SheetCell(load_image(sample.image), verdict, label, is_correct, mask))
    if report is None:
        return SheetRow(task.name, cells, "never learnt")
    note = (
        f"I-AUROC {report.image.i_auroc:.3f}\nP-AUROC {report.pixel.p_auroc:.3f}\n"
        f"{report.kib:.1f} KiB · {report.learn_seconds:.1f} s"
    )
    return SheetRow(task.name, cells, note)
