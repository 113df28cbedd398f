"""The folder of a run: what goes in comes out, and it is one run or another, never half of one."""

import csv
import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

import jaxsoftmax
from jaxsoftmax import linear
from jaxsoftmax.app import folder_lock, run_folder
from jaxsoftmax.app.data.dataset import Schema, Task
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.linear import LinearParams

HISTORY = {"loss": np.array([1.5, 0.1], np.float32), "accuracy": np.array([0.5, 1.0])}
SCHEMA = Schema(Task.classes, ("a", "b", "ç"), shape=(5,), columns=tuple("vwxyz"), target=("t",))
PLAIN = {"model.safetensors", "model.json", "metrics.json", "history.csv"}


def make(bias: bool = True, seed: int = 0, **of_model: object) -> run_folder.Model:
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(5, 3)).astype(np.float32)
    params = LinearParams(w, np.arange(3, dtype=np.float32) if bias else None)
    return run_folder.Model(params, SCHEMA, **{"header": {"seed": seed}} | of_model)


def save(folder: Path, seed: int = 0) -> None:
    """A run all of whose files tell its seed."""
    run_folder.save(
        folder, make(seed=seed), metrics={"seed": seed}, history={"seed": np.array([seed, seed])}
    )


def seed_of(folder: Path) -> int:
    """The seed that every file of a run agrees on; read as anyone would, by the header."""
    model = run_folder.load(folder)
    seed = model.header["seed"]
    np.testing.assert_array_equal(model.params.w, make(seed=seed).params.w)
    assert json.loads(run_folder.read(folder, "metrics.json")) == {"seed": seed}
    history = list(csv.reader(run_folder.read(folder, "history.csv").decode().splitlines()))
    assert history == [["epoch", "seed"], ["1", str(seed)], ["2", str(seed)]]
    return seed


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    run_folder.save(tmp_path, make(), metrics={"test": {"loss": 0.25}}, history=HISTORY)
    return tmp_path


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("standardised", [True, False])
def test_round_trip(tmp_path: Path, bias: bool, standardised: bool) -> None:
    scale = {"mean": np.linspace(1, 2, 5), "scale": np.full(5, 1e-3)} if standardised else {}
    model = make(bias, preprocessing=Preprocessing(log1p=standardised, **scale))
    run_folder.save(tmp_path, model, metrics={}, history={})
    loaded = run_folder.load(tmp_path)
    np.testing.assert_array_equal(loaded.params.w, model.params.w)
    assert (loaded.params.bias is None) == (not bias)
    if bias:
        np.testing.assert_array_equal(loaded.params.bias, model.params.bias)
    assert loaded.schema == SCHEMA
    assert loaded.preprocessing.log1p == standardised
    for mine, theirs in zip(model.preprocessing[1:], loaded.preprocessing[1:], strict=True):
        assert (mine is None and theirs is None) or (
            mine.dtype == theirs.dtype and np.array_equal(mine, theirs)
        )
    assert loaded.header["seed"] == 0
    x = jnp.ones((2, 5))
    np.testing.assert_array_equal(linear.logits(loaded.params, x), linear.logits(model.params, x))


def test_a_binary_head_of_one_score(tmp_path: Path) -> None:
    schema = Schema(Task.classes, ("no", "yes"), shape=(5,))
    one = LinearParams(jnp.ones((5, 1)), jnp.zeros(1))
    run_folder.save(tmp_path, run_folder.Model(one, schema), metrics={}, history={})
    assert run_folder.load(tmp_path).params.w.shape == (5, 1)


def test_files(saved: Path) -> None:
    assert names(saved) == PLAIN
    assert json.loads((saved / "metrics.json").read_text()) == {"test": {"loss": 0.25}}
    with (saved / "history.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["epoch", "loss", "accuracy"], ["1", "1.5", "0.5"], ["2", "0.1", "1.0"]]
    assert run_folder.read(saved, "history.csv") == (saved / "history.csv").read_bytes()


def test_metrics_that_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        run_folder.save(tmp_path, make(), metrics={"loss": float("nan")}, history={})
    assert not names(tmp_path)


# Folders.


def test_make_folder_refuses_what_is_not_empty(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    assert run_folder.make_folder(folder) == folder
    assert run_folder.make_folder(folder) == folder, "empty"
    (folder / "mine.txt").write_text("kept")
    with pytest.raises(FileExistsError, match=r"b is not empty; .* or add --overwrite"):
        run_folder.make_folder(folder)
    assert run_folder.make_folder(folder, overwrite=True) == folder
    assert (folder / "mine.txt").read_text() == "kept"


def test_make_folder_refuses_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="must be a folder, got the file"):
            run_folder.make_folder(tmp_path / "file", overwrite=overwrite)


@pytest.mark.parametrize("text", ['{"name": "mine"}', "no JSON", "[]"])
def test_make_folder_refuses_another_ones_model_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"model\.json is not the header of a run"):
        run_folder.make_folder(tmp_path, overwrite=True)
    assert (tmp_path / "model.json").read_text() == text


