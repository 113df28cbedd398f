"""The main job from end to end: fit, predict and evaluate, as a person and a script run them."""

import csv
import gc
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from typer.testing import CliRunner, Result

import jaxsoftmax
from jaxsoftmax.app import data, evaluation, pipeline, run_folder, user_cache
from jaxsoftmax.app.cli import console, interrupts, tables
from jaxsoftmax.app.cli.app import app
from jaxsoftmax.app.data.dataset import Dataset, Schema, Task
from jaxsoftmax.app.defaults import LossName, OptimizerName

ROOT = Path(__file__).parent.parent
DATA_DIR = Path(os.environ.get("JAXSOFTMAX_DATA_DIR", ROOT / "../shared/tfds")).resolve()
HERE = str(Path(jaxsoftmax.__file__).parent.parent)
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}  # compiling takes most of the time
PLAIN = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "100", "FORCE_COLOR": None}

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where runs/ is made
    monkeypatch.setenv(user_cache.VARIABLE, "off")


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments, env=PLAIN)


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    """Variables of child processes, which import this package and share the compiled programs."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "NO_COLOR")}
    return inherited | QUICK | {"PYTHONPATH": HERE, user_cache.VARIABLE: "off"}


def run(*command: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=dict(env))


def fit(*arguments: str) -> None:
    """Without the report, which takes seconds, into the folder `run`."""
    result = call("fit", *arguments, "--no-report", "--output", "run")
    assert result.exit_code == 0, result.output


def metrics(folder: str) -> dict[str, Any]:
    return json.loads(run_folder.read(Path(folder), "metrics.json"))


# The main job.


def test_fit_digits_with_defaults() -> None:
    result = call("fit", "digits")  # with a report
    assert result.exit_code == 0, result.output
    folder = Path("runs/digits-softmax")
    test = metrics("runs/digits-softmax")["test"]
    assert test["accuracy"] >= 0.96
    # What is printed is what is kept, and is what the kept model does.
    assert result.output.endswith(f"report: {folder}/report.html\nrun: {folder}\n")
    assert run_folder.read(folder, "report.html").startswith(b"<!DOCTYPE html>")
    row = next(line for line in result.output.splitlines() if line.split()[:1] == ["test"])
    assert row.split() == ["test", f"{test['loss']:.4f}", f"{test['accuracy']:.2%}"]
    params, schema, _, header = run_folder.load(folder)
    digits = data.load("digits")
    w, bias = np.asarray(params.w, float), np.asarray(params.bias, float)
    logits = digits.test.features @ w + bias
    hits = logits.argmax(-1) == digits.test.targets
    assert test["accuracy"] == pytest.approx(hits.mean(), abs=1e-6)
    rest = np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(hits)), digits.test.targets]
    assert test["loss"] == pytest.approx(rest.mean(), rel=1e-5)
    assert schema == digits.schema
    low, high = test["accuracy_interval"]
    assert f"test accuracy {test['accuracy']:.2%}, 95% interval {low:.2%} to {high:.2%}" in (
        result.output
    )
    for method in metrics("runs/digits-softmax")["calibration"].values():
        before, after = method["validation"]["nll"]
        assert after <= before
    with (folder / "history.csv").open(newline="") as file:
        history = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in history] == list(range(1, header["epochs"] + 1))
    losses = [float(row["validation_loss"]) for row in history]
    assert header["kept_epoch"] == 1 + int(np.argmin(losses)), "the best one"
    kept = history[header["kept_epoch"] - 1]
    assert float(kept["validation_accuracy"]) == pytest.approx(
        metrics("runs/digits-softmax")["validation"]["accuracy"], abs=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize(("name", "bar"), [("mnist", 0.924), ("cifar10", 0.40)])
def test_fit_real_images_with_defaults(name: str, bar: float) -> None:
    if not (DATA_DIR / name).is_dir():
        pytest.skip(f"{name} is not prepared beside this repository (JAXSOFTMAX_DATA_DIR)")
    fit(name, "--data-dir", str(DATA_DIR))
    assert metrics("run")["test"]["accuracy"] >= bar


@pytest.mark.parametrize(
    ("loss", "optimizer"),
    [(loss, "adamw") for loss in LossName]
    + [("softmax", optimizer) for optimizer in OptimizerName if optimizer != "adamw"],
)
def test_every_loss_and_optimizer_learns(loss: str, optimizer: str) -> None:
    options = ("--loss", loss, "--optimizer", optimizer, "--task", "classes")
    fit("digits", *options, "--epochs", "20")
    assert metrics("run")["test"]["accuracy"] > 0.85  # chance is 0.10


# Seeds, and the command that the header keeps.


def test_same_seed_same_bytes() -> None:
    for folder, seed in (("a", "3"), ("b", "3"), ("c", "4")):
        fit("digits", "--epochs", "2", "--seed", seed)
        Path("run").rename(folder)
    a, b, c = ((Path(folder) / "model.safetensors").read_bytes() for folder in "abc")
    assert a == b
    assert a != c
    assert Path("a/history.csv").read_text() == Path("b/history.csv").read_text()


def test_header_keeps_a_command_that_repeats_the_run() -> None:
    fit("digits", *shlex.split("--epochs 2 --optimizer momentum --loss hinge --batch-size 50"))
    command = shlex.split(run_folder.load(Path("run")).header["command"])
    assert command[:3] == ["jaxsoftmax", "fit", "digits"]
    assert call(*command[1:], "--no-report", "--output", "again").exit_code == 0
    first, again = (Path(f, "model.safetensors").read_bytes() for f in ("run", "again"))
    assert first == again


# Folders.


def test_runs_are_numbered() -> None:
    for expected in ("digits-softmax", "digits-softmax-2"):
        result = call("fit", "digits", "--epochs", "1", "--quiet", "--no-report")
        assert result.output == f"runs/{expected}\n"


def test_output_is_never_overwritten_in_silence() -> None:
    fit("digits", "--epochs", "1")
    arguments = ("fit", "digits", "--epochs", "1", "--output", "run", "--no-report", "--seed", "1")
    before = Path("run/model.safetensors").read_bytes()
    refused = call(*arguments)
    assert refused.exit_code == 1
    assert "run is not empty; choose another, or add --overwrite" in refused.output
    assert Path("run/model.safetensors").read_bytes() == before
    assert call(*arguments, "--overwrite").exit_code == 0
    assert run_folder.read(Path("run"), "model.safetensors") != before
    assert run_folder.load(Path("run")).header["seed"] == 1
    assert len(list(Path("run").iterdir())) == 4


# A file of one's own.


def write(path: str, **columns: Any) -> None:
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if path.endswith(".csv"):
        pa.csv.write_csv(table, path)
    else:
        pa.parquet.write_table(table, path)


def table(path: str) -> pa.Table:
    return pa.csv.read_csv(path) if path.endswith(".csv") else pa.parquet.read_table(path)


def flowers(size: int = 200, seed: int = 0) -> dict[str, Any]:
    """Two kinds that two of three columns part, with noise, of scales 1, 1000 and 1."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=size)
    return {
        "id": [f"no. {i}" for i in range(size)],
        "petal": kind + 0.7 * rng.normal(size=size),
        "sepal": 1000.0 * (kind + rng.normal(size=size)),
        "noise": rng.normal(size=size),
        "kind": np.array(["iris", "rose"])[kind].tolist(),
    }


