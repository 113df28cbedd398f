"""The folder of a run: what goes in comes out, and nothing is overwritten in silence."""

import csv
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxsoftmax import linear, runs
from jaxsoftmax.linear import LinearParams

HISTORY = {"loss": np.array([1.5, 0.1], np.float32), "accuracy": np.array([0.5, 1.0])}


def _model(bias: bool = True) -> runs.Model:
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    return runs.Model(
        LinearParams(w, jnp.arange(3, dtype=jnp.float32) if bias else None),
        {"classes": ["a", "b", "ç"], "seed": 7},
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    runs.save(tmp_path, _model(), metrics={"test": {"loss": 0.25}}, history=HISTORY)
    return tmp_path


@pytest.mark.parametrize("bias", [True, False])
def test_round_trip(tmp_path: Path, bias: bool) -> None:
    model = _model(bias)
    runs.save(tmp_path, model, metrics={}, history={})
    loaded = runs.load(tmp_path)
    np.testing.assert_array_equal(loaded.params.w, model.params.w)
    assert (loaded.params.bias is None) == (not bias)
    if bias:
        np.testing.assert_array_equal(loaded.params.bias, model.params.bias)
    assert model.header.items() <= loaded.header.items()
    assert (loaded.header["num_features"], loaded.header["num_classes"]) == (5, 3)
    x = jnp.ones((2, 5))
    np.testing.assert_array_equal(linear.logits(loaded.params, x), linear.logits(model.params, x))


def test_files(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "model.safetensors",
        "model.json",
        "metrics.json",
        "history.csv",
    }
    assert json.loads((saved / "metrics.json").read_text()) == {"test": {"loss": 0.25}}
    with (saved / "history.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["epoch", "loss", "accuracy"], ["1", "1.5", "0.5"], ["2", "0.1", "1.0"]]


def test_metrics_that_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        runs.save(tmp_path, _model(), metrics={"loss": float("nan")}, history={})


# Folders.


def test_claim_refuses_what_is_not_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert runs.claim(folder) == folder
    assert runs.claim(folder) == folder, "empty"
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"b is not empty; choose another, or .*--overwrite"):
        runs.claim(folder)
    assert runs.claim(folder, overwrite=True) == folder
    assert (folder / "mine.txt").read_text() == "kept"


def test_claim_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="must be a folder, got the file"):
            runs.claim(tmp_path / "file", overwrite=overwrite)


def test_claim_next_gives_each_its_own(tmp_path: Path) -> None:
    (tmp_path / "run-3").mkdir()
    with ThreadPoolExecutor(8) as pool:
        claimed = list(pool.map(lambda _: runs.claim_next(tmp_path / "run"), range(8)))
    assert {path.name for path in claimed} == {"run"} | {f"run-{n}" for n in (2, *range(4, 10))}


# What cannot be read.


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_missing_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no model: {name} is missing"):
        runs.load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "must have format 'jaxsoftmax-linear'"),
        ({"format_version": 2}, "must have format_version 1, got 2; a later version"),
        ({"num_features": 6}, r"must hold w: \(6, 3\) and may hold a bias, got .*\(5, 3\)"),
    ],
)
def test_header_that_does_not_fit(saved: Path, change: dict[str, object], message: str) -> None:
    path = saved / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        runs.load(saved)


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff"])
def test_header_that_is_no_header(saved: Path, text: str) -> None:
    (saved / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"model\.json"):
        runs.load(saved)


def test_truncated_parameters(saved: Path) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        runs.load(saved)


def test_bias_of_another_length(saved: Path) -> None:
    arrays = {"w": np.zeros((5, 3), np.float32), "bias": np.zeros(2, np.float32)}
    save_file(arrays, saved / "model.safetensors")
    with pytest.raises(ValueError, match=r"may hold a bias, got .*\(2,\)"):
        runs.load(saved)
