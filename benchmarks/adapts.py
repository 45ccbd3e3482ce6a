"""AdapTS-L, -M and -S on real products, learnt in sequence into one bank each.

    python benchmarks/adapts.py DATA [--work FOLDER] [--methods adapts-s,adapts-m,adapts-l]

Writes results/adapts.json and results/adapts.md beside this file. With `--work`, the banks are kept there,
and an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

import torch

from continuad import Inspector
from continuad.bench.demo import fingerprint
from continuad.bench.evaluate import evaluate, mean_report
from continuad.datasets import load_tasks
from continuad.inspector import Product

RESULTS = Path(__file__).parent / "results"
COLUMNS = {
    "i_auroc": ("I-AUROC", "{:.3f}"),
    "p_auroc": ("P-AUROC", "{:.3f}"),
    "p_ap": ("P-AP", "{:.3f}"),
    "aupro": ("AUPRO", "{:.3f}"),
    "routing_accuracy": ("routing", "{:.3f}"),
    "unknown_rate": ("unknown", "{:.3f}"),
    "false_alarm_rate": ("false alarms", "{:.3f}"),
    "recall": ("recall", "{:.3f}"),
    "kib": ("KiB", "{:.1f}"),
    "learn_seconds": ("learn s", "{:.0f}"),
    "ms_per_image": ("ms/image", "{:.0f}"),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default=os.environ.get("CONTINUAD_DATA"))
    parser.add_argument("--work", type=Path)
    parser.add_argument("--methods", default="adapts-s,adapts-m,adapts-l")
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--weights", default="auto")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("name a dataset folder, or set CONTINUAD_DATA")
    tasks = load_tasks(arguments.data)
    with tempfile.TemporaryDirectory() as scratch:
        work = arguments.work or Path(scratch)
        runs = {}
        for method in arguments.methods.split(","):
            bank = work / f"{arguments.backbone}-{method}"
            if bank.exists():
                inspector = Inspector.open(bank)
            else:
                inspector = Inspector.create(bank, backbone=arguments.backbone, weights=arguments.weights)
            evaluate(inspector, tasks[:1], head=method, learnt=announce)
            proof = work / f"{bank.name}-first.txt"
            if len(inspector.products) == 1:
                proof.write_text(fingerprint(inspector, tasks[0]))
            before = proof.read_text()
            reports = evaluate(inspector, tasks, head=method, learnt=announce)
            after = fingerprint(inspector, tasks[0])
            verdict = "identical" if before == after else "DIFFERENT"
            print(f"{method}: first product then {before}, now {after}: {verdict}", flush=True)
            runs[method] = {
                "products": [report.as_dict() for report in reports],
                "mean": mean_report(reports),
                "first_product": {"name": tasks[0].name, "before": before, "after": after},
            }
    RESULTS.mkdir(exist_ok=True)
    environment = {
        "command": "python benchmarks/adapts.py DATA "
        f"--backbone {arguments.backbone} --methods {arguments.methods}",
        "backbone": arguments.backbone,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
    }
    (RESULTS / "adapts.json").write_text(
        json.dumps({"environment": environment, "runs": runs}, indent=1) + "\n"
    )
    (RESULTS / "adapts.md").write_text(markdown(environment, runs))


def announce(product: Product) -> None:
    print(f"{product.method}: learnt {product.name} in {product.seconds:.0f} s", flush=True)


def markdown(environment: dict[str, object], runs: dict[str, dict[str, object]]) -> str:
    """The tables of a run, a row for each product and method, and the means."""
    settings = ", ".join(f"{key} {value}" for key, value in environment.items() if key != "command")
    lines = ["# AdapTS on real products", "", f"`{environment['command']}` ({settings})", ""]
    lines += [f"| method | product | {' | '.join(title for title, _ in COLUMNS.values())} |"]
    lines += ["|---" * (len(COLUMNS) + 2) + "|"]
    for method, run in runs.items():
        for row in [*run["products"], {"product": "**mean**", **run["mean"]}]:
            cells = [
                "" if row.get(key) is None else form.format(row[key]) for key, (_, form) in COLUMNS.items()
            ]
            lines.append(f"| {method} | {row['product']} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
