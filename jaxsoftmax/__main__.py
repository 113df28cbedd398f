"""The entry point of `python -m jaxsoftmax` and of the command `jaxsoftmax`."""

import sys


def main() -> None:
    """Run the command line, or report which package it needs."""
    try:
        from jaxsoftmax.app.cli.app import app

        app(prog_name="jaxsoftmax")
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f"the jaxsoftmax command needs {error.name}: pip install 'jaxsoftmax[cli]'")
    except KeyboardInterrupt:
        print("jaxsoftmax: interrupted, nothing was saved", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
