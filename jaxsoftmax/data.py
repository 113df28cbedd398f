"""Data sets by name: the embedded digits, and images that TensorFlow Datasets has prepared."""

import io
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

type Progress = Callable[[int, int], object]
"""Called with the number of examples read so far and the number there are."""


class Split(NamedTuple):
    """Examples and their classes: features float32 `[N, D]`, labels int32 `[N]`."""

    features: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training, validation and test examples of one classification problem.

    Args:
        name: what `load` calls it.
        train: what a model is fitted to; features in 0 to 1.
        validation: what settings are chosen on.
        test: what the result is told on.
        classes: the names of the K classes, in the order of the labels.
        shape: of one example before it was laid out as D features, for instance `(28, 28, 1)`.
        divisor: what the stored numbers were divided by to give the features.
        source: where the data come from and their licence, in one line.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    shape: tuple[int, ...]
    divisor: float
    source: str


def names() -> tuple[str, ...]:
    """List the names that `load` knows.

    Returns:
        The embedded data set first.

    Example:
        >>> from jaxsoftmax import data
        >>> data.names()
        ('digits', 'mnist', 'fashion_mnist', 'cifar10')
    """
    return ("digits", *_PREPARED)


def load(
    name: str, *, data_dir: str | Path | None = None, progress: Progress | None = None
) -> Dataset:
    """Load a data set by name, always with the same split.

    `digits` comes with this package. `mnist`, `fashion_mnist` and `cifar10` are read from where
    TensorFlow Datasets has prepared them as array_record; TensorFlow is not needed for that.

    The splits follow a rule without chance, which goes through each class in file order (`folds`).
    Of every five digits three train, the fourth validates and the fifth tests. Of every ten
    training images of the others the tenth validates; their test images are their own.

    Args:
        name: one of `names()`.
        data_dir: the folder that holds the prepared data sets; by default TensorFlow Datasets'
            own, that is the environment variable TFDS_DATA_DIR or `~/tensorflow_datasets`.
        progress: called with the numbers of examples read and to read, while a long reading lasts.

    Returns:
        A `Dataset` of NumPy arrays, pixels as float32 in 0 to 1.

    Raises:
        ValueError: if the name is unknown.
        FileNotFoundError: if the data set is not prepared in data_dir; says how to prepare it.

    Example:
        >>> from jaxsoftmax import data
        >>> digits = data.load("digits")
        >>> [split.features.shape for split in (digits.train, digits.validation, digits.test)]
        [(1085, 64), (357, 64), (355, 64)]

    Reference:
        https://www.tensorflow.org/datasets/data_source
    """
    if name == "digits":
        return _digits()
    if name in _PREPARED:
        return _prepared(name, data_dir, progress or (lambda done, total: None))
    raise ValueError(f"data must be one of {', '.join(names())}, got {name!r}")


def folds(labels: np.ndarray, count: int) -> np.ndarray:
    """Deal the examples of each class, in order, to folds, round and round.

    Args:
        labels: integer `[N]`.
        count: the number of folds.

    Returns:
        Integer `[N]` in 0 to count - 1: the rank of each example within its class, modulo count.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import data
        >>> print(data.folds(np.array([3, 3, 1, 3, 1]), 2))
        [0 1 0 0 1]
    """
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    ranks = np.empty(len(labels), dtype=int)
    ranks[order] = np.arange(len(labels)) - np.repeat(starts, sizes)
    return ranks % count


def _digits() -> Dataset:
    with resources.files(__package__).joinpath("digits.npz").open("rb") as file:
        stored = np.load(file)
        everything = _split(stored["images"], stored["labels"], divisor=16)
    fold = folds(everything.labels, 5)
    return Dataset(
        name="digits",
        train=_subset(everything, fold < 3),
        validation=_subset(everything, fold == 3),
        test=_subset(everything, fold == 4),
        classes=tuple("0123456789"),
        shape=(8, 8),
        divisor=16,
        source="Optical Recognition of Handwritten Digits, Alpaydin & Kaynak (1998), CC BY 4.0",
    )


_PREPARED = {
    "mnist": "MNIST, LeCun, Cortes & Burges (1998), CC BY-SA 3.0",
    "fashion_mnist": "Fashion-MNIST, Xiao, Rasul & Vollgraf (2017), MIT",
    "cifar10": "CIFAR-10, Krizhevsky (2009), no licence stated",
}

_ABSENT = """\
{name} is not prepared as array_record in {folder}
Name the folder that holds it (--data-dir), or prepare it once, with a network and TensorFlow:
  pip install tensorflow tensorflow-datasets
  tfds build {name} --file_format=array_record --data_dir={folder}"""


def _prepared(name: str, data_dir: str | Path | None, progress: Progress) -> Dataset:
    training, test = (_open(name, split, data_dir) for split in ("train", "test"))
    total = len(training) + len(test)
    learned = _read(training, lambda done: progress(done, total))
    fold = folds(learned.labels, 10)
    features = training.dataset_info.features
    return Dataset(
        name=name,
        train=_subset(learned, fold < 9),
        validation=_subset(learned, fold == 9),
        test=_read(test, lambda done: progress(len(training) + done, total)),
        classes=tuple(features["label"].names),
        shape=tuple(features["image"].shape),
        divisor=255,
        source=_PREPARED[name],
    )


def _open(name: str, split: str, data_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds  # here, so that `import jaxsoftmax` stays quick

    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    absent = FileNotFoundError(_ABSENT.format(name=name, folder=folder))
    if not any((folder / name).glob("*/dataset_info.json")):
        raise absent
    # Images come as bytes, for `_decode`: TensorFlow Datasets' own decoder is OpenCV or Pillow,
    # whichever is installed, so that the pixels of a JPEG would depend on the machine.
    raw = {"image": tfds.decode.SkipDecoding()}
    try:
        return tfds.data_source(name, split=split, data_dir=folder, download=False, decoders=raw)
    except NotImplementedError as error:  # prepared, but as TFRecord, which has no random access
        raise absent from error


def _read(source: Any, progress: Callable[[int], object], chunk: int = 2_000) -> Split:
    """Read and decode by chunks: one request for many records is several times faster."""
    images, labels = [], []
    for start in range(0, len(source), chunk):
        examples = source.__getitems__(range(start, min(start + chunk, len(source))))
        images.append(np.stack([_decode(example["image"]) for example in examples]))
        labels.append(np.array([example["label"] for example in examples]))
        progress(start + len(examples))
    return _split(np.concatenate(images), np.concatenate(labels), divisor=255)


def _decode(encoded: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(encoded)))


def _split(images: np.ndarray, labels: np.ndarray, *, divisor: float) -> Split:
    features = images.reshape(len(images), -1).astype(np.float32)
    features /= divisor  # in place: CIFAR-10 takes 614 MB
    return Split(features, labels.astype(np.int32))


def _subset(split: Split, chosen: np.ndarray) -> Split:
    return Split(split.features[chosen], split.labels[chosen])
