"""The console to which a command prints."""

import sys

from rich.console import Console

from jaxsoftmax.app.cli import output


def make_console(*, quiet: bool) -> Console:
    """Make the console to which a command prints.

    Args:
        quiet: whether to print nothing.

    Returns:
        A rich console that neither wraps lines nor colors numbers.

    Example:
        >>> from jaxsoftmax.app.cli import console
        >>> console.make_console(quiet=True).print("nothing")
    """
    is_json = output.is_json()
    return Console(quiet=quiet, stderr=is_json, highlight=False, markup=False, soft_wrap=True)


def is_terminal(console: Console) -> bool:
    """Return whether lines can be rewritten; rich alone would say yes for a pipe if FORCE_COLOR."""
    return sys.stdout.isatty() and console.is_interactive
