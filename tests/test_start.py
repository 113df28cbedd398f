"""What the command line and small fits do without JAX, whose import takes longer than all of it."""

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
    "fit digits --optimizer adagrad": (2, "invalid value for '--optimizer': 'adagrad' is not"),
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


_USE = """
import sys
from pathlib import Path
import numpy as np
from typer.testing import CliRunner
from jaxsoftmax.app import run_folder
from jaxsoftmax.app.cli.app import app
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.parameters import HostParams

params = HostParams(np.eye(2, dtype=np.float32), None)
schema = Schema(Task.classes, ("a", "b"), (2,), columns=("u", "v"), target=("y",))
for name in ("first", "second"):
    Path(name).mkdir()
    model = run_folder.Model(params, schema, header={"loss": "softmax"})
    metrics = {"test": {"accuracy": 0.5, "per_class": []}}
    run_folder.save(Path(name), model, metrics=metrics, history={})
Path("x.csv").write_text("u,v,y\\n" + "1,0,a\\n0,1,b\\n" * 5)
for line in ("predict first x.csv", "evaluate first x.csv", "compare first second"):
    result = CliRunner().invoke(app, line.split())
    assert result.exit_code == 0, result.output
assert "jax" not in sys.modules
"""


def test_a_saved_run_is_used_without_jax(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-c", _USE],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(jaxsoftmax.__file__).parent.parent)},
    )


_FIT = """
import sys, warnings
import numpy as np
from jaxsoftmax.estimator import SoftmaxClassifier

rng = np.random.default_rng(0)
x = rng.normal(size=(60, 4))
labels = np.array(["a", "b", "c"])[rng.integers(0, 3, 60)]
several = (x[:, :2] + rng.normal(size=(60, 2)) > 0).astype(int)
for y in (labels, labels == "a", several):
    for settings in ({}, {"C": 1e8}, {"fit_intercept": False, "warm_start": True}):
        model = SoftmaxClassifier(**settings).fit(x, y)
        assert model.fit(x, y, np.arange(60.0)).gap_ <= 1e-6
        model.predict(x), model.predict_proba(x), model.predict_log_proba(x), model.score(x, y)
model.class_weight = "balanced"
model.fit(x.astype(np.float32), labels)
try:
    model.fit(1e200 * x, labels)
except ValueError as error:
    assert "expected numbers up to 1e+100" in str(error)
assert not {"jax", "optax", "sklearn.model_selection"} & {*sys.modules}

from jaxsoftmax.estimator import SoftmaxClassifierCV

for y, scoring in ((labels, None), (labels == "a", "neg_log_loss"), (several, "roc_auc")):
    model = SoftmaxClassifierCV(Cs=3, cv=3, scoring=scoring).fit(x, y, np.arange(60.0))
    assert model.path_.converged.all() and model.gap_ <= 1e-6
    model.predict(x), model.predict_proba(x), model.score(x, y)
assert not {"jax", "optax"} & {*sys.modules}
"""


def test_small_fits_of_the_estimator_do_without_jax(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", _FIT],
        check=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(jaxsoftmax.__file__).parent.parent)},
    )


_PRESS = """
import signal, sys

class Press:
    def find_spec(self, name, *others):
        if name == module:
            signal.raise_signal(signal.SIGINT)

module = sys.argv.pop(1)
sys.meta_path.insert(0, Press())
from jaxsoftmax.__main__ import main
main()
"""


def test_ctrl_c_ends_a_command_in_one_line_while_modules_are_imported(tmp_path: Path) -> None:
    (tmp_path / "x.csv").touch()
    for module in ("typer", "rich.table", "numpy", "pyarrow"):
        done = subprocess.run(
            [sys.executable, "-c", _PRESS, module, "predict", ".", "x.csv"],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(jaxsoftmax.__file__).parent.parent)},
        )
        assert (done.returncode, done.stdout, done.stderr) == (
            130,
            "",
            "jaxsoftmax: interrupted, nothing was saved\n",
        ), module


_LAST = """
import atexit, gc
atexit.register(lambda: print(gc.get_threshold()[0], gc.get_freeze_count() > 0))
import sys
sys.argv[1:] = ["--version"]
from jaxsoftmax.__main__ import main
main()
"""


def test_a_command_rarely_searches_for_garbage_and_never_at_its_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LAST],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": str(Path(jaxsoftmax.__file__).parent.parent)},
    )
    assert done.stdout.splitlines()[-1] == "100000 True"
