"""The product: products on disk, verdicts."""

from continuad.inspector.choice import AUTO, CHOSEN, method_of
from continuad.inspector.inspector import Inspector
from continuad.inspector.product import Calibration, Product

__all__ = ["AUTO", "CHOSEN", "Calibration", "Inspector", "Product", "method_of"]
