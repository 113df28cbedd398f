"""The elements of an HTML page: text, tables and matplotlib figures as inline SVG, all escaped."""

import html
import io
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib.style
from matplotlib.figure import Figure

from jaxsoftmax.app.text import JOINERS, replace_unprintable

# Text stays text: it has the page's fonts, letters that matplotlib's fonts lack, and a small size.
_SVG_STYLE = {"svg.fonttype": "none", "svg.image_inline": True}

_ISOLATE, _END_OF_ISOLATE = "\u2068", "\u2069"


class Markup(str):
    """HTML, which a table shows as it is."""


def text(value: object) -> str:
    """Escape text for any place of a page, with unprintable characters replaced by spaces.

    Line feeds, joiners, which some scripts are written with, and the isolates of `isolate` stay.

    Args:
        value: the value to show, converted by `str`.

    Returns:
        HTML, safe between tags and in attributes.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> page.text("<a&b>")
        '&lt;a&amp;b&gt;'
    """
    return html.escape(_clean(str(value)))


def _clean(value: str) -> str:
    return replace_unprintable(value, keep="\n" + JOINERS + _ISOLATE + _END_OF_ISOLATE)


def isolate(name: str) -> str:
    r"""Isolate a name, so that its direction of writing does not reorder the rest of a line.

    Args:
        name: any text.

    Returns:
        The name between Unicode's first strong isolate and its end.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> ascii(page.isolate("a"))
        "'\\u2068a\\u2069'"
    """
    return f"{_ISOLATE}{name}{_END_OF_ISOLATE}"


def table(
    title: str, headings: Sequence[str], rows: Iterable[Sequence[object]], *, align: str
) -> str:
    """Return a table in a box that scrolls where the page is narrow.

    Args:
        title: the heading above the table.
        headings: the headings of its columns.
        rows: rows with one value per column; the first value names the row. All are escaped but
            `Markup`.
        align: a letter for each column: `l` for words, `r` for numbers, and `w` for a column so
            wide that a narrow page shows each row as a block, with headings before the values.

    Returns:
        HTML.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> "<td class=r>0.5</td>" in page.table("Metrics", ["", "loss"], [["a", 0.5]], align="lr")
        True
    """
    shows_blocks = "w" in align
    block_headings = headings if shows_blocks else [""] * len(headings)
    lines = []
    for first, *others in rows:
        cells = [_cell("th scope=row", first, align[0], block_headings[0])]
        rest = zip(others, align[1:], block_headings[1:], strict=True)
        cells += [_cell("td", value, side, heading) for value, side, heading in rest]
        lines.append(f"<tr>{''.join(cells)}</tr>\n")
    head = ""
    if any(headings):
        cells = [_cell("th scope=col", h, side) for h, side in zip(headings, align, strict=True)]
        head = f"<thead><tr>{''.join(cells)}</tr></thead>\n"
    return (
        f"<h3>{text(title)}</h3>\n"
        f'<div class=scroll tabindex=0 role=region aria-label="{text(title)}">\n'
        f"<table{' class=blocks' if shows_blocks else ''}>\n{head}"
        f"<tbody>\n{''.join(lines)}</tbody></table></div>\n"
    )


def _cell(tag: str, value: object, side: str, heading: str = "") -> str:
    # <bdi> keeps the order of the row, whatever a name's direction of writing.
    shown = value if isinstance(value, Markup) else text(value)
    content = shown if side == "r" else f"<bdi>{shown}</bdi>"
    attribute = f' data-heading="{text(heading)}"' if heading else ""
    return f"<{tag} class={side}{attribute}>{content}</{tag.partition(' ')[0]}>"


def details(title: str, content: str) -> str:
    r"""Return HTML that a click unfolds, and that is always unfolded on paper.

    Args:
        title: the text to click.
        content: HTML.

    Returns:
        HTML.

    Example:
        >>> from jaxsoftmax.app.report import page
        >>> page.details("All", "<p>1</p>")
        '<details><summary>All</summary>\n<p>1</p></details>\n'
    """
    return f"<details><summary>{text(title)}</summary>\n{content}</details>\n"


def command(line: str) -> str:
    r"""Return a command that one click selects, wrapped between its options but not inside one.

    Args:
        line: a command line of a shell.

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
    """Return a figure with its caption.

    Args:
        drawn: a matplotlib figure.
        name: a name of letters, digits and dashes that is unique on the page.
        label: a description of the figure for readers who cannot see it.
        caption: an explanation of the figure, as HTML.
        colors: the colors that the page defines as CSS variables, by the names of the variables.

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
    svg = _to_svg(drawn, name, label, colors)
    return f'<figure id="{name}">\n{svg}\n<figcaption>{caption}</figcaption></figure>\n'


def _to_svg(drawn: Figure, name: str, label: str, colors: Mapping[str, str]) -> str:
    """Convert a figure to SVG that shares no ids, styles, colors or fonts with other figures."""
    root = ElementTree.fromstring(_save_svg(drawn, name))
    _remove_styles(root)
    referenced = _referenced_ids(root)
    for element in root.iter():
        _rewrite_element(element, name, referenced, colors)
    # The figure's text of 9 points is then slightly larger than the page's small text.
    width = float(root.attrib.pop("width").removesuffix("pt")) * 1.6
    del root.attrib["height"]
    root.attrib |= {
        "role": "img",
        "aria-label": _clean(label),
        "class": "plot",
        "style": f"max-width: {width:.0f}px",
    }
    return ElementTree.tostring(root, encoding="unicode").strip()


def _save_svg(drawn: Figure, name: str) -> str:
    file = io.StringIO()
    style = {**_SVG_STYLE, "svg.hashsalt": name}
    with matplotlib.style.context(["default", style]), _ignore_missing_glyphs():
        drawn.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


@contextmanager
def _ignore_missing_glyphs() -> Iterator[None]:
    """Ignore letters that matplotlib's font lacks: the browser draws them, in a guessed width."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


def _remove_styles(root: ElementTree.Element) -> None:
    """Remove metadata, and style sheets, which would apply to the whole page.

    The page has the rules of these style sheets already.
    """
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}style")):
                parent.remove(child)


def _referenced_ids(root: ElementTree.Element) -> set[str]:
    return {
        found
        for element in root.iter()
        for value in element.attrib.values()
        for found in re.findall(r"(?:^#|url\(#)(\w+)", value)
    }


def _rewrite_element(
    element: ElementTree.Element, name: str, referenced: set[str], colors: Mapping[str, str]
) -> None:
    """Remove namespaces, unused ids and white space; prefix other ids with the figure's name."""
    element.tag = element.tag.partition("}")[2]
    element.attrib = {
        key.rpartition("}")[2]: _rewrite_attribute(value, name, colors)
        for key, value in element.attrib.items()
        if key != "id" or value in referenced
    }
    if "id" in element.attrib:
        element.set("id", f"{name}-{element.get('id')}")
    if element.tag != "text" and not (element.text or "").strip():
        element.text = None
    if not (element.tail or "").strip():
        element.tail = "\n"


def _rewrite_attribute(value: str, name: str, colors: Mapping[str, str]) -> str:
    """Prefix references with the figure's name, and use the colors and fonts of the page."""
    if value.startswith("data:"):
        return re.sub(r"\s", "", value)
    value = re.sub(r"^#|(?<=url\()#", f"#{name}-", value)
    value = re.sub(r"font-family:[^;]*;? ?", "", value)
    for variable, color in colors.items():
        value = value.replace(color, f"var(--{variable})")
    return re.sub(r"\s+", " ", value).strip()
