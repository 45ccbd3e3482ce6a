"""Progress for people: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import math
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from continuad.cli.output import say, stderr

if TYPE_CHECKING:
    from continuad.bench.runner import Standing

LINE_SECONDS = 10.0


class _Bar:
    """A bar with one line, within a `with` block.

    What is printed on the same console meanwhile appears above the bar.
    """

    def __init__(self, console: Console, *columns: ProgressColumn) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            *columns,
            console=console,
            transient=True,
            redirect_stdout=False,  # results stay where they belong
            redirect_stderr=False,
            disable=not console.is_interactive,
        )
        self._task = self._bar.add_task("", visible=False)
        self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def _line(self, text: str) -> None:
        """Print a line, if the last one is some time ago."""
        if time.monotonic() - self._last_line >= LINE_SECONDS:
            say(text, console=self._console)
            self._last_line = time.monotonic()


class ProgressBar(_Bar):
    """Called as the `Progress` protocol says."""

    def __init__(self, console: Console = stderr) -> None:
        super().__init__(console, MofNCompleteColumn(), TimeRemainingColumn(compact=True))
        self._what = ""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Show how far the work is."""
        if self._bar.disable:
            self._line(f"{what}: {done} of {total}")
        elif what != self._what:  # the time left is estimated anew
            self._bar.reset(self._task, total=total, completed=done, description=what, visible=True)
        else:
            self._bar.update(self._task, total=total, completed=done)
        self._what = what


class StandingBar(_Bar):
    """Shows how far a grid of runs is; called with each `Standing`."""

    def __init__(self, console: Console = stderr) -> None:
        super().__init__(console)

    def __call__(self, standing: Standing, /) -> None:
        """Show it."""
        text = describe_standing(standing)
        if self._bar.disable:
            self._line(text)
        self._bar.update(
            self._task, description=text, completed=standing.done, total=standing.total, visible=True
        )


def describe_standing(standing: Standing) -> str:
    """Say how many runs are over, how many of them failed, and how long the rest will take."""
    parts = [f"{math.floor(standing.done)} of {standing.total} runs"]
    if standing.failed:
        parts.append(f"{standing.failed} failed")
    if standing.seconds_left:
        parts.append(f"about {_duration(standing.seconds_left)} left")
    return ", ".join(parts)


def _duration(seconds: float) -> str:
    """A rough duration in the largest fitting unit."""
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
