"""Tables as people have them: labels as they are written, dialects, and columns of any type."""

import codecs
import datetime
import gzip
import io
import os
import sys
import threading
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
from jaxsoftmax.app.data import text_files
from jaxsoftmax.app.data.column_kinds import Boolean, Category, Date, Number, Text, Vector
from jaxsoftmax.app.data.column_learning import ColumnOptions
from jaxsoftmax.app.data.column_summaries import ColumnSummary
from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.data.dialects import Dialect
from jaxsoftmax.app.data.table_schema import TableSchema


def whole(dataset: Dataset) -> Split:
    """All examples, in the order of the file."""
    splits = [dataset.train, dataset.validation, dataset.test]
    order = np.argsort(np.concatenate([split.ids for split in splits]))
    arrays = zip(*((split.features, split.targets, split.ids) for split in splits), strict=True)
    return Split(*(np.concatenate(parts)[order] for parts in arrays))


def names(dataset: Dataset) -> list[str]:
    """The label of each example, in the order of the file."""
    return [dataset.schema.classes[k] for k in whole(dataset).targets]


def encode(schema: Schema, **columns: Any) -> np.ndarray:
    """The features of rows of a later file."""
    assert schema.table is not None
    return schema.table.apply({name: pa.array(cells) for name, cells in columns.items()})


def load(path: Path, *, label: str = "y", **options: Any) -> Dataset:
    return data.load_file(path, label=label, options=ColumnOptions(**options))


# A label is the text in its cell.


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        (["7", "007", "1"], ("1", "007", "7")),
        (["1E1", "10", "9"], ("9", "10", "1E1")),
        (["12345678901234567890", "12345678901234567891"],) * 2,
        (["True", "False"], ("False", "True")),
        (["01", "02", "1A"],) * 2,
        (["1.0", "2.0"],) * 2,
        (["<=50K", ">50K"],) * 2,
        (["NA", "x"],) * 2,
        (["10", "9", "-1"], ("-1", "9", "10")),
        (["süß", " sauer "], ("sauer", "süß")),
    ],
)
def test_a_label_is_the_text_in_its_cell(tmp_path: Path, cells: list, classes: tuple) -> None:
    rows = [f"{i % 3},{cell}" for i, cell in enumerate(cells * 4)]
    dataset = load(write(tmp_path / "x.csv", "a,y\n" + "\n".join(rows)))
    assert dataset.schema.classes == tuple(classes)
    assert names(dataset) == [cell.strip() for cell in cells * 4]


