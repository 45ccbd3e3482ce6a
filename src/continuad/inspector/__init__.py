"""The product: products on disk, verdicts."""

from continuad.inspector.inspector import Inspector
from continuad.inspector.product import Calibration, Product
from continuad.inspector.verdict import Verdict

__all__ = ["Calibration", "Inspector", "Product", "Verdict"]