FLOWERS = ("flowers.csv", "--label", "kind", "--id", "id", "--standardize")


def fit_flowers(*options: str) -> None:
    write("flowers.csv", **flowers())
    fit(*FLOWERS, *options)


def test_two_classes_from_a_file_to_predictions() -> None:
    fit_flowers()
    model = run_folder.load(Path("run"))
    assert model.params.w.shape == (3, 1), "logistic regression"
    assert model.header["loss"] == "sigmoid"
    assert metrics("run")["test"]["accuracy"] > 0.7

    more = flowers(50, seed=1)
    kinds = more.pop("kind")
    write("more.csv", **dict(reversed(more.items())), unknown=["x"] * 50)
    result = call("predict", "run", "more.csv")
    assert result.exit_code == 0, result.output
    assert result.output == "50 predictions: predictions.csv\n"
    said = table("predictions.csv")
    assert said.column_names == ["id", "label", "p_iris", "p_rose"]
    assert said["id"].to_pylist() == more["id"]

    # The same by hand, from the arrays that the folder holds.
    x = np.stack([more[name] for name in ("petal", "sepal", "noise")], 1).astype(np.float32)
    learned = model.preprocessing
    z = ((x - learned.mean) / learned.scale) @ np.asarray(model.params.w) + model.params.bias
    p = 1 / (1 + np.exp(-z[:, 0]))
    np.testing.assert_allclose(said["p_rose"], p, rtol=1e-5)
    np.testing.assert_allclose(said["p_iris"], 1 - p, rtol=1e-4)
    assert said["label"].to_pylist() == np.where(p > 0.5, "rose", "iris").tolist()

    write("labelled.parquet", **more, kind=kinds)
    result = call("evaluate", "run", "labelled.parquet", "--output", "figures.json")
    assert result.exit_code == 0, result.output
    figures = json.loads(Path("figures.json").read_text())
    hits = np.mean(np.array(kinds) == said["label"].to_numpy())
    assert figures["accuracy"] == pytest.approx(hits)
    assert figures["examples"] == 50
    assert [one["name"] for one in figures["per_class"]] == ["iris", "rose"]
    for words in (f"accuracy {hits:.2%}", "ROC-AUC", "95% interval", "iris", "precision"):
        assert " ".join(words.split()) in " ".join(result.output.split()), words


