"""What the paper's method must reach on real photos; CONTINUAD_DATA names a folder with MVTec AD's bottle."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from continuad import Inspector
from continuad.bench.evaluate import evaluate
from continuad.datasets import load_tasks

DATA = os.environ.get("CONTINUAD_DATA")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(DATA is None, reason="CONTINUAD_DATA names no dataset folder"),
]


@pytest.mark.parametrize(("method", "least"), [("adapts-l", 0.95), ("adapts-s", 0.95)])
def test_bottle(tmp_path: Path, method: str, least: float) -> None:
    assert DATA is not None
    inspector = Inspector.create(tmp_path / "bank")
    (report,) = evaluate(inspector, load_tasks(DATA, products=["bottle"]), head=method)
    assert report.image.i_auroc >= least
    assert report.routing_accuracy == 1
