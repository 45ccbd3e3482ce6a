"""Strategies of continual learning on a stream of real products, and the axis behind the thesis's Table 5.5.

    python benchmarks/continual.py DATA --weights mcunet_in4=FILE --work FOLDER [--workers 2]

Runs continual.toml and norm_axis.toml, which lie beside this file, as `continuad bench` does; finished runs
are kept in the work folder. Writes results/continual.md and .csv (a row for each run).
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from continuad.bench.findings import findings
from continuad.bench.fingerprints import Fingerprints
from continuad.bench.grid import load_grid
from continuad.bench.runner import Ended, Results, run_grid
from continuad.bench.scenario import full_settings, run_scenario
from continuad.bench.summary import Group, groups, labels, summary_rows
from continuad.bench.table import write_table

HERE = Path(__file__).parent
SPECS = {
    "Strategies": HERE / "continual.toml",
    "Does the axis of normalisation explain the collapse of 8-bit replay?": HERE / "norm_axis.toml",
}
COLUMNS = {
    "p_f1max": ("P-F1", 1, 3),
    "i_auroc": ("I-AUROC", 1, 3),
    "p_auroc": ("P-AUROC", 1, 3),
    "p_f1max_just_trained": ("P-F1 just trained", 1, 3),
    "p_f1max_relative_forgetting": ("P-F1 lost, relative", 1, 3),
    "p_f1max_forgetting": ("absolute", 1, 3),
    "routing_accuracy": ("routing", 1, 3),
    "model_bytes": ("model KiB", 1024, 0),
    "memory_bytes": ("memory KiB", 1024, 0),
    "learn_seconds": ("learn s", 1, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default=os.environ.get("CONTINUAD_DATA"))
    parser.add_argument("--weights", action="append", default=[], metavar="BACKBONE=FILE")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("name a dataset folder, or set CONTINUAD_DATA")
    weights = dict(each.split("=", 1) for each in arguments.weights)
    overrides = {
        "dataset": str(Path(arguments.data).absolute()),
        "weights": {backbone: str(Path(file).absolute()) for backbone, file in weights.items()},
    }
    known = Fingerprints(settings=full_settings)
    lines = [
        "# Strategies of continual learning",
        "",
        "`python benchmarks/continual.py DATA --weights mcunet_in4=FILE --work FOLDER`",
        "",
        "PaSTe and AdapTS on MCUNet-in4, images of 128 pixels; means over the seeds, ± standard deviation.",
        "Memory is what a strategy keeps beside the model: stored items, importances, prototypes. Seconds",
        "depend on what else the machine did.",
    ]
    every = []
    for title, spec in SPECS.items():
        runs = load_grid(spec, overrides=overrides).runs
        results = run_grid(
            runs,
            run_scenario,
            folder=arguments.work,
            workers=arguments.workers,
            fingerprints=known,
            on_done=announce,
        )
        lines += section(title, results)
        every += [run for run in results.finished if run.key not in {each.key for each in every}]
    results_folder = HERE / "results"
    (results_folder / "continual.md").write_text("\n".join(lines) + "\n")
    write_table(summary_rows(every), results_folder / "continual.csv")


def announce(ended: Ended) -> None:
    print(ended.run, ended.run.strategy_settings, getattr(ended, "problem", "done"), flush=True)


def section(title: str, results: Results) -> list[str]:
    """A table with a row for each group of runs, and what was found."""
    together = groups(results.finished)
    names = labels(together)
    heads = ["", "seeds", *(head for head, _, _ in COLUMNS.values())]
    rows = [
        [name, str(len(group.runs)), *(cell(group, *column) for column in COLUMNS.items())]
        for name, group in zip(names, together, strict=True)
    ]
    tasks = ", ".join(together[0].tasks) if together else ""
    table = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    said = [f"- {each}" for each in findings(together, names, results.failed)]
    return ["", f"## {title}", "", f"Stream: {tasks}.", "", *table, "", *said]


def cell(group: Group, quantity: str, column: tuple[str, float, int]) -> str:
    _, unit, digits = column
    mean, deviation = group.mean(quantity) / unit, group.deviation(quantity) / unit
    if mean != mean:
        return "-"
    return f"{mean:.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation > 0 else "")


if __name__ == "__main__":
    main()
