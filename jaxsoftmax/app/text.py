"""Names that come from data, made safe to show on a terminal, a page or a figure."""

import unicodedata

JOINERS = "\u200c\u200d"
"""The zero-width non-joiner and joiner, which some scripts and emoji are written with."""


def replace_unprintable(text: str, *, keep: str = "", replacement: str = " ") -> str:
    r"""Replace characters that could steer a terminal or break a line.

    Args:
        text: any text.
        keep: the unprintable characters that stay, such as `JOINERS` or a line feed.
        replacement: the character to write in place of each of the others.

    Returns:
        Text of the same length.

    Example:
        >>> from jaxsoftmax.app import text
        >>> text.replace_unprintable("\x1b[31mred\n", keep="\n")
        ' [31mred\n'
    """
    return "".join(c if c.isprintable() or c in keep else replacement for c in text)


def shorten(name: str, width: int = 18) -> str:
    """Put a name on one line and cut it to a width.

    Args:
        name: any text.
        width: the largest width in lower-case letters. A capital letter is 1.4 wide and an
            East Asian wide letter 2.

    Returns:
        The name, with "…" in place of the part that is cut off, or "(blank)" for a blank name.

    Example:
        >>> from jaxsoftmax.app import text
        >>> text.shorten("number of bedrooms in the house")
        'number of bedroom…'
    """
    name, used = " ".join(name.split()) or "(blank)", 0.0
    for index, letter in enumerate(name):
        is_wide = unicodedata.east_asian_width(letter) in "WF"
        used += 2 if is_wide else 1.4 if letter.isupper() else 1
        if used > width:
            return name[: index - 1].rstrip() + "…"
    return name


def format_setting(value: object) -> str:
    """Format the value of a setting.

    Args:
        value: a number or text.

    Returns:
        Floats with six digits, and others as they are.

    Example:
        >>> from jaxsoftmax.app import text
        >>> text.format_setting(0.1 + 0.2)
        '0.3'
    """
    return f"{value:.6g}" if isinstance(value, float) else str(value)
