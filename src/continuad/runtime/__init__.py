"""Verdicts without torch: an exported folder, inspected by OpenVINO or ONNX Runtime."""

from continuad.runtime.folder import is_exported
from continuad.runtime.runtime import Runtime

__all__ = ["Runtime", "is_exported"]
