"""A person's own files: what is read from each kind, how labels make a task, and every refusal."""

import datetime
import decimal
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from made_files import table, write

from jaxsoftmax.app import data
from jaxsoftmax.app.data import arrays
from jaxsoftmax.app.data.column_learning import ColumnOptions
from jaxsoftmax.app.data.dataset import Dataset, Split, Task

ROOT = Path(__file__).parent.parent
SHARED = Path(os.environ.get("JAXSOFTMAX_SHARED_DATA", ROOT / "../shared/data"))
RNG = np.random.default_rng(0)
SPLITS = ("train", "validation", "test")
STRICT = ColumnOptions(numeric_only=True)
KEEP_A = ColumnOptions(keep=("a",))


def whole(dataset: Dataset) -> Split:
    """All examples, in the order of their ids."""
    splits = [getattr(dataset, name) for name in SPLITS]
    order = np.argsort(np.concatenate([split.ids for split in splits]))
    arrays = zip(*((split.features, split.targets, split.ids) for split in splits), strict=True)
    return Split(*(np.concatenate(parts)[order] for parts in arrays))


def flowers(count: int = 40) -> dict[str, Any]:
    return {
        "petal": RNG.standard_normal(count),
        "kind": [("rose", "iris", "aster")[i % 3] for i in range(count)],
        "leaves": RNG.integers(0, 9, count),
    }


# What is read.


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".CSV"])
def test_a_table_with_a_label_column(tmp_path: Path, suffix: str) -> None:
    columns = flowers()
    path = table(tmp_path / f"flowers{suffix}", columns)
    dataset = data.load_file(path, label="kind")
    schema = dataset.schema
    assert (dataset.name, schema.task, schema.divisor) == ("flowers", Task.classes, 1)
    assert schema.classes == ("aster", "iris", "rose")
    assert schema.columns == ("petal", "leaves")
    assert (schema.shape, schema.target, schema.identifier) == ((2,), ("kind",), None)
    assert str(path) in dataset.source
    everything = whole(dataset)
    expected = np.stack([columns["petal"], columns["leaves"]], axis=1).astype(np.float32)
    np.testing.assert_array_equal(everything.features, expected)
    assert [schema.classes[k] for k in everything.targets] == columns["kind"]
    np.testing.assert_array_equal(everything.ids, np.arange(1, 41))
    for name in SPLITS:
        split = getattr(dataset, name)
        assert split.features.dtype == np.float32
        assert split.features.flags.c_contiguous
        assert split.targets.dtype == np.int32
        assert (np.diff(split.ids) > 0).all()
        assert set(split.targets.tolist()) == {0, 1, 2}
    assert [len(getattr(dataset, name).ids) for name in SPLITS] == [28, 6, 6]


def test_many_blocks_are_as_one(tmp_path: Path) -> None:
    x = RNG.standard_normal((5_000, 150)).astype(np.float32)  # three blocks, of three groups
    columns = {f"x{j}": x[:, j] for j in range(150)} | {"y": np.arange(5_000) % 2}
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(pa.table(columns), path, row_group_size=1_999)
    reports: list[tuple[int, int]] = []
    dataset = data.load_file(path, label="y", progress=lambda *done: reports.append(done))
    everything = whole(dataset)
    np.testing.assert_array_equal(everything.features, x)
    np.testing.assert_array_equal(everything.targets, columns["y"])
    assert len(reports) > 2
    assert reports[-1] == (5_000, 5_000)


def test_seed_draws_the_split(tmp_path: Path) -> None:
    path = table(tmp_path / "flowers.csv", flowers())
    first, again, other = (data.load_file(path, label="kind", seed=s).test.ids for s in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert set(first.tolist()) != set(other.tolist())


def test_types_of_number_columns(tmp_path: Path) -> None:
    count = 10
    columns = {
        "half": pa.array(np.linspace(0, 1, count).astype(np.float16)),
        "long": pa.array(np.arange(count) - 5),
        "unsigned": pa.array(np.arange(count).astype(np.uint64) + 2**63),
        "flag": pa.array([i % 3 == 0 for i in range(count)]),
        "money": pa.array([decimal.Decimal(i) / 4 for i in range(count)]),
        "coded": pa.array([1.5, 2.5] * 5).dictionary_encode(),
        "fixed": pa.array([[i, i + 0.5] for i in range(count)], pa.list_(pa.float32(), 2)),
        "vector": pa.array([[i, i * i, -i] for i in range(count)], pa.list_(pa.int16())),
        "large": pa.array([[float(i)] for i in range(count)], pa.large_list(pa.float64())),
        "y": pa.array(["a", "b"] * 5),
    }
    dataset = data.load_file(table(tmp_path / "x.parquet", columns), label="y")
    assert dataset.schema.columns == (
        *("half", "long", "unsigned", "flag=true", "money", "coded"),
        *("fixed[0]", "fixed[1]", "vector[0]", "vector[1]", "vector[2]", "large[0]"),
    )
    i = np.arange(count)
    expected = [np.linspace(0, 1, count).astype(np.float16), i - 5, i + 2.0**63, i % 3 == 0, i / 4]
    expected += [1.5 + i % 2, i, i + 0.5, i, i * i, -i, i]
    np.testing.assert_array_equal(
        whole(dataset).features, np.stack(expected, axis=1).astype(np.float32)
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a,y\r\n"1.5",x\r\n2,z\r\n', [[1.5], [2]]),  # quotes, and lines that end in two characters
        ("\ufeffa,y\n1,x\n2,z\n", [[1], [2]]),  # a byte order mark
        ('a,y,"b,c"\n1,"x\ny",3\n\n2,z,4\n', [[1, 3], [2, 4]]),  # a line break in a cell
        ("a,y\n 1,x\n2 ,z\n", [[1], [2]]),
        ("a,y\n1e3,x\n-.5,z\n", [[1000], [-0.5]]),
        ("a,y\ntrue,x\nfalse,z\n", [[1], [0]]),
    ],
)
def test_csv_as_people_write_it(tmp_path: Path, text: str, expected: list[list[float]]) -> None:
    head, _, rows = text.partition("\r\n" if "\r" in text else "\n")
    end = text[len(head) : -len(rows)]
    path = write(tmp_path / "x.csv", head + end + rows * 3)
    everything = whole(data.load_file(path, label="y"))
    np.testing.assert_array_equal(everything.features, expected * 3)
    assert everything.targets.tolist() == [0, 1] * 3


