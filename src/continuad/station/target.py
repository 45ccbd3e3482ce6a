"""What a place that verdicts are delivered to can do, and how it says that it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Target(Protocol):
    """A broker, a web hook. Only `close` is called from another thread than the one that sends."""

    @property
    def name(self) -> str:
        """What people call it, within a sentence; holds no secret."""

    def send(self, payloads: Sequence[str]) -> None:
        """Send JSON texts in order; returns once all are confirmed.

        Raises:
            SendError: not all are.
        """

    def close(self) -> None:
        """End what is being sent, as soon as may be; nothing is sent any more."""


class SendError(Exception):
    """Not everything was sent: the target is away, or wants nothing now.

    Args:
        problem: what the target does, as the rest of a sentence that begins with its name; holds no secret.
        sent: how many payloads, from the first on, were confirmed.
        wait: seconds that the target asks to wait.
    """

    def __init__(self, problem: str, *, sent: int = 0, wait: float | None = None) -> None:
        super().__init__(problem)
        self.problem, self.sent, self.wait = problem, sent, wait


class RefusedError(SendError):
    """The payload after those that were sent is one that the target will never take."""
