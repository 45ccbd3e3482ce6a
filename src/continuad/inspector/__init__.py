"""The product: products on disk, verdicts."""

from continuad.inspector.choice import AUTO, CHOSEN, method_of
from continuad.inspector.inspector import ADVISED_IMAGES, MIN_IMAGES, Inspector
from continuad.inspector.product import Calibration, Product

__all__ = [
    "ADVISED_IMAGES",
    "AUTO",
    "CHOSEN",
    "MIN_IMAGES",
    "Calibration",
    "Inspector",
    "Product",
    "method_of",
]