def test_the_test_split_is_measured_as_evaluate_does() -> None:
    """Preprocessing in place, by parts and by `evaluate` are one."""
    write("flowers.csv", **flowers())
    write("test.csv", **flowers(60, seed=2))
    fit(*FLOWERS, "--test", "test.csv")
    assert call("evaluate", "run", "test.csv", "--output", "figures.json").exit_code == 0
    figures = json.loads(Path("figures.json").read_text())
    assert metrics("run")["test"] == {k: v for k, v in figures.items() if k not in ("run", "data")}


def test_integer_classes_stay_integers_and_rows_have_numbers() -> None:
    rng = np.random.default_rng(0)
    label = rng.choice([-1, 2, 10], size=120)
    write("x.parquet", a=label + rng.normal(size=120), b=rng.normal(size=120), label=label)
    fit("x.parquet", "--label", "label")
    assert call("predict", "run", "x.parquet", "--output", "said.parquet").exit_code == 0
    said = table("said.parquet")
    assert said.column_names == ["row", "label", "p_-1", "p_2", "p_10"]
    assert said["label"].type == pa.int64()
    assert set(said["label"].to_pylist()) <= {-1, 2, 10}
    assert said["row"].to_pylist() == list(range(1, 121))
    p = np.stack([said[f"p_{k}"] for k in (-1, 2, 10)], 1)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-6)
    best = np.array([-1, 2, 10])[p.argmax(1)]
    np.testing.assert_array_equal(said["label"], best)


def test_labels_from_a_file_to_predictions() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 3))
    labels = {"wet": (x[:, 0] > 0) * 1, "cold": (x[:, 1] + rng.normal(size=300) > 0) * 1}
    write("days.csv", a=x[:, 0], b=x[:, 1], c=x[:, 2], **labels)
    fit("days.csv", "--label", "wet", "--label", "cold")
    assert metrics("run")["test"]["per_label"][0]["roc_auc"] > 0.95
    assert call("predict", "run", "days.csv").exit_code == 0
    said = table("predictions.csv")
    assert said.column_names == ["row", "wet", "cold", "p_wet", "p_cold"]
    assert set(said["wet"].to_pylist()) == {0, 1}
    np.testing.assert_array_equal(np.asarray(said["p_wet"]) > 0.5, said["wet"])
    result = call("evaluate", "run", "days.csv", "--output", "figures.json")
    assert result.exit_code == 0, result.output
    figures = json.loads(Path("figures.json").read_text())
    both = (np.asarray(said["wet"]) == labels["wet"]) & (np.asarray(said["cold"]) == labels["cold"])
    assert figures["subset_accuracy"] == pytest.approx(both.mean())


def test_numbers_from_a_file_to_predictions() -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(200, 2)) * [1, 5], 0.1
    price = 1000 + x @ [20, 3] + noise * rng.normal(size=200)
    write("houses.csv", rooms=x[:, 0], age=x[:, 1], price=price)
    fit("houses.csv", "--label", "price")
    model = run_folder.load(Path("run"))
    assert (model.header["loss"], model.header["optimizer"]) == ("squared_error", "lbfgs")
    np.testing.assert_allclose(model.params.w[:, 0], [20, 3], rtol=5e-3)
    np.testing.assert_allclose(model.params.bias, [1000], rtol=1e-4)
    assert metrics("run")["test"]["r2"] > 0.999
    assert call("predict", "run", "houses.csv").exit_code == 0
    said = table("predictions.csv")
    assert said.column_names == ["row", "price"]
    np.testing.assert_allclose(said["price"], price, atol=10 * noise)
    result = call("evaluate", "run", "houses.csv")
    assert "mean absolute error" in result.output


def test_squared_error_asks_for_numbers_of_whole_ones() -> None:
    rng = np.random.default_rng(0)
    year = rng.integers(1950, 2000, size=100)
    write("songs.csv", tempo=year + rng.normal(size=100), year=year)
    fit("songs.csv", "--label", "year", "--loss", "squared_error", "--standardize")
    assert metrics("run")["test"]["r2"] > 0.95
    assert run_folder.load(Path("run")).schema.classes == ("year",)


