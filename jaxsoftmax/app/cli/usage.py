"""Errors of usage, such as a wrong option, in the style of all other errors."""

import sys
from typing import Any

import typer
from typer.core import TyperGroup

from jaxsoftmax.app.text import replace_unprintable

# A class of click, or of the copy of it that newer versions of typer have.
_UsageError: type[Any] = typer.BadParameter.__mro__[1]


class Group(TyperGroup):
    """The commands; a wrong option is an error of one line, with status 2."""

    def main(self, *arguments: Any, **given: Any) -> Any:
        """Parse the arguments and run a command."""
        if not given.get("standalone_mode", True):
            return super().main(*arguments, **given)
        try:
            status = super().main(*arguments, **{**given, "standalone_mode": False})
        except _UsageError as error:
            _show(error)
            sys.exit(2)
        sys.exit(status if isinstance(status, int) else 0)


def _show(error: Any) -> None:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        return
    message = _describe_refusal(error)
    command = error.ctx.command_path if error.ctx is not None else "jaxsoftmax"
    line = f"jaxsoftmax: {message[:1].lower()}{message[1:]} (see {command} --help)"
    typer.echo(replace_unprintable(line), err=True)


def _describe_refusal(error: Any) -> str:
    """Return the message with the value that came, which newer versions of typer leave out.

    They validate by pydantic, which says of what kind an error is, and with what it has tried.
    """
    message = error.format_message().strip().rstrip(".").replace(": Value error, ", ": ")
    message = message.replace(": Input should be ", ": must be ").partition(", unable to parse")[0]
    refused: list[dict[str, Any]] = getattr(error.__cause__, "errors", list)()
    given = repr(refused[0]["input"]) if refused else ""
    return message if given in message else f"{message}, got {given}"
