"""The settings and versions of the run."""

from collections.abc import Iterator

from jaxsoftmax.app.report.context import Context
from jaxsoftmax.app.report.elements import Element, settings_table

SHOWN_ELSEWHERE = {"command", "created", "format", "format_version", "generation", "interrupted"}


def render(context: Context) -> Iterator[Element]:
    """Yield a table of all numbers and texts of the header."""
    settings = {
        name: value
        for name, value in context.header.items()
        if isinstance(value, str | int | float) and name not in SHOWN_ELSEWHERE
    }
    yield from settings_table("Settings and versions", settings)
