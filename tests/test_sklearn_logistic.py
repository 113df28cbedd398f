"""scikit-learn's own tests of logistic regression, run on our estimators in another process."""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import sklearn

LISTED = "1.9"  # the version whose tests `logistic_exceptions` names
HERE = Path(__file__).parent


@pytest.mark.slow
def test_scikit_learns_own_tests_pass_but_for_the_listed_ones(tmp_path: Path) -> None:
    if not sklearn.__version__.startswith(f"{LISTED}."):
        pytest.skip(f"the exceptions are listed for scikit-learn {LISTED}")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    # Their data sets are small, and most of the time is compilation.
    quick = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    options = "-q -p no:cacheprovider -p logistic_adapter -c pytest.ini --junitxml results.xml"
    tests = "--rootdir . --pyargs sklearn.linear_model.tests.test_logistic"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), *tests.split()],
        cwd=tmp_path,
        env=os.environ | quick | {"PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-1000:]
    suite = next(ElementTree.parse(tmp_path / "results.xml").iter("testsuite"))
    # What is skipped is for other array libraries, but for what is listed; that has to fail.
    assert int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) >= 200
