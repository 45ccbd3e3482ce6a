"""How long work reports on itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far long work is."""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Take in steps done, steps in all, and what is being done; raise to stop the work."""


def silent(done: int, total: int, what: str, /) -> None:
    """Report nothing."""


def part(progress: Progress, first: int, last: int, total: int) -> Progress:
    """Return what reports a part of some work as steps `first` to `last` of all of it."""

    def report(done: int, of: int, what: str, /) -> None:
        progress(first + (last - first) * done // max(of, 1), total, what)

    return report
