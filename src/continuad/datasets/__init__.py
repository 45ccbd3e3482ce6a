"""Where images come from: datasets in folders, as tasks to learn and to be tested on."""

from continuad.datasets.layouts import LAYOUTS, load_tasks
from continuad.datasets.task import Sample, Task, hold_out

__all__ = ["LAYOUTS", "Sample", "Task", "hold_out", "load_tasks"]
