"""How detectors meet a stream of tasks."""

from continuad.continual.routed import HEAD_MEMORY, Inspection, RoutedHeads
from continuad.continual.routing import RoutingSettings

__all__ = ["HEAD_MEMORY", "Inspection", "RoutedHeads", "RoutingSettings"]