def test_the_classes_of_a_model_say_what_a_later_label_is(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,y\n" + "1,01\n2,02\n3,1A\n" * 4)
    schema = load(path).schema
    more = write(tmp_path / "more.csv", "a,y\n1,02\n2,01\n")  # these alone look like numbers
    assert data.read(more, schema, targets=True).targets.tolist() == [1, 0]
    write(more, "a,y\n1,2\n2,1\n3,2\n")
    with pytest.raises(ValueError, match=r"row 1 \(line 2\), column 'y': '2', '1' are none of"):
        data.read(more, schema, targets=True)


@pytest.mark.parametrize(
    "labels",
    [
        [3, 1, 2] * 4,
        [0.0, 1.0] * 6,
        [True, False] * 6,
        ["a", "b"] * 6,
        [datetime.date(2020, 1, d) for d in (1, 2, 3)] * 4,
    ],
    ids=lambda labels: type(labels[0]).__name__,
)
def test_a_csv_of_a_parquet_file_suits_its_model(tmp_path: Path, labels: list) -> None:
    columns = {"a": np.arange(12) / 4, "c": ["p", "q", None] * 4, "y": labels}
    stored = load(table(tmp_path / "x.parquet", columns))
    texts = [str(label) for label in labels]  # 1.0 and True, as pandas writes them
    rows = [f"{a},{c or ''},{y}" for a, c, y in zip(columns["a"], columns["c"], texts, strict=True)]
    for path in (
        table(tmp_path / "x.csv", columns),
        write(tmp_path / "pandas.csv", "a,c,y\n" + "\n".join(rows)),
    ):
        again = data.read(path, stored.schema, targets=True)
        np.testing.assert_array_equal(again.targets, whole(stored).targets)
        np.testing.assert_array_equal(again.features, whole(stored).features)


def test_a_parquet_file_suits_the_model_of_its_csv(tmp_path: Path) -> None:
    columns = {"a": [1, 2, 3] * 4, "c": [True, False, True] * 4, "y": [10, 9, 9] * 4}
    dataset = load(table(tmp_path / "x.csv", columns))
    again = data.read(table(tmp_path / "x.parquet", columns), dataset.schema, targets=True)
    np.testing.assert_array_equal(again.targets, whole(dataset).targets)
    np.testing.assert_array_equal(again.features, whole(dataset).features)


def test_rows_without_a_label(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,y\n" + "1,2\n5,NA\n2,3\n6,\n" * 5)
    with pytest.raises(
        ValueError, match=r"row 2 \(line 3\), column 'y': the label is missing, as in 9 more rows"
    ):
        load(path)
    dataset = data.load_file(path, label="y", skip_unlabeled=True)
    assert dataset.notes == ("left out 10 rows without a label",)
    assert whole(dataset).ids.tolist() == [row for row in range(1, 21) if row % 2]
    np.testing.assert_array_equal(whole(dataset).features[:, 0], [1, 2] * 5)


def test_text_that_may_be_no_label_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "a,y\n" + "1,male\n5,NA\n2,female\n" * 5)
    dataset = load(path)
    assert dataset.schema.classes == ("NA", "female", "male")
    assert "--missing NA --skip-unlabeled" in dataset.notes[0]
    options = ColumnOptions(missing=("NA",))
    with pytest.raises(ValueError, match=r"row 2 .* the label is missing, as in 4 more rows"):
        data.load_file(path, label="y", options=options)
    dataset = data.load_file(path, label="y", options=options, skip_unlabeled=True)
    assert dataset.schema.classes == ("female", "male")
    with pytest.raises(ValueError, match=r"has no 'Y', .*; did you mean 'y'\?"):
        load(path, label="Y")


# The task.


@pytest.mark.parametrize(
    ("labels", "task"),
    [
        ([f"{i}.0" for i in range(60)], Task.numbers),  # as many as a price has
        ([f"{i % 4}.0" for i in range(60)], Task.classes),
        ([f"{i % 4}.5" for i in range(60)], Task.numbers),
        ([str(i % 4) for i in range(60)], Task.classes),
        ([str(i * 7) for i in range(150)], Task.numbers),
        ([str(i % 30) for i in range(60)], Task.classes),
        (["1,234", "2,500", "10"] * 5 + ["1,234.5"], Task.numbers),
    ],
)
def test_the_task_is_guessed_and_said(tmp_path: Path, labels: list[str], task: Task) -> None:
    rows = "".join(f'{i % 5},"{label}"\n' for i, label in enumerate(labels))
    path = write(tmp_path / "x.csv", "a,y\n" + rows)
    dataset = load(path)
    assert dataset.schema.task is task
    assert any("this is a regression (--task" in note for note in dataset.notes) == (
        task is Task.numbers
    )
    told = data.load_file(path, label="y", task=Task.numbers)
    expected = [float(label.replace(",", "")) for label in labels]
    np.testing.assert_array_equal(whole(told).targets, np.float32(expected))
    assert not any("this is a regression" in note for note in told.notes)


# Dialects.

ROWS = [("größe", "preis", "art"), ("1.5", "1000", "süß"), ("2", "2.5", "sauer")]
TEXT = "\n".join(",".join(row) for row in [ROWS[0], *ROWS[1:] * 3]) + "\n"
DELIMITED = {delimiter: TEXT.replace(",", delimiter) for delimiter in ",;|\t"}


@pytest.mark.parametrize(
    ("name", "content", "dialect"),
    [
        ("x.csv", DELIMITED[";"].encode(), Dialect()),
        ("x.csv", DELIMITED["\t"].encode(), Dialect()),
        ("x.txt", DELIMITED["|"].encode(), Dialect()),
        ("x.tsv", DELIMITED["\t"].encode(), Dialect()),
        ("x.data", TEXT.replace(",", " , ").encode(), Dialect()),
        ("x.csv", TEXT.replace(",", ":").encode(), Dialect(delimiter=":")),
        ("x.csv", DELIMITED["\t"].encode(), Dialect(delimiter="tab")),
        ("x.csv", TEXT.encode("latin-1"), Dialect(encoding="latin-1")),
        ("x.csv", TEXT.encode("utf-16"), Dialect()),
        ("x.csv", TEXT.encode("utf-16-le"), Dialect(encoding="utf-16-le")),
        ("x.csv", codecs.BOM_UTF8 + TEXT.encode(), Dialect()),
        ("x.csv.gz", gzip.compress(TEXT.encode()), Dialect()),
        ("x.csv", DELIMITED[";"].replace(".", ",").encode(), Dialect()),
        ("x.csv", DELIMITED[";"].replace(".", ",").replace("1000", "1.000,00").encode(), Dialect()),
        ("x.data", TEXT.replace(",", "  ").replace("\n", " \n  ").encode(), Dialect()),
        ("x.csv", TEXT.replace(",", " ").encode(), Dialect(delimiter="space")),
        (
            "x.data",
            TEXT.replace(",s", "\ts").replace(",a", "\ta").replace(",", "   ").encode(),
            Dialect(),
        ),
        ("x.csv", TEXT.replace("1000", '"$1,000"').encode(), Dialect()),
        ("x.csv", TEXT.replace("1000", "1000 €").replace("2.5", "2.5%").encode(), Dialect()),
        ("x.csv", TEXT.replace("1000", '"1,000.0"').encode(), Dialect()),
        ("x.csv", TEXT.replace("1000", "1 000").encode(), Dialect()),
        ("x.csv", TEXT.replace("1000", "1'000").encode(), Dialect()),
    ],
    # The bytes of a packed file depend on the time, and workers must collect the same tests.
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_dialects(tmp_path: Path, name: str, content: bytes, dialect: Dialect) -> None:
    (tmp_path / name).write_bytes(content)
    dataset = data.load_file(tmp_path / name, label="art", dialect=dialect)
    assert dataset.name == "x"
    assert dataset.schema.columns == ("größe", "preis")
    np.testing.assert_array_equal(whole(dataset).features, [[1.5, 1000], [2, 2.5]] * 3)
    assert names(dataset) == ["süß", "sauer"] * 3
    again = data.read(tmp_path / name, dataset.schema, targets=True, dialect=dialect)
    np.testing.assert_array_equal(again.features, whole(dataset).features)


@pytest.mark.parametrize(
    ("text", "has_header"),
    [
        ("6,148,33.6,1\n1,85,26.6,0\n8,183,23.3,1\n", False),
        ("5.1,3.5,setosa\n4.9,3.0,setosa\n6.0,3.1,virginica\n", False),
        ("39, State-gov, <=50K\n50, Private, <=50K\n20, State-gov, >50K\n", False),
        ("p,x,s,n\ne,x,y,w\np,f,s,n\n", False),
        ("republican,n,y,?\ndemocrat,y,y,n\nrepublican,?,n,y\n", False),
        ("?,1,a\n2,3,b\n4,5,a\n", False),
        ("id,2019,2020\n1,5,6\n2,7,8\n", True),
        ("0,1,2\n5.5,6,a\n7.5,8,b\n", True),  # as pandas numbers columns
        ("name,kind\nann,x\nbob,y\n", True),
        (",age,kind\n0,5,x\n1,6,x\n", True),
    ],
)
def test_a_header_is_detected(tmp_path: Path, text: str, has_header: bool) -> None:
    path = write(tmp_path / "x.csv", text)
    file = text_files.TextFile(path, Dialect())
    assert file.dialect.has_header == has_header
    first = [cell.strip() for cell in text.partition("\n")[0].split(",")]
    numbers = [str(i + 1) for i in range(len(first))]
    names = [name or number for name, number in zip(first, numbers, strict=True)]
    assert file.names == (names if has_header else numbers)
    assert file.parse().num_rows == 3 - has_header
    for said in (True, False):
        assert text_files.TextFile(path, Dialect(has_header=said)).dialect.has_header == said


def test_without_names_a_later_file_has_none_either(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "6,148,1\n1,85,0\n8,183,1\n7,99,0\n" * 3)
    dataset = load(path, label="3")
    assert len(whole(dataset).ids) == 12
    assert dataset.schema.columns == ("1", "2")
    assert dataset.notes[0].startswith("no names in the first row: the columns are numbered from 1")
    more = write(tmp_path / "more.csv", "5,6\n7,8\n")
    np.testing.assert_array_equal(
        data.read(more, dataset.schema, targets=False).features, [[5, 6], [7, 8]]
    )
    named = write(tmp_path / "named.csv", "2,1\n5,6\n")
    for said, rows in ((None, [[2, 1], [5, 6]]), (True, [[6, 5]])):
        split = data.read(named, dataset.schema, targets=False, dialect=Dialect(has_header=said))
        np.testing.assert_array_equal(split.features, rows)


def test_text_far_down_makes_no_header(tmp_path: Path) -> None:
    """A header is that of the model: a later file of numbers alone has it too."""
    schema = load(write(tmp_path / "x.csv", "a,2\n1,p\n2,q\n" * 1 + "3,p\n4,q\n"), label="2").schema
    more = write(tmp_path / "more.csv", "a,2\n1,5\n")
    assert data.read(more, schema, targets=False).features.tolist() == [[1]]


def test_standard_input_and_pipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    dataset = data.load_file("-", label="art")
    assert (dataset.name, len(whole(dataset).ids)) == ("stdin", 6)
    assert data.is_file("-")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert data.is_file(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(TEXT.encode()))
    writer.start()
    np.testing.assert_array_equal(
        data.read(pipe, dataset.schema, targets=True).features, whole(dataset).features
    )
    writer.join()


OPEN = "http://schemas.openxmlformats.org"
SHEETS, LINKS = f"{OPEN}/spreadsheetml/2006/main", f"{OPEN}/officeDocument/2006/relationships"


def link(kind: str, target: str) -> str:
    to = f'<Relationship Id="r1" Type="{LINKS}/{kind}" Target="{target}"/>'
    return f'<Relationships xmlns="{OPEN}/package/2006/relationships">{to}</Relationships>'


WORKBOOK = {  # the least that a workbook is
    "_rels/.rels": link("officeDocument", "xl/workbook.xml"),
    "xl/workbook.xml": f'<workbook xmlns="{SHEETS}" xmlns:r="{LINKS}"><sheets>'
    '<sheet name="a" sheetId="1" r:id="r1"/></sheets></workbook>',
    "xl/_rels/workbook.xml.rels": link("worksheet", "worksheets/sheet1.xml"),
}


def workbook(path: Path, rows: Sequence[Sequence[object]]) -> Path:
    def cell(value: object) -> str:
        if isinstance(value, bool):
            return f'<c t="b"><v>{value:d}</v></c>'
        if isinstance(value, str):
            return f'<c t="inlineStr"><is><t>{value}</t></is></c>'
        return f"<c><v>{value}</v></c>"

    body = "".join(f"<row>{''.join(map(cell, row))}</row>" for row in rows)
    sheet = f'<worksheet xmlns="{SHEETS}"><sheetData>{body}</sheetData></worksheet>'
    with zipfile.ZipFile(path, "w") as file:
        for name, text in (WORKBOOK | {"xl/worksheets/sheet1.xml": sheet}).items():
            file.writestr(name, text)
    return path


def test_workbooks(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine")
    rows = [[3, 0.5, True, "süß, x"], [4, 1.5, False, "sauer"]] * 3
    dataset = load(workbook(tmp_path / "x.xlsx", [["n", "x", "is", "y"], *rows]))
    assert dataset.schema.columns == ("n", "x", "is=true")
    np.testing.assert_array_equal(whole(dataset).features, [[3, 0.5, 1], [4, 1.5, 0]] * 3)
    assert names(dataset) == ["süß, x", "sauer"] * 3
    text = write(tmp_path / "x.csv", "n,x,is\n3,0.5,True\n")
    assert data.read(text, dataset.schema, targets=False).features.tolist() == [[3, 0.5, 1]]
    (tmp_path / "x.xlsx").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"x.xlsx cannot be read"):
        load(tmp_path / "x.xlsx")


def test_workbooks_need_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxsoftmax\[excel\]'"):
        load(write(tmp_path / "x.xlsx", "PK"))


@pytest.mark.parametrize(
    ("content", "dialect", "message"),
    [
        (TEXT.encode("latin-1"), Dialect(), "not text in UTF-8; name its --encoding, for"),
        (TEXT.encode("utf-16-le"), Dialect(), "name its --encoding, for instance utf-16"),
        (TEXT.encode(), Dialect(encoding="utf-99"), "--encoding must be .* got 'utf-99'"),
        (TEXT.encode(), Dialect(delimiter="::"), "--delimiter must be one character, .* '::'"),
        (
            TEXT.replace(",", ":").encode(),
            Dialect(),
            "has no 'art', .* one column; .* by --delimiter",
        ),
        (TEXT.encode(), Dialect(decimal="x"), "--decimal must be .* got 'x'"),
        (b"a,y,a\n1,p,3\n", Dialect(), "has the name 'a' twice; .* or use --no-header"),
    ],
)
def test_dialects_refused(tmp_path: Path, content: bytes, dialect: Dialect, message: str) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        data.load_file(tmp_path / "x.csv", label="art", dialect=dialect)


def test_packed_files_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(b"a,y\n1,2\n")
    with pytest.raises(ValueError, match=r"x.csv.gz cannot be read"):
        load(path)
    path.write_bytes(gzip.compress(b"a,y\n" + b"1,2\n" * 1000)[:-9])
    with pytest.raises(ValueError, match=r"x.csv.gz cannot be read"):
        load(path)
    monkeypatch.setattr(text_files, "MAX_UNPACKED", 2**20)
    path.write_bytes(gzip.compress(b"a,y\n" + b"1,2\n" * 2**20))  # 4 MB in 4 kB
    with pytest.raises(ValueError, match="has more than 1,048,576 bytes once it is unpacked"):
        load(path)
    (tmp_path / "null.csv").symlink_to("/dev/null")
    with pytest.raises(ValueError, match=r"null.csv is a device, not a file"):
        load(tmp_path / "null.csv")


# Columns.


def cycle(*cells: Any, count: int = 40) -> list[Any]:
    return [cells[i % len(cells)] for i in range(count)]


def columns_of(dataset: Dataset) -> dict[str, Any]:
    assert dataset.schema.table is not None
    return {column.name: column for column in dataset.schema.table.columns}


def told(dataset: Dataset) -> dict[str, ColumnSummary]:
    return {summary.name: summary for summary in dataset.columns}


def test_every_kind_of_column(tmp_path: Path) -> None:
    count = 40
    columns = {
        "row": list(range(1, count + 1)),
        "name": [f"person {i}" for i in range(count)],
        "age": cycle("1.5", "", "2.5", "NA", "?"),
        "sex": cycle("male", "female", ""),
        "smoker": cycle("Yes", "no", "no", "?"),
        "day": cycle("2020-01-31", "2020-03-01", ""),
        "city": ["Rome"] * 16 + ["Oslo"] * 16 + ["Bonn", "Kiel", "Graz", "Bern"] * 2,
        "empty": [""] * count,
        "one": ["x"] * count,
        "y": cycle("a", "b"),
    }
    dataset = load(table(tmp_path / "x.csv", columns))
    found = columns_of(dataset)
    assert found.keys() == {"age", "sex", "smoker", "day", "city"}
    assert isinstance(found["age"], Number)
    assert isinstance(found["sex"], Category)
    assert found["smoker"] == Boolean("smoker", "Yes", fill=0.0, has_indicator=True)
    assert isinstance(found["day"], Date)
    assert found["city"].values == ("Oslo", "Rome")
    assert dataset.schema.columns == (
        *("age", "age is missing", "sex=female", "sex=male", "sex is missing"),
        *("smoker=Yes", "smoker is missing"),
        *("day year", "day month", "day day of week", "day days since first", "day is missing"),
        *("city=Oslo", "city=Rome", "city=(other)"),
    )
    left_out = {summary.name for summary in dataset.columns if summary.is_omitted}
    assert left_out == {"row", "name", "empty", "one"}
    first = whole(dataset).features[0]
    assert first.tolist() == [1.5, 0, 0, 1, 0, 1, 0, 2020, 1, 5, 0, 0, 0, 1, 0]
    features = encode(
        dataset.schema,
        age=["", "9"],
        sex=["other", ""],
        smoker=["YES", "maybe"],
        day=["2020-02-01", "?"],
        city=[found["city"].rare[0], "Paris"],
    )
    fill = found["day"].fill - found["day"].first
    date = np.datetime64(int(found["day"].fill), "D").item()
    assert features[0, :7].tolist() == [found["age"].fill, 1, 0, 0, 0, 1, 0]
    assert features[0, 7:].tolist() == [2020, 2, 6, 1, 0, 0, 0, 1]
    common = found["sex"].fill == "male"
    assert features[1, :7].tolist() == [9, 0, not common, common, 1, 0, 0]
    assert features[1, 7:].tolist() == [date.year, date.month, date.isoweekday(), fill, 1, 0, 0, 0]
    notes = "\n".join(dataset.notes)
    for words in ("left out 'row': all values are different integers", "left out 'name': all",
                  "left out 'empty': no value", "left out 'one': one value",
                  "one-hot: 'sex' (2 values), 'city' (2 values, ", "rare ones joined)",
                  "1 for Yes, 0 for no: 'smoker'",
                  "missing values, with a feature that marks them:",
                  "'age' "):  # fmt: skip
        assert words in notes, words
    assert TableSchema.from_json(dataset.schema.table.to_json()) == dataset.schema.table
    assert Schema.from_json(dataset.schema.to_json()) == dataset.schema


def test_statistics_are_those_of_training_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    age = rng.normal(size=60).round(3)
    cells = ["" if i % 7 == 0 else str(a) for i, a in enumerate(age)]
    columns = {"age": cells, "kind": [f"k{i % 9}" for i in range(60)], "y": cycle(0, 1, count=60)}
    path = table(tmp_path / "x.csv", columns)
    for seed in range(3):
        dataset = data.load_file(path, label="y", seed=seed)
        rows = dataset.train.ids - 1
        present = [age[i] for i in rows if i % 7]
        assert columns_of(dataset)["age"].fill == np.median(present)
        counts = np.bincount(rows % 9, minlength=9)
        expected = tuple(f"k{k}" for k in range(9) if counts[k] >= 5)
        assert columns_of(dataset)["kind"].values == expected
        summary = told(dataset)["age"]
        assert summary.missing_share == np.mean(rows % 7 == 0)
        assert sum(summary.counts) == len(present)


def test_what_looks_like_an_identifier(tmp_path: Path) -> None:
    count = 40
    columns = {
        "rows": range(count),
        "UserId": np.arange(count) * 977,
        "paid": np.arange(count) * 977,  # does not end in an id
        "weight": np.arange(count) / 2,
        "y": cycle(0, 1),
    }
    path = table(tmp_path / "x.csv", {name: list(values) for name, values in columns.items()})
    assert load(path).schema.columns == ("paid", "weight")
    assert load(path, keep=("rows",)).schema.columns == ("rows", "paid", "weight")
    assert load(path, numeric_only=True).schema.columns == ("rows", "UserId", "paid", "weight")


def test_values_that_are_all_rare_are_not_called_common(tmp_path: Path) -> None:
    cabins = ["B96", "B96", *(f"C{i}" for i in range(20)), *[""] * 38]
    rows = "\n".join(f"{cabin},{i % 2}" for i, cabin in enumerate(cabins))
    dataset = load(write(tmp_path / "x.csv", f"cabin,y\n{rows}\n"))
    (summary,) = dataset.columns
    assert summary.num_values == len(set(cabins[:22]) & _train_values(dataset, cabins))
    told = " ".join(dataset.notes)
    assert "B96" not in told
    assert "whether there is a value: 'cabin' (none of " in told
    assert "(no value is common)" in told


def _train_values(dataset: Dataset, cells: Sequence[str]) -> set[str]:
    return {cells[int(row) - 1] for row in dataset.train.ids}


def test_numbers_as_categories_and_texts_that_are_missing(tmp_path: Path) -> None:
    columns = {"zip": cycle("007", "7", "12"), "a": cycle("1", "-", "3"), "y": cycle(0, 1)}
    path = table(tmp_path / "x.csv", columns)
    dataset = load(path, categories=("zip",), missing=("-",))
    assert dataset.schema.columns == ("zip=007", "zip=12", "zip=7", "a", "a is missing")
    features = encode(dataset.schema, zip=["7", "12.0"], a=["-", "4"])
    assert features[:, :3].tolist() == [[0, 0, 1], [0, 0, 0]]
    assert features[:, 4].tolist() == [1, 0]


def test_dates_are_recognized(tmp_path: Path) -> None:
    columns = {
        "us": cycle("3/23/2019 20:30", "4/1/2019 1:00"),
        "eu": cycle("23.03.2019", "01.04.2019"),
        "iso": cycle("2019-03-23T20:30:00.5Z", "2019-04-01T01:00:00+01:00"),
        "day": cycle("31/12/2019", "01/02/2020"),
        "short": cycle("12/31/19", "2/1/20"),
        "y": cycle(0, 1),
    }
    dataset = load(table(tmp_path / "x.csv", columns))
    us, eu, iso = (columns_of(dataset)[name] for name in ("us", "eu", "iso"))
    np.testing.assert_allclose(
        us.encode(pa.array(["3/24/2019 12:00"])), [[2019, 3, 7, 15.5 / 24, 12]], rtol=1e-9
    )
    assert eu.encode(pa.array(["24.03.2019"])).tolist() == [[2019, 3, 7, 1]]
    np.testing.assert_allclose(
        iso.encode(pa.array(["2019-03-24T20:30:00Z"])), [[2019, 3, 7, 1, 20.5]], rtol=1e-9
    )
    assert columns_of(dataset)["short"].encode(pa.array(["2/1/20"]))[0].tolist() == [2020, 2, 6, 32]
    assert columns_of(dataset)["day"].encode(pa.array(["02/01/2020"]))[0, 1] == 1
    stored = {
        "t": [datetime.datetime(2020, 1, d) for d in (1, 2)] * 20,
        "d": [datetime.date(2020, 1, d) for d in (1, 2)] * 20,
        "y": cycle(0, 1),
    }
    typed = load(table(tmp_path / "x.parquet", stored))
    assert typed.schema.columns == tuple(
        f"{name} {part}" for name in "td" for part in ("year", "month", "day of week",
                                                       "days since first")
    )  # fmt: skip
    assert whole(typed).features[1].tolist() == [2020, 1, 4, 1] * 2
    as_text = encode(typed.schema, t=["2020-01-02 00:00:00.000", "?"], d=["2020-01-02T00:00Z", ""])
    assert as_text[0].tolist() == [2020, 1, 4, 1] * 2
    with pytest.raises(ValueError, match="date_format must be one of"):
        Date("d", "", first=0, fill=0)


def test_what_is_neither_a_number_nor_text_nor_a_date(tmp_path: Path) -> None:
    columns = {
        "time": pa.array([datetime.time(1, i) for i in range(20)]),
        "length": pa.array([datetime.timedelta(i) for i in range(20)]),
        "bytes": pa.array([b"a", b"b"] * 10, pa.binary()),
        "pair": pa.array([{"a": 1}] * 20),
        "y": pa.array([0, 1] * 10),
    }
    with pytest.raises(ValueError, match="4 columns cannot be used") as caught:
        load(table(tmp_path / "x.parquet", columns))
    for name, dtype in (("time", "time64"), ("length", "duration"), ("bytes", "binary"),
                        ("pair", "struct")):  # fmt: skip
        assert f"column {name!r}: holds {dtype}" in str(caught.value)


def test_types_of_text_columns(tmp_path: Path) -> None:
    encoded = pa.dictionary(pa.int8(), pa.string())
    kinds = (pa.string(), pa.large_string(), pa.string_view(), encoded)
    texts = {f"c{i}": pa.array(cycle("p", "q", None), kind) for i, kind in enumerate(kinds)}
    numbers = {f"n{i}": pa.array(cycle("1", "2"), kind) for i, kind in enumerate(kinds)}
    path = table(tmp_path / "x.parquet", texts | numbers | {"y": cycle(0, 1)})
    dataset = load(path)
    assert dataset.schema.columns == (
        *(f"c{i}{end}" for i in range(4) for end in ("=p", "=q", " is missing")),
        *(f"n{i}" for i in range(4)),
    )
    features = whole(dataset).features
    np.testing.assert_array_equal(features[:, 0:3], features[:, 9:12])
    np.testing.assert_array_equal(features[:, 12:], np.repeat([[1.0], [2]] * 20, 4, 1))
    empty = pa.nulls(2)
    later = table(tmp_path / "later.parquet", dict.fromkeys((*texts, *numbers), empty))
    assert data.read(later, dataset.schema, targets=False).features[:, 2].tolist() == [1, 1]


def test_values_that_were_never_seen_are_told(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", {"c": cycle("p", "q"), "y": cycle(0, 1)})
    dataset = load(path)
    assert dataset.test.notes == ()
    more = write(tmp_path / "more.csv", "c\np\nx\nz\nx\nNA\n")
    assert data.read(more, dataset.schema, targets=False).notes == (
        "3 rows have a value of 'c' not seen in training: 'x', 'z'",
    )


def test_names_that_are_blank_are_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "\ufeff,a, ,y\n" + "0,1,5,p\n1,2,6,q\n" * 3)
    dataset = data.load_file(path, label="y", dialect=Dialect(encoding="utf8"))
    assert dataset.schema.columns == ("1", "a", "3")


def test_text_is_hashed_if_asked(tmp_path: Path) -> None:
    words = np.array(["good", "bad", "film", "plot", "the", "a", "very", "boring", "great", "dull"])
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 12)) for _ in range(40)]
    path = table(tmp_path / "x.csv", {"review": texts, "y": cycle(0, 1)})
    with pytest.raises(ValueError, match=r"'review': text of about 12 words; .*--text review\)"):
        load(path)
    dataset = load(path, texts=("review",))
    column = columns_of(dataset)["review"]
    assert isinstance(column, Text)
    assert "review: boring" in dataset.schema.columns
    assert sorted(word for word in column.words if word) == sorted(words)
    features = encode(dataset.schema, review=["Good, GOOD bad!", "", "unseen"])
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 0, 1], rtol=1e-6)
    by_name = dict(zip(dataset.schema.columns, features[0], strict=True))
    assert by_name["review: good"] / by_name["review: bad"] == pytest.approx(np.log(3) / np.log(2))


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    columns = {
        "a": [*map(str, range(0, 78, 2)), "none"],
        "note": [f"so many words that this can only be a note of number {i}" for i in range(40)],
        "b": cycle(1, 2),
        "y": cycle(0, 1),
    }
    path = table(tmp_path / "x.csv", columns)
    with pytest.raises(ValueError, match="2 columns cannot be used") as caught:
        load(path)
    assert [line.rpartition(".csv")[2][:32] for line in str(caught.value).splitlines()] == [
        ": 2 columns cannot be used",
        ", row 40 (line 41), column 'a': ",
        ", row 1 (line 2), column 'note':",
    ]
    assert "'none' is not a number, as 39 others are; treat it as missing (--missing" in str(
        caught.value
    )
    assert caught.value.columns == ("a", "note")
    assert load(path, missing=("none",), texts=("note",)).schema.columns is not None


