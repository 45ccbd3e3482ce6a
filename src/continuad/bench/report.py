"""The report of a bench: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from continuad import __version__, plotting
from continuad.bench import figures
from continuad.bench.comparison import Comparison
from continuad.bench.exam import examples
from continuad.bench.findings import findings
from continuad.bench.runner import FinishedRun, Results
from continuad.bench.summary import METRICS, Group, groups, labels
from continuad.durable import write_whole
from continuad.errors import ContinuadError
from continuad.needs import needed
from continuad.plotting import Drawing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURE_SIDE = 160
"""Pixels that a picture in the report has at most."""

_MIB = 2**20


def write_report(
    path: Path, *, title: str, results: Results, comparisons: Sequence[Comparison] = (), command: str
) -> None:
    """Write a report whole or not at all; the same results give the same bytes.

    Args:
        path: of the HTML file; its folder is created.
        title: what was run.
        results: its runs; pictures are read from the folders that they name, where they are there.
        comparisons: published tables with what was measured.
        command: what repeats it.

    Raises:
        ContinuadError: matplotlib or jinja2 is not installed, a picture is damaged, or the file cannot be
            written.
    """
    jinja2 = needed("jinja2")
    together = groups(results.finished)
    names = labels(together)
    drawings = _drawings(together, names)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"number": _number, "changes": _changes}
    page = environment.from_string(files("continuad.bench").joinpath("report.html").read_text("utf-8"))
    text = page.render(
        title=title,
        version=__version__,
        results=results,
        time=_duration(sum(run.seconds for run in results.finished)),
        findings=findings(together, names, results.failed),
        columns=_columns(together),
        rows=list(zip(names, _colours(together), together, strict=True)),
        comparisons=comparisons,
        drawings=drawings,
        pictures=_pictures(together),
        names=names,
        matrices=_matrices(together, names),
        settings=[_settings(group) for group in together],
        environments=_environments(results.finished),
        environment_names=dict.fromkeys(name for run in results.finished for name in run.environment),
        command=command,
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, text.encode())
    except OSError as error:
        raise ContinuadError(
            f"{path} cannot be written ({error.strerror}).", "Check free space and permissions."
        ) from error


@dataclass(frozen=True)
class SummaryColumn:
    """A column of the summary table.

    Attributes:
        quantity: its name in `summary.quantities`.
        title: with the unit.
        unit: what 1 in the column is in the quantity.
        digits: behind the point.
    """

    quantity: str
    title: str
    unit: float = 1
    digits: int = 3

    def mean(self, group: Group) -> str:
        """Mean over the seeds."""
        return _number(group.mean(self.quantity) / self.unit, self.digits)

    def deviation(self, group: Group) -> str:
        """Standard deviation over the seeds; empty for a single one, and where all agree."""
        value = group.deviation(self.quantity) / self.unit
        return _number(value, self.digits) if value > 1e-9 else ""


SUMMARY = (
    *(SummaryColumn(name, title) for name, title in METRICS.items()),
    SummaryColumn("p_f1max_relative_forgetting", "P-F1 lost, relative"),
    SummaryColumn("p_f1max_forgetting", "P-F1 lost, absolute"),
    SummaryColumn("routing_accuracy", "routing accuracy"),
    SummaryColumn("model_bytes", "model, MiB", _MIB),
    SummaryColumn("memory_bytes", "memory, MiB", _MIB),
    SummaryColumn("total_bytes", "total, MiB", _MIB),
    SummaryColumn("learn_seconds", "learn, s", digits=1),
    SummaryColumn("ms_per_image", "ms/image", digits=1),
)


def _columns(together: Sequence[Group]) -> list[SummaryColumn]:
    """The columns in which there is anything."""
    return [
        column for column in SUMMARY if not all(math.isnan(group.mean(column.quantity)) for group in together)
    ]


def _colours(together: Sequence[Group]) -> list[str]:
    return [style.colour for style in plotting.styles(len(together))]


def _drawings(together: Sequence[Group], names: Sequence[str]) -> list[Drawing]:
    """All figures for which there is anything to draw, one after another: each is let go of once written."""

    def over_time(column: str, title: str, unit: float = 1) -> Callable[[], Figure | None]:
        return lambda: figures.over_time(together, names, column, title, unit=unit)

    def accuracy(metric: str) -> Callable[[], Figure | None]:
        return lambda: figures.accuracy_memory(together, names, metric)

    wanted: dict[str, Callable[[], Figure | None]] = {
        "P-F1 over the stream: mean of the tasks learnt so far.": over_time("p_f1max", "P-F1"),
        "I-AUROC over the stream: mean of the tasks learnt so far.": over_time("i_auroc", "I-AUROC"),
        "P-F1 against memory; bars are standard deviations over the seeds.": accuracy("p_f1max"),
        "I-AUROC against memory; bars are standard deviations over the seeds.": accuracy("i_auroc"),
        "Memory of an item in the replay buffer, and P-F1 with it.": lambda: figures.replay_memory(
            together, names
        ),
        "P-F1 by backbone.": lambda: figures.by_backbone(together),
        "Memory over the stream: the model and what it stores, without the backbone.": over_time(
            "model_bytes+memory_bytes", "MiB", _MIB
        ),
        "Routing accuracy over the stream: mean of the tasks learnt so far.": over_time(
            "routing_accuracy", "routing accuracy"
        ),
        "Time to learn each task.": over_time("learn_seconds", "seconds"),
    }
    return [_drawing(caption, figure) for caption, draw in wanted.items() if (figure := draw()) is not None]


def _matrices(together: Sequence[Group], names: Sequence[str]) -> list[Drawing]:
    return [
        _drawing(name, figure)
        for group, name in zip(together, names, strict=True)
        if (figure := figures.matrix(group)) is not None
    ]


def _drawing(caption: str, figure: Figure) -> Drawing:
    is_wide = float(figure.get_size_inches()[0]) > plotting.WIDTH
    return Drawing(caption, plotting.svg(figure, caption), is_wide)


@dataclass(frozen=True)
class Pictures:
    """A row of pictures, as data URIs; None for one that is not there.

    Attributes:
        task: name of the task.
        photo: a defective part.
        truth: the mask of its defect.
        maps: one for each group.
    """

    task: str
    photo: str | None
    truth: str | None
    maps: Sequence[str | None]


def _pictures(together: Sequence[Group]) -> list[Pictures]:
    """A defect of each task as the first seed of each group saw it at the end."""
    rows = []
    tasks = dict.fromkeys((group.spec.dataset.name, task) for group in together for task in group.tasks)
    for dataset, task in tasks:
        found = [
            examples(group.runs[0].examples, task) if group.spec.dataset.name == dataset else {}
            for group in together
        ]
        shown = next((each for each in found if each), None)
        if shown is not None:
            rows.append(
                Pictures(
                    task,
                    _uri(shown.get("photo")),
                    _uri(shown.get("truth")),
                    [_uri(f.get("map")) for f in found],
                )
            )
    return rows


def _uri(path: Path | None) -> str | None:
    """A picture as a small JPEG."""
    if path is None:
        return None
    try:
        with Image.open(path) as picture:
            small = picture.convert("RGB")
    except OSError as error:
        raise ContinuadError(
            f"{path} cannot be read as a picture.", "Delete it: the report does without."
        ) from error
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _settings(group: Group) -> dict[str, str]:
    """What was run, in words; settings as they differ from their defaults."""
    facts = group.spec.facts()
    return {
        "method": str(facts["method"]),
        "method's changes": _changes(group.spec.settings),
        "strategy": str(facts["strategy"]),
        "strategy's changes": _changes(group.spec.strategy_settings),
        "scenario": str(facts["scenario"]),
        "backbone": str(facts["backbone"]),
        "weights": str(facts["weights"]),
        "dataset": f"{facts['dataset']} ({facts['layout']})",
        "tasks": ", ".join(group.tasks),
        "image size": str(facts["image_size"]),
        "device": str(facts["device"]),
        "seeds": ", ".join(str(run.run.seed) for run in group.runs),
    }


def _changes(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True, ensure_ascii=False) if settings else "none"


def _environments(runs: Sequence[FinishedRun]) -> list[tuple[dict[str, str], int]]:
    """The distinct environments, and how many runs each computed."""
    found: dict[str, tuple[dict[str, str], int]] = {}
    for run in runs:
        facts = {name: str(value) for name, value in run.environment.items()}
        key = json.dumps(facts, sort_keys=True)
        found[key] = (facts, found.get(key, (facts, 0))[1] + 1)
    return list(found.values())


def _number(value: float | None, digits: int) -> str:
    """Format with so many decimals and without a negative zero; a dash for what was not measured."""
    return "-" if value is None or math.isnan(value) else f"{value:z,.{digits}f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
