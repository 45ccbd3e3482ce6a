"""Where the time of one call goes."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up milliseconds per named stage.

    Attributes:
        stages: name to milliseconds, in the order in which the stages were first met.
    """

    def __init__(self) -> None:
        self.stages: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Book the time since the last lap (or the start) on `stage`."""
        now = time.perf_counter()
        self.stages[stage] = self.stages.get(stage, 0.0) + 1000 * (now - self._last)
        self._last = now
