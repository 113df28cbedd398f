"""Where examples come from: a name, or what a fitted model is to be used on."""

from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxsoftmax.app.data import prepared
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.files import is_file, read_file
from jaxsoftmax.app.data.splits import folds
from jaxsoftmax.app.data.targets import number


def names() -> tuple[str, ...]:
    """List the names that `load` knows.

    Returns:
        The embedded data set first.

    Example:
        >>> from jaxsoftmax.app import data
        >>> data.names()
        ('digits', 'mnist', 'fashion_mnist', 'cifar10')
    """
    return ("digits", *prepared.KNOWN)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set by name, always with the same split.

    `digits` comes with this package. All others are read from where TensorFlow Datasets has
    prepared them as array_record; TensorFlow is not needed for that. They are the ones of
    `names()`, and every other that has an image or a vector of one size, and a class; `name/config`
    and `name:1.0.0` ask for a configuration and a version.

    The splits of `names()` follow a rule without chance, which goes through each class in file
    order (`folds`). Of every five digits three train, the fourth validates and the fifth tests. Of
    every ten training images of the others the tenth validates; their test images are their own.
    Of any other name `validation` and `test` are its own where it has them; what it lacks is 15 %
    of `train` (`splits.stratified`, seed 0).

    Args:
        name: of the data set.
        data_dir: the folder that holds the prepared data sets; by default TensorFlow Datasets'
            own, that is the environment variable TFDS_DATA_DIR or `~/tensorflow_datasets`.
        download: whether to prepare it in data_dir where it is not there, with a network and, for
            most names, TensorFlow.
        progress: called with the numbers of examples read and to read, while a long reading lasts.

    Returns:
        A `Dataset` of NumPy arrays, pixels as float32 in 0 to 1.

    Raises:
        ValueError: if the name is unknown, or its examples are no images or vectors with a class.
        FileNotFoundError: if the data set is not prepared in data_dir, or as tfrecord; says how.
        ModuleNotFoundError: if preparing needs TensorFlow, or reading Pillow, and it is missing.
        ConnectionError: if there is no network to download from.

    Example:
        >>> from jaxsoftmax.app import data
        >>> digits = data.load("digits")
        >>> [split.features.shape for split in (digits.train, digits.validation, digits.test)]
        [(1085, 64), (357, 64), (355, 64)]

    Reference:
        https://www.tensorflow.org/datasets/data_source
    """
    if name == "digits":
        return _digits()
    return prepared.load(
        name,
        data_dir=data_dir,
        download=download,
        progress=progress or (lambda done, total: None),
    )


def read(
    source: str | Path,
    schema: Schema,
    *,
    targets: bool,
    labels: str | Path | None = None,
    split: str = "test",
    data_dir: str | Path | None = None,
    progress: Progress | None = None,
) -> Split:
    """Read more data for a model that is fitted already.

    Args:
        source: a file, read as `files.read_file` says, or a name, as `load` knows it.
        schema: of the model.
        targets: whether to read labels too; if not, the targets have length 0 and columns of
            labels are ignored.
        labels: a second file with the labels of a file.
        split: of a name: train, validation or test as `load` splits it.
        data_dir: as in `load`.
        progress: called with the numbers of rows read and to read.

    Returns:
        A `Split` whose targets are numbered as the schema has them.

    Raises:
        FileNotFoundError: if there is no such file or prepared data set.
        ValueError: if the data have other features, or classes that are none of the model's.

    Example:
        >>> from jaxsoftmax.app import data
        >>> digits = data.load("digits")
        >>> data.read("digits", digits.schema, targets=False).features.shape
        (355, 64)
    """
    if is_file(source):
        return read_file(source, schema, targets=targets, labels=labels, progress=progress)
    if split not in ("train", "validation", "test"):
        raise ValueError(f"split must be train, validation or test, got {split!r}")
    dataset = load(str(source), data_dir=data_dir, progress=progress)
    found: Split = getattr(dataset, split)
    if dataset.schema.num_features != schema.num_features:
        raise ValueError(
            f"{source}: expected {schema.num_features} features, "
            f"got {dataset.schema.num_features} of shape {dataset.schema.shape}"
        )
    if not targets:
        return found._replace(targets=found.targets[:0])
    names = pa.array(dataset.schema.classes).take(pa.array(found.targets))
    values = number({"label": names}, f"{source}, {{}}".format, schema.task, schema.classes)
    return found._replace(targets=values)


def _digits() -> Dataset:
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        stored = np.load(file)
        images, labels = stored["images"], stored["labels"].astype(np.int32)
    features = images.reshape(len(images), -1).astype(np.float32) / 16
    everything = Split(features, labels, np.arange(1, len(labels) + 1))
    fold = folds(labels, 5)
    return Dataset(
        name="digits",
        train=prepared.subset(everything, fold < 3),
        validation=prepared.subset(everything, fold == 3),
        test=prepared.subset(everything, fold == 4),
        schema=Schema(
            task=Task.classes,
            classes=tuple("0123456789"),
            shape=(8, 8),
            divisor=16,
            target=("label",),
        ),
        source="Optical Recognition of Handwritten Digits, Alpaydin & Kaynak (1998), CC BY 4.0",
    )