def test_types_are_found_in_the_whole_file(tmp_path: Path) -> None:
    rows = ["1,0"] * 900_000 + ["1.5,1"]  # the fraction stands in the block after the first
    path = write(tmp_path / "x.csv", "a,y\n" + "\n".join(rows * 3))
    assert path.stat().st_size > 2**23
    features = whole(data.load_file(path, label="y")).features
    assert (features[:, 0] == 1.5).nonzero()[0].tolist() == [900_000, 1_800_001, 2_700_002]


def test_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tsv", "a\tb\ty\n" + "1\t2\tp\n3\t4\tq\n" * 3)
    np.testing.assert_array_equal(
        whole(data.load_file(path, label="y")).features, [[1, 2], [3, 4]] * 3
    )


def test_a_column_that_pandas_wrote_for_its_index_is_no_feature(tmp_path: Path) -> None:
    columns = {"a": np.arange(9.0), "y": [0, 1, 2] * 3, "__index_level_0__": np.arange(9)}
    dataset = data.load_file(table(tmp_path / "x.parquet", columns), label="y")
    assert dataset.schema.columns == ("a",)


def test_a_column_without_a_name_can_be_dropped(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", ",a,y\n" + "0,1,p\n1,2,q\n" * 3)
    assert data.load_file(path, label="y", drop=("1",)).schema.columns == ("a",)


def test_names_with_dots_in_parquet(tmp_path: Path) -> None:
    columns = {".text:": np.arange(9.0), "a": -np.arange(9.0), "a.b": np.ones(9)}
    path = table(tmp_path / "x.parquet", columns | {"y": [0, 1, 2] * 3})
    everything = whole(data.load_file(path, label="y", drop=("a.b",)))
    np.testing.assert_array_equal(everything.features[:, 0], columns[".text:"])
    np.testing.assert_array_equal(everything.features[:, 1], columns["a"])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["x9", "x10", "x1"], ["x9", "x10", "x1"]),
        (["007", "7", "08"], ["007", "7", "08"]),
        ([30, -1, 2], [30, -1, 2]),
    ],
)
def test_ids(tmp_path: Path, suffix: str, ids: list[Any], expected: list[Any]) -> None:
    columns = {"ID": ids * 2, "a": np.arange(6.0), "y": ["p", "q"] * 3}
    dataset = data.load_file(table(tmp_path / f"x{suffix}", columns), label="y", id="Id")
    assert dataset.schema.columns == ("a",)
    assert dataset.schema.identifier == "ID"
    for name in SPLITS:
        split = getattr(dataset, name)
        rows = split.features[:, 0].astype(int)
        assert split.ids.tolist() == [(expected * 2)[row] for row in rows]


def test_names_that_differ_in_case_are_other_columns(tmp_path: Path) -> None:
    columns = {"Id": list("abcdef"), "ID": range(6), "Y": range(6), "y": ["p", "q"] * 3}
    dataset = data.load_file(table(tmp_path / "x.csv", columns), label="y", id="Id")
    assert dataset.schema.columns == ("ID", "Y")
    assert dataset.train.identifier == "Id"


def test_data_without_the_ids_have_numbers_of_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", {"id": list("abcdef"), "a": range(6), "y": ["p", "q"] * 3})
    schema = data.load_file(path, label="y", id="id").schema
    assert data.read(path, schema, targets=False).identifier == "id"
    more = data.read(table(tmp_path / "more.csv", {"a": [7, 8]}), schema, targets=False)
    assert (more.identifier, more.ids.tolist()) == (None, [1, 2])


@pytest.mark.parametrize("ids", [["a", "", "b"], ["1", "", "2"]])
def test_an_id_that_is_missing(tmp_path: Path, ids: list[str]) -> None:
    rows = "".join(f"{i},{k},{'pq'[k % 2]}\n" for k, i in enumerate(ids * 3))
    path = write(tmp_path / "x.csv", f"id,a,y\n{rows}")
    with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'id': the id is missing"):
        data.load_file(path, label="y", id="id")


def test_an_array_of_ids(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(12.0).reshape(6, 2), y=[0, 1] * 3, name=[f"n{i}" for i in range(6)])
    dataset = data.load_file(path, id="name")
    rows = (dataset.train.features[:, 0] / 2).astype(int)
    assert dataset.train.ids.tolist() == [f"n{row}" for row in rows]


# Arrays.


def test_images_in_npz(tmp_path: Path) -> None:
    images = RNG.integers(0, 256, (20, 4, 3, 1), np.uint8)
    labels = RNG.permutation(np.repeat([3, 10, 7], (10, 6, 4)))
    path = tmp_path / "pictures.npz"
    np.savez_compressed(path, pictures=images, labels=labels)
    dataset = data.load_file(path)
    schema = dataset.schema
    assert (schema.classes, schema.shape, schema.divisor) == (("3", "7", "10"), (4, 3, 1), 255)
    assert (schema.columns, schema.target) == (None, ("labels",))
    everything = whole(dataset)
    expected = images.reshape(20, 12).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(everything.features, expected)
    assert [int(schema.classes[k]) for k in everything.targets] == labels.tolist()
    more = data.read(path, schema, targets=True)
    np.testing.assert_array_equal(more.features, expected)
    np.testing.assert_array_equal(more.targets, everything.targets)


@pytest.mark.parametrize("dtype", ["u1", "i8", "f2", "f8", "?", ">f4", ">i2"])
def test_features_in_npy(tmp_path: Path, dtype: str) -> None:
    x = RNG.integers(0, 2, (9, 4)).astype(dtype)
    y = np.array(["a", "b", "c"] * 3)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    dataset = data.load_file(tmp_path / "x.npy", labels=tmp_path / "y.npy")
    assert (dataset.schema.divisor, dataset.schema.classes) == (1, ("a", "b", "c"))
    everything = whole(dataset)
    np.testing.assert_array_equal(everything.features, x.astype(np.float32))
    assert everything.targets.tolist() == [0, 1, 2] * 3


