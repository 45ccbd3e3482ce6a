"""What a teacher's features are for: chapter 4 of the thesis on any products and backbone."""

from continuad.analysis.analyze import analyze
from continuad.analysis.result import Analysis
from continuad.analysis.study import Study, StudySettings

__all__ = ["Analysis", "Study", "StudySettings", "analyze"]
