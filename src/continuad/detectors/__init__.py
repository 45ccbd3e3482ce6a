"""Detectors: one file per method, all behind one interface."""

from continuad.detectors import adapts as _adapts  # noqa: F401 - registers its methods
from continuad.detectors.base import METHODS, Detector, Method

__all__ = ["METHODS", "Detector", "Method"]
