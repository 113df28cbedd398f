"""`python -m jaxsoftmax` and the command `jaxsoftmax`."""

import sys


def main() -> None:
    """Run the command line, or say what to install for it."""
    try:
        from jaxsoftmax.app.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich", "safetensors"}:
            raise
        sys.exit(f"jaxsoftmax needs {error.name} here: pip install 'jaxsoftmax[cli]'")
    except KeyboardInterrupt:  # while JAX is imported, which takes a second
        sys.exit(130)
    app(prog_name="jaxsoftmax")


if __name__ == "__main__":
    main()
