"""Matplotlib figures as inline SVG that shares no ids, styles, colors or fonts with the page."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from xml.etree import ElementTree

import matplotlib.style
from markupsafe import Markup
from matplotlib.figure import Figure

from jaxsoftmax.app.report.cleaning import clean

# Text stays text: it has the page's fonts, letters that matplotlib's fonts lack, and a small size.
_SVG_STYLE = {"svg.fonttype": "none", "svg.image_inline": True}


def convert(drawn: Figure, *, name: str, label: str, colors: Mapping[str, str]) -> Markup:
    """Convert a figure to SVG.

    Args:
        drawn: a matplotlib figure.
        name: a name of letters, digits and dashes that is unique on the page.
        label: a description of the figure for readers who cannot see it.
        colors: the colors that the page defines as CSS variables, by the names of the variables.

    Returns:
        An element `svg`, with all text escaped. The same figure gives the same text.

    Example:
        >>> from jaxsoftmax.app import plots
        >>> from jaxsoftmax.app.report import svg
        >>> drawn = plots.residuals([1.0, 2.0], [1.0, 2.5], ["price"])
        >>> svg.convert(drawn, name="r", label="A", colors={})[:4]
        Markup('<svg')
    """
    root = ElementTree.fromstring(_save(drawn, name))
    _remove_styles(root)
    referenced = _referenced_ids(root)
    for element in root.iter():
        _rewrite_element(element, name, referenced, colors)
    # The figure's text of 9 points is then slightly larger than the page's small text.
    width = float(root.attrib.pop("width").removesuffix("pt")) * 1.6
    del root.attrib["height"]
    root.attrib |= {
        "role": "img",
        "aria-label": clean(label),
        "class": "plot",
        "style": f"max-width: {width:.0f}px",
    }
    return Markup(ElementTree.tostring(root, encoding="unicode").strip())


def _save(drawn: Figure, name: str) -> str:
    file = io.StringIO()
    style = {**_SVG_STYLE, "svg.hashsalt": name}
    with matplotlib.style.context(["default", style]), _ignore_missing_glyphs():
        _lay_out(drawn)
        drawn.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def _lay_out(drawn: Figure) -> None:
    """Place the parts of a figure, for which `savefig` alone would draw it twice."""
    engine = drawn.get_layout_engine()
    if engine is not None:
        engine.execute(drawn)
        drawn.set_layout_engine(None)


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
