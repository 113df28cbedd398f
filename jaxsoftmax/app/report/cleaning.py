"""Text for any place of a page, without what could break a line or a reader."""

from jaxsoftmax.app.text import JOINERS, replace_unprintable

_ISOLATES = "\u2068\u2069"


def clean(value: str) -> str:
    r"""Replace unprintable characters by spaces.

    Line feeds, joiners, which some scripts are written with, and the isolates of
    `elements.isolate` stay.

    Args:
        value: any text.

    Returns:
        Text of the same length, to be escaped.

    Example:
        >>> from jaxsoftmax.app.report import cleaning
        >>> cleaning.clean("\x1b[31m<b>")
        ' [31m<b>'
    """
    return replace_unprintable(value, keep="\n" + JOINERS + _ISOLATES)
