"""The data of `fit` and `probe`: options, loading, preprocessing, and advice."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rich.console import Console

from jaxsoftmax.app import data, defaults, pipeline
from jaxsoftmax.app.cli import errors, inputs, progress_bars, repeat, summaries
from jaxsoftmax.app.data.column_learning import ColumnOptions
from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.data.dialects import Dialect
from jaxsoftmax.app.data.preprocessing import Preprocessing
from jaxsoftmax.app.data.tables import ColumnsError
from jaxsoftmax.app.text import replace_unprintable


@dataclass(frozen=True)
class DataOptions:
    """The options of `fit` and `probe` that select and preprocess the data.

    `verb` is the command. `file_options` has the options that are for files, by their names on the
    command line, and the task. `others` has all options that are not of the data.
    """

    verb: str
    name: str
    file_options: Mapping[str, Any]
    log1p: bool
    standardize: bool
    data_dir: Path | None
    download: bool
    others: Mapping[str, Any]

    @classmethod
    def select(cls, verb: str, given: Mapping[str, Any]) -> Self:
        """Select from the options of a command, by the names of its parameters."""
        file_options = {name: given[_PARAMETERS.get(name, name)] for name in _FILE_OPTIONS}
        data = {name: given[name] for name in ("log1p", "standardize", "data_dir", "download")}
        known = {*data, *(_PARAMETERS.get(name, name) for name in _FILE_OPTIONS), "name", "resume"}
        others = {name: value for name, value in given.items() if name not in known}
        return cls(verb, given["name"], file_options, **data, others=others)

    def to_dict(self) -> dict[str, Any]:
        """Return the options that a command needs to read and preprocess the same data."""
        preprocessing = {"log1p": self.log1p, "standardize": self.standardize}
        return {**self.file_options, **preprocessing, "data_dir": self.data_dir}

    def load_options(self) -> dict[str, Any]:
        """Return the options of `data.load_file` that differ from its defaults."""
        given = dict(self.file_options)
        dialect = Dialect(*(given.pop(name) for name in inputs.DIALECT_OPTIONS))
        columns = ColumnOptions(*(_freeze(given.pop(name)) for name in _COLUMN_OPTIONS))
        roles = {name: value for name, value in given.items() if value}
        return {**roles, "dialect": dialect, "options": columns}


_COLUMN_OPTIONS = ("numeric_only", "category", "text", "keep", "missing")
_ROLE_OPTIONS = ("label", "labels", "id", "drop", "features", "task", "test", "skip_unlabeled")
_FILE_OPTIONS = (*_ROLE_OPTIONS, *_COLUMN_OPTIONS, *inputs.DIALECT_OPTIONS)
_PARAMETERS = {"id": "identifier"}  # `id` is a function of Python


def _freeze(value: Any) -> Any:
    return value if isinstance(value, bool) else tuple(value or ())


@dataclass
class PreparedData:
    """The data of a fit, with their preprocessing."""

    dataset: Dataset
    preprocessing: Preprocessing

    def drop_fitted_features(self) -> None:
        """Free the memory of the features that are not needed after the fit."""
        self.dataset = pipeline.drop_fitted_features(self.dataset)


def prepare(screen: Console, options: DataOptions) -> PreparedData:
    """Load, describe and preprocess the data of a fit, and check them.

    Args:
        screen: the console.
        options: the options of the command.

    Returns:
        The data. Their train and validation features are preprocessed.

    Raises:
        ValueError: if the options or the data are wrong.
        OSError: if the data cannot be read.
    """
    dataset = _load(screen, options)
    screen.print(summaries.describe(dataset))
    for note in dataset.notes:
        screen.print(replace_unprintable(note))
    with errors.naming(options.name):
        preprocessing = pipeline.preprocess(
            dataset, log1p=options.log1p, standardize=options.standardize
        )
    test_name = str(options.file_options["test"] or options.name)
    inputs.check_features(dataset.test, test_name, preprocessing, dataset.schema)
    _give_advice(screen, dataset, options.file_options["task"])
    return PreparedData(dataset, preprocessing)


def _load(screen: Console, options: DataOptions) -> Dataset:
    name, data_dir, download = options.name, options.data_dir, options.download
    given = [option for option, value in options.file_options.items() if value]
    given += ["no-header"] if options.file_options["header"] is False else []
    with progress_bars.reading_progress(screen, name) as progress:
        if data.is_file(name):
            if data_dir is not None or download:
                option = "--download" if download else "--data-dir"
                raise ValueError(f"{option} is for names of data sets; {name} is a file")
            with _naming_command(options):
                return data.load_file(name, **options.load_options(), progress=progress)
        for option in given:
            if option != "task":
                flag = option.replace("_", "-")
                raise ValueError(f"--{flag} is for files; {name} is the name of a data set")
        return data.load(
            name, data_dir=data_dir, download=download, use_cache=True, progress=progress
        )


@contextmanager
def _naming_command(options: DataOptions) -> Iterator[None]:
    """Add to an error of several columns the command that leaves them out."""
    try:
        yield
    except ColumnsError as error:
        if not error.columns:
            raise
        given = {**options.to_dict(), **options.others}
        given["drop"] = [*(given["drop"] or ()), *error.columns]
        command = repeat.format_command(options.verb, options.name, given)
        raise ValueError(f"{error}\nto leave out what cannot be used: {command}") from error


def _give_advice(screen: Console, dataset: Dataset, task: Task | None) -> None:
    """Print a line for each thing that the user may not have intended."""
    num_classes = len(dataset.schema.classes)
    if task is None and _may_be_amounts(dataset):
        screen.print(
            f"the labels are {num_classes} different integers, treated as classes: "
            "if they are amounts, use --task numbers"
        )
    ratio = defaults.scale_ratio(dataset.train.features)
    if dataset.schema.divisor == 1 and ratio > 100:
        screen.print(
            f"the scales of the features differ by a factor of {ratio:,.0f}: "
            "consider --standardize (and --log1p for counts)"
        )


def _may_be_amounts(dataset: Dataset) -> bool:
    """Return whether classes may be amounts: integers, and many of them or few examples of each."""
    classes = dataset.schema.classes
    if dataset.schema.task is not Task.classes:
        return False
    are_integers = all(name.removeprefix("-").isdecimal() for name in classes)
    are_many = len(classes) > 20 or len(dataset.train.features) < 10 * len(classes)
    return are_integers and are_many
