"""Pages from templates, in which all that is written is cleaned and escaped."""

import base64
import functools
import hashlib
from collections.abc import Sequence
from importlib import resources

import jinja2
from markupsafe import Markup

from jaxsoftmax.app.report.cleaning import clean
from jaxsoftmax.app.report.elements import Element, Section


def render(title: str, opening: Sequence[Element], sections: Sequence[Section]) -> str:
    """Return an HTML page, which loads nothing and needs no script.

    Its only script sorts tables; the policy of the page names its hash, and stops any other.

    Args:
        title: the title and first heading.
        opening: what comes before the sections.
        sections: the sections; those without content are left out.

    Returns:
        The page. The same arguments give the same text.

    Example:
        >>> from jaxsoftmax.app.report import elements, rendering
        >>> "<p>a &lt; b</p>" in rendering.render("Title", [elements.Text("a < b")], [])
        True
    """
    script = _read("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            opening=opening,
            sections=[section for section in sections if section.content],
            style=Markup(_read("style.css")),
            script=Markup(script),
            script_hash=digest,
        )
    )


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["kind"] = lambda element: type(element).__name__
    return environment


def _finalize(value: object) -> object:
    return value if isinstance(value, Markup) else clean(str(value))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath("templates", name).read_text(encoding="utf-8")
