"""The command that repeats a run."""

import shlex
from collections.abc import Mapping
from typing import Any


def format_command(verb: str, name: str, options: Mapping[str, Any]) -> str:
    """Format the command that repeats a run.

    Args:
        verb: the command.
        name: the data.
        options: values by option, with every default that a later version might change.

    Returns:
        A line for a shell.

    Example:
        >>> from jaxsoftmax.app.cli import repeat
        >>> repeat.format_command("fit", "my data.csv", {"label": ["a", "b"], "log1p": True})
        "jaxsoftmax fit 'my data.csv' --label a --label b --log1p"
    """
    words = ["jaxsoftmax", verb, name]
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif option == "header" and value is False:
            words.append("--no-header")
        elif value is not None and value is not False:
            values = value if isinstance(value, list) else [value]
            words += [word for item in values for word in (flag, str(item))]
    return shlex.join(words)