def test_a_head_without_probabilities_says_so() -> None:
    fit_flowers("--loss", "hinge")
    result = call("predict", "run", "flowers.csv")
    assert "no probabilities: a model fitted with hinge does not give any" in result.output
    assert table("predictions.csv").column_names == ["id", "label"]
    assert "nll" not in metrics("run")["test"]


def test_images_from_arrays() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    images = rng.integers(0, 50, size=(60, 4, 5), dtype=np.uint8)
    images[np.arange(60), labels] += 200
    np.savez("images.npz", images=images, labels=labels)
    fit("images.npz")
    assert run_folder.load(Path("run")).schema.shape == (4, 5)
    assert metrics("run")["test"]["accuracy"] == 1
    np.save("more.npy", images[:7])
    assert call("predict", "run", "more.npy").exit_code == 0
    assert table("predictions.csv")["label"].to_pylist() == labels[:7].tolist()


def test_named_data_for_a_kept_model() -> None:
    fit("digits", "--epochs", "2")
    result = call("evaluate", "run", "digits", "--split", "validation", "--output", "figures.json")
    assert result.exit_code == 0, result.output
    figures = json.loads(Path("figures.json").read_text())
    assert figures["accuracy"] == metrics("run")["validation"]["accuracy"]
    assert call("predict", "run", "digits").exit_code == 0
    assert table("predictions.csv").num_rows == 355


def test_many_classes_show_the_worst(capsys: pytest.CaptureFixture[str]) -> None:
    scores = np.random.default_rng(0).normal(size=(500, 25)).astype(np.float32)
    scores[np.arange(500), np.arange(500) % 25] += np.arange(500) % 25 / 5
    names = tuple(f"[red]\x1b[2J{k}" for k in range(25))  # nothing that steers the terminal
    schema = Schema(Task.classes, names, shape=(1,))
    told = evaluation.compute_metrics(scores, np.arange(500) % 25, schema, loss=LossName.hinge)
    screen = console.make_console(quiet=False)
    for shown in tables.make_metrics_tables(told):
        screen.print(shown)
    lines = capsys.readouterr().out.splitlines()
    rows = lines[lines.index("the 20 of 25 with the lowest F1:") + 2 :]
    worst = sorted(told["per_class"], key=lambda one: one["f1"])[:20]
    expected = [one["name"].replace("\x1b", "\ufffd") for one in worst]
    assert [line.split()[0] for line in rows] == expected


def test_the_command_of_a_file_repeats_the_run() -> None:
    Path("my data").mkdir()
    write("my data/it's.csv", **flowers())
    write("my data/test.csv", **flowers(30, seed=3))
    fit("my data/it's.csv", *FLOWERS[1:], "--drop", "noise", "--test", "my data/test.csv",
        "--patience", "5", "--epochs", "40")  # fmt: skip
    command = shlex.split(run_folder.load(Path("run")).header["command"])
    assert command[2] == "my data/it's.csv"
    assert call(*command[1:], "--no-report", "--output", "again").exit_code == 0
    first, again = (Path(f, "model.safetensors").read_bytes() for f in ("run", "again"))
    assert first == again
    assert run_folder.load(Path("run")).header["kept_epoch"] <= metrics("run")["epochs"] <= 40


def test_scales_that_differ_are_told() -> None:
    write("flowers.csv", **flowers())
    plain = call("fit", *FLOWERS[:-1], "--epochs", "1", "--no-report")
    assert "scales of the features differ by a factor of 1," in plain.output
    assert "consider --standardize" in plain.output
    scaled = call("fit", *FLOWERS, "--epochs", "1", "--no-report")
    assert "--standardize" not in scaled.output


@pytest.mark.parametrize(("rows", "count", "advised"), [(160, 40, True), (160, 4, False),
                                                       (400, 25, True)])  # fmt: skip
def test_whole_numbers_that_may_be_amounts_are_told(rows: int, count: int, advised: bool) -> None:
    write("x.csv", x=np.random.default_rng(0).normal(size=rows), y=np.arange(rows) % count)
    result = call("fit", "x.csv", "--label", "y", "--epochs", "1", "--no-report")
    assert ("use --task numbers" in result.output) == advised
    assert (f"{count} different integers" in result.output) == advised


def test_without_matplotlib_the_run_is_kept(environment: dict[str, str]) -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None;from jaxsoftmax.__main__ import main; main()"
    )
    done = run("-c", code, "fit", "digits", "--epochs", "20", "--output", "run", env=environment)
    assert done.returncode == 0, done.stderr
    assert "no report without matplotlib: pip install 'jaxsoftmax[app]'\nrun: run\n" in done.stdout
    assert run_folder.load(Path("run")).header["files"].keys() == {
        "model.safetensors",
        "metrics.json",
        "history.csv",
    }


