"""Visual anomaly detection that keeps learning: one frozen backbone, one tiny head per product.

>>> from continuad import Inspector
>>> inspector = Inspector.create("bank")
>>> inspector.learn("bottle", "photos/bottle/good")
>>> verdict = inspector.inspect("photos/today/0001.png")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from continuad.errors import ContinuadError
from continuad.needs import needed

if TYPE_CHECKING:
    from continuad.inspector import Inspector
    from continuad.runtime import Runtime
    from continuad.verdict import Verdict

__version__ = "0.1.0.dev0"
__all__ = ["ContinuadError", "Inspector", "Runtime", "Verdict", "__version__"]

_LAZY = {"Inspector": "continuad.inspector", "Runtime": "continuad.runtime", "Verdict": "continuad.verdict"}


def __getattr__(name: str) -> Any:
    """Import what is heavy only when it is asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(needed(_LAZY[name]), name)
