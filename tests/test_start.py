"""What the command line shows before JAX is imported, which takes longer than all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jaxsoftmax

_CALL = """
import json, sys
from typer.testing import CliRunner
from jaxsoftmax.app.cli.app import app

heavy = ("jax", "numpy", "pyarrow", "tensorflow", "tensorflow_datasets", "sklearn", "matplotlib")
results = []
for arguments in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, arguments)
    results.append([result.exit_code, result.output, [m for m in heavy if m in sys.modules]])
print(json.dumps(results))
"""

CASES = {
    "--help": (0, "predict"),
    "--version": (0, "jaxsoftmax "),
    "fit --help": (0, "cifar10"),
    "fit nowhere.csv --label y": (1, "jaxsoftmax: nowhere.csv: no such file\n"),
    "fit here.py --labels nowhere.npy": (1, "jaxsoftmax: nowhere.npy: no such file\n"),
    "predict nowhere x.csv": (1, "jaxsoftmax: nowhere holds no run: there is no such folder\n"),
    "predict run x.csv --output x.csv --overwrite": (
        2,
        "jaxsoftmax: --output x.csv is the file of DATA, which it would replace\n",
    ),
    "evaluate run x.csv --output run/metrics.json --overwrite": (
        2,
        "jaxsoftmax: --output run/metrics.json is a file of the run in run\n",
    ),
    "fit run/history.csv --label loss --output run --overwrite": (
        2,
        "jaxsoftmax: DATA run/history.csv is a file of the run in --output run\n",
    ),
    "fit digits --epochs 0": (2, "--epochs"),
    "fit digits --optimizer adagrad": (2, "'adagrad'"),
}


def test_help_and_wrong_arguments_import_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("x.csv", "run/model.json", "run/metrics.json", "run/history.csv", "here.py"):
        (tmp_path / name).touch()
    arguments = json.dumps([case.split() for case in CASES])
    done = subprocess.run(
        [sys.executable, "-c", _CALL, arguments],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(jaxsoftmax.__file__).parent.parent)},
    )
    for case, (status, words), result in zip(
        CASES, CASES.values(), json.loads(done.stdout), strict=True
    ):
        assert (result[0], result[2]) == (status, []), case
        assert words in result[1], case