def test_npy_with_labels_in_a_table(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", RNG.standard_normal((9, 4)))
    labels = write(tmp_path / "y.csv", "n,y\n" + "1,a\n1,b\n1,c\n" * 3)
    dataset = data.load_file(tmp_path / "x.npy", labels=labels, label="y")
    assert whole(dataset).targets.tolist() == [0, 1, 2] * 3


@pytest.mark.parametrize(
    ("labels", "task", "classes"),
    [
        (np.array([[1], [2], [1]]), Task.classes, ("1", "2")),
        (np.array([b"x", b"y", b"x"]), Task.classes, ("x", "y")),
        (np.array([True, False, True]), Task.classes, ("false", "true")),
        (np.array([1.0, -2.0, 1.0]), Task.classes, ("-2", "1")),
        (np.array([1.5, -2.0, 1.0]), Task.numbers, ("y",)),
        (np.array([[0, 1], [1, 1], [0, 0]]), Task.labels, ("y[0]", "y[1]")),
        (np.array([[0.5, 1], [1, 1], [0, 0]]), Task.numbers, ("y[0]", "y[1]")),
        (np.array([10, 9, 2], ">i8"), Task.classes, ("2", "9", "10")),
        (np.array([1, 2, 1], np.float16), Task.classes, ("1", "2")),
        (np.array([1.5, 2, 1], np.longdouble), Task.numbers, ("y",)),
    ],
)
def test_tasks_of_arrays(
    tmp_path: Path, labels: np.ndarray, task: Task, classes: tuple[str, ...]
) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.arange(24.0).reshape(12, 2), y=np.concatenate([labels] * 4))
    dataset = data.load_file(path, features="x", label="y")
    assert (dataset.schema.task, dataset.schema.classes) == (task, classes)
    everything = whole(dataset)
    again = data.read(path, dataset.schema, targets=True)
    np.testing.assert_array_equal(again.targets, everything.targets)
    assert again.targets.dtype == everything.targets.dtype
    if task is not Task.classes:
        np.testing.assert_array_equal(everything.targets, np.concatenate([labels] * 4))


def test_features_and_labels_of_one_name(tmp_path: Path) -> None:
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12) % 3
    for folder, array in (("features", x), ("labels", y)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "data.npy", array)
        np.savez(tmp_path / folder / "data.npz", data=array)
    for name, label in (("data.npy", ()), ("data.npz", "data")):
        files = tmp_path / "features" / name, tmp_path / "labels" / name
        dataset = data.load_file(files[0], labels=files[1], label=label)
        np.testing.assert_array_equal(whole(dataset).features, x)
        more = data.read(files[0], dataset.schema, targets=True, labels=files[1])
        np.testing.assert_array_equal(more.targets, y)


# The task, from the columns of labels.


@pytest.mark.parametrize(
    ("columns", "task", "classes", "targets"),
    [
        ({"y": ["10", "9", "b"]}, Task.classes, ("10", "9", "b"), [0, 1, 2]),
        ({"y": [10, 9, -1]}, Task.classes, ("-1", "9", "10"), [2, 1, 0]),
        ({"y": [3.0, 2.0, -0.0]}, Task.classes, ("0", "2", "3"), [2, 1, 0]),
        ({"y": [True, False, True]}, Task.classes, ("false", "true"), [1, 0, 1]),
        ({"y": [0.5, 2.0, 1.0]}, Task.numbers, ("y",), [0.5, 2, 1]),
        ({"y": [0, 1, 1], "z": [1, 0, 1]}, Task.labels, ("y", "z"), [[0, 1], [1, 0], [1, 1]]),
        (
            {"y": [True, False, True], "z": [1.0, 0.0, 0.0]},
            Task.labels,
            ("y", "z"),
            [[1, 1], [0, 0], [1, 0]],
        ),
        ({"y": [0, 1, 2], "z": [1, 0, 1]}, Task.numbers, ("y", "z"), [[0, 1], [1, 0], [2, 1]]),
        (
            {"y": [["b", "a"], [], ["c"]]},
            Task.labels,
            ("a", "b", "c"),
            [[1, 1, 0], [0, 0, 0], [0, 0, 1]],
        ),
        (
            {"y": pa.array([["b", "a"], [], ["c"]], pa.large_list(pa.string()))},
            Task.labels,
            ("a", "b", "c"),
            [[1, 1, 0], [0, 0, 0], [0, 0, 1]],
        ),
        (
            {"y": pa.array([["b", "a"], ["a", "a"], ["c", "a"]], pa.list_(pa.string(), 2))},
            Task.labels,
            ("a", "b", "c"),
            [[1, 1, 0], [1, 0, 0], [1, 0, 1]],
        ),
        ({"y": [[10, 2], [], [2]]}, Task.labels, ("2", "10"), [[1, 1], [0, 0], [1, 0]]),
        (
            {"y": pa.array(["b", "a", "b"]).dictionary_encode()},
            Task.classes,
            ("a", "b"),
            [1, 0, 1],
        ),
        (
            {"y": pa.array(np.array([3, 2, 0], np.float16))},
            Task.classes,
            ("0", "2", "3"),
            [2, 1, 0],
        ),
        ({"y": pa.array(np.array([0.5, 2, 1], np.float16))}, Task.numbers, ("y",), [0.5, 2, 1]),
        (
            {"y": [decimal.Decimal(k) for k in "010"], "z": [True, False, True]},
            Task.labels,
            ("y", "z"),
            [[0, 1], [1, 0], [0, 1]],
        ),
        (
            {"y": pa.array([["b"], ["a"], []], pa.list_(pa.dictionary(pa.int8(), pa.string())))},
            Task.labels,
            ("a", "b"),
            [[0, 1], [1, 0], [0, 0]],
        ),
        ({"y": pa.array(["b", "a", "b"], pa.large_string())}, Task.classes, ("a", "b"), [1, 0, 1]),
        ({"y": pa.array(["b", "a", "b"], pa.string_view())}, Task.classes, ("a", "b"), [1, 0, 1]),
        (
            {"y": [datetime.date(2020, 1, d) for d in (3, 1, 2)]},
            Task.classes,
            ("2020-01-01", "2020-01-02", "2020-01-03"),
            [2, 0, 1],
        ),
    ],
)
def test_tasks(
    tmp_path: Path,
    columns: dict[str, Any],
    task: Task,
    classes: tuple[str, ...],
    targets: list[Any],
) -> None:
    many = {
        name: pa.concat_arrays([pa.array(c) if isinstance(c, list) else c] * 4)
        for name, c in columns.items()
    }
    path = table(tmp_path / "x.parquet", {"a": np.arange(12.0)} | many)
    dataset = data.load_file(path, label=list(columns))
    assert (dataset.schema.task, dataset.schema.classes) == (task, classes)
    everything = whole(dataset)
    kind = {Task.classes: np.int32, Task.labels: np.bool_, Task.numbers: np.float32}[task]
    assert everything.targets.dtype == kind
    np.testing.assert_array_equal(everything.targets, np.array(targets * 4, kind))
    again = data.read(path, dataset.schema, targets=True)
    np.testing.assert_array_equal(again.targets, everything.targets)


