"""The API reference is made from the docstrings by one command, and no link of a page is dead."""

import inspect
import posixpath
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import jaxsoftmax

ROOT = Path(__file__).parent.parent
CALLABLES = {
    name: f
    for name in jaxsoftmax.__all__
    if callable(f := getattr(jaxsoftmax, name)) and not inspect.isclass(f)
}
PAGES = [
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), ROOT / "experiments" / "README.md")
    if path.exists()
]


def test_the_command_of_the_contributing_page_makes_the_reference(tmp_path: Path) -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text()
    line = re.search(r"python (-m pdoc .*?)\n```", page, re.DOTALL)[1]
    command = shlex.split(line.replace("\\\n", ""))
    command[command.index("reference")] = str(tmp_path)
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "Warn" not in done.stderr
    made = {
        path.relative_to(tmp_path).as_posix(): path.read_text().split("<script")[0]
        for path in tmp_path.rglob("*.html")
    }
    assert {"index.html", "jaxsoftmax.html", "jaxsoftmax/metrics.html"} <= made.keys()
    anchors = {name: set(re.findall(r'id="([^"]+)"', text)) for name, text in made.items()}
    assert set(jaxsoftmax.__all__) - {"__version__"} <= anchors["jaxsoftmax.html"]
    assert "CertifiedClassifier.predict_proba" in anchors["jaxsoftmax/estimator.html"]
    for name, text in made.items():
        for link in re.findall(r'href="([^"]+)"', text):
            if "//" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (
                posixpath.normpath(posixpath.join(posixpath.dirname(name), path)) if path else name
            )
            assert target in made, f"{name} links to {link}"
            assert not anchor or anchor in anchors[target], f"{name} links to {link}"


@pytest.mark.parametrize("function", CALLABLES.values(), ids=CALLABLES.keys())
def test_help_shows_a_function_with_a_readable_signature(function: Callable) -> None:
    assert inspect.isfunction(function)  # and not an object of JAX's
    signature = str(inspect.signature(function))
    assert "ndarray" not in signature, "say ArrayLike"
    assert len(signature) < 1000


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_pages_have_no_dead_links(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        if link.startswith("http"):
            continue
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in headings(target), link


def headings(page: Path) -> set[str]:
    """The addresses of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}
