"""The teacher-student methods on real products, one bank for each method and backbone.

    python benchmarks/teacher_student.py DATA --weights FOLDER --work FOLDER [--runs stfpm-resnet18,...]

FOLDER of the weights holds a file for each backbone, named as in `FILES`. The banks and the figures of each
finished run are kept in the work folder: an interrupted run goes on where it stopped, and several calls may
work on different runs side by side. Every call writes results/teacher_student.json and .md beside this file,
with all runs that are finished.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from continuad import Inspector
from continuad.bench.evaluate import evaluate, mean_report
from continuad.datasets import load_tasks
from continuad.detectors import METHODS
from continuad.detectors.costs import method_costs
from continuad.inspector import Product
from continuad.metrics.costs import MIB

RESULTS = Path(__file__).parent / "results"
PRODUCTS = "bottle,pill,screw,toothbrush,tile"
FILES = {
    "resnet18": "resnet18_tv_l123.safetensors",
    "mobilenet_v2": "mobilenet_v2.safetensors",
    "mcunet_in4": "mcunet_in4.safetensors",
}


@dataclass(frozen=True)
class Run:
    """A method on a backbone, with changes to its settings and to the images' size."""

    method: str
    backbone: str
    settings: dict[str, Any] = field(default_factory=dict)
    image_size: int = 256


THESIS = {"training": {"min_steps": 0}}
RUNS = {
    "stfpm-resnet18": Run("stfpm", "resnet18", THESIS),
    **{
        f"{method}-{short}": Run(method, backbone, THESIS)
        for short, backbone in (("mobilenetv2", "mobilenet_v2"), ("mcunet4", "mcunet_in4"))
        for method in ("paste", "stfpm")
    },
    "paste-mcunet4-long": Run("paste", "mcunet_in4"),
    "rd4ad-resnet18": Run("rd4ad", "resnet18", {"training": {"steps": 200}}),
    "destseg-resnet18": Run(
        "destseg", "resnet18", {"student": {"steps": 100}, "segmentation": {"steps": 100}}
    ),
    **{
        f"{method}-{short}": Run(method, backbone)
        for short, backbone in (
            ("resnet18", "resnet18"),
            ("mobilenetv2", "mobilenet_v2"),
            ("mcunet4", "mcunet_in4"),
        )
        for method in ("adapts-s", "adapts-m", "adapts-l")
    },
}
COLUMNS = {
    "i_auroc": ("I-AUROC", 1, 3),
    "p_auroc": ("P-AUROC", 1, 3),
    "p_f1max": ("P-F1", 1, 3),
    "p_ap": ("P-AP", 1, 3),
    "aupro": ("AUPRO", 1, 3),
    "learn_seconds": ("train s", 1, 0),
    "ms_per_image": ("ms/image", 1, 0),
}
COSTS = {
    "total_bytes": ("MiB", MIB, 2),
    "added_bytes": ("added MiB", MIB, 2),
    "macs": ("MMACs", 1e6, 0),
    "later_training_macs_forward": ("training MMACs forward", 1e6, 0),
    "later_training_macs": ("with backward", 1e6, 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", nargs="?", default=os.environ.get("CONTINUAD_DATA"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--runs", default=",".join(RUNS))
    parser.add_argument("--products", default=PRODUCTS)
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("name a dataset folder, or set CONTINUAD_DATA")
    tasks = load_tasks(arguments.data, products=arguments.products.split(","))
    arguments.work.mkdir(parents=True, exist_ok=True)
    for name in filter(None, arguments.runs.split(",")):
        run = RUNS[name]
        print(f"{name}: {run}", flush=True)
        bank = arguments.work / name
        if bank.exists():
            inspector = Inspector.open(bank)
        else:
            weights = str(arguments.weights / FILES[run.backbone])
            inspector = Inspector.create(
                bank, backbone=run.backbone, weights=weights, image_size=run.image_size
            )
        reports = evaluate(inspector, tasks, head=run.method, settings=run.settings, learnt=announce)
        detector = METHODS[run.method].build(inspector.backbone, run.settings)
        costs = method_costs(detector, image_size=run.image_size, training=True)
        facts = {
            **asdict(run),
            "settings": dict(inspector.product(tasks[0].name).settings),  # all, as it was learnt
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "products": [report.as_dict() for report in reports],
            "mean": mean_report(reports),
            "costs": {**asdict(costs), "added_bytes": costs.parameter_bytes + costs.buffer_bytes},
        }
        (arguments.work / f"{name}.json").write_text(json.dumps(facts, indent=1))
    finished = {
        name: json.loads(path.read_text())
        for name in RUNS
        if (path := arguments.work / f"{name}.json").exists()
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "teacher_student.json").write_text(json.dumps(finished, indent=1) + "\n")
    (RESULTS / "teacher_student.md").write_text(markdown(finished))


def announce(product: Product) -> None:
    print(f"{product.method}: learnt {product.name} in {product.seconds:.0f} s", flush=True)


def markdown(runs: dict[str, Any]) -> str:
    """A row for each run and product, and the means."""
    titles = [title for title, _, _ in (*COLUMNS.values(), *COSTS.values())]
    lines = [
        "# Teacher-student methods on real products",
        "",
        "`python benchmarks/teacher_student.py DATA --weights FOLDER --work FOLDER`",
        "",
        "MiB: the backbone up to the last block used, and what the method adds, parameters and buffers.",
        "Seconds are those of the last attempt at a training, and depend on what else the machine did; those",
        "of AdapTS-M on ResNet-18 are of quantising what AdapTS-L had learnt: the training is the same.",
        "MMACs: of inspecting an image, and of training on it for an epoch with cached frozen features.",
        "",
        f"| run | product | {' | '.join(titles)} |",
        "|---" * (len(titles) + 2) + "|",
    ]
    for name, run in runs.items():
        rows = [*run["products"], {"product": "**mean**", **run["mean"]}]
        fixed = [f"{run['costs'][key] / unit:.{digits}f}" for key, (_, unit, digits) in COSTS.items()]
        for row in rows:
            cells = [
                "" if row[key] is None else f"{row[key] / unit:.{digits}f}"
                for key, (_, unit, digits) in COLUMNS.items()
            ]
            lines.append(f"| {name} | {row['product']} | {' | '.join([*cells, *fixed])} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
