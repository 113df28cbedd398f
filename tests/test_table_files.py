"""Tables with the schemas of well-known ones and made values: one command to a model and back.

Each has 120 rows and becomes 16 features, so that they share their compiled programs.
"""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from typer.testing import CliRunner, Result

from jaxsoftmax.app import run_folder
from jaxsoftmax.app.cli.app import app

pytestmark = pytest.mark.usefixtures("unoptimized")

COUNT = 120


class Made(NamedTuple):
    """A file of made values, the options that it needs, and what is said about it."""

    name: str
    label: str
    header: str
    rows: list[list[object]]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()
    delimiter: str = ","


def number(i: int, low: float, high: float, digits: int = 1) -> object:
    """A number that depends on the row, and differs from column to column by its limits."""
    share = (i * 0.6180339887 * (1 + low % 7)) % 1
    return round(low + share * (high - low), digits) if digits else int(low + share * (high - low))


def pick(i: int, step: int, *values: object) -> object:
    return values[i // step % len(values)]


def titanic() -> Made:
    header = "PassengerId,Survived,Pclass,Name,Sex,Age,SibSp,Parch,Ticket,Fare,Cabin,Embarked"
    rows = [
        [i + 1, i % 2, pick(i, 1, 3, 1, 2), f'"Braund, Mr. Owen {i}"', pick(i, 3, "male", "female"),
         "" if i % 5 == 0 else number(i, 1, 80), pick(i, 2, 0, 1), pick(i, 5, 0, 2),
         pick(i, 1, "A/5 21171", "PC 17599"), number(i, 7, 90, 4), pick(i, 1, "", "", "C85", "E46"),
         pick(i, 7, "S", "C", "Q")]
        for i in range(COUNT)
    ]  # fmt: skip
    notes = ("left out 'PassengerId'", "left out 'Name'", "'Age' 2", "'Cabin' ")
    return Made("titanic.csv", "Survived", header, rows, ("0", "1"), notes)


def penguins() -> Made:
    header = (
        "species,island,bill_length_mm,bill_depth_mm,flipper_length_mm,body_mass_g,sex,year,tag"
    )
    rows = [
        [pick(i, 1, "Adelie", "Chinstrap", "Gentoo"), pick(i, 2, "Biscoe", "Dream", "Torgersen"),
         *(["NA"] * 4 if i % 9 == 0 else [number(i, 32, 60), number(i, 13, 22),
                                          number(i, 170, 230, 0), number(i, 2700, 6300, 0)]),
         pick(i, 5, "male", "female", "NA"), 2007 + i % 3, pick(i, 4, "yes", "no")]
        for i in range(COUNT)
    ]  # fmt: skip
    classes = ("Adelie", "Chinstrap", "Gentoo")
    return Made("penguins.csv", "species", header, rows, classes, ("'bill_length_mm' 1", "'sex' 3"))


def adult() -> Made:
    rows = [
        [number(i, 17, 90, 0), f" {pick(i, 1, 'Private', 'State-gov', '?')}",
         f" {number(i, 12000, 900000, 0)}", f" {pick(i, 2, 'Bachelors', 'HS-grad', '11th')}",
         f" {pick(i, 3, 9, 10, 13)}", f" {pick(i, 5, 'Male', 'Female')}",
         f" {number(i, 20, 60, 0)}", f" {pick(i, 1, 'United-States', 'Mexico', '?', 'Cuba')}",
         f" {pick(i, 1, '<=50K', '>50K')}"]
        for i in range(COUNT)
    ]  # fmt: skip
    return Made("adult.data", "9", "", rows, ("<=50K", ">50K"), ("columns are numbered from 1",))


def bank() -> Made:
    header = (
        '"age";"job";"marital";"default";"balance";"housing";"loan";"contact";"day";"month";"y"'
    )
    rows = [
        [number(i, 18, 90, 0), pick(i, 1, "admin.", "technician", "unknown"),
         pick(i, 2, "married", "single", "divorced"), pick(i, 1, "no", "no", "yes"),
         number(i, -900, 9000, 0), pick(i, 2, "yes", "no"), pick(i, 3, "no", "yes"),
         pick(i, 5, "cellular", "unknown"), number(i, 1, 31, 0), pick(i, 7, "may", "jun"),
         pick(i, 1, "no", "yes")]
        for i in range(COUNT)
    ]  # fmt: skip
    notes = ("1 for yes, 0 for no: 'default', 'housing', 'loan'",)
    return Made("bank.csv", "y", header, rows, ("no", "yes"), notes, ";")


def pima() -> Made:
    rows = [
        [
            *("" if (i + j) % 11 == 0 else number(i, 3 * j, 99 + 40 * j, j % 2) for j in range(8)),
            i % 2,
        ]
        for i in range(COUNT)
    ]
    return Made("pima.csv", "9", "", rows, ("0", "1"), ("columns are numbered from 1", "'1' "))


def mpg() -> Made:
    header = "mpg,cylinders,displacement,horsepower,weight,acceleration,model_year,origin,name"
    cars = ("ford pinto", "amc matador", "vw rabbit", "fiat 128", "honda civic", "bmw 2002")
    rows = [
        [9 + i / 4, pick(i, 1, 4, 6, 8), number(i, 70, 455), "?" if i % 20 == 0 else 60 + i % 90,
         number(i, 1600, 5200, 0), number(i, 8, 25), 70 + i % 13,
         pick(i, 2, "usa", "japan", "europe"), pick(i, 1, *cars)]
        for i in range(COUNT)
    ]  # fmt: skip
    notes = ("has 120 different numbers, so this is a regression (--task classes",)
    return Made("mpg.csv", "mpg", header, rows, (), notes)


def votes() -> Made:
    rows = [
        [pick(i, 1, "republican", "democrat"),
         *("?" if (i + j) % 13 == 0 else pick(i, j + 1, "y", "n") for j in range(8))]
        for i in range(COUNT)
    ]  # fmt: skip
    return Made("votes.data", "1", "", rows, ("democrat", "republican"), ("1 for y, 0 for n: '2'",))


def mushrooms() -> Made:
    rows = [
        [pick(i, 1, "p", "e"), pick(i, 2, *"xbsf"), pick(i, 1, *"fys"), pick(i, 3, *"nyw"),
         pick(i, 2, "t", "f"), pick(i, 5, *"pal"), pick(i, 7, "c", "w"), "p"]
        for i in range(COUNT)
    ]  # fmt: skip
    return Made("mushrooms.data", "1", "", rows, ("e", "p"), ("left out '8': one value",))


@pytest.fixture(params=[titanic, penguins, adult, bank, pima, mpg, votes, mushrooms],
                ids=lambda make: make.__name__)  # fmt: skip
def made(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Made:
    monkeypatch.chdir(tmp_path)
    content: Made = request.param()
    Path(content.name).write_text("\n".join(lines(content, content.rows)))
    return content


def lines(content: Made, rows: list[list[object]]) -> Iterator[str]:
    if content.header:
        yield content.header
    for row in rows:
        yield content.delimiter.join(str(cell) for cell in row)


def call(*arguments: str) -> Result:
    result = CliRunner().invoke(app, arguments, env={"NO_COLOR": "1", "COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result


def test_one_command_to_a_model_and_its_predictions(made: Made) -> None:
    fit = ("fit", made.name, "--label", made.label, "--standardize", "--no-report")
    shown = call(*fit, "--epochs", "2", "--batch-size", "32", "--output", "run").output
    for note in made.notes:
        assert note in shown, shown
    model = run_folder.load(Path("run"))
    assert model.schema.num_features == 16, model.schema.columns
    assert model.schema.classes == (made.classes or (made.label,))
    tested = json.loads(run_folder.read(Path("run"), "metrics.json"))["test"]
    assert np.isfinite(tested["loss"])

    # A later file: values that were never seen, and a row of which everything is missing.
    label = int(made.label) - 1 if not made.header else made.header.replace('"', "").split(
        made.delimiter).index(made.label)  # fmt: skip
    more = [list(row) for row in made.rows[:5]]
    more.append([row if j == label else "" for j, row in enumerate(made.rows[0])])
    texts = [j for j, cell in enumerate(made.rows[0]) if isinstance(cell, str) and j != label]
    if texts and made.name != "pima.csv":
        more[0] = ["unseen" if j == texts[-1] else cell for j, cell in enumerate(more[0])]
    Path("more.csv").write_text("\n".join(lines(made, more)))
    assert "6 predictions" in call("predict", "run", "more.csv").output
    said = pa.csv.read_csv("predictions.csv")
    probabilities = [said[name].to_numpy() for name in said.column_names if name.startswith("p_")]
    if made.classes:
        assert {str(label) for label in said["label"].to_pylist()} <= set(made.classes)
        np.testing.assert_allclose(np.sum(probabilities, axis=0), 1, rtol=1e-6)
    else:
        assert np.isfinite(said[made.label].to_numpy()).all()
    assert "6" in call("evaluate", "run", "more.csv").output

    # The command that the header keeps reads the same columns.
    command = shlex.split(model.header["command"])
    assert command[:5] == ["jaxsoftmax", "fit", made.name, "--label", made.label]
