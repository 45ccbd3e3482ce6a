"""Hand-made results of benches: runs whose numbers are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from continuad.bench.grid import RunSpec
from continuad.bench.runner import FailedRun, FinishedRun
from continuad.bench.table import Row, Value

Scores = Sequence[Sequence[Value]]

FORGETS: Scores = [[0.8], [0.4, 0.8], [0.2, 0.4, 0.8]]  # 5/8 of the best, relative
HOLDS: Scores = [[0.8], [0.6, 0.8], [0.6, 0.72, 0.8]]  # 0.175
KEEPS: Scores = [[0.5], [0.5, 0.6], [0.5, 0.6, 0.7]]


def made(
    strategy: str,
    scores: Scores = KEEPS,
    *,
    seed: int = 0,
    shift: float = 0,
    routing: Value = None,
    model: int = 1024,
    memory: int = 0,
    items: int = 0,
    tasks: Sequence[str] = ("bolt", "nut", "cap"),
    scenario: str = "continual",
    method: str = "paste",
    backbone: str = "tiny",
    settings: dict[str, Any] | None = None,
    examples: Path = Path("nowhere"),
    **strategy_settings: Any,
) -> FinishedRun:
    """A run with these P-F1, a row of them for each step; the other metrics follow from it."""
    run = RunSpec(
        method=method,
        backbone=backbone,
        strategy=strategy,
        strategy_settings=strategy_settings,
        settings=settings or {},
        scenario=scenario,
        seed=seed,
        products=tuple(tasks),
        dataset=Path("somewhere/parts"),
    )
    rows = []
    for step, (after, tested) in enumerate(zip(tasks, scores, strict=True)):
        names = tasks[: step + 1] if scenario == "continual" else [after]
        for task, score in zip(names, tested, strict=True):
            score = None if score is None else float(score) + shift
            rows.append({"step": step, "after": after, "task": task, **_measured(score, routing)})
            rows[-1] |= {"learn_seconds": 10.0 * (step + 1), "backbone_bytes": 2**20, "model_bytes": model}
            rows[-1] |= {"memory_items": items, "memory_bytes": memory, "total_bytes": 2**20 + model + memory}
    environment = {"continuad": "0.1", "torch": "2.9", "threads": 1}
    return FinishedRun(f"{seed:032x}", run, rows, 90.5, environment, examples)


def _measured(score: float | None, routing: Value) -> Row:
    image = None if score is None else 0.5 + score / 2
    found: Row = dict.fromkeys(("i_auroc", "i_ap", "i_f1max", "p_auroc"), image)
    found |= dict.fromkeys(("p_f1max", "p_ap", "aupro"), score)
    return {**found, "routing_accuracy": routing, "ms_per_image": 4.0}


def failed_run() -> FailedRun:
    return FailedRun("f" * 32, made("ewc").run, "There is no light. Switch it on.", Path("failed/ffff.txt"))


def seeds(strategy: str, *shifts: float, scores: Scores = KEEPS, **rest: Any) -> list[FinishedRun]:
    return [made(strategy, scores, seed=seed, shift=shift, **rest) for seed, shift in enumerate(shifts)]