# Ctrl-C, by a real signal.


@contextmanager
def started(*arguments: str, env: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxsoftmax", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=dict(env),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], beginning: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(beginning):
            return
    raise AssertionError(f"no line began with {beginning!r}")


@pytest.mark.parametrize("impatient", [False, True], ids=["once", "twice"])
def test_an_interrupt_keeps_the_best_model_so_far(
    impatient: bool, environment: dict[str, str]
) -> None:
    arguments = ("fit", "digits", "--epochs", "8000", "--output", "run", "--no-report")
    with started(*arguments, env=environment) as process:
        wait_for(process, "epoch 1/8000")
        wait_for(process, "epoch 800/8000")
        process.send_signal(signal.SIGINT)
        wait_for(process, "interrupted after epoch")
        if impatient:  # while figures are computed and the run is saved
            process.send_signal(signal.SIGINT)
        shown, errors = process.communicate()
        assert (process.returncode, errors) == (130, "")
    assert shown.endswith("run: run\n")
    header = run_folder.load(Path("run")).header
    kept = metrics("run")
    assert header["interrupted"] is True
    assert 800 <= kept["epochs"] < 8000
    history = list(
        csv.DictReader(run_folder.read(Path("run"), "history.csv").decode().splitlines())
    )
    losses = [float(row["validation_loss"]) for row in history]
    assert len(losses) == kept["epochs"]
    assert header["kept_epoch"] == kept["kept_epoch"] == 1 + int(np.argmin(losses))
    assert kept["validation"]["loss"] == pytest.approx(min(losses), rel=1e-5)


def test_an_interrupt_before_the_first_epoch_leaves_nothing(environment: dict[str, str]) -> None:
    compiling = {k: v for k, v in environment.items() if not k.startswith("JAX_COMPILATION")}
    with started("fit", "digits", "--output", "run", env=compiling) as process:
        wait_for(process, "loss softmax")  # then it compiles, for a second and more
        process.send_signal(signal.SIGINT)
        shown, errors = process.communicate()
    assert process.returncode == 130
    assert errors == "jaxsoftmax: interrupted, nothing was saved\n"
    assert "run:" not in shown
    assert not Path("run").exists()


LOST = """
import signal
from jaxsoftmax.app.cli import interrupts

class Finalized:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)

with interrupts.handle_interrupts() as handled, handled.during_fit():
    Finalized()  # Python ignores the exception
    try:
        handled.check()
    except KeyboardInterrupt:
        print("ended")
"""


def test_an_interrupt_in_a_finalizer_is_not_lost() -> None:
    # JAX has a callback of the garbage collector, and Python ignores what such a thing raises.
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True)
    assert done.stdout == "ended\n"


def press() -> None:
    signal.raise_signal(signal.SIGINT)


def press_again(handled: interrupts.Interrupts, has_result: bool) -> None:
    with handled.during_fit():
        handled.check(has_result=has_result)
        press()
        press()


@pytest.mark.parametrize(("has_result", "presses"), [(False, 1), (True, 2)])
def test_an_interrupt_ends_a_fit_at_once(has_result: bool, presses: int) -> None:
    """The first one where there is nothing to keep, and the second one where there is."""
    with interrupts.handle_interrupts() as handled:
        with pytest.raises(KeyboardInterrupt):
            press_again(handled, has_result)
        assert handled.count == presses
        press()  # while something is saved
        with pytest.raises(KeyboardInterrupt):
            press_again(handled, has_result)
        assert handled.count == presses + 1, "it does not begin"


def test_an_interrupt_waits_for_the_epoch_to_end() -> None:
    with interrupts.handle_interrupts() as handled, handled.during_fit():
        handled.check(has_result=True)
        press()
        with pytest.raises(KeyboardInterrupt):
            handled.check(has_result=True)
        press()  # while the result is put together
    assert handled.count == 2


def test_features_that_were_fitted_are_let_go_of_before_the_figures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, still = [], []
    trained, measured = pipeline.train, pipeline.measure_splits

    def train(dataset: Dataset, *arguments: Any, **options: Any) -> Any:
        held.append(weakref.ref(dataset.train.features))
        return trained(dataset, *arguments, **options)

    def measure(*arguments: Any, **options: Any) -> Any:
        gc.collect()
        still.append(held[0]() is not None)
        return measured(*arguments, **options)

    monkeypatch.setattr(pipeline, "train", train)
    monkeypatch.setattr(pipeline, "measure_splits", measure)
    assert call("fit", "digits", "--epochs", "1", "--no-report").exit_code == 0
    assert still == [False]


