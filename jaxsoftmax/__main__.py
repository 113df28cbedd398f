"""The entry point of `python -m jaxsoftmax` and of the command `jaxsoftmax`."""

import sys


def main() -> None:
    """Run the command line, or report which package it needs."""
    try:
        from jaxsoftmax.app.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "safetensors"}:
            raise
        sys.exit(f"the jaxsoftmax command needs {error.name}: pip install 'jaxsoftmax[cli]'")
    except KeyboardInterrupt:  # during the import of JAX, which takes a second
        sys.exit(130)
    app(prog_name="jaxsoftmax")


if __name__ == "__main__":
    main()