def test_an_infinite_cell_names_its_option(tmp_path: Path) -> None:
    path = table(tmp_path / "x.csv", {"a": ["1e400", *cycle("1", "2")[1:]], "y": cycle(0, 1)})
    with pytest.raises(ValueError, match=r"inf is not finite; .* missing \(--missing 1e400\)"):
        load(path)
    assert load(path, missing=("1e400",)).schema.columns is not None


def test_a_column_of_lists_stays_one(tmp_path: Path) -> None:
    columns = {"v": [[1.0, 2.0]] * 20, "y": [0, 1] * 10}
    dataset = load(table(tmp_path / "x.parquet", columns))
    assert columns_of(dataset) == {"v": Vector("v", 2)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop": ["y"]}, "--drop y and --label y contradict each other"),
        ({"id": "y"}, "--label y and --id y contradict each other"),
        ({"label": ["y", "y"]}, "--label y is given twice"),
        ({"drop": ["a", "a"]}, "--drop a is given twice"),
        ({"options": ColumnOptions(texts=("no",))}, r"has no 'no' \(--text\); it has 'a', 'y'"),
        ({"options": ColumnOptions(keep=("y",))}, "--keep y and --label y contradict"),
    ],
)
def test_roles_that_contradict_each_other(tmp_path: Path, options: dict, message: str) -> None:
    path = table(tmp_path / "x.csv", {"a": cycle(1, 2), "y": cycle(0, 1)})
    with pytest.raises(ValueError, match=message):
        data.load_file(path, **{"label": "y"} | options)


@pytest.mark.parametrize(
    "entry",
    [
        {"kind": "number", "name": 3},
        {"kind": "number", "name": "a", "fill": "x"},
        {"kind": "category", "name": "a", "values": "xy"},
        {"kind": "category", "name": "a", "values": [1, 2]},
        {"kind": "number", "name": "a", "more": 1},
        {"kind": "number"},
    ],
)
def test_a_header_that_was_edited_is_refused(entry: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        TableSchema.from_json({"columns": [entry], "missing": [], "has_header": True})
    with pytest.raises(KeyError):
        TableSchema.from_json({"columns": [{"kind": "no"}], "missing": [], "has_header": True})
