"""Errors that a user can fix: one line and an exit status in place of a traceback."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from jaxsoftmax.app.cli import interrupts
from jaxsoftmax.app.text import replace_unprintable


@contextmanager
def exit_on_error() -> Iterator[None]:
    """Print an error of this context in one line, and exit.

    Raises:
        typer.Exit: with status 2 for what was asked wrongly: an option, or data that do not suit
            it; 1 for what went wrong: a file that is missing or cannot be read or written, a
            missing package, or a fit that diverged; and 130 for Ctrl-C.
    """
    try:
        yield
    except BrokenPipeError:  # whoever read the output has read enough
        raise
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        # A file's name or a cell may hold characters that control a terminal.
        typer.echo(f"jaxsoftmax: {replace_unprintable(_describe(error), keep='\n')}", err=True)
        raise typer.Exit(2 if isinstance(error, ValueError) else 1) from error
    except KeyboardInterrupt as interrupt:
        typer.echo(interrupts.MESSAGE, err=True)
        raise typer.Exit(interrupts.EXIT_STATUS) from interrupt


@contextmanager
def naming(data: str) -> Iterator[None]:
    """Put the name of the data before the message of a ValueError, which names a row of it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{data}, {error}") from error


_EXTRA = {"safetensors", "pyarrow", "PIL"}


def _describe(error: Exception) -> str:
    """Return the message of an error, and for a package of an extra how to install it."""
    if isinstance(error, ModuleNotFoundError) and error.name in _EXTRA:
        return f"this command needs {error.name}: pip install 'jaxsoftmax[cli]'"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return str(error)
