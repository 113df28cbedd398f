"""The entry point of `python -m jaxsoftmax` and of the command `jaxsoftmax`."""

import sys

from jaxsoftmax.app.cli import interrupts


def main() -> None:
    """Run the command line, or report which package it needs."""
    interrupts.end_process()
    try:
        from jaxsoftmax.app.cli.app import app

        app(prog_name="jaxsoftmax")
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"the jaxsoftmax command needs {error.name}: pip install 'jaxsoftmax[cli]'")


if __name__ == "__main__":
    main()
