"""How the sections write names and numbers."""

from collections.abc import Sequence

from jaxsoftmax.app import evaluation
from jaxsoftmax.app.report.elements import isolate

ABSENT = "–"
MAX_LISTED_NAMES = 20  # of more classes or features, the first are named


def list_names(names: Sequence[str]) -> str:
    """Return the first names in a row.

    Args:
        names: the names.

    Returns:
        Isolated names, and an ellipsis for the rest.

    Example:
        >>> from jaxsoftmax.app.report.sections import formats
        >>> len(formats.list_names(["a"] * 50).split(", "))
        21
    """
    listed = ", ".join(map(isolate, names[:MAX_LISTED_NAMES]))
    return listed + (", …" if len(names) > MAX_LISTED_NAMES else "")


def number(value: float) -> str:
    """Format a number of the data: from 1,000 on without decimals, below with four digits.

    Args:
        value: the number.

    Returns:
        A few characters.

    Example:
        >>> from jaxsoftmax.app.report.sections import formats
        >>> formats.number(-12345.6), formats.number(0.125)
        ('−12,346', '0.125')
    """
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.4g}"
    return text.replace("-", "−")


def metric(name: str, value: float | None) -> str:
    """Format a metric as `evaluation.format_metric` does, with the minus of the other numbers.

    Args:
        name: the name of the metric.
        value: its value, or None if it is undefined.

    Returns:
        A few characters.

    Example:
        >>> from jaxsoftmax.app.report.sections import formats
        >>> formats.metric("r2", -0.5)
        '−0.5000'
    """
    return evaluation.format_metric(name, value).replace("-", "−")


def signed(value: float) -> str:
    """Format a contribution with its sign.

    Args:
        value: the number.

    Returns:
        A few characters.

    Example:
        >>> from jaxsoftmax.app.report.sections import formats
        >>> formats.signed(-0.123), formats.signed(1234.0)
        ('−0.12', '+1,234')
    """
    return (f"{value:+,.0f}" if abs(value) >= 100 else f"{value:+.2g}").replace("-", "−")