# Errors: one line, and an exit status.


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["digits", "--optimizer", "lbfgs", "--learning-rate", "1"], 2, "lbfgs finds its own"),
        (["digits", "--overwrite"], 2, "--overwrite needs --output"),
        (["digits", "--label", "x"], 2, "--label is for files; digits is the name of a data set"),
        (["mnist", "--data-dir", "nowhere"], 1, "mnist is not prepared"),
        (["nowhere.csv", "--label", "y"], 1, "nowhere.csv"),
        (["digits", "--optimizer", "adagrad"], 2, "'adagrad' is not one of 'adamw'"),
        (
            shlex.split(
                "digits --loss squared_error --optimizer sgd --learning-rate 9 --checkpoint 60"
            ),
            1,
            "the fit diverged. Try a lower --learning-rate",
        ),
    ],
)
def test_errors_of_fit(arguments: list[str], status: int, message: str) -> None:
    result = call("fit", *arguments)
    assert result.exit_code == status, result.output
    assert message in result.output
    assert "Traceback" not in result.output
    assert not list(Path("runs").glob("*")), "nothing is left behind"


@pytest.mark.parametrize("option", [("--data-dir", "x"), ("--download",)])
def test_options_that_are_for_names(option: tuple[str, ...]) -> None:
    write("flowers.csv", **flowers())
    result = call("fit", *FLOWERS, *option)
    assert result.exit_code == 2
    assert f"{option[0]} is for names of data sets; flowers.csv is a file" in result.output


