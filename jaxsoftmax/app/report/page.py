"""The parts of an HTML page: text, tables, and matplotlib figures as inline SVG, all escaped."""

import html
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.figure import Figure

# Text stays text: the page's own fonts, letters that no font of ours has, and a small file.
_SVG = {"svg.fonttype": "none", "svg.image_inline": True}


def text(value: object) -> str:
    """Escape text for any place of a page; letters that steer a terminal or a line are blanked.

    Joiners, with which some scripts are written, and isolates of `isolated` stay.

    Args:
        value: what to show, by `str`.

    Returns:
        HTML, safe between tags and in attributes.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> page.text("<a&b>")
        '&lt;a&amp;b&gt;'
    """
    return html.escape(_clean(str(value)))


def _clean(value: str) -> str:
    kept = "\n\u200c\u200d\u2068\u2069"
    return "".join(c if c.isprintable() or c in kept else " " for c in value)


def isolated(name: str) -> str:
    r"""A name inside a line, which it leaves in order whatever its own direction of writing.

    Args:
        name: any text.

    Returns:
        The name between Unicode's first strong isolate and its end.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> ascii(page.isolated("a"))
        "'\\u2068a\\u2069'"
    """
    return f"\u2068{name}\u2069"


def table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], *, align: str
) -> str:
    """A table in a box of its own, in which it scrolls where the page is narrow.

    Args:
        title: what it shows, for the heading above it.
        headings: of its columns.
        rows: of as many values; the first names the row.
        align: a letter a column, `l` for words, `r` for numbers and `w` for a column so wide that a
            narrow page shows each row as a block, with the headings before the values.

    Returns:
        HTML.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> "<td class=r>0.5</td>" in page.table("Figures", ["", "loss"], [["a", 0.5]], align="lr")
        True
    """

    def cell(tag: str, value: object, side: str, heading: str = "") -> str:
        # Names of any direction of writing leave the rest of the row where it is.
        inside = text(value) if side == "r" else f"<bdi>{text(value)}</bdi>"
        told = f' data-heading="{text(heading)}"' if heading else ""
        return f"<{tag} class={side}{told}>{inside}</{tag.partition(' ')[0]}>"

    blocks = "w" in align
    top = "".join(map(cell, ["th scope=col"] * len(headings), headings, align))
    lines = []
    for values in rows:
        tags = ["th scope=row", *["td"] * (len(values) - 1)]
        told = headings if blocks else [""] * len(values)
        cells = (cell(*parts) for parts in zip(tags, values, align, told, strict=True))
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    head = f"<thead><tr>{top}</tr></thead>\n" if any(headings) else ""
    return (
        f"<h3>{text(title)}</h3>\n"
        f'<div class=scroll tabindex=0 role=region aria-label="{text(title)}">\n'
        f"<table{' class=blocks' if blocks else ''}>\n{head}"
        f"<tbody>\n{''.join(lines)}</tbody></table></div>\n"
    )


def folded(title: str, inside: str) -> str:
    r"""HTML that is unfolded by a click, and always on paper.

    Args:
        title: what to click.
        inside: HTML.

    Returns:
        HTML.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> page.folded("All", "<p>1</p>")
        '<details><summary>All</summary>\n<p>1</p></details>\n'
    """
    return f"<details><summary>{text(title)}</summary>\n{inside}</details>\n"


def command(line: str) -> str:
    r"""A command that one click selects; it is folded between its options, not inside of one.

    Args:
        line: of a shell.

    Returns:
        HTML.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> page.command("fit digits --seed 0")
        '<pre><span>fit digits</span> <span>--seed 0</span></pre>\n'
    """
    parts = (f"<span>{part}</span>" for part in re.split(r" (?=--)", text(line)))
    return f"<pre>{' '.join(parts)}</pre>\n"


def figure(drawn: Figure, *, name: str, label: str, caption: str, colors: Mapping[str, str]) -> str:
    """A figure with its caption.

    Args:
        drawn: by matplotlib.
        name: a word of letters, digits and dashes that no other figure of the page has.
        label: what it shows, to who does not see it.
        caption: what to read in it, as HTML.
        colors: by name, those that the page defines as CSS variables of these names.

    Returns:
        HTML. The same figure gives the same bytes.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> from jaxsoftmax.app.report import page
        >>> drawn = plots.residuals([1.0, 2.0], [1.0, 2.5], ["price"])
        >>> shown = page.figure(drawn, name="r", label="A", caption="B", colors={"ink": "#22272e"})
        >>> "fill: var(--ink)" in shown, "#22272e" in shown
        (True, False)
    """
    svg = _svg(drawn, name, label, colors)
    return f'<figure id="{name}">\n{svg}\n<figcaption>{caption}</figcaption></figure>\n'


def _svg(drawn: Figure, name: str, label: str, colors: Mapping[str, str]) -> str:
    root = ElementTree.fromstring(_saved(drawn, name))
    for parent in list(root.iter()):
        for child in list(parent):
            # A style sheet inside would hold for the whole page, which has the same rule already.
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)
    used = {
        found
        for element in root.iter()
        for value in element.attrib.values()
        for found in re.findall(r"(?:^#|url\(#)(\w+)", value)
    }
    for element in root.iter():
        element.tag = element.tag.partition("}")[2]
        element.attrib = {
            key.rpartition("}")[2]: _attribute(value, name, colors)
            for key, value in element.attrib.items()
            if key != "id" or value in used
        }
        if "id" in element.attrib:
            element.set("id", f"{name}-{element.get('id')}")
        if element.tag != "text" and not (element.text or "").strip():
            element.text = None
        element.tail = "\n" if (element.tail or "").strip() == "" else element.tail
    root.set("role", "img")
    root.set("aria-label", _clean(label))
    root.set("class", "plot")
    # Letters of 9 points in it come out a little larger than the page's small ones.
    root.set(
        "style", f"max-width: {float(root.attrib.pop('width').removesuffix('pt')) * 1.6:.0f}px"
    )
    del root.attrib["height"]
    return ElementTree.tostring(root, encoding="unicode").strip()


def _saved(drawn: Figure, name: str) -> str:
    file = io.StringIO()
    with matplotlib.style.context(["default", _SVG, {"svg.hashsalt": name}]), _any_letter():
        drawn.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


@contextmanager
def _any_letter() -> Iterator[None]:
    """matplotlib's font lacks a letter: it guesses the width, and the browser writes the letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def _attribute(value: str, name: str, colors: Mapping[str, str]) -> str:
    """A value of an attribute with the names of this figure, and the page's colours and fonts."""
    if value.startswith("data:"):
        return re.sub(r"\s", "", value)
    value = re.sub(r"^#|(?<=url\()#", f"#{name}-", value)
    value = re.sub(r"font-family:[^;]*;? ?", "", value)
    for variable, color in colors.items():
        value = value.replace(color, f"var(--{variable})")
    return re.sub(r"\s+", " ", value).strip()
