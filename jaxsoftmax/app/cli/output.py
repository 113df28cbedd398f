"""The results of a command: lines for people or, with --json, one object for scripts.

With --json standard output has one JSON object and nothing else, and all messages are on standard
error. A command that fails writes no object; its exit status and message say why.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import typer

_results: ContextVar[dict[str, Any] | None] = ContextVar("results", default=None)


@contextmanager
def collecting(is_json: bool) -> Iterator[None]:
    """Write the results of this context as one JSON object at its end, if asked to.

    Args:
        is_json: whether --json was given.

    Example:
        >>> from jaxsoftmax.app.cli import output
        >>> with output.collecting(True):
        ...     output.write("run: runs/digits", run="runs/digits")
        {"run": "runs/digits"}
    """
    token = _results.set({} if is_json else None)
    try:
        yield
        _print()
    except typer.Exit:  # an interrupted fit, which is saved
        _print()
        raise
    finally:
        _results.reset(token)


def _print() -> None:
    results = _results.get()
    if results:
        typer.echo(json.dumps(results, ensure_ascii=False, allow_nan=False, default=str))


def is_json() -> bool:
    """Return whether results are collected for a script, so that messages are no results.

    Example:
        >>> from jaxsoftmax.app.cli import output
        >>> output.is_json()
        False
    """
    return _results.get() is not None


def write(line: str, **results: Any) -> None:
    """Print a result, or add it to the JSON object of a script.

    Args:
        line: the result for people.
        results: the same by name, of JSON types or paths.

    Example:
        >>> from jaxsoftmax.app.cli import output
        >>> output.write("1 prediction: table.csv", predictions="table.csv", examples=1)
        1 prediction: table.csv
    """
    if is_json():
        add(**results)
    else:
        typer.echo(line)


def add(**results: Any) -> None:
    """Add to the JSON object of a script what people read in tables.

    Args:
        results: values by name, of JSON types or paths.

    Example:
        >>> from jaxsoftmax.app.cli import output
        >>> output.add(accuracy=0.5)
    """
    collected = _results.get()
    if collected is not None:
        collected.update(results)
