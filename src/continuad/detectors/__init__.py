"""Detectors: one file per method, all behind one interface."""

from continuad.detectors import adapts as _adapts  # noqa: F401 - registers its methods
from continuad.detectors import compact as _compact  # noqa: F401
from continuad.detectors import context as _context  # noqa: F401
from continuad.detectors import destseg as _destseg  # noqa: F401
from continuad.detectors import padim as _padim  # noqa: F401
from continuad.detectors import patchcore as _patchcore  # noqa: F401
from continuad.detectors import rd4ad as _rd4ad  # noqa: F401
from continuad.detectors import stfpm as _stfpm  # noqa: F401
from continuad.detectors.base import METHODS, Detector, Method

__all__ = ["METHODS", "Detector", "Method"]