@pytest.mark.parametrize(
    ("task", "dtype", "shape"),
    [(Task.numbers, np.float32, (12,)), (Task.labels, np.bool_, (12, 1))],
)
def test_task_can_be_asked_for(tmp_path: Path, task: Task, dtype: type, shape: tuple) -> None:
    path = table(tmp_path / "x.parquet", {"a": np.arange(12.0), "y": [0, 1] * 6})
    targets = whole(data.load_file(path, label="y", task=task)).targets
    assert (targets.dtype, targets.shape) == (dtype, shape)
    np.testing.assert_array_equal(targets.ravel(), [0, 1] * 6)


def test_numbers_are_split_by_chance_alone(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"a": np.arange(100.0), "y": np.arange(100) / 7})
    dataset = data.load_file(path, label="y", validation_share=0.1, test_share=0.25)
    assert [len(getattr(dataset, name).ids) for name in SPLITS] == [65, 10, 25]


# Two files, and files for testing.


def test_labels_are_joined_by_id(tmp_path: Path) -> None:
    count = 30
    order = RNG.permutation(count)
    x = table(
        tmp_path / "x.csv",
        {"ID": [f"n{i}" for i in range(count)], "a": np.arange(count), "Kind": [9] * count},
    )
    names = [f"n{i}" for i in order] + ["more", "and more", "and more"]
    kinds = [("p", "q")[i % 2] for i in order] + ["never"] * 3
    y = table(tmp_path / "y.parquet", {"kind": kinds, "Id": names})
    dataset = data.load_file(x, labels=y, label="kind", id="id", options=KEEP_A)
    assert dataset.schema.columns == ("a",)  # no column of the label's name is a feature
    assert dataset.schema.classes == ("p", "q")
    assert "without the 3 rows that match no example" in dataset.source
    for name in SPLITS:
        split = getattr(dataset, name)
        np.testing.assert_array_equal(split.targets, split.features[:, 0] % 2)
        assert split.ids.tolist() == [f"n{i:.0f}" for i in split.features[:, 0]]
    again = data.load_file(x, labels=y, id="ID", drop=("Kind",), options=KEEP_A)
    assert again.schema.target == ("kind",)
    more = data.read(x, dataset.schema, targets=True, labels=y)
    np.testing.assert_array_equal(more.targets, np.arange(count) % 2)


def test_ids_of_other_types_are_joined(tmp_path: Path) -> None:
    x = table(tmp_path / "x.parquet", {"id": np.arange(9), "a": np.arange(9.0)})
    y = table(tmp_path / "y.parquet", {"id": [f"{8 - i}" for i in range(9)], "y": [0, 1, 2] * 3})
    everything = whole(data.load_file(x, labels=y, id="id"))
    assert everything.targets.tolist() == [2, 1, 0] * 3
    assert everything.ids.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "d"], r"y.csv has no row with id 'c', as .*x.csv, row 3 \(line 4\)"),
        (["a", "b", "b", "c"], r"y.csv has several rows with id 'b', as .*x.csv, row 2"),
        (["a", "", "b", "c"], r"y.csv has no row with id 'd'|row 2 .*the id is missing"),
    ],
)
def test_joins_that_fail(tmp_path: Path, names: list[str], message: str) -> None:
    x = write(tmp_path / "x.csv", "id,a\na,1\nb,2\nc,3\n")
    y = write(tmp_path / "y.csv", "id,y\n" + "".join(f"{n},{i % 2}\n" for i, n in enumerate(names)))
    if names[1] == "":
        write(x, "id,a\na,1\nb,2\nc,3\nd,4\n")
    with pytest.raises(ValueError, match=message):
        data.load_file(x, labels=y, label="y", id="id")


def test_a_join_needs_an_id(tmp_path: Path) -> None:
    x, y = write(tmp_path / "x.csv", "i,a\n1,2\n"), write(tmp_path / "y.csv", "i,y\n1,2\n")
    with pytest.raises(
        ValueError, match=r"joins them \(--id\); the first has 'i', 'a', the second"
    ):
        data.load_file(x, labels=y, label="y")
    with pytest.raises(ValueError, match=r"x.csv has no 'no', which should be the id; it has 'i'"):
        data.load_file(x, labels=y, label="y", id="no")
    whole_file = table(tmp_path / "z.csv", {"i": range(6), "a": range(6), "y": [0, 1] * 3})
    schema = data.load_file(whole_file, label="y", drop=["i"]).schema
    with pytest.raises(ValueError, match=r"to evaluate them, fit with the name of the column"):
        data.read(x, schema, targets=True, labels=y)


def test_labels_of_another_number(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((9, 4)))
    np.save(tmp_path / "y.npy", np.arange(8))
    with pytest.raises(ValueError, match=r"y.npy: expected 9 labels, .*x.npy, got 8"):
        data.load_file(tmp_path / "x.npy", labels=tmp_path / "y.npy")