def test_what_has_no_logarithm_is_told_with_its_file() -> None:
    whole = [number // 2 for number in range(200)]
    counts = flowers() | {"petal": whole, "sepal": whole, "noise": whole}
    negative = counts | {"noise": [1] * 199 + [-2]}
    fault = "row no. 199, column 'noise': log1p needs values above -1, got -2"
    write("counts.csv", **counts)
    write("negative.csv", **negative)
    options = ("--label", "kind", "--id", "id", "--log1p", "--epochs", "1")
    assert f"negative.csv, {fault}" in call("fit", "negative.csv", *options).output
    assert f"negative.csv, {fault}" in (
        call("fit", "counts.csv", "--test", "negative.csv", *options).output
    )
    fit("counts.csv", *options)
    for command in ("predict", "evaluate"):
        result = call(command, "run", "negative.csv")
        assert result.exit_code == 2
        assert result.output == f"jaxsoftmax: negative.csv, {fault}.0\n"


def test_losses_that_do_not_suit_the_data() -> None:
    write("flowers.csv", **flowers())
    result = call("fit", "flowers.csv", "--label", "petal", "--drop", "kind", "--drop", "id",
                  "--loss", "softmax")  # fmt: skip
    assert result.exit_code == 2
    assert "loss must be squared_error for a task of numbers, got softmax" in result.output


@pytest.fixture
def flower_run(tmp_path: Path) -> None:
    fit_flowers("--epochs", "1")


def change(**columns: Any) -> None:
    """Write `more.csv`, flowers with some columns otherwise; None leaves one out."""
    made = flowers(20, seed=1) | columns
    write("more.csv", **{name: values for name, values in made.items() if values is not None})


@pytest.mark.usefixtures("flower_run")
def test_errors_of_predict() -> None:
    def error(*arguments: str) -> str:
        result = call("predict", "run", *arguments)
        assert result.exit_code in (1, 2), result.output
        assert "Traceback" not in result.output
        assert not Path("predictions.csv").exists()
        return result.output

    change(petal=None)
    assert "petal" in error("more.csv")
    np.save("wide.npy", np.ones((5, 4), np.float32))
    assert "3 features, got 4" in error("wide.npy")
    assert "expected 3 features, got 64" in error("digits")
    change(petal=["1"] * 19 + ["wide"], noise=["0"] * 19 + ["loud"])
    shown = error("more.csv")
    assert "row 20 (line 21), column 'petal': 'wide' is not a number" in shown
    assert "row 20 (line 21), column 'noise': 'loud' is not a number" in shown
    change()
    assert "output must end in .csv or .parquet" in error("more.csv", "--output", "p.txt")
    assert "there is no folder nowhere" in error("more.csv", "--output", "nowhere/p.csv")
    header = json.loads(Path("run/model.json").read_text())
    for loss in (None, "softmin"):
        Path("run/model.json").write_text(json.dumps(header | {"loss": loss}))
        assert "run/model.json: loss must be softmax or" in error("more.csv")
    Path("run/model.json").write_text(json.dumps(header | {"format_version": 9}))
    assert "format_version 3, got 9" in error("more.csv")
    assert "holds no run" in call("predict", "elsewhere", "more.csv").output


@pytest.mark.usefixtures("flower_run")
def test_rows_without_their_id_have_numbers() -> None:
    change(id=None)
    assert call("predict", "run", "more.csv").exit_code == 0
    said = table("predictions.csv")
    assert said.column_names[0] == "row"
    assert said["row"].to_pylist() == list(range(1, 21))


@pytest.mark.usefixtures("flower_run")
def test_predictions_are_never_overwritten_in_silence() -> None:
    change()
    assert call("predict", "run", "more.csv").exit_code == 0
    before = Path("predictions.csv").read_bytes()
    change(petal=[1e6] * 20)
    refused = call("predict", "run", "more.csv")
    assert refused.exit_code == 1
    assert "predictions.csv already exists; choose another, or add --overwrite" in refused.output
    assert Path("predictions.csv").read_bytes() == before
    done = call("predict", "run", "more.csv", "--overwrite", "--quiet")
    assert (done.exit_code, done.output) == (0, "predictions.csv\n")
    assert Path("predictions.csv").read_bytes() != before
    assert not list(Path.cwd().glob("*.partial"))


@pytest.mark.usefixtures("flower_run")
def test_errors_of_evaluate() -> None:
    def error(*arguments: str) -> str:
        result = call("evaluate", "run", *arguments)
        assert result.exit_code in (1, 2), result.output
        assert "Traceback" not in result.output
        return result.output

    change(kind=None)
    assert "'kind'" in error("more.csv")
    change(kind=["iris"] * 19 + ["tulip"])
    shown = error("more.csv")
    assert "tulip" in shown
    assert "20" in shown, "the row"
    change()
    assert "--labels is for files; digits" in error("digits", "--labels", "more.csv")
    assert "output must end in .json" in error("more.csv", "--output", "p.csv")


def test_without_the_extra(environment: dict[str, str]) -> None:
    code = "import sys; sys.modules['typer'] = None;from jaxsoftmax.__main__ import main; main()"
    done = run("-c", code, env=environment)
    assert done.returncode == 1
    assert done.stderr == "the jaxsoftmax command needs typer: pip install 'jaxsoftmax[cli]'\n"


# What is shown.


def test_help() -> None:
    shown = call("--help").output
    assert all(command in shown for command in ("fit", "predict", "evaluate"))
    assert "label column is ignored" in " ".join(call("predict", "--help").output.split())
    result = call("fit", "--help")
    assert result.exit_code == 0
    for word in (
        "--label",
        "--labels",
        "--id",
        "--standardize",
        "--patience",
        "--no-report",
        "DATA",
        *data.names(),
        "--output",
        "--epochs",
        "--batch-size",
        "--learning-rate",
        "--weight-decay",
        "--optimizer",
        "--loss",
        "--seed",
        "--data-dir",
        "--quiet",
        "--overwrite",
        "by DATA and optimizer",
    ):
        assert word in result.output, word


def test_version() -> None:
    assert call("--version").output == f"jaxsoftmax {jaxsoftmax.__version__}\n"


@pytest.mark.parametrize("env", [{}, {"FORCE_COLOR": "1"}], ids=["plain", "forced colour"])
def test_a_pipe_gets_lines(env: dict[str, str], environment: dict[str, str]) -> None:
    arguments = ("fit", "digits", "--epochs", "20", "--no-report")
    done = run("-m", "jaxsoftmax", *arguments, env=environment | env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    lines = [line for line in done.stdout.splitlines() if line.startswith("epoch ")]
    assert lines[0].startswith("epoch 1/20: loss ")
    assert lines[-1].startswith("epoch 20/20: loss ")
    assert 5 <= len(lines) <= 12
    moves = {"\r", "\x1b[2K", "\x1b[1A", "\x1b[?25l"} if env else {"\r", "\x1b", "\u2501"}
    assert not [move for move in moves if move in done.stdout]


def test_a_terminal_gets_a_bar_with_time_left(environment: dict[str, str]) -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "jaxsoftmax", "fit", "digits", "--epochs", "200", "--no-report"],
        stdout=slave,
        stderr=slave,
        stdin=slave,
        env=environment | {"TERM": "xterm-256color", "COLUMNS": "120"},
    )
    os.close(slave)
    shown = b""
    while chunk := _read(master):
        shown += chunk
    assert process.wait() == 0
    text = shown.decode()
    assert "epoch 200/200" in text
    assert 0 < text.find("compiling") < text.find("epoch "), "before the first epoch"
    assert "\u2501" in text, "the bar"
    assert "accuracy" in text
    assert "00:0" in text, "time left"
    assert "epoch 1/200: loss" not in text, "the plain lines are for pipes"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # how Linux ends a terminal whose other side is closed
        return b""


