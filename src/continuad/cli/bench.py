"""`continuad bench`: grids of experiments, and the papers' tables."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from continuad.cli.app import UserInterruptError, app, example
from continuad.cli.options import names
from continuad.cli.output import number, print_table, right, say, stderr
from continuad.cli.progress import ProgressBar, StandingBar
from continuad.cli.settings import nested
from continuad.errors import ContinuadError, SettingsError
from continuad.needs import install

if TYPE_CHECKING:
    from continuad.bench.comparison import Comparison
    from continuad.bench.grid import RunSpec
    from continuad.bench.published import Plan
    from continuad.bench.runner import Ended, Results
    from continuad.bench.summary import Group

MOST_WORKERS = 4
SEEDS = (0, 1, 2)


@app.command(
    epilog=example(
        "continuad bench study.toml --workers 4",
        "continuad bench --table thesis-5.3 --data datasets/mvtec_ad",
        "continuad bench --table thesis-5.5 --data datasets/mvtec_ad --products bottle,pill --seeds 0",
        "continuad bench study.toml --engine ray",
    )
)
def bench(
    spec: Annotated[
        Path | None, typer.Argument(metavar="[SPEC.toml]", help="A grid of runs.", show_default=False)
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(
            "--table",
            metavar="NAME",
            show_default=False,
            help="A published table instead: adapts-1 to adapts-4, thesis-5.1 to thesis-5.5.",
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="ROOT",
            show_default="the grid's own, or CONTINUAD_DATA",
            help="Folder of the dataset.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", show_default="bench/NAME", help="Where everything is kept."),
    ] = None,
    engine: Annotated[
        str, typer.Option("--engine", help="local: processes of this machine; ray: a cluster (RAY_ADDRESS).")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            metavar="N",
            min=1,
            show_default=f"as many as there are cores, up to {MOST_WORKERS}",
            help="Runs at once.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Of each run.")] = 1,
    products: Annotated[
        str | None, typer.Option("--products", metavar="A,B", show_default=False, help="In this order.")
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option("--seeds", metavar="A,B", show_default=False, help="A table has 0,1,2 otherwise."),
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", metavar="NAME", show_default=False, help="For all runs.")
    ] = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(
            "--weights",
            metavar="BACKBONE=SOURCE",
            show_default="auto",
            help="A backbone's weights: auto, random, a file or a URL; may be repeated.",
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(
            "--image-size",
            metavar="PIXELS",
            min=32,
            show_default=False,
            help="Side that images are resized to.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            show_default=False,
            help="Change a setting of the methods that have it, such as training.epochs=3; may be repeated.",
        ),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", metavar="DEVICE", show_default="cpu", help="Such as cuda.")
    ] = None,
) -> None:
    """Run a grid of experiments, or a table of the papers, and write a report.

    A grid is a TOML file that names choices, and the runs that they multiply to; the options change what it
    says, and what a published table has:

    \b
      dataset = "datasets/mvtec_ad"     # relative to the file; or --data
      products = ["bottle", "cable"]    # in the order of learning
      method = ["stfpm", "paste"]       # see 'continuad methods'
      backbone = "mobilenet_v2"
      strategy = ["fine-tuning", "replay", "compressed-replay"]
      scenario = "continual"            # or single, multi-class
      seed = [0, 1, 2]
      [settings.paste]
      training.epochs = 30
      [strategy_settings.replay]
      size = 50

    Strategies: fine-tuning, joint, replay, compressed-replay, lwf, ewc, routed.

    Every finished run is kept: interrupted or killed, the same command goes on where it was, and a grid that
    has grown runs only what is new. A run that fails does not stop the others; the next call tries it again.

    The folder gets results.csv (a row for each test of each task), summary.csv (a row for each run) and
    report.html. For a table, published and measured values stand side by side.

    Exit status: 0 done, 2 if a run failed.
    """  # noqa: D301 - \\b is the character that keeps lines together
    from continuad.bench.execute import available_cores
    from continuad.bench.fingerprints import Fingerprints
    from continuad.bench.runner import ENGINES, run_grid
    from continuad.bench.scenario import full_settings, run_scenario

    _ = ENGINES[engine]
    wishes = {
        "dataset": None if data is None else str(data.absolute()),
        "products": names(products),
        "seed": None if seeds is None else _seeds(seeds),
        "backbone": backbone,
        "weights": dict(_source(each) for each in weights or []) or None,
        "image_size": image_size,
        "device": device,
    }
    overrides = {key: value for key, value in wishes.items() if value is not None}
    study = _study(spec, table, overrides, nested(settings or []))
    folder = out or Path("bench") / study.name
    has_report = all(find_spec(name) for name in ("jinja2", "matplotlib"))
    if not has_report:
        say(f"There will be no report.html. For one, run: {install('report')}", console=stderr)
    try:
        with ProgressBar() as reading:
            known = Fingerprints(progress=reading, settings=full_settings)
            for run in study.runs:
                run.key(known)
        with StandingBar() as standing:
            results = run_grid(
                study.runs,
                run_scenario,
                folder=folder,
                engine=engine,
                workers=workers or max(1, min(available_cores() // threads, MOST_WORKERS)),
                threads=threads,
                fingerprints=known,
                progress=standing,
                on_done=_say_ended,
            )
    except KeyboardInterrupt as interrupt:
        raise UserInterruptError(f"Finished runs are in {folder}; the same command goes on.") from interrupt
    _conclude(study, results, folder, has_report=has_report)
    if results.failed:
        count = len(results.failed)
        raise ContinuadError(
            f"{count} of {count + len(results.finished)} runs failed.",
            f"See what happened in {folder / 'failed'}; the same command tries them again.",
        )


@dataclass(frozen=True)
class _Study:
    """What is to be run, and the published table that it measures, if it does."""

    name: str
    title: str
    runs: Sequence[RunSpec]
    plan: Plan | None = None


def _study(
    spec: Path | None, table: str | None, overrides: dict[str, Any], settings: dict[str, Any]
) -> _Study:
    from continuad.bench.grid import load_grid, merged
    from continuad.bench.published import load_published, plan
    from continuad.bench.scenario import applicable
    from continuad.datasets import load_tasks

    usual = os.environ.get("CONTINUAD_DATA")
    defaults = {"dataset": str(Path(usual).absolute())} if usual else {}
    if spec is not None and table is None:
        grid = load_grid(spec, overrides=overrides, defaults=defaults)
        changes = applicable(settings, dict.fromkeys(run.method for run in grid.runs))
        runs = [replace(run, settings=merged(run.settings, changes[run.method])) for run in grid.runs]
        return _Study(grid.name, grid.name, runs)
    if spec is not None or table is None:
        raise SettingsError("There is no single thing to run.", "Give either a SPEC.toml or --table NAME.")
    published = load_published(table)
    overrides = {**defaults, **overrides}
    if "dataset" not in overrides:
        raise SettingsError(f"The table {table} needs images.", "Give their folder with --data ROOT.")
    dataset = Path(overrides["dataset"])
    planned = plan(
        published,
        dataset=dataset,
        available=[task.name for task in load_tasks(dataset)],
        products=overrides.get("products"),
        seeds=overrides.get("seed", SEEDS),
        image_size=overrides.get("image_size"),
        backbone=overrides.get("backbone"),
        weights=overrides.get("weights", {}),
        device=overrides.get("device", "cpu"),
        settings=settings,
    )
    return _Study(table, published.title, planned.runs, planned)


def _conclude(study: _Study, results: Results, folder: Path, *, has_report: bool) -> None:
    """Print and write what came of it."""
    from continuad.bench.published import compare
    from continuad.bench.report import write_report
    from continuad.bench.summary import groups, summary_rows
    from continuad.bench.table import write_table

    if not results.finished:
        return
    together = groups(results.finished)
    _print_groups(together)
    comparisons = [] if study.plan is None else [compare(study.plan, together)]
    for comparison in comparisons:
        _print_comparison(comparison)
    write_table(summary_rows(results.finished), folder / "summary.csv")
    say(f"Tables: {folder / 'results.csv'}, {folder / 'summary.csv'}", console=stderr)
    if has_report:
        report = folder / "report.html"
        write_report(report, title=study.title, results=results, comparisons=comparisons, command=_command())
        say(f"Report: {report}", console=stderr)


def _print_groups(together: Sequence[Group]) -> None:
    """Print a row for all runs that differ in nothing but the seed: means over the seeds."""
    from continuad.bench.summary import labels

    columns = {
        "I-AUROC": ("i_auroc", 1, 3),
        "P-AUROC": ("p_auroc", 1, 3),
        "P-F1": ("p_f1max", 1, 3),
        "forgetting": ("p_f1max_relative_forgetting", 1, 3),
        "routing": ("routing_accuracy", 1, 3),
        "MiB": ("total_bytes", 2**20, 2),
        "learn s": ("learn_seconds", 1, 0),
    }
    print_table(
        ("", *map(right, columns)),
        (
            [label, *(_number(group.mean(name) / unit, digits) for name, unit, digits in columns.values())]
            for label, group in zip(labels(together), together, strict=True)
        ),
        narrow=True,
    )


def _print_comparison(comparison: Comparison) -> None:
    """Print a published table: below each published row what was measured."""
    say(f"\n{comparison.title}\n")
    rows: list[list[str]] = []
    section = ""
    for row in comparison.rows:
        if row.section != section:
            section = row.section
            rows.append([section, *("" for _ in comparison.columns)])
        cells = list(zip(row.cells, comparison.columns, strict=True))
        rows.append([row.label, *(number(cell.published, column.digits) for cell, column in cells)])
        if any(cell.measured is not None for cell, _ in cells):
            rows.append(["  here", *(number(cell.measured, column.digits) for cell, column in cells)])
    titles = (right(column.title.replace(" ", "\n")) for column in comparison.columns)
    print_table(("", *titles), rows, narrow=True)
    for remark in comparison.remarks:
        say(f"- {remark}")


def _number(value: float, digits: int) -> str:
    return number(None if value != value else value, digits)


def _say_ended(ended: Ended, /) -> None:
    """Note on stderr how a run ended."""
    from continuad.bench.runner import FailedRun

    if isinstance(ended, FailedRun):
        say(f"failed: {ended.run}: {ended.problem}", console=stderr)
    else:
        say(f"finished: {ended.run} in {ended.seconds:.0f} s", console=stderr)


def _source(text: str) -> tuple[str, str]:
    """Split "backbone=source"; a file gets its absolute path."""
    backbone, equals, source = text.partition("=")
    if not (backbone and equals and source):
        raise SettingsError(f"--weights {text} names no backbone.", "Write --weights BACKBONE=SOURCE.")
    path = Path(source).expanduser()
    return backbone, str(path.absolute()) if path.exists() else source


def _seeds(text: str) -> list[int]:
    try:
        found = [int(part) for part in names(text) or []]
    except ValueError:
        found = []
    if not found or min(found) < 0:
        raise SettingsError(f"--seeds {text} are not seeds.", "Give whole numbers from 0 up, such as 0,1,2.")
    return found


def _command() -> str:
    return shlex.join(["continuad", *sys.argv[1:]])