def test_a_file_for_testing(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", flowers())
    test = write(tmp_path / "t.csv", "leaves,kind,petal\n3,iris,0.5\n4,iris,1.5\n")
    dataset = data.load_file(path, label="kind", test=test)
    assert [len(getattr(dataset, name).ids) for name in SPLITS] == [34, 6, 2]
    np.testing.assert_array_equal(dataset.test.features, [[0.5, 3], [1.5, 4]])
    assert dataset.test.targets.tolist() == [1, 1]
    assert str(test) in dataset.source


# More data for a model.


@pytest.fixture
def model(tmp_path: Path) -> Dataset:
    return data.load_file(table(tmp_path / "flowers.csv", flowers()), label="kind")


def test_columns_are_found_by_name(tmp_path: Path, model: Dataset) -> None:
    columns = {"x": ["?"] * 2, "leaves": [1, 2], "petal": [0.5, 0.25]}
    for suffix in (".csv", ".parquet"):
        path = table(tmp_path / f"more{suffix}", columns)
        split = data.read(path, model.schema, targets=False)
        np.testing.assert_array_equal(split.features, [[0.5, 1], [0.25, 2]])
        assert len(split.targets) == 0
        assert split.ids.tolist() == [1, 2]


def test_labels_are_ignored_or_checked(tmp_path: Path, model: Dataset) -> None:
    path = write(tmp_path / "more.csv", "leaves,petal,kind\n1,2,rose\n\n1,2,tulip\n1,2,aster\n")
    assert data.read(path, model.schema, targets=False).features.shape == (3, 2)
    message = r"more.csv, row 2 \(line 4\), column 'kind': 'tulip' is none of .* 'aster', 'iris'"
    with pytest.raises(ValueError, match=message):
        data.read(path, model.schema, targets=True)
    write(path, "leaves,petal\n1,2\n")
    with pytest.raises(ValueError, match=r"more.csv has no 'kind', which should be the label"):
        data.read(path, model.schema, targets=True)


def test_missing_columns_are_named(tmp_path: Path, model: Dataset) -> None:
    path = write(tmp_path / "more.csv", "Petal,leaves\n1,2\n")
    with pytest.raises(ValueError, match=r"no column 'petal', which .* are 'Petal', 'leaves'"):
        data.read(path, model.schema, targets=False)


def test_other_widths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 4)), y=[0, 1, 2] * 3)
    schema = data.load_file(tmp_path / "x.npz").schema
    np.save(tmp_path / "more.npy", np.zeros((2, 3)))
    np.save(tmp_path / "good.npy", np.ones((2, 4)))
    table(tmp_path / "more.csv", {str(j): np.zeros(2) for j in range(5)})
    table(tmp_path / "good.csv", {str(j): np.ones(2) for j in range(4)})
    for name, width in (("more.npy", 3), ("more.csv", 5)):
        with pytest.raises(ValueError, match=rf"{name}: expected 4 features, got {width}$"):
            data.read(tmp_path / name, schema, targets=False)
    for name in ("good.npy", "good.csv"):  # without names, width is all
        assert data.read(tmp_path / name, schema, targets=False).features.all()
    with pytest.raises(ValueError, match="expected 4 features, got 64"):
        data.read("digits", schema, targets=False)


def test_lists_keep_their_length(tmp_path: Path) -> None:
    columns = {"v": [[1.0, 2.0]] * 6, "y": [0, 1] * 3}
    schema = data.load_file(table(tmp_path / "x.parquet", columns), label="y").schema
    assert schema.columns == ("v[0]", "v[1]")
    more = table(tmp_path / "more.parquet", {"v": [[3.0, 4.0]]})
    np.testing.assert_array_equal(data.read(more, schema, targets=False).features, [[3, 4]])
    more = table(tmp_path / "more.parquet", {"v": [[3.0, 4.0, 5.0]]})
    with pytest.raises(ValueError, match=r"row 1, column 'v': expected 2 numbers .* got 3"):
        data.read(more, schema, targets=False)
    flat = table(tmp_path / "flat.csv", {"v[1]": [4.0], "v[0]": [3.0]})
    np.testing.assert_array_equal(data.read(flat, schema, targets=False).features, [[3, 4]])


def test_integers_are_divided_as_the_training_data_were(tmp_path: Path) -> None:
    digits = data.load("digits")
    raw = np.round(digits.test.features[:5] * 16)
    np.save(tmp_path / "whole.npy", raw.astype(np.uint8))
    np.save(tmp_path / "divided.npy", raw / 16)
    table(tmp_path / "whole.csv", {f"p{j}": raw[:, j].astype(int) for j in range(64)})
    for name in ("whole.npy", "divided.npy", "whole.csv"):
        split = data.read(tmp_path / name, digits.schema, targets=False)
        np.testing.assert_array_equal(split.features, digits.test.features[:5])
    np.save(tmp_path / "neither.npy", raw)
    with pytest.raises(ValueError, match=r"neither.npy: expected integers, .* by 16 .* 0 to 16"):
        data.read(tmp_path / "neither.npy", digits.schema, targets=False)


