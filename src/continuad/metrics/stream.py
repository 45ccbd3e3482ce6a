"""What is reported about a detector that learns a stream of tasks: averages, forgetting and transfer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from continuad.errors import SettingsError

_ROUNDING = 1e-9  # how far above 1 a metric that is computed by integration may end up


class StreamRow(NamedTuple):
    """One measured score of a stream, as a row of a tidy table."""

    after: str
    task: str
    metric: str
    value: float


class StreamScores:
    """The scores s[i, j] of one metric on task j after learning task i, and what they say of the stream.

    Scores are fractions, higher is better. Forward entries, from before a task was learnt (i < j), may be NaN
    and count in no summary unless it says so. A summary that needs another entry that is NaN is NaN itself:
    none is taken over only some of the tasks.

    Attributes:
        tasks: T names, in the order of learning.
        scores: (T, T) float64 in [0, 1], read-only; NaN where not measured.
    """

    def __init__(self, scores: ArrayLike, *, tasks: Sequence[str]) -> None:
        """Copy and check the scores.

        Raises:
            SettingsError: there is no task, two have the same name, the scores are not (T, T), or one of them
                is neither a fraction nor NaN.
        """
        self.tasks = tuple(tasks)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise SettingsError(
                f"The tasks of a stream cannot be named {list(self.tasks)}.",
                "Give at least one task, each with a name of its own.",
            )
        self.scores = _checked(scores, self.tasks)

    def averages(self) -> NDArray[np.float64]:
        """S_1 .. S_T, (T,) in [0, 1]: after each task, the mean score of the tasks learnt so far."""
        learnt = np.tril(self.scores)
        return np.asarray(learnt.sum(axis=1) / np.arange(1, len(self.tasks) + 1))

    def final_average(self) -> float:
        """S_T in [0, 1]: the mean score of all tasks at the end of the stream."""
        return float(self.averages()[-1])

    def just_trained(self) -> float:
        """The mean of s[j, j], in [0, 1]: how well each task does right after it was learnt."""
        return _mean(np.diagonal(self.scores))

    def forgetting(self) -> float:
        """How far old tasks fell below their best, in [-1, 1]; negative if they gained, NaN for one task.

        Mean over j < T of max_{j <= i < T} s[i, j] - s[T, j]; Chaudhry et al. 2018 (Riemannian Walk), without
        the scores of before a task was learnt.
        """
        best, final = self._best_and_final(include_forward=False)
        return _mean(best - final)

    def relative_forgetting(self, *, include_forward: bool = False, clip: bool = False) -> float:
        """The share of their best that old tasks lost, in (-inf, 1]; a fraction, NaN for one task.

        Mean over j < T of max_{i < T} (s[i, j] - s[T, j]) / s[i, j]: the forgetting of the STFPM/PaSTe replay
        thesis, chapter 5. Its formula includes forward entries, its code also clips. A task whose best is 0
        had nothing to lose and counts 0.

        Args:
            include_forward: let the best be a score from before the task was learnt (i < j), where measured.
            clip: count a task that gained as 0, not negative.
        """
        best, final = self._best_and_final(include_forward=include_forward)
        # (s - final) / s grows with s: the largest share is that of the best score.
        share = np.divide(best - final, best, out=0 * final, where=best != 0)
        return _mean(np.maximum(share, 0) if clip else share)

    def backward_transfer(self) -> float:
        """Mean over j < T of s[T, j] - s[j, j], in [-1, 1]; negative if tasks got worse, NaN for one task.

        Lopez-Paz and Ranzato 2017 (GEM).
        """
        return _mean((self.scores[-1] - np.diagonal(self.scores))[:-1])

    def as_dict(self) -> dict[str, float | None]:
        """All summaries of the whole stream, at their defaults, for JSON; NaN becomes None."""
        summaries = {
            "final_average": self.final_average(),
            "just_trained": self.just_trained(),
            "forgetting": self.forgetting(),
            "relative_forgetting": self.relative_forgetting(),
            "backward_transfer": self.backward_transfer(),
        }
        return {name: None if math.isnan(value) else value for name, value in summaries.items()}

    def rows(self, metric: str) -> list[StreamRow]:
        """Every measured score, forward ones included, under the name `metric`, row by row of the matrix."""
        return [
            StreamRow(after=after, task=task, metric=metric, value=float(value))
            for after, row in zip(self.tasks, self.scores, strict=True)
            for task, value in zip(self.tasks, row, strict=True)
            if not np.isnan(value)
        ]

    def _best_and_final(self, *, include_forward: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The best score before the last step and the final score of each old task, both (T - 1,)."""
        earlier, final = self.scores[:-1, :-1], self.scores[-1, :-1]
        counts = np.tri(len(earlier), dtype=bool)
        if include_forward:
            counts |= ~np.isnan(earlier)
        return np.max(earlier, axis=0, where=counts, initial=0), final


def _checked(scores: ArrayLike, tasks: tuple[str, ...]) -> NDArray[np.float64]:
    """Return a read-only copy of the scores of a stream."""
    needed = (
        f"Give a ({len(tasks)}, {len(tasks)}) array, the score of task j after task i at [i, j], NaN if none."
    )
    try:
        values = np.array(scores, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise SettingsError("The scores of a stream are not an array of numbers.", needed) from error
    if values.shape != (len(tasks), len(tasks)):
        raise SettingsError(f"The scores of {len(tasks)} tasks are of shape {values.shape}.", needed)
    wrong = np.argwhere((values < 0) | (values > 1 + _ROUNDING))
    if len(wrong):
        i, j = wrong[0]
        raise SettingsError(
            f"The score of task {tasks[j]!r} after task {tasks[i]!r} is {values[i, j]:g}.",
            "Give scores as fractions from 0 to 1, not in percent, or NaN where not measured.",
        )
    values.flags.writeable = False
    return values


def _mean(values: NDArray[np.float64]) -> float:
    """Return the mean, or NaN of nothing."""
    return float(values.mean()) if values.size else math.nan
