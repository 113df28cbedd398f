"""The report of a run as one HTML page: its sections, its elements, and the worst mistakes."""

from jaxsoftmax.app.report.context import Run
from jaxsoftmax.app.report.document import html, write

__all__ = ["Run", "html", "write"]