def test_named_data_are_read_for_a_model() -> None:
    digits = data.load("digits")
    split = data.read("digits", digits.schema, targets=True, split="validation")
    for ours, theirs in zip(split, digits.validation, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(ValueError, match="split must be train, validation or test, got 'tset'"):
        data.read("digits", digits.schema, targets=True, split="tset")


# What is refused, and what is said. Every text is a whole file.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x.csv is empty"),
        ("a,y", r"x.csv has no rows"),
        ("a,y\n", r"x.csv has no rows"),
        ("a,y\n1,0\n", r"expected at least 3 examples, got 1"),
        ("a,y\n1,0\n2,1\n", r"expected at least 3 examples, got 2"),
        ("a,b,a,y\n1,2,3,0\n", r"x.csv: its header has the name 'a' twice"),
        ("a,y\n1,0\n2\n3,1\n", r"row 2 \(line 3\): expected 2 cells, .* got 1: '2'"),
        ('a,y\n"1\n",0\n2,1,7\n', r"row 2 \(line 4\): expected 2 .* got 3: '2,1,7'"),
        ("a;y\n1;0\n", r"x.csv: expected at least 3 examples, got 1"),
        ("a\ty\n1\t0\n", r"x.csv: expected at least 3 examples, got 1"),
        ("a,y\n1,0\n,1\n3,0\n4,1\n", r"x.csv, row 2 \(line 3\), column 'a': no value"),
        ("a,y\n1,0\n\n\nNA,1\n3,0\n4,1\n", r"x.csv, row 2 \(line 5\), column 'a': no value"),
        ("a,y\n1,0\ninf,1\n3,0\n4,1\n", r"row 2 \(line 3\), column 'a': inf is not finite"),
        (
            "a,y\n1,0\n3,0\n-1e39,1\n4,1\n",
            r"row 3 \(line 4\), column 'a': -1e\+39 is beyond float32",
        ),
        ("a,y\n1,0\n1e400,1\n3,0\n4,1\n", r"row 2 \(line 3\), column 'a': inf is not finite"),
        ("a,b,y\n1,x,0\n1,y,1\n3,z,0\n4,z,1\n", r"row 1 .*'b': 'x' is not a number; leave .*drop"),
        ("a,y\n1,0\n2,1\n3x,0\n4,1\n", r"row 3 \(line 4\), column 'a': '3x' is not a number"),
        (
            'a,b,y\n1,"p\nq",0\n2,r,1\n3,r,0\n4,r,1\n',
            r"row 1 \(line 3\), column 'b': 'p\\nq' is not",
        ),
        (
            "a,y\n" + "2020-01-01,0\n2020-01-01,1\n" * 2,
            r"row 1 .*'a': '2020-01-01' is not a number",
        ),
        ("a,y\n,0\n,1\n,0\n,1\n", r"column 'a': no value, as in all rows; leave .*--drop"),
        ("a,y\n1,0\n2,\n3,1\n", r"row 2 \(line 3\), column 'y': the label is missing"),
        ("a,y\n1,p\n2,\n3,q\n", r"row 2 \(line 3\), column 'y': the label is missing"),
        ("a,y\n1,p\n2,p\n3,p\n", r"x.csv: column 'y' has only one class, 'p'"),
        ("y\np\nq\np\nq\n", r"x.csv has no column that could be a feature"),
        ("a,z\n1,0\n2,1\n3,0\n", r"x.csv has no 'y', which should be the label; it has 'a', 'z'"),
        ("a,y\n1,1.5\n2,nan\n3,0\n", r"row 2 \(line 3\), column 'y': the label is missing"),
        ("a,y\n1,1.5\n2,inf\n3,0\n", r"row 2 \(line 3\), column 'y': inf is not finite"),
        ("a,y\n1,p\n2,q\n3,r\n", r"3 examples of 3 classes leave too few to hold out"),
        # Cells longer than the standard library reads, and a quote that makes one.
        (f"a,b,y\n1,2,{'z' * 140_000}\n,2,q\n" + "3,2,q\n" * 5, r"row 2, column 'a': no value"),
        (f"a,y\n{'z' * 140_000},q\n1,p\n2,q\n3,p\n", r"x.csv, row 1, column 'a': 'zz.* is not a n"),
        ('"a,y\n' + "1,p\n" * 40_000, r"x.csv, line \d+: field larger .* a quote never closed"),
        ('a,y\n"1,p\n' + "1,q\n" * 40_000, r"x.csv, line \d+: field larger .* never closed"),
        ('a,y\n"1,p\n' + "1,q\n" * 5_000_000, r"x.csv: a row exceeds 8 MB; is a quote never"),
    ],
)
def test_refused(tmp_path: Path, text: str, message: str) -> None:
    path = write(tmp_path / "x.csv", text)
    with pytest.raises(ValueError, match=message):
        data.load_file(path, label="y", options=STRICT)


@pytest.mark.parametrize(
    ("column", "message"),
    [
        ([1.0, None, 2.0], r"x.parquet, row 2, column 'a': no value"),
        ([1.0, np.nan, 2.0], r"x.parquet, row 2, column 'a': no value"),
        (["1", "2", "a"], r"x.parquet, row 3, column 'a': 'a' is not a number"),
        (["1", None, "3x"], r"x.parquet, row 3, column 'a': '3x' is not a number"),
        ([[1.0], [1.0, 2.0], [1.0]], r"row 2, column 'a': expected 1 numbers .* got 2"),
        ([[1.0, 0.0], [1.0, None], [1.0, 0.0]], r"row 2, column 'a\[1\]': no value"),
        ([[1.0], None, [1.0]], r"row 2, column 'a': no value"),
        ([None, [1.0], [1.0]], r"row 1, column 'a': no value"),
        ([[], [1.0], []], r"row 1, column 'a': a list without numbers"),
        ([[1.0, 0.0], [1.0, -np.inf], [1.0, 0.0]], r"row 2, column 'a\[1\]': -inf is not finite"),
        ([["x"], ["y"], ["z"]], r"row 1, column 'a': \['x'\] is not a number"),
        ([None, None, None], r"row 1, column 'a': no value, as in all rows; leave"),
    ],
)
def test_refused_in_parquet(tmp_path: Path, column: list[Any], message: str) -> None:
    path = table(tmp_path / "x.parquet", {"a": column * 2, "y": [0, 1, 0] * 2})
    with pytest.raises(ValueError, match=message):
        data.load_file(path, label="y", options=STRICT)


def test_a_fault_far_down_is_named(tmp_path: Path) -> None:
    x = np.zeros((5_000, 150), np.float32)
    x[4_321, 77] = np.nan
    columns = {f"x{j}": x[:, j] for j in range(150)} | {"y": np.arange(5_000) % 2}
    path = table(tmp_path / "x.parquet", columns)
    with pytest.raises(ValueError, match="row 4322, column 'x77': no value"):
        data.load_file(path, label="y", options=STRICT)


@pytest.mark.parametrize(
    ("columns", "task", "message"),
    [
        ({"y": ["a", "b", "a"]}, Task.numbers, "column 'y' holds text, where numbers"),
        ({"y": [0, 1, 2]}, Task.labels, "row 3, column 'y': a label is 0 or 1, got 2"),
        ({"y": [0, 1, 0], "z": [0, 1, 1]}, Task.classes, "from one column, got 'y', 'z'"),
        ({"y": ["a", "b", "a"], "z": [0, 1, 1]}, None, "but 'y' holds text"),
        ({"y": [["a"], None, ["b"]]}, None, "row 2, column 'y': the label is missing"),
        ({"y": [["a"], ["b", None], ["b"]]}, None, "row 2, column 'y': the label is missing"),
        ({"y": [[], [], []]}, None, "x.parquet: column 'y' has no label in any row"),
        ({"y": [0.0, 1.0, np.nan]}, Task.classes, "row 3, column 'y': the label is missing"),
        ({"y": [0.0, np.inf, 1.0]}, None, "row 2, column 'y': inf is not a class"),
        ({"y": [1e300, 0.5, 0.1]}, None, r"row 1, column 'y': 1e\+300 is beyond float32"),
        (
            {"y": [[0, 1], [1, 1], [0, 0]]},
            None,
            "lists of 2 zeros and ones, .* its own column",
        ),
        ({"y": [[True, False], [True, True], [False, True]]}, None, "lists of 2 zeros and ones"),
        ({"y": [{"z": 1}, {"z": 2}, {"z": 1}]}, None, "x.parquet: column 'y' holds struct"),
        ({"y": [[[1]], [[2]], [[1]]]}, None, "x.parquet: column 'y' holds list"),
        ({"y": [[{"z": 1}], [], []]}, None, "x.parquet: column 'y' holds struct"),
        ({"y": pa.array([b"a", b"b", b"a"], pa.binary(1))}, None, "holds fixed_size_binary"),
    ],
)
def test_labels_refused(
    tmp_path: Path, columns: dict[str, Any], task: Task | None, message: str
) -> None:
    path = table(tmp_path / "x.parquet", {"a": [1.0, 2.0, 3.0]} | columns)
    with pytest.raises(ValueError, match=message):
        data.load_file(path, label=list(columns), task=task)


