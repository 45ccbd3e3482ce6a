"""Banks as programs for other runtimes."""

from continuad.export.export import ExportReport, export

__all__ = ["ExportReport", "export"]
