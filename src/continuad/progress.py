"""How long work reports on itself."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Told how far long work is."""

    def __call__(self, done: int, total: int, what: str, /) -> None:
        """Take in steps done, steps in all, and what is being done; raise to stop the work."""


def silent(done: int, total: int, what: str, /) -> None:
    """Report nothing."""