def test_missing_labels_of_rows_to_evaluate(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet", {"a": list(np.arange(20.0)), "y": ["p", "q"] * 10})
    schema = data.load_file(path, label="y").schema
    more = table(tmp_path / "more.parquet", {"a": [1.0, 2.0], "y": ["p", None]})
    with pytest.raises(ValueError, match=r"row 2, .* missing; leave such rows out of the file"):
        data.read(str(more), schema, targets=True)


def test_text_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,y\n1,p\n2,caf\xe9\n3,q\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"row 2 \(line 3\), column 'y': not text in UTF-8"):
        data.load_file(path, label="y")
    write(path, "\xe4,y\n1,p\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"x.csv: not text in UTF-8"):
        data.load_file(path, label="y")


def test_damaged_files(tmp_path: Path) -> None:
    good = table(tmp_path / "good.parquet", {"a": RNG.random(9000), "y": np.arange(9000) % 2})
    content = good.read_bytes()
    for name, damaged in (
        ("x.parquet", b"a,y\n1,2\n"),
        ("x.parquet", content[: len(content) // 2]),
        ("x.npz", b"PK\3\4 and no more"),
        ("x.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '<f8'"),
    ):
        path = tmp_path / name
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name} cannot be read"):
            data.load_file(path, label="y")


@pytest.mark.parametrize("name", ["x.npz", "packed.npz", "x.npy", "x.parquet"])
def test_damage_anywhere_is_told_in_a_line(tmp_path: Path, name: str) -> None:
    path, rng = tmp_path / name, np.random.default_rng(0)
    x, y = rng.random((40, 3)), np.arange(40) % 3
    np.savez(tmp_path / "x.npz", x=x, y=y)
    np.savez_compressed(tmp_path / "packed.npz", x=x, y=y)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    table(tmp_path / "x.parquet", {"a": x[:, 0], "y": y})
    labels = tmp_path / "y.npy" if name == "x.npy" else None
    label = () if labels else "y"
    content = np.frombuffer(path.read_bytes(), np.uint8)
    length = 128 if labels else len(content)  # the header; a number is a number
    told = []
    for _ in range(300):
        damaged = content.copy()
        damaged[rng.integers(length, size=3)] = rng.integers(256, size=3)
        path.write_bytes(damaged.tobytes())
        try:
            data.load_file(path, labels=labels, label=label)
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 30
    assert all(name in error for error in told)


def test_packed_arrays_have_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays, "MAX_UNPACKED", 2**20)
    np.savez_compressed(tmp_path / "x.npz", x=np.zeros((9, 2**17)), y=[0, 1, 2] * 3)
    with pytest.raises(ValueError, match=r"x.npz cannot be read: it has 9,\d+,\d+ bytes .* limit"):
        data.load_file(tmp_path / "x.npz")


def test_what_is_no_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 2)), y=[0, 1, 2] * 3)
    (tmp_path / "x.npz").rename(tmp_path / "x.npy")
    with pytest.raises(ValueError, match=r"x.npy cannot be read: 'x' in it is not an array"):
        data.load_file(tmp_path / "x.npy", labels=tmp_path / "x.npy")
    with zipfile.ZipFile(tmp_path / "notes.npz", "w") as file:
        file.writestr("notes.txt", "none here")
    with pytest.raises(ValueError, match=r"notes.npz cannot be read: 'notes.txt' in it is not"):
        data.load_file(tmp_path / "notes.npz")