def test_numbered_folders_are_distinct(tmp_path: Path) -> None:
    (tmp_path / "run-3").mkdir()
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: run_folder.make_numbered_folder(tmp_path / "run"), range(8)))
    assert {path.name for path in made} == {"run"} | {f"run-{n}" for n in (2, *range(4, 10))}


# One run replaces another.


def test_a_run_that_is_replaced_leaves_nothing(tmp_path: Path) -> None:
    for seed in range(4):
        save(tmp_path, seed)
        assert seed_of(tmp_path) == seed
        assert names(tmp_path) == PLAIN, "the promised names"
        assert json.loads((tmp_path / "metrics.json").read_text()) == {"seed": seed}


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    others = ("notes.txt", "report.html", "model.2.bin")
    for name in others:
        (tmp_path / name).write_text("mine")
    save(tmp_path, 1)
    save(tmp_path, 2)
    assert seed_of(tmp_path) == 2
    assert all((tmp_path / name).read_text() == "mine" for name in others)
    assert len(names(tmp_path)) == 4 + 3


@pytest.mark.parametrize("name", ["metrics.json", "report.html"])
def test_no_other_file_has_a_promised_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=rf"{name} already exists, and does not belong to"):
        run_folder.make_folder(tmp_path, overwrite=True)
    if name == "report.html":
        save(tmp_path)  # which writes none
    write = {
        "metrics.json": lambda: save(tmp_path),
        "report.html": lambda: run_folder.add(tmp_path, name, lambda path: path.write_text("")),
    }
    with pytest.raises(FileExistsError, match=rf"{name} already exists, and does not belong to"):
        write[name]()
    assert (tmp_path / name).read_text() == "mine"


def test_two_processes_that_save_one_run_do_not_mix_it(tmp_path: Path) -> None:
    """Without a lock: the header that is written last is of the run that was saved last."""
    save(tmp_path, 1)

    def write_slowly(path: Path) -> None:
        save(tmp_path, 2)
        path.write_text("of the first run")

    with pytest.raises(FileExistsError, match="another process saved a run there"):
        run_folder.add(tmp_path, "report.html", write_slowly)
    assert seed_of(tmp_path) == 2
    assert names(tmp_path) == PLAIN


def test_a_folder_is_held_by_one(tmp_path: Path) -> None:
    with (
        folder_lock.hold(tmp_path),
        pytest.raises(BlockingIOError, match="is in use by another process"),
        folder_lock.hold(tmp_path),
    ):
        pass
    with folder_lock.hold(tmp_path):
        assert not names(tmp_path)


def test_what_is_added_belongs_to_the_run(tmp_path: Path) -> None:
    save(tmp_path)
    path = run_folder.add(tmp_path, "report.html", lambda path: path.write_text("<p>"))
    assert (path.name, run_folder.read(tmp_path, "report.html")) == ("report.html", b"<p>")
    save(tmp_path, 1)
    assert names(tmp_path) == PLAIN, "no page of the run that is replaced"
    path = run_folder.add(tmp_path, "report.html", lambda path: path.write_text("<b>"))
    assert (path.name, run_folder.read(tmp_path, "report.html")) == ("report.html", b"<b>")
    assert seed_of(tmp_path) == 1


def test_what_fails_to_be_added_leaves_the_run(tmp_path: Path) -> None:
    save(tmp_path)

    def fail(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("no ink")

    with pytest.raises(RuntimeError, match="no ink"):
        run_folder.add(tmp_path, "report.html", fail)
    assert names(tmp_path) == PLAIN
    assert seed_of(tmp_path) == 0


# A process that is killed, and a full disk: real processes run the real `save` and `add`.

# A child of a single-threaded process runs the operation on a copy of the folder `before`. It kills
# itself before the n-th line of run_folder.py and atomic_files.py; n grows until a child survives.
_DIE_AT_EACH_LINE = """
import os, shutil, signal, sys
from pathlib import Path
from jaxsoftmax.app import atomic_files, run_folder
import test_run_folder

base = Path(sys.argv[1])

def at_line(last):
    seen = 0
    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in (atomic_files.__file__, run_folder.__file__):
            return None
        seen += event == "line"
        if seen == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace
    return trace

number, status = 0, None
while status != 0:
    number += 1
    folder = base / f"killed-{number}"
    shutil.copytree(base / "before", folder)
    child = os.fork()
    if child == 0:
        sys.settrace(at_line(number))
        test_run_folder.OPERATIONS[sys.argv[2]](folder)
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
"""


OPERATIONS = {
    "save": lambda folder: save(folder, 2),
    "add": lambda folder: run_folder.add(
        folder, "report.html", lambda path: path.write_text("whole")
    ),
}


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    paths = f"{Path(jaxsoftmax.__file__).parent.parent}{os.pathsep}{Path(__file__).parent}"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )


