"""Every example in a docstring and in README.md prints what it says."""

import doctest
import importlib
import inspect
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import jaxsoftmax
from jaxsoftmax import losses

ROOT = Path(jaxsoftmax.__file__).parent.parent
MODULES = ["jaxsoftmax"] + [
    found.name
    for found in pkgutil.walk_packages(jaxsoftmax.__path__, "jaxsoftmax.")
    if not found.name.endswith("__main__")  # runs the command line when imported
]
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


class Finder(doctest.DocTestFinder):
    """Finds the examples of decorated functions too, whose globals are those of the decorator."""

    def _from_module(self, module: Any, found: Any) -> bool:
        return super()._from_module(module, inspect.unwrap(found) if callable(found) else found)


def run(examples: list[doctest.DocTest]) -> None:
    runner = doctest.DocTestRunner(optionflags=OPTIONS)
    report: list[str] = []
    for example in examples:
        runner.run(example, out=report.append)
    assert not runner.failures, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    run(Finder().find(importlib.import_module(name), name))


def test_the_examples_of_decorated_functions_are_found() -> None:
    found = {test.name for test in Finder().find(losses, "losses") if test.examples}
    assert {"losses.cross_entropy", "losses.focal", "losses.weighted_mean"} <= found


def test_readme() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("an installed package has no README.md beside it")
    # The fence would be read as expected output, so only what stands between two is kept.
    blocks = re.findall(r"^```(?:python|pycon)\n(.*?)^```", readme.read_text(), re.M | re.S)
    shown = "\n".join(block for block in blocks if ">>>" in block)
    example = doctest.DocTestParser().get_doctest(shown, {}, "README.md", str(readme), 0)
    assert example.examples, "README.md shows no example that runs"
    run([example])