def test_a_ragged_row_that_is_not_utf8(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,y\n1,p\n2,caf\xe9,q\n3,q\n", encoding="latin-1")
    with pytest.raises(ValueError, match=r"row 2 \(line 3\): expected 2 cells, .* got 3: '2,caf"):
        data.load_file(path, label="y")


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    for name in ("no.csv", "no.parquet", "no.npz", "no.npy"):
        with pytest.raises(FileNotFoundError, match=rf"{name}: no such file"):
            data.load_file(tmp_path / name, label="y")
    path = write(tmp_path / "x.docx", "PK")
    with pytest.raises(
        ValueError, match=r"x.docx: expected a file that ends in .csv, .tsv, .txt, .data"
    ):
        data.load_file(path, label="y")
    assert data.is_file(path)
    assert not data.is_file("mnist")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder"):
        data.load_file(tmp_path / "folder.csv", label="y")


class Trap:
    """Unpickled, it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    objects = np.array([Trap(sprung)] * 9, object)
    np.save(tmp_path / "x.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "x.npz", x=np.zeros((9, 2)), y=objects, allow_pickle=True)
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(objects))
    for name in ("x.npy", "x.npz", "raw.npy"):
        with pytest.raises(ValueError, match=rf"{name} holds Python objects \(pickled\)"):
            data.load_file(tmp_path / name, labels=None)
    assert not sprung.exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((9, 2)), "z": np.zeros((9, 3))}, r"features.*x \(9, 2\).*z \(9, 3\)"),
        ({"x": np.zeros(9)}, r"must be \[N, D\] .* got shape \(9,\)"),
        ({"x": np.zeros((9, 0))}, r"not empty, got shape \(9, 0\)"),
        ({"x": np.zeros((9, 2), complex)}, r"features must be numbers, got complex128"),
        ({"x": np.full((9, 2), "a")}, r"features must be numbers, got <U1"),
        ({"x": np.zeros((8, 2))}, r"expected 8 labels, .* got 9"),
        ({"x": np.array([[0, 1e39]] * 9)}, r"row 1, feature 2: 1e\+39 is beyond float32"),
        ({"x": np.array([[0, 1]] * 8 + [[np.nan, 0]])}, r"row 9, feature 1: nan is not finite"),
    ],
)
def test_arrays_refused(tmp_path: Path, arrays: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "x.npz", y=[0, 1, 2] * 3, **arrays)
    with pytest.raises(ValueError, match=message) as error:
        data.load_file(tmp_path / "x.npz", label="y")
    assert "x.npz" in str(error.value)


def test_arrays_of_labels_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((9, 2)), y=[0, 1, 2] * 3, labels=[0, 1, 2] * 3)
    with pytest.raises(
        ValueError, match=r"name the array of labels \(--label\); .* 'x \(9, 2\)', 'y"
    ):
        data.load_file(path)
    with pytest.raises(ValueError, match=r"has no 'no', which should be the label"):
        data.load_file(path, label="no")
    with pytest.raises(ValueError, match=r"has no array 'no'; it has 'x \(9, 2\)"):
        data.load_file(path, label="y", features="no")
    with pytest.raises(ValueError, match=r"x.npz: 'x' cannot be features as well"):
        data.load_file(path, label="x", features="x")
    np.savez(path, x=np.zeros((9, 2)), y=[0, 1, 2] * 3, i=range(5), j=np.zeros((9, 2)))
    for name, message in (("i", "expected 9 ids, got 5"), ("j", r"ids must be \[N\], got 2")):
        with pytest.raises(ValueError, match=f"x.npz: {message}"):
            data.load_file(path, label="y", features="x", id=name)
    np.savez(path, x=np.zeros((9, 2)), y=[b"\xff", b"a", b"b"] * 3)
    with pytest.raises(ValueError, match=r"x.npz: 'y' is not text in UTF-8"):
        data.load_file(path)
    np.save(tmp_path / "x.npy", np.zeros((9, 2)))
    with pytest.raises(ValueError, match=r"x.npy: name the file of its labels \(--labels\)"):
        data.load_file(tmp_path / "x.npy")
    np.savez(path, x=np.zeros((9, 2)), y=np.zeros((9, 2, 2)))
    with pytest.raises(ValueError, match=r"'y' must be \[N\] or \[N, K\] .* got shape \(9, 2, 2\)"):
        data.load_file(path, label="y")


def test_options_that_name_nothing(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", flowers())
    with pytest.raises(ValueError, match="has no 'no' to drop; it has 'petal', 'kind', 'leaves'"):
        data.load_file(path, label="kind", drop=("no",))
    with pytest.raises(ValueError, match=r"name the label column \(--label\) of 'petal'"):
        data.load_file(path)
    with pytest.raises(ValueError, match=r"--features names an array of .npz"):
        data.load_file(path, label="kind", features="petal")


# Memory.

_PEAK = """
import resource, sys
from jaxsoftmax.app import data
from jaxsoftmax.app.data import arrays
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
dataset = data.load_file(sys.argv[1], label="y")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="kilobytes on Linux, bytes elsewhere")
def test_a_parquet_file_is_in_memory_once(tmp_path: Path) -> None:
    x = RNG.random((2_000_000, 20), np.float32)
    columns = {f"x{j}": x[:, j] for j in range(20)} | {"y": np.arange(len(x), dtype=np.int8) % 10}
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(pa.table(columns), path, use_dictionary=False, compression="none")
    done = subprocess.run(
        [sys.executable, "-c", _PEAK, str(path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    # Features, ids and labels are 1.15 of it. A whole table beside them would make it 2.15.
    assert int(done.stdout) * 1024 < 1.7 * x.nbytes


# Real files.


def shared(*names: str) -> Sequence[Path]:
    paths = [SHARED / name for name in names]
    for path in paths:
        if not path.is_file():
            pytest.skip(f"{path.name} is not beside this repository (JAXSOFTMAX_SHARED_DATA)")
    return paths


def test_malware() -> None:
    counts, labels = shared("malware/asm_counts.csv", "malware/trainLabels.csv")
    dataset = data.load_file(counts, labels=labels, label="Class", id="Id", drop=("size",))
    schema = dataset.schema
    assert schema.classes == tuple("123456789")
    assert (schema.num_features, schema.columns[0], schema.identifier) == (51, "HEADER:", "ID")
    sizes = [len(getattr(dataset, name).ids) for name in SPLITS]
    assert sizes == [7608, 1630, 1630]
    everything = whole(dataset)
    assert np.bincount(everything.targets).min() == 42
    rare = [np.bincount(getattr(dataset, name).targets)[4] for name in SPLITS]
    assert rare == [29, 6, 7] or rare == [29, 7, 6] or rare == [30, 6, 6]
    # The file of counts has the classes too: what the join gives is what stands there.
    stored = pa.csv.read_csv(counts)
    order = np.argsort(np.array(stored["ID"].to_pylist()))
    classes = np.array(stored["Class"])[order]
    np.testing.assert_array_equal(everything.targets + 1, classes)


def test_yeast() -> None:
    (path,) = shared("yeast/yeast.csv")
    names = [f"Class{k}" for k in range(1, 15)]
    dataset = data.load_file(path, label=names)
    assert (dataset.schema.task, dataset.schema.classes) == (Task.labels, tuple(names))
    everything = whole(dataset)
    assert everything.features.shape == (2417, 103)
    positives = [762, 1038, 983, 862, 722, 597, 428, 480, 178, 253, 289, 1816, 1799, 34]
    assert everything.targets.sum(0).tolist() == positives


def test_toxic() -> None:
    (path,) = shared("toxic/comments.parquet")
    with pytest.raises(ValueError, match=r"row 1, column 'comment_text': text of about 67 words"):
        data.load_file(path, label="toxic", id="id")


def test_paths_stand_in_errors_as_they_were_given(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,y\n1,0\n,1\n3,0\n4,1\n")
    with pytest.raises(ValueError, match=re.escape(f"{path}, row 2")):
        data.load_file(str(path), label="y", options=STRICT)
