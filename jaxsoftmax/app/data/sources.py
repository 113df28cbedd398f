"""Examples by the name of a data set or the path of a file, to fit a model or for a fitted one."""

from importlib import resources
from pathlib import Path

import numpy as np
import pyarrow as pa

from jaxsoftmax.app.data import prepared
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.dialects import DETECT, Dialect
from jaxsoftmax.app.data.files import read_file
from jaxsoftmax.app.data.splits import assign_folds
from jaxsoftmax.app.data.targets import encode
from jaxsoftmax.app.file_formats import is_file
from jaxsoftmax.app.names import EMBEDDED, PREPARED


def names() -> tuple[str, ...]:
    """Return the names of the known data sets.

    Returns:
        The names, the embedded data set first.

    Example:
        >>> from jaxsoftmax.app import data
        >>> data.names()
        ('digits', 'mnist', 'fashion_mnist', 'cifar10')
    """
    return (EMBEDDED, *PREPARED)


def load(
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    use_cache: bool = False,
    progress: Progress | None = None,
) -> Dataset:
    """Load a data set by name, always with the same split.

    `digits` is part of this package. All others are read from the folder where TensorFlow Datasets
    has prepared them as array_record, which does not need TensorFlow. They are those of `names()`,
    and all others whose examples are an image, or a vector of one size, and a class. A name may
    have a configuration and a version: `name/config`, `name:1.0.0`.

    The splits of `names()` follow a deterministic rule, which deals each class in file order
    (`assign_folds`). Of every five digits, three are for training, the fourth for validation and
    the fifth for testing. Of every ten training images of the others, the tenth is for validation;
    they have their own test images. Any other name has its own `validation` and `test` splits where
    the data set has them; a missing split is 15% of `train` (`splits.assign_splits`, seed 0).

    Args:
        name: the name of the data set.
        data_dir: the folder of the prepared data sets; by default that of TensorFlow Datasets,
            which is the environment variable TFDS_DATA_DIR or `~/tensorflow_datasets`.
        download: whether to prepare the data set in data_dir if it is missing, which takes a
            network and, for most names, TensorFlow.
        use_cache: whether to keep decoded images in the cache of the command line (`user_cache`),
            and to read them from there.
        progress: called with the number of examples read and the total number, while reading
            takes long.

    Returns:
        A `Dataset` of NumPy arrays, pixels as float32 in 0 to 1.

    Raises:
        ValueError: if the name is unknown, or if its examples are not images or vectors with a
            class.
        FileNotFoundError: if the data set is not prepared in data_dir, or only as tfrecord; the
            message has the commands that prepare it.
        ModuleNotFoundError: if TensorFlow is missing to prepare it, or Pillow to read it.
        ConnectionError: if there is no network to download from.

    Example:
        >>> from jaxsoftmax.app import data
        >>> digits = data.load("digits")
        >>> [split.features.shape for split in (digits.train, digits.validation, digits.test)]
        [(1085, 64), (357, 64), (355, 64)]

    Reference:
        https://www.tensorflow.org/datasets/data_source
    """
    if name == EMBEDDED:
        return _load_digits()
    return prepared.load(
        name,
        data_dir=data_dir,
        download=download,
        use_cache=use_cache,
        progress=progress or (lambda num_read, total: None),
    )


def read(
    source: str | Path,
    schema: Schema,
    *,
    targets: bool,
    labels: str | Path | None = None,
    split: str = "test",
    data_dir: str | Path | None = None,
    dialect: Dialect = DETECT,
    use_cache: bool = False,
    progress: Progress | None = None,
) -> Split:
    """Read more data for a fitted model.

    Args:
        source: a file, as in `files.read_file`, or a name, as in `load`.
        schema: the schema of the model.
        targets: whether to read labels too; if not, the targets have length 0 and columns of
            labels are ignored.
        labels: a second file with the labels of a file.
        split: the split of a named data set: train, validation or test as `load` splits it.
        data_dir: as in `load`.
        dialect: what is known of the dialect of a file of text.
        use_cache: as in `load`.
        progress: called with the number of rows read and the total number.

    Returns:
        A `Split` whose targets are encoded by the schema's classes.

    Raises:
        FileNotFoundError: if there is no such file or prepared data set.
        ValueError: if the data have other features, or classes that the model does not have.

    Example:
        >>> from jaxsoftmax.app import data
        >>> digits = data.load("digits")
        >>> data.read("digits", digits.schema, targets=False).features.shape
        (355, 64)
    """
    if is_file(source):
        return read_file(
            source, schema, targets=targets, labels=labels, dialect=dialect, progress=progress
        )
    if split not in ("train", "validation", "test"):
        raise ValueError(f"--split must be train, validation or test, got {split!r}")
    dataset = load(str(source), data_dir=data_dir, use_cache=use_cache, progress=progress)
    examples: Split = getattr(dataset, split)
    if dataset.schema.num_features != schema.num_features:
        raise ValueError(
            f"{source}: expected {schema.num_features} features, "
            f"got {dataset.schema.num_features} of shape {dataset.schema.shape}"
        )
    if not targets:
        return examples._replace(targets=examples.targets[:0])
    class_names = pa.array(dataset.schema.classes).take(pa.array(examples.targets))
    describe_row = f"{source}, {{}}".format
    values = encode({"label": class_names}, describe_row, schema.task, schema.classes)
    return examples._replace(targets=values)


def _load_digits() -> Dataset:
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        stored = np.load(file)
        images, labels = stored["images"], stored["labels"].astype(np.int32)
    features = images.reshape(len(images), -1).astype(np.float32) / 16
    examples = Split(features, labels, np.arange(1, len(labels) + 1))
    fold = assign_folds(labels, 5)
    return Dataset(
        name=EMBEDDED,
        train=examples.select(fold < 3),
        validation=examples.select(fold == 3),
        test=examples.select(fold == 4),
        schema=Schema(
            task=Task.classes,
            classes=tuple("0123456789"),
            shape=(8, 8),
            divisor=16,
            target=("label",),
        ),
        source="Optical Recognition of Handwritten Digits, Alpaydin & Kaynak (1998), CC BY 4.0",
    )
