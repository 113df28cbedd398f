"""The entry point of `python -m jaxsoftmax` and of the command `jaxsoftmax`."""

import atexit
import gc
import sys

from jaxsoftmax.app.cli import interrupts


def main() -> None:
    """Run the command line, or report which package it needs."""
    interrupts.end_process()
    _collect_rarely()
    try:
        from jaxsoftmax.app.cli.app import app

        app(prog_name="jaxsoftmax")
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"the jaxsoftmax command needs {error.name}: pip install 'jaxsoftmax[cli]'")


def _collect_rarely() -> None:
    """Save the time of searches for garbage, a quarter of that of a short command.

    Nearly all that a command makes, such as modules and compiled programs, it needs to its end, and
    then the system frees all memory at once.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


if __name__ == "__main__":
    main()
