"""The README.md of this folder: contents in the order of a course, and a page for each document.

Command: `python experiments/gallery.py`, seconds. It rewrites the text between the markers
`<!-- gallery -->` and `<!-- end -->`; a test compares the two. `--draw` also draws all figures
again from their records, without measuring anything.

A document's docstring ends in its findings: the claim in a sentence, at most three findings after
dashes, and the details.
"""

import argparse
import ast
import importlib
import re
from pathlib import Path
from typing import NamedTuple

import measure

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
# In the order of a course, with what to read before.
DOCUMENTS = {
    "regression_or_classification": (),
    "losses_of_a_classifier": ("regression_or_classification",),
    "prediction_minus_truth": ("losses_of_a_classifier",),
    "softmax_is_sigmoid": ("prediction_minus_truth",),
    "divergences": ("prediction_minus_truth",),
    "temperature": ("prediction_minus_truth",),
    "stability": ("prediction_minus_truth",),
    "minibatches": ("prediction_minus_truth",),
    "scores_and_margin": ("losses_of_a_classifier", "temperature"),
    "image_classification": ("minibatches",),
    "malware_families": ("image_classification",),
    "toxic_comments": ("softmax_is_sigmoid",),
    "protein_classes": ("toxic_comments",),
}

# Of the main page; benchmark.py draws the others there.
PICTURES = ("gpu_by_classes",)


class Page(NamedTuple):
    """The parts of a document's docstring that its page shows."""

    title: str
    claim: str
    findings: list[str]
    details: str

    @property
    def anchor(self) -> str:
        """Return the title's address on the page, as GitHub makes it."""
        return re.sub(r"[^\w\- ]", "", self.title.lower()).replace(" ", "-")


def main() -> None:
    """Rewrite README.md, and draw the figures if asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="draw all figures from their records")
    if parser.parse_args().draw:
        for name in (*DOCUMENTS, *PICTURES):
            draw(name)
    README.write_text(rendered(README.read_text()))


def draw(name: str) -> None:
    """Draw a figure from its record."""
    import document  # slow, and not needed for the page
    import figures

    module = importlib.import_module(name)
    beside = module.drawn_beside() if hasattr(module, "drawn_beside") else ()
    figure = document.drawn(module.draw, document.recorded(name), *beside)
    figures.save(figure, measure.RESULTS / f"{name}.png")


def rendered(text: str) -> str:
    """Return the text with a new gallery."""
    pages = {name: page(name) for name in DOCUMENTS}
    marked = re.compile(r"(<!-- gallery -->\n).*?(\n<!-- end -->)", re.DOTALL)
    found = contents(pages) + "\n\n" + "\n\n".join(entry(*item) for item in pages.items())
    text, count = marked.subn(lambda match: match[1] + found + match[2], text)
    if count != 1:
        raise ValueError(f"README.md must hold <!-- gallery --> once, got {count}")
    return text


def page(name: str) -> Page:
    """Read a document's docstring."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    text = docstring.split("\nFindings:", 1)[1].strip()
    claim, dashes, details = text.split("\n\n", 2)
    findings = [part.replace("\n ", "") for part in dashes.removeprefix("- ").split("\n- ")]
    title = docstring.splitlines()[0].rstrip(".").split(":")[0]
    return Page(title, claim, findings, details)


def contents(pages: dict[str, Page]) -> str:
    """Return the table of contents."""
    numbers = {name: number for number, name in enumerate(pages, 1)}
    rows = ["| | document | claim | read before |", "| ---: | --- | --- | --- |"]
    for name, of in pages.items():
        before = ", ".join(str(numbers[other]) for other in DOCUMENTS[name]) or "linear regression"
        claim = of.claim.replace("\n", " ")
        rows.append(f"| {numbers[name]} | [{of.title}](#{of.anchor}) | {claim} | {before} |")
    return "\n".join(rows)


def entry(name: str, of: Page) -> str:
    """Return one document's claim, figure, findings and details."""
    alt = of.claim.replace("\n", " ")
    figure = f"[![{alt}]({measure.RESULTS.name}/{name}.png)]({name}.py)"
    findings = "\n".join(f"- **{finding}**" for finding in of.findings)
    source = f"[`{name}.py`]({name}.py), [record]({measure.RESULTS.name}/{name}.json)"
    return "\n\n".join((f"## {of.title}", of.claim, figure, findings, of.details, source))


if __name__ == "__main__":
    main()
