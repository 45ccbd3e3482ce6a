"""Failures a user can cause: each is one sentence of what is wrong and one of what to do."""

from __future__ import annotations


class ContinuadError(Exception):
    """A failure with a remedy.

    Args:
        problem: one sentence that says what is wrong.
        remedy: one sentence that says what to do about it.
    """

    def __init__(self, problem: str, remedy: str) -> None:
        super().__init__(problem, remedy)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem} {self.remedy}"


class ImageError(ContinuadError):
    """An image cannot be read or should not be."""


class WeightsError(ContinuadError):
    """Backbone weights are missing, damaged or do not fit."""


class DatasetError(ContinuadError):
    """A dataset folder does not look as it should."""


class BankError(ContinuadError):
    """A bank on disk is missing, damaged or cannot be written."""


class ExportError(ContinuadError):
    """An exported bank is missing, damaged or cannot be written."""


class StationError(ContinuadError):
    """The inspection station cannot do what it was asked for."""


class ProductError(ContinuadError):
    """A product name is unknown, taken or not usable."""


class SettingsError(ContinuadError):
    """A setting has a value that cannot work."""


class MissingError(ContinuadError, ImportError):
    """A package is not installed that only an extra brings."""