# Tables that are not as they should be.


def test_what_cannot_be_used_is_told_with_the_command_that_leaves_it_out() -> None:
    notes = [f"a note of many words that says nothing about flower number {i}" for i in range(200)]
    odd = [*map(str, range(0, 398, 2)), "none"]
    write("flowers.csv", **flowers(), note=notes, odd=odd)
    result = call("fit", *FLOWERS, "--epochs", "1", "--no-report", "--output", "run")
    assert result.exit_code == 2
    lines = result.output.splitlines()
    assert lines[0] == "jaxsoftmax: flowers.csv: 2 columns cannot be used"
    assert lines[1].startswith("flowers.csv, row 1 (line 2), column 'note': text of about 12 words")
    assert lines[2].startswith("flowers.csv, row 200 (line 201), column 'odd': 'none' is not a n")
    words = shlex.split(lines[3].partition("to leave out what cannot be used: ")[2])
    assert words == ["jaxsoftmax", "fit", "flowers.csv", "--label", "kind", "--id", "id",
                     "--drop", "note", "--drop", "odd", "--standardize", "--epochs", "1",
                     "--seed", "0", "--output", "run", "--no-report"]  # fmt: skip
    done = call(*words[1:])
    assert done.exit_code == 0, done.output
    assert shlex.split(run_folder.load(Path("run")).header["command"])[:11] == words[:11]


@pytest.mark.parametrize(("loss", "message"), [
    (None, "probe is for classes and labels, and 'price' holds numbers: use fit, or --task"),
    ("hinge", "--loss must be softmax or sigmoid for a probe of classes, got hinge"),
])  # fmt: skip
def test_probe_refuses_what_it_cannot_solve(loss: str | None, message: str) -> None:
    write("houses.csv", rooms=[i % 7 for i in range(60)], price=[i / 7 for i in range(60)],
          kind=["a", "b"] * 30)  # fmt: skip
    label = ("--label", "kind", "--loss", loss) if loss else ("--label", "price")
    result = call("probe", "houses.csv", *label)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(Path("runs").glob("*"))


def test_no_option_of_a_table_is_for_names() -> None:
    for option in ("--no-header", "--numeric-only", "--skip-unlabeled"):
        result = call("fit", "digits", option)
        assert result.exit_code == 2
        assert " is for files; digits is the name of a data set" in result.output


def test_the_dialect_is_in_the_command_and_for_all_commands() -> None:
    rows = [f"{i % 7}:{1 + i % 2}" for i in range(60)]
    Path("x.csv").write_text("\n".join(rows), encoding="utf-16-le")
    options = ("--delimiter", ":", "--encoding", "utf-16-le", "--no-header")
    fit("x.csv", "--label", "2", *options, "--epochs", "1")
    command = run_folder.load(Path("run")).header["command"]
    assert "--delimiter : --encoding utf-16-le --no-header" in command
    for verb in ("predict", "evaluate"):
        result = call(verb, "run", "x.csv", *options)
        assert result.exit_code == 0, result.output


def test_characters_that_steer_a_terminal_are_not_printed() -> None:
    name = "\x1b[31mred\n.csv"
    write(name, **flowers(), **{"\x1b[2Jrow": [*range(200)]})
    shown = call("fit", name, *FLOWERS[1:], "--epochs", "1", "--no-report").output
    assert "\x1b" not in shown
    assert " [31mred .csv" in shown
    assert [folder.name for folder in Path("runs").iterdir()] == ["_[31mred_-sigmoid"]
    refused = call("fit", name, "--label", "\x1b[31m").output
    assert "\x1b" not in refused


@pytest.mark.parametrize(("option", "message"), [
    (("--folds", "1000"), "--folds must be at most 21, for every fold to have an example, got 10"),
    (("--gap", "-1"), "--gap must be above 0 and finite, got -1"),
    (("--gap", "0"), "--gap must be above 0 and finite, got 0"),
])  # fmt: skip
def test_settings_of_a_probe_are_checked_first(option: tuple[str, str], message: str) -> None:
    write("x.csv", a=[i % 7 for i in range(60)], y=["a", "b"] * 30)
    result = call("probe", "x.csv", "--label", "y", *option)
    assert result.exit_code == 2
    assert message in result.output
    assert not list(Path("runs").glob("*"))


def test_labels_with_a_hinge() -> None:
    write("x.csv", a=[i % 7 for i in range(60)], y=[0, 1] * 30, z=[0, 0, 1] * 20)
    fit("x.csv", "--label", "y", "--label", "z", "--loss", "hinge", "--epochs", "1")
    assert run_folder.load(Path("run")).header["loss"] == "hinge"
