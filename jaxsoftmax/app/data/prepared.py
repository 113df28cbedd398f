"""Data sets that TensorFlow Datasets has prepared: an image or a vector each, and a class."""

import io
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION, folds, stratified

KNOWN = {
    "mnist": "MNIST, LeCun, Cortes & Burges (1998), CC BY-SA 3.0",
    "fashion_mnist": "Fashion-MNIST, Xiao, Rasul & Vollgraf (2017), MIT",
    "cifar10": "CIFAR-10, Krizhevsky (2009), no licence stated",
}
"""What is known of some: where they come from, and their licence."""

_NAME = re.compile(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")
"""A name, perhaps with a configuration and a version."""

_PREPARE = """\
  pip install 'jaxsoftmax[prepare]'
  tfds build {name} --file_format=array_record --data_dir={folder}"""

_ABSENT = """\
{name} is not prepared as array_record in {folder}
Name the folder that holds it (--data-dir), or prepare it once, with a network and TensorFlow:
"""

_TFRECORD = """\
{name} is not prepared as array_record in {folder}, but as {formats}, without random access
Convert it once, with TensorFlow:
  pip install 'jaxsoftmax[prepare]'
  tfds convert_format --dataset_version_dir={version} --out_file_format=array_record"""


def load(
    name: str, *, data_dir: str | Path | None = None, download: bool = False, progress: Progress
) -> Dataset:
    """Read a prepared data set; `data.load` says which and how it is split."""
    builder = _builder(name, data_dir, download=download)
    x, y = _keys(builder)
    train, *others = _splits(builder)
    sources = {split: _source(builder, split, x) for split in (train, *others)}

    total, so_far = sum(map(len, sources.values())), 0
    read: dict[str, Split] = {}
    for split, source in sources.items():
        read[split] = _read(source, builder, x, y, partial(_later, progress, so_far, total))
        so_far += len(source)
    classes, read = _classes(builder, y, read)
    learned = read.pop(train)
    parts = _parts(name, learned.targets, read)
    is_image = _is_image(builder.info.features[x])
    return Dataset(
        name=name,
        train=subset(learned, parts == TRAIN),
        validation=read.get("validation") or subset(learned, parts == VALIDATION),
        test=read.get("test") or subset(learned, parts == TEST),
        schema=Schema(
            task=Task.classes,
            classes=classes,
            shape=tuple(builder.info.features[x].shape),
            divisor=255 if is_image else 1,
            target=(y,),
        ),
        source=KNOWN.get(name, f"TensorFlow Datasets, {builder.info.full_name}"),
    )


def _splits(builder: Any) -> list[str]:
    """Return the name of the training split, and those of `validation` and `test` if there."""
    names = list(builder.info.splits)
    if len(names) == 1:
        return names
    if "train" not in names:
        raise ValueError(
            f"{builder.info.full_name} has no split 'train', but {', '.join(names) or 'none'}"
        )
    return ["train", *(name for name in ("validation", "test") if name in names)]


def _later(progress: Progress, so_far: int, total: int, done: int) -> None:
    progress(so_far + done, total)


def _parts(name: str, labels: np.ndarray, others: dict[str, Split]) -> np.ndarray:
    """Deal the training examples to the splits that the data set does not have of its own."""
    if name in KNOWN:
        return np.where(folds(labels, 10) < 9, TRAIN, VALIDATION)
    if not {"validation", "test"} - others.keys():
        return np.full(len(labels), TRAIN)
    if "validation" in others:  # one part is wanted, and called another name than it is drawn by
        drawn = stratified(labels, validation_share=0.15, test_share=0, seed=0)
        return np.where(drawn == VALIDATION, TEST, TRAIN)
    share = 0 if "test" in others else 0.15
    return stratified(labels, validation_share=0.15, test_share=share, seed=0)


# Finding it.


def _builder(name: str, data_dir: str | Path | None, *, download: bool) -> Any:
    import tensorflow_datasets as tfds  # here, so that `import jaxsoftmax` stays quick

    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    version = _version(name, folder) if _NAME.fullmatch(name) else None
    if version is None:
        if not _is_listed(name):
            known = ", ".join(("digits", *KNOWN))
            raise ValueError(
                f"data must be one of {known}, got {name!r}, which is neither a file, nor "
                f"prepared in {folder}, nor a name of TensorFlow Datasets"
            )
        if not download:
            what = {"name": name, "folder": folder}
            raise FileNotFoundError((_ABSENT + _PREPARE).format(**what))
        version = _prepare(name, folder)
    return tfds.builder_from_directory(version)


def _version(name: str, folder: Path) -> Path | None:
    """Return the folder of the version that is asked for (`name:1.0.0`), else the newest."""
    name, _, wanted = name.partition(":")
    found = [info.parent for info in (folder / name).glob(f"{wanted or '*'}/dataset_info.json")]
    if not found:
        configurations = {
            info.parent.parent.name for info in (folder / name).glob("*/*/dataset_info.json")
        }
        if configurations:
            raise ValueError(
                f"{name} has configurations: ask for one of "
                + ", ".join(f"{name}/{one}" for one in sorted(configurations))
            )
        return None
    return max(found, key=lambda path: [int(n) for n in path.name.split(".") if n.isdigit()])


def _is_listed(name: str) -> bool:
    import tensorflow_datasets as tfds

    base = name.partition(":")[0].partition("/")[0]
    return bool(_NAME.fullmatch(name)) and base in tfds.list_builders(with_community_datasets=False)


def _prepare(name: str, folder: Path) -> Path:
    """Download and write a data set as array_record, which some need TensorFlow for."""
    import requests
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        for url in list(builder.url_infos or ())[:1]:
            # Without a network the download itself would try again for three minutes.
            requests.head(url, timeout=20)
        builder.download_and_prepare(file_format="array_record")
    except ImportError as error:
        raise ModuleNotFoundError(
            f"preparing {name} needs {error.name or 'TensorFlow'}, which reading does not: "
            "pip install 'jaxsoftmax[prepare]'"
        ) from error
    except (requests.ConnectionError, requests.Timeout) as error:
        raise ConnectionError(
            f"{name} is not prepared in {folder} and cannot be downloaded: no network\n"
            "Prepare it where there is one, and copy the folder:\n"
            + _PREPARE.format(name=name, folder=folder)
        ) from error
    return Path(builder.data_dir)


def _source(builder: Any, split: str, key: str) -> Any:
    import tensorflow_datasets as tfds

    # Images come as bytes, for `_decode`: TensorFlow Datasets' own decoder is OpenCV or Pillow,
    # whichever is installed, so that the pixels of a JPEG would depend on the machine.
    is_image = _is_image(builder.info.features[key])
    raw = {key: tfds.decode.SkipDecoding()} if is_image else None
    try:
        return builder.as_data_source(split=split, decoders=raw)
    except NotImplementedError as error:  # TFRecord, which has no random access
        version = Path(builder.data_dir)
        raise FileNotFoundError(
            _TFRECORD.format(
                name=builder.name,
                folder=version.parent.parent,
                version=version,
                formats=builder.info.file_format.value,
            )
        ) from error


# What is in it.


def _keys(builder: Any) -> tuple[str, str]:
    """Return the names of the features and of the label: as declared, else the only ones."""
    features = builder.info.features
    declared = builder.info.supervised_keys
    if declared and len(declared) == 2 and all(isinstance(key, str) for key in declared):
        inputs = [key for key in declared[:1] if _is_input(features[key])]
        labels = [key for key in declared[1:] if _is_label(features[key])]
    else:
        inputs = [key for key in features if _is_input(features[key])]
        labels = [key for key in features if _is_label(features[key])]
    if len(inputs) != 1 or len(labels) != 1:
        described = ", ".join(
            f"{key}: {type(f).__name__} {getattr(f, 'shape', '')}" for key, f in features.items()
        )
        raise ValueError(
            f"{builder.info.full_name} must have one image of bytes or vector of one size and one "
            f"class; its features are {described}"
        )
    return inputs[0], labels[0]


def _is_image(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Image)


def _is_input(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if not isinstance(feature, tfds.features.Image | tfds.features.Tensor):
        return False
    kind, shape = np.dtype(feature.np_dtype), feature.shape
    if _is_image(feature):
        wanted = kind == np.uint8 and shape[-1] in _MODES
    else:
        wanted = kind.kind in "buif" and bool(shape)
    return wanted and None not in shape


def _is_label(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return True
    is_scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    return is_scalar and np.dtype(feature.np_dtype).kind in "bui"


def _read(
    source: Any,
    builder: Any,
    x: str,
    y: str,
    progress: Callable[[int], object],
    chunk: int = 2_000,
) -> Split:
    """Read and decode by chunks: one request for many records is several times faster."""
    feature = builder.info.features[x]
    is_image, shape = _is_image(feature), feature.shape
    features = np.empty((len(source), int(np.prod(shape))), np.float32)
    labels = np.empty(len(source), np.int64)
    for start in range(0, len(source), chunk):
        rows = range(start, min(start + chunk, len(source)))
        examples = source.__getitems__(rows)
        for row, example in zip(rows, examples, strict=True):
            value = _decode(example[x], shape) if is_image else example[x]
            features[row] = value.reshape(-1)
            labels[row] = example[y]
        progress(rows.stop)
    if is_image:
        features /= 255
    elif not np.isfinite(features).all():
        row, place = np.argwhere(~np.isfinite(features))[0].tolist()
        raise ValueError(
            f"{builder.info.full_name}, {source.split}, example {row + 1}, {x}[{place}]: not finite"
        )
    return Split(features, labels, np.arange(1, len(labels) + 1))


_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""What Pillow calls images of so many channels."""


def _decode(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModuleNotFoundError("images need a decoder: pip install pillow") from error

    image, mode = Image.open(io.BytesIO(encoded)), _MODES[shape[-1]]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    if pixels.size != np.prod(shape):
        raise ValueError(f"an image must have shape {shape}, got {pixels.shape}")
    return pixels


def _classes(
    builder: Any, y: str, read: dict[str, Split]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Return the names of the classes, and the splits with classes numbered from 0."""
    names = getattr(builder.info.features[y], "names", None)
    if names is None:
        values = np.unique(np.concatenate([split.targets for split in read.values()]))
    else:
        values = np.arange(len(names))
    numbered = {}
    for name, split in read.items():
        places = np.searchsorted(values, split.targets).clip(max=len(values) - 1)
        bad = np.flatnonzero(values[places] != split.targets)
        if bad.size:
            raise ValueError(
                f"{builder.info.full_name}, {name}, example {bad[0] + 1}: its label is "
                f"{split.targets[bad[0]]}, which is none of the {len(values)} classes"
            )
        numbered[name] = split._replace(targets=places.astype(np.int32))
    return tuple(map(str, values if names is None else names)), numbered


def subset(split: Split, chosen: np.ndarray) -> Split:
    """Take some of the examples."""
    return Split(split.features[chosen], split.targets[chosen], split.ids[chosen])
