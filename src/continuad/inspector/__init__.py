"""The product: products on disk, verdicts."""

from continuad.inspector.choice import AUTO, CHOSEN, method_of
from continuad.inspector.inspector import Inspector
from continuad.inspector.product import Calibration, Product
from continuad.inspector.verdict import Verdict

__all__ = ["AUTO", "CHOSEN", "Calibration", "Inspector", "Product", "Verdict", "method_of"]
