"""Progress for people: a bar with the time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from continuad.cli.output import say, stderr

LINE_SECONDS = 10.0


class ProgressBar:
    """Called as the `Progress` protocol says, within a `with` block.

    What is printed on the same console meanwhile appears above the bar.
    """

    def __init__(self, console: Console = stderr) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            redirect_stdout=False,  # results stay where they belong
            redirect_stderr=False,
            disable=not console.is_interactive,
        )
        self._task = self._bar.add_task("", visible=False)
        self._what = ""
        self._last_line = time.monotonic()

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Show how far the work is."""
        if self._bar.disable:
            self._line(done, total, what)
        elif what != self._what:  # the time left is estimated anew
            self._bar.reset(self._task, total=total, completed=done, description=what, visible=True)
        else:
            self._bar.update(self._task, total=total, completed=done)
        self._what = what

    def _line(self, done: int, total: int, what: str) -> None:
        if time.monotonic() - self._last_line >= LINE_SECONDS:
            say(f"{what}: {done} of {total}", console=self._console)
            self._last_line = time.monotonic()
