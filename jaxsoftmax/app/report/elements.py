"""The elements of a page: text, tables, figures. Templates write them as HTML, all escaped."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup
from matplotlib.figure import Figure as Drawing

from jaxsoftmax.app import plots
from jaxsoftmax.app.report import svg
from jaxsoftmax.app.text import format_setting

MAX_PHONE_COLUMNS = 4
"""The largest number of columns that stand side by side on the page of a phone."""

ISOLATE, END_OF_ISOLATE = "\u2068", "\u2069"


def isolate(name: str) -> str:
    r"""Isolate a name, so that its direction of writing does not reorder the rest of a line.

    Args:
        name: any text.

    Returns:
        The name between Unicode's first strong isolate and its end.

    Example:
        >>> from jaxsoftmax.app.report import elements
        >>> ascii(elements.isolate("a"))
        "'\\u2068a\\u2069'"
    """
    return f"{ISOLATE}{name}{END_OF_ISOLATE}"


class Text(NamedTuple):
    """A paragraph; `style` is muted, warning, or nothing. `strong` are its first words, in bold."""

    text: str
    style: str = ""
    strong: str = ""


class Table(NamedTuple):
    """A table. A narrow page shows the rows of many or wide columns as blocks.

    A block has the headings before the values, so that nothing has to be scrolled sideways. rows:
    one value per column; the first value names the row. align: a letter for each column: `l` for
    words, `r` for numbers, and `w` for a wide column.
    """

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[object]]
    align: str

    @property
    def shows_blocks(self) -> bool:
        """Whether a narrow page shows each row as a block."""
        return "w" in self.align or len(self.align) > MAX_PHONE_COLUMNS

    @property
    def cells(self) -> list[list[tuple[object, str, str]]]:
        """The rows, with the alignment and the heading of each value."""
        headings = self.headings if self.shows_blocks else [""] * len(self.headings)
        return [list(zip(row, self.align, headings, strict=True)) for row in self.rows]


class Bars(NamedTuple):
    """A small histogram in a table, and the same in words."""

    counts: Sequence[int]
    words: str

    @property
    def rectangles(self) -> list[tuple[str, str, str, str]]:
        """Return x, y, width and height of each bar, in a box of 120 times 28."""
        step, highest = 120 / len(self.counts), max(self.counts) or 1
        heights = [max(28 * count / highest, 1 if count else 0) for count in self.counts]
        return [
            (f"{i * step:.1f}", f"{28 - height:.1f}", f"{max(step - 1, 1):.1f}", f"{height:.1f}")
            for i, height in enumerate(heights)
        ]


class Figure(NamedTuple):
    """A drawing with its caption; `name` is unique on the page."""

    name: str
    drawing: Markup
    caption: str


def figure(drawn: Drawing, *, name: str, label: str, caption: str) -> Figure:
    """Return a matplotlib figure as an element, in the colors of the page.

    Args:
        drawn: a figure of `plots`.
        name: a name of letters, digits and dashes that is unique on the page.
        label: a description of the figure for readers who cannot see it.
        caption: an explanation of the figure.

    Returns:
        The element. The same figure gives the same text.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> from jaxsoftmax.app.report import elements
        >>> drawn = plots.residuals([1.0, 2.0], [1.0, 2.5], ["price"])
        >>> shown = elements.figure(drawn, name="r", label="A", caption="B")
        >>> "fill: var(--ink)" in shown.drawing, "#22272e" in shown.drawing
        (True, False)
    """
    return Figure(name, svg.convert(drawn, name=name, label=label, colors=plots.PALETTE), caption)


class Details(NamedTuple):
    """Elements that a click unfolds, and that are always unfolded on paper."""

    title: str
    content: "Sequence[Element]"


class Summary(NamedTuple):
    """The main figures in boxes: the name of each, its value, and notes below it."""

    boxes: Sequence[tuple[str, str, Sequence[str]]]


class Command(NamedTuple):
    """A command that one click selects, wrapped between its options but not inside one."""

    line: str

    @property
    def parts(self) -> list[str]:
        """The command, split before each option."""
        return re.split(r" (?=--)", self.line)


Element = Text | Table | Figure | Details | Summary | Command


MAX_NARROW_COLUMNS = 6
"""The largest number of columns of a table in one of the two columns of a wide screen."""


class Section(NamedTuple):
    """A part of a page with a heading."""

    name: str
    title: str
    content: Sequence[Element]

    @property
    def is_wide(self) -> bool:
        """Whether it takes both columns of a wide screen: it is one large table."""
        first = self.content[0]
        return isinstance(first, Table) and (
            "w" in first.align or len(first.align) > MAX_NARROW_COLUMNS
        )


def settings_table(title: str, settings: Mapping[str, Any]) -> Iterable[Table]:
    """Yield a table of settings by their names, or nothing if there are none.

    Args:
        title: the heading above the table.
        settings: values by name.

    Yields:
        At most one table.

    Example:
        >>> from jaxsoftmax.app.report import elements
        >>> [table.rows for table in elements.settings_table("Settings", {"batch_size": 8})]
        [[('batch size', '8')]]
    """
    rows = [(name.replace("_", " "), format_setting(value)) for name, value in settings.items()]
    if rows:
        yield Table(title, ("", ""), rows, "ll")
