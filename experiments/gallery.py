"""The README.md of this folder: each document's question, figure and findings, from its docstring.

Command: `python experiments/gallery.py`, seconds. It rewrites the text between the markers
`<!-- gallery -->` and `<!-- end -->`; a test compares the two.
"""

import ast
import re
from pathlib import Path

import measure

FOLDER = Path(__file__).parent
README = FOLDER / "README.md"
# in the order of a course
DOCUMENTS = (
    "regression_or_classification",
    "losses_of_a_classifier",
    "prediction_minus_truth",
    "scores_and_margin",
    "temperature",
    "softmax_is_sigmoid",
    "divergences",
    "stability",
    "minibatches",
    "image_classification",
    "malware_families",
    "toxic_comments",
    "protein_classes",
)


def main() -> None:
    """Rewrite README.md."""
    README.write_text(rendered(README.read_text()))


def rendered(text: str) -> str:
    """Return the text with a new gallery."""
    marked = re.compile(r"(<!-- gallery -->\n).*?(\n<!-- end -->)", re.DOTALL)
    found = "\n\n".join(entry(name) for name in DOCUMENTS)
    text, count = marked.subn(lambda match: match[1] + found + match[2], text)
    if count != 1:
        raise ValueError(f"README.md must hold <!-- gallery --> once, got {count}")
    return text


def entry(name: str) -> str:
    """Return one document's title, figure and findings."""
    docstring = ast.get_docstring(ast.parse((FOLDER / f"{name}.py").read_text())) or ""
    title = docstring.splitlines()[0].rstrip(".")
    figure = f"[![{title}]({measure.RESULTS.name}/{name}.png)]({name}.py)"
    source = f"[`{name}.py`]({name}.py), [record]({measure.RESULTS.name}/{name}.json)"
    return f"## {title}\n\n{figure}\n\n{findings(docstring)}\n\n{source}"


def findings(docstring: str) -> str:
    """Return the last part of a docstring, its findings."""
    return docstring.split("\nFindings", 1)[1].split(":", 1)[1].strip()


if __name__ == "__main__":
    main()
