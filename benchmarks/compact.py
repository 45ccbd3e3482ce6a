"""What each part of the compact memory bank is worth, and what other heads do with the same images.

    python benchmarks/compact.py DATA --work FOLDER [--workers 2]

Runs compact.toml, which lies beside this file, as `continuad bench` does; finished runs are kept in the work
folder. Writes results/compact.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from continuad.bench.fingerprints import Fingerprints
from continuad.bench.grid import load_grid
from continuad.bench.runner import Ended, FinishedRun, run_grid
from continuad.bench.scenario import full_settings, run_scenario
from continuad.bench.summary import groups, labels

HERE = Path(__file__).parent
FIVE = ("bottle", "capsule", "pill", "screw", "toothbrush")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default=os.environ.get("CONTINUAD_DATA"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("name a dataset folder, or set CONTINUAD_DATA")
    grid = load_grid(HERE / "compact.toml", overrides={"dataset": str(Path(arguments.data).absolute())})
    results = run_grid(
        grid.runs,
        run_scenario,
        folder=arguments.work,
        workers=arguments.workers,
        fingerprints=Fingerprints(settings=full_settings),
        on_done=announce,
    )
    together = groups(results.finished)
    products = together[0].tasks
    heads = ["", "KiB", *products, "five", "all", "P-AUROC", "P-AP", "AUPRO", "learn s", "ms/image"]
    rows = [
        [name, *cells(group.runs[0], products)]
        for name, group in zip(labels(together), together, strict=True)
    ]
    table = ["| " + " | ".join(row) + " |" for row in (heads, ["---"] * len(heads), *rows)]
    lines = [
        "# The compact memory bank, part by part",
        "",
        "`python benchmarks/compact.py DATA --work FOLDER`",
        "",
        "EfficientNet-Lite0, each product learnt alone from all its training images, seed 0, one thread.",
        f"Image AUROC by product; `five` is the mean of {', '.join(FIVE)}. Pixel metrics are means",
        "over the products with masks; KiB, seconds and milliseconds over all. The last two are of a",
        "machine that did other work, too. Unless a row says otherwise, images have 384 pixels.",
        "",
        *table,
    ]
    (HERE / "results" / "compact.md").write_text("\n".join(lines) + "\n")


def announce(ended: Ended) -> None:
    print(ended.run, ended.run.settings, getattr(ended, "problem", "done"), flush=True)


def cells(run: FinishedRun, products: list[str]) -> list[str]:
    rows = {str(row["task"]): row for row in run.rows}

    def mean(column: str, names: list[str] | tuple[str, ...] = tuple(rows), unit: float = 1) -> float:
        return (
            float(np.nanmean([np.nan if (v := rows[name][column]) is None else v for name in names])) / unit
        )

    return [
        f"{mean('model_bytes', unit=1024):,.0f}",
        *(f"{mean('i_auroc', [name]):.3f}" for name in products),
        f"**{mean('i_auroc', FIVE):.3f}**",
        f"**{mean('i_auroc'):.3f}**",
        *(f"{mean(column):.3f}" for column in ("p_auroc", "p_ap", "aupro")),
        f"{mean('learn_seconds'):.0f}",
        f"{mean('ms_per_image'):.0f}",
    ]


if __name__ == "__main__":
    main()
