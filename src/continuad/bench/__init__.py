"""Products learnt in sequence and measured: evaluation and demo."""

from continuad.bench.demo import DemoReport, run_demo
from continuad.bench.evaluate import ProductReport, evaluate, mean_report

__all__ = ["DemoReport", "ProductReport", "evaluate", "mean_report", "run_demo"]