def killed(base: Path, operation: str) -> list[Path]:
    """The folders that the killed left, in order; the last is of the one that survived."""
    done = python(_DIE_AT_EACH_LINE, str(base), operation)
    assert done.returncode == 0, done.stderr
    folders = sorted(base.glob("killed-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(folders) > 20
    return folders


def test_killed_at_any_line_a_save_leaves_the_old_run_or_the_new(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    save(tmp_path / "before", 1)
    folders = killed(tmp_path, "save")
    seeds = [seed_of(folder) for folder in folders]
    assert seeds == sorted(seeds), "the old ones first"
    assert set(seeds) == {1, 2}
    assert names(folders[-1]) == PLAIN
    for folder in folders:  # the next one clears up after the dead
        save(folder, 3)
        assert seed_of(folder) == 3
        assert len(names(folder)) == 4, names(folder)


def test_killed_at_any_line_a_first_save_leaves_no_run_or_a_whole_one(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    folders = killed(tmp_path, "save")
    there = [(folder / "model.json").exists() for folder in folders]
    assert there == sorted(there)
    assert there[-1]
    for folder, whole in zip(folders, there, strict=True):
        if whole:
            assert seed_of(folder) == 2
        else:
            with pytest.raises(FileNotFoundError, match="holds no run"):
                run_folder.load(folder)
        save(folder, 3)
        assert seed_of(folder) == 3


def test_killed_at_any_line_an_addition_leaves_the_run(tmp_path: Path) -> None:
    (tmp_path / "before").mkdir()
    save(tmp_path / "before", 1)
    for folder in killed(tmp_path, "add"):
        assert seed_of(folder) == 1
        if "report.html" in run_folder.read_header(folder)["files"]:
            assert run_folder.read(folder, "report.html") == b"whole"


# The kernel stops a process at the first byte of a file that is past a limit: by a signal that
# kills it, or, where it is ignored as Python does, by an error, as on a full disk.
_WRITE_UP_TO = """
import resource, signal, sys
from pathlib import Path
import test_run_folder

size, killed = int(sys.argv[2]), sys.argv[3] == "killed"
signal.signal(signal.SIGXFSZ, signal.SIG_DFL if killed else signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
test_run_folder.OPERATIONS["save"](Path(sys.argv[1]))
"""


@pytest.mark.parametrize("how", ["killed", "refused"])
@pytest.mark.parametrize("file", ["model.safetensors", "model.json"])
def test_stopped_inside_a_file(tmp_path: Path, file: str, how: str) -> None:
    save(tmp_path, 1)
    size = (tmp_path / file).stat().st_size - 1  # all smaller files fit
    done = python(_WRITE_UP_TO, str(tmp_path), str(size), how)
    if how == "killed":
        assert done.returncode == -signal.SIGXFSZ
    else:
        assert "OSError: [Errno 27] File too large" in done.stderr
        assert names(tmp_path) == PLAIN
    assert seed_of(tmp_path) == 1


def test_a_full_disk_leaves_the_old_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("a small disk can be mounted by root alone")
    try:
        save(disk, 1)
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize
        (disk / "others").write_bytes(bytes(free))
        with pytest.raises(OSError, match="No space left"):
            save(disk, 2)
        assert names(disk) == PLAIN | {"others"}
        assert seed_of(disk) == 1
        (disk / "others").unlink()
        save(disk, 2)
        assert seed_of(disk) == 2
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_an_interrupt_while_saving_leaves_the_old_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    left, real = 0, os.fsync

    def interrupted(descriptor: int) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(descriptor)

    monkeypatch.setattr(os, "fsync", interrupted)
    for before_switch in range(5):  # of three files, of the folder, of the header
        left = before_switch
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
        assert names(tmp_path) == PLAIN
        assert seed_of(tmp_path) == 1
    left = 5  # of the folder, after the switch
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert seed_of(tmp_path) == 2


# What cannot be read.


def test_what_was_never_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"holds no run: model\.json is missing"):
        run_folder.load(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no run: model\.json is missing"):
        run_folder.load(tmp_path / "nowhere")
    save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no report\.html"):
        run_folder.read(tmp_path, "report.html")


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.json", "history.csv"])
def test_a_file_that_is_gone_or_damaged(saved: Path, name: str) -> None:
    path = saved / name
    content = path.read_bytes()
    for damage in (content[:-1], content + b" ", bytes([content[0] ^ 1]) + content[1:], b""):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=rf"{name} is damaged: its SHA-256"):
            run_folder.read(saved, name)
        if name == "model.safetensors":
            with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
                run_folder.load(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"is incomplete: {name} is missing"):
        run_folder.read(saved, name)


def rewrite(folder: Path, **change: object) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "another"}, "must have format 'jaxsoftmax-linear'"),
        ({"format_version": 1}, "must have format_version 3, got 1; it was written by another"),
        ({"format_version": 4}, "must have format_version 3, got 4; it was written by another"),
        ({"schema": {}}, "no schema or preprocessing"),
        ({"schema": {**SCHEMA.to_json(), "task": "dance"}}, "no schema or preprocessing"),
        ({"schema": {**SCHEMA.to_json(), "shape": [6]}}, r"must hold w: \(6, 3\).*\(5, 3\)"),
        ({"schema": {**SCHEMA.to_json(), "classes": ["a"]}}, r"must hold w: \(5, 1\).*\(5, 3\)"),
        ({"schema": None}, r"no schema .*must be a dict, got None"),
        *(
            ({"schema": {**SCHEMA.to_json(), name: value}}, f"no schema .*{name} must be")
            for name, value in (
                ("classes", None),
                ("classes", ["a", 2, "c"]),
                ("shape", "5"),
                ("shape", [[5]]),
                ("columns", 5),
                ("columns", [None] * 5),
                ("target", "y"),
                ("divisor", "1"),
                ("identifier", 1),
            )
        ),
        ({"preprocessing": None}, "no schema or preprocessing"),
        ({"files": {}}, r"has no model\.safetensors"),
        ({"files": {"model.safetensors": {"name": "model.safetensors"}}}, "must name a file for"),
        ({"files": {"model.safetensors": "x"}}, "must name a file for model.safetensors, got 'x'"),
        (
            {"files": {"model.safetensors": {"name": "../model.safetensors", "sha256": ""}}},
            "must name a file for model.safetensors",
        ),
    ],
)
def test_header_that_does_not_fit(saved: Path, change: dict[str, object], message: str) -> None:
    rewrite(saved, **change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        run_folder.load(saved)


@pytest.mark.parametrize("text", ["{", "[1]", "", "\xff", "[" * 100_000])
def test_header_that_is_no_header(saved: Path, text: str) -> None:
    (saved / "model.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"model\.json"):
        run_folder.load(saved)


def test_a_header_cannot_have_other_files_removed(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    save(folder)
    for victim in (tmp_path / "model.safetensors", folder / "notes.txt"):
        victim.write_text("mine")
    entry = {"name": "../model.safetensors", "sha256": ""}
    files = json.loads((folder / "model.json").read_text())["files"]
    rewrite(folder, files=files | {"model.safetensors": entry}, replaces=["notes.txt", "../x"])
    save(folder, 1)
    assert seed_of(folder) == 1
    assert (tmp_path / "model.safetensors").read_text() == "mine"
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "arrays",
    [
        {"w": np.zeros((5, 3), np.float32), "bias": np.zeros(2, np.float32)},
        {"w": np.zeros((5, 3), np.float32), "mean": np.zeros(5)},
        {"w": np.zeros((5, 3), np.float32), "mean": np.zeros(3), "scale": np.ones(3)},
        {"v": np.zeros((5, 3), np.float32)},
    ],
)
def test_arrays_that_do_not_fit(saved: Path, arrays: dict[str, np.ndarray]) -> None:
    save_file(arrays, saved / "model.safetensors")
    _sign_again(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors must hold w: \(5, 3\) and"):
        run_folder.load(saved)


def test_nothing_is_unpickled(saved: Path) -> None:
    (saved / "model.safetensors").write_bytes(pickle.dumps({"w": np.zeros((5, 3))}))
    _sign_again(saved)
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        run_folder.load(saved)


def _sign_again(folder: Path) -> None:
    """As one who means to deceive would: the hash is no seal."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    rewrite(folder, files={"model.safetensors": {"name": "model.safetensors", "sha256": digest}})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"w": np.full((5, 3), np.nan, np.float32)}, "w must be finite, and holds NaN or infinity"),
        ({"bias": np.array([0, np.inf, 0], np.float32)}, "bias must be finite"),
        ({"w": np.zeros((5, 3), np.int32)}, "w must be float32, got int32"),
        ({"w": np.zeros((5, 3), np.float16)}, "w must be float32, got float16"),
    ],
)
def test_parameters_that_are_no_numbers(
    saved: Path, change: dict[str, np.ndarray], message: str
) -> None:
    """The hash may be right: whoever changes a file can change the header too."""
    arrays = {"w": np.zeros((5, 3), np.float32), "bias": np.zeros(3, np.float32)} | change
    save_file(arrays, saved / "model.safetensors")
    _sign_again(saved)
    with pytest.raises(ValueError, match=rf"model\.safetensors: {message}"):
        run_folder.load(saved)
