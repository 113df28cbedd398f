"""The roles of the columns and arrays of files: labels, and those that are no features."""

from collections.abc import Sequence

from jaxsoftmax.app.data.arrays import ArrayFile
from jaxsoftmax.app.data.column_learning import ColumnOptions
from jaxsoftmax.app.data.dataset import Schema
from jaxsoftmax.app.data.joined_files import JoinedFiles, hint
from jaxsoftmax.app.data.tables import format_names


def find_label_names(files: JoinedFiles, label: Sequence[str]) -> list[str]:
    """Return the given names, or the only possible ones."""
    if label:
        return list(label)
    if isinstance(files.label_file, ArrayFile):
        if files.is_single and files.feature_file.path.suffix.lower() == ".npy":
            raise ValueError(f"{files.feature_file.path}: name the file of its labels (--labels)")
        return [files.label_file.find_label()]
    names = files.label_file.names
    if not files.is_single:
        identifier = (files.identifier or "").casefold()
        others = [name for name in names if name.casefold() != identifier]
        if len(others) == 1:
            return others
    raise ValueError(
        f"{files.label_file.path}: name the label column (--label) of {format_names(names)}"
    )


def check(
    files: JoinedFiles, label_names: Sequence[str], drop: Sequence[str], options: ColumnOptions
) -> None:
    """Check that columns exist, and that none is named twice or for two things at once."""
    file = files.feature_file
    named = {
        "label": label_names,
        "drop": drop,
        "category": options.categories,
        "text": options.texts,
        "keep": options.keep,
    }
    for flag, names in named.items():
        repeated = [name for i, name in enumerate(names) if name in names[:i]]
        if repeated:
            raise ValueError(f"--{flag} {repeated[0]} is given twice")
        unknown = [name for name in names if flag != "label" and name not in file.names]
        if unknown:
            purpose = {"drop": " to drop", "keep": " to keep"}.get(flag, f" (--{flag})")
            raise ValueError(
                f"{file.path} has no {', '.join(map(repr, unknown))}{purpose}; "
                f"it has {format_names(file.names)}" + hint(file, unknown[0])
            )
        both = [name for name in names if name == files.identifier]
        if both:
            raise ValueError(f"--{flag} {both[0]} and --id {both[0]} contradict each other")
    for flag in ("drop", "category", "text", "keep") if files.is_single else ():
        both = [name for name in named[flag] if name in label_names]
        if both:
            raise ValueError(f"--{flag} {both[0]} and --label {both[0]} contradict each other")


def find_model_label_names(files: JoinedFiles, schema: Schema) -> Sequence[str]:
    """Return the columns or the array of the labels for a model."""
    file = files.label_file
    if isinstance(file, ArrayFile) and not set(schema.target) <= set(file.names):
        return [file.find_label()]
    if not schema.target:
        raise ValueError(f"{file.path}: the model has no label column")
    return schema.target


def find_others(files: JoinedFiles, label_names: Sequence[str]) -> list[str]:
    """Return the names in the file of features that are the identifier or a label.

    A separate table of labels may call its label `Class` where the table of features, which has it
    too, calls it `class`. Arrays in a separate file may have the names of the features.
    """
    found = [] if files.identifier is None else [files.identifier]
    if files.is_single:
        return [*found, *label_names]
    if isinstance(files.feature_file, ArrayFile):
        return found
    folded = {name.casefold() for name in label_names}
    return [*found, *(name for name in files.feature_file.names if name.casefold() in folded)]
