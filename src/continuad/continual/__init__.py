"""How detectors meet a stream of tasks."""

from continuad.continual.routed import Inspection, RoutedHeads
from continuad.continual.routing import PrototypeRouter, Route, RoutingSettings

__all__ = ["Inspection", "PrototypeRouter", "Route", "RoutedHeads", "RoutingSettings"]
