"""The report of a run, one HTML page: its sections, the page that holds them, what went wrong."""

from jaxsoftmax.app.report.document import Content, html, write

__all__ = ["Content", "html", "write"]
