"""The linear probe: held-out losses against scikit-learn's fits, the choice of C, the command."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from typer.testing import CliRunner

from jaxsoftmax.app import linear_probe, run_folder
from jaxsoftmax.app.cli.app import app
from jaxsoftmax.app.data import Dataset, Schema, Split, Task, assign_folds
from jaxsoftmax.app.defaults import LossName

pytestmark = pytest.mark.usefixtures("unoptimized")


def made(task: Task = Task.classes, classes: int = 3, size: int = 90) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((size, 4)).astype(np.float32)
    z = x @ rng.standard_normal((4, classes)) + rng.gumbel(size=(size, classes))
    targets = (z > 0) if task is Task.labels else z.argmax(1).astype(np.int32)
    part = Split(x, targets, np.arange(size))
    names = tuple("abcdefgh"[:classes])
    return Dataset("made", part, part, part, Schema(task, names, shape=(4,)), "drawn")


@pytest.mark.parametrize(("classes", "loss"), [(3, "softmax"), (2, "sigmoid")])
def test_held_out_losses_are_those_of_scikit_learns_fits(classes: int, loss: str) -> None:
    dataset, strengths = made(classes=classes), np.array([0.01, 1.0, 100.0])
    x, y = dataset.train.features.astype(float), dataset.train.targets
    path = linear_probe.cross_validate(
        dataset, loss=LossName(loss), C=strengths[::-1], folds=3, gap=1e-9
    )
    fold = assign_folds(y, 3)
    for k, C in enumerate(strengths):
        total = 0.0
        for number in range(3):
            fitted = LogisticRegression(C=C, tol=1e-8, solver="newton-cholesky").fit(
                x[fold != number], y[fold != number]
            )
            held = fitted.predict_proba(x[fold == number])
            total += log_loss(y[fold == number], held, normalize=False, labels=range(classes))
        assert path.loss[k] == pytest.approx(total / len(y), rel=1e-4)
    assert path.best == strengths[path.loss.argmin()]
    assert (path.gap <= 1e-9).all()
    assert (path.error > 0).all()


def test_losses_against_the_rest_and_of_labels() -> None:
    for dataset in (made(), made(Task.labels)):
        path = linear_probe.cross_validate(
            dataset, loss=LossName.sigmoid, C=np.array([0.1, 10.0]), folds=2
        )
        solution = linear_probe.refit(dataset, loss=LossName.sigmoid, C=path.best)
        assert np.isfinite(path.loss).all()
        assert solution.converged
        assert solution.params.w.shape == (4, 3)


def test_the_only_example_of_a_class_is_in_every_fit() -> None:
    dataset = made()
    labels = dataset.train.targets.copy()
    labels[7] = 3
    schema = replace(dataset.schema, classes=("a", "b", "c", "d"))
    dataset = replace(dataset, train=dataset.train._replace(targets=labels), schema=schema)
    path = linear_probe.cross_validate(dataset, loss=LossName.softmax, C=np.array([1.0]), folds=3)
    assert np.isfinite(path.loss).all()


def test_where_no_c_has_a_loss_the_folds_are_named() -> None:
    dataset = made(Task.labels)
    labels = dataset.train.targets.copy()
    labels[:, 2] = np.arange(len(labels)) == 7  # one example in fold 1 of 2 has it
    rare = replace(dataset, train=dataset.train._replace(targets=labels))
    with pytest.raises(ValueError, match=r"held out in folds \[1\]: .* a label that no other fold"):
        linear_probe.cross_validate(rare, loss=LossName.sigmoid, C=np.array([0.1, 1.0]), folds=2)


def test_nan_is_never_the_least_loss() -> None:
    C = np.array([0.1, 1.0, 10.0])
    for loss, best in (([np.nan, 2.0, 1.0], 10.0), ([np.inf, np.nan, 3.0], 10.0)):
        assert linear_probe.ProbePath(C, np.array(loss), C, C).best == best
    with pytest.raises(ValueError, match="loss: expected a finite held-out loss of some C"):
        _ = linear_probe.ProbePath(C, np.array([np.nan, np.inf, np.nan]), C, C).best


def test_what_is_refused() -> None:
    dataset, C = made(), np.array([1.0])
    with pytest.raises(ValueError, match="loss: expected softmax or sigmoid"):
        linear_probe.cross_validate(dataset, loss=LossName.hinge, C=C, folds=2)
    with pytest.raises(ValueError, match="folds: expected at least 2, got 1"):
        linear_probe.cross_validate(dataset, loss=LossName.softmax, C=C, folds=1)
    for ends in ((0, 1), (2, 1), (1, np.inf)):
        with pytest.raises(ValueError, match="--strongest must be above 0 and at most --weakest"):
            linear_probe.grid(*ends, 3)


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = ["probe", "digits", "--points", "3", "--folds", "2", "--gap", "1e-4"]
    result = CliRunner().invoke(app, [*arguments, "--output", str(folder)])
    assert result.exit_code == 0, result.output
    assert "3/3, C = 1e+04: 2 of 2 certified" in result.output
    header = run_folder.load(folder).header
    told = json.loads(run_folder.read(folder, "metrics.json"))
    best = told["path"]["C"][int(np.argmin(told["path"]["loss"]))]
    assert (header["C"], header["loss"]) == (best, "softmax")
    assert 0 <= told["solution"]["gap"] <= 1e-4
    assert told["test"]["accuracy"] > 0.9
    assert header["command"].startswith("jaxsoftmax probe digits")
    page = run_folder.read(folder, "report.html").decode()
    assert 'id="regularization"' in page
    assert CliRunner().invoke(app, ["evaluate", str(folder), "digits"]).exit_code == 0
    bad = CliRunner().invoke(app, ["probe", "digits", "--strongest", "-1"])
    assert bad.exit_code == 2
    assert "--strongest must be above 0" in bad.output
