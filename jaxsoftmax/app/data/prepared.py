"""Data sets prepared by TensorFlow Datasets: examples are an image or a vector, and a class."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxsoftmax.app.data import image_cache
from jaxsoftmax.app.data.dataset import Dataset, Progress, Schema, Split, Task
from jaxsoftmax.app.data.image_cache import Images
from jaxsoftmax.app.data.splits import TEST, TRAIN, VALIDATION, assign_folds, assign_splits
from jaxsoftmax.app.names import EMBEDDED, PREPARED

_NAME = re.compile(r"\w+(/[\w.+-]+)?(:\d+\.\d+\.\d+)?")
"""The pattern of a name with an optional configuration and version."""

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
    name: str,
    *,
    data_dir: str | Path | None = None,
    download: bool = False,
    use_cache: bool = False,
    progress: Progress,
) -> Dataset:
    """Read a prepared data set; `data.load` documents the names and the splits."""
    builder = _find_builder(name, data_dir, download=download)
    feature_key, label_key = _find_keys(builder)
    train, *others = _split_names(builder)
    keys = (feature_key, label_key)
    splits = _read_splits(builder, [train, *others], keys, use_cache, progress)
    classes, splits = _encode_classes(builder, label_key, splits)
    train_examples = splits.pop(train)
    assignment = _assign_splits(name, train_examples.targets, splits)
    feature = builder.info.features[feature_key]
    return Dataset(
        name=name,
        train=train_examples.select(assignment == TRAIN),
        validation=splits.get("validation") or train_examples.select(assignment == VALIDATION),
        test=splits.get("test") or train_examples.select(assignment == TEST),
        schema=Schema(
            task=Task.classes,
            classes=classes,
            shape=tuple(feature.shape),
            divisor=255 if _is_image(feature) else 1,
            target=(label_key,),
        ),
        source=PREPARED.get(name, f"TensorFlow Datasets, {builder.info.full_name}"),
    )


def _split_names(builder: Any) -> list[str]:
    """Return the name of the training split, then `validation` and `test` if they exist."""
    names = list(builder.info.splits)
    if len(names) == 1:
        return names
    if "train" not in names:
        raise ValueError(
            f"{builder.info.full_name} has no split 'train', but {', '.join(names) or 'none'}"
        )
    return ["train", *(name for name in ("validation", "test") if name in names)]


def _assign_splits(name: str, labels: np.ndarray, others: dict[str, Split]) -> np.ndarray:
    """Assign the training examples to the splits that the data set itself does not have."""
    if name in PREPARED:
        return np.where(assign_folds(labels, 10) < 9, TRAIN, VALIDATION)
    if not {"validation", "test"} - others.keys():
        return np.full(len(labels), TRAIN)
    if "validation" in others:  # only a test split is drawn, in the place of the validation split
        drawn = assign_splits(labels, validation_share=0.15, test_share=0, seed=0)
        return np.where(drawn == VALIDATION, TEST, TRAIN)
    test_share = 0 if "test" in others else 0.15
    return assign_splits(labels, validation_share=0.15, test_share=test_share, seed=0)


# Finding a data set


def _find_builder(name: str, data_dir: str | Path | None, *, download: bool) -> Any:
    import tensorflow_datasets as tfds  # here, so that `import jaxsoftmax` stays fast

    folder = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    version = _find_version(name, folder) if _NAME.fullmatch(name) else None
    if version is None:
        if not _is_listed(name):
            known = ", ".join((EMBEDDED, *PREPARED))
            raise ValueError(
                f"DATA must be one of {known}, got {name!r}, which is neither a file, nor "
                f"prepared in {folder}, nor a name of TensorFlow Datasets"
            )
        if not download:
            raise FileNotFoundError((_ABSENT + _PREPARE).format(name=name, folder=folder))
        version = _prepare(name, folder)
    return tfds.builder_from_directory(version)


def _find_version(name: str, folder: Path) -> Path | None:
    """Return the folder of the requested version (`name:1.0.0`), or of the newest."""
    name, _, version = name.partition(":")
    found = [info.parent for info in (folder / name).glob(f"{version or '*'}/dataset_info.json")]
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
    """Download a data set and write it as array_record, for which some need TensorFlow."""
    import requests
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=folder, file_format="array_record")
        for url in list(builder.url_infos or ())[:1]:
            # Without a network the download itself would retry for three minutes.
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
            "Prepare it on a machine with a network, and copy the folder:\n"
            + _PREPARE.format(name=name, folder=folder)
        ) from error
    return Path(builder.data_dir)


def _open_split(builder: Any, split: str, feature_key: str) -> Any:
    import tensorflow_datasets as tfds

    # Images are read as bytes, for `_decode`. TensorFlow Datasets decodes with OpenCV or Pillow,
    # whichever is installed, so that the pixels of a JPEG would depend on the machine.
    is_image = _is_image(builder.info.features[feature_key])
    decoders = {feature_key: tfds.decode.SkipDecoding()} if is_image else None
    try:
        return builder.as_data_source(split=split, decoders=decoders)
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


# Reading a data set


def _find_keys(builder: Any) -> tuple[str, str]:
    """Return the keys of the features and of the label: the declared ones, else the only ones."""
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
    dtype, shape = np.dtype(feature.np_dtype), feature.shape
    if _is_image(feature):
        is_supported = dtype == np.uint8 and shape[-1] in _PILLOW_MODES
    else:
        is_supported = dtype.kind in "buif" and bool(shape)
    return is_supported and None not in shape


def _is_label(feature: Any) -> bool:
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return True
    is_scalar = isinstance(feature, tfds.features.Tensor) and feature.shape == ()
    return is_scalar and np.dtype(feature.np_dtype).kind in "bui"


def _read_splits(
    builder: Any, names: list[str], keys: tuple[str, str], use_cache: bool, progress: Progress
) -> dict[str, Split]:
    sources = {name: _open_split(builder, name, keys[0]) for name in names}
    total, num_read = sum(map(len, sources.values())), 0
    splits: dict[str, Split] = {}
    for name, source in sources.items():

        def report_progress(count: int, before: int = num_read) -> None:
            progress(before + count, total)

        splits[name] = _read_split(source, builder, keys, use_cache, report_progress)
        num_read += len(source)
    return splits


def _read_split(
    source: Any,
    builder: Any,
    keys: tuple[str, str],
    use_cache: bool,
    progress: Callable[[int], object],
) -> Split:
    features: np.ndarray
    if not _is_image(builder.info.features[keys[0]]):
        features, labels = _read_examples(source, builder, keys, np.float32, progress)
        _check_finite(features, f"{builder.info.full_name}, {source.split}", keys[0])
    else:

        def decode() -> Images:
            return _read_examples(source, builder, keys, np.uint8, progress)

        folder, split = Path(builder.data_dir), str(source.split)
        cached = image_cache.load_or_decode(folder, split, decode) if use_cache else decode()
        labels = cached.labels
        features = np.divide(cached.pixels, np.float32(255))
    return Split(features, np.asarray(labels), np.arange(1, len(labels) + 1))


def _check_finite(features: np.ndarray, described: str, feature_key: str) -> None:
    if not np.isfinite(features).all():
        row, column = np.argwhere(~np.isfinite(features))[0].tolist()
        raise ValueError(f"{described}, example {row + 1}, {feature_key}[{column}]: not finite")


def _read_examples(
    source: Any,
    builder: Any,
    keys: tuple[str, str],
    dtype: type,
    progress: Callable[[int], object],
    batch_size: int = 2_000,
) -> Images:
    """Read and decode in batches: one request for many records is several times faster."""
    feature_key, label_key = keys
    feature = builder.info.features[feature_key]
    is_image, shape = _is_image(feature), feature.shape
    features: np.ndarray = np.empty((len(source), int(np.prod(shape))), dtype)
    labels = np.empty(len(source), np.int64)
    for start in range(0, len(source), batch_size):
        rows = range(start, min(start + batch_size, len(source)))
        examples = source.__getitems__(rows)
        for row, example in zip(rows, examples, strict=True):
            value = example[feature_key]
            features[row] = (_decode(value, shape) if is_image else value).reshape(-1)
            labels[row] = example[label_key]
        progress(rows.stop)
    return Images(features, labels)


_PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
"""Pillow's mode of an image, by its number of channels."""


def _decode(encoded: bytes, shape: tuple[int, ...]) -> np.ndarray:
    try:
        from PIL import Image
    except ImportError as error:
        raise ModuleNotFoundError("images need a decoder: pip install pillow") from error

    image, mode = Image.open(io.BytesIO(encoded)), _PILLOW_MODES[shape[-1]]
    pixels = np.asarray(image if image.mode == mode else image.convert(mode))
    if pixels.size != np.prod(shape):
        raise ValueError(f"an image must have shape {shape}, got {pixels.shape}")
    return pixels


def _encode_classes(
    builder: Any, label_key: str, splits: dict[str, Split]
) -> tuple[tuple[str, ...], dict[str, Split]]:
    """Return the names of the classes, and the splits with classes numbered from 0."""
    names = getattr(builder.info.features[label_key], "names", None)
    if names is None:
        values = np.unique(np.concatenate([split.targets for split in splits.values()]))
    else:
        values = np.arange(len(names))
    encoded = {}
    for name, split in splits.items():
        classes = np.searchsorted(values, split.targets).clip(max=len(values) - 1)
        bad = np.flatnonzero(values[classes] != split.targets)
        if bad.size:
            raise ValueError(
                f"{builder.info.full_name}, {name}, example {bad[0] + 1}: its label is "
                f"{split.targets[bad[0]]}, which is none of the {len(values)} classes"
            )
        encoded[name] = split._replace(targets=classes.astype(np.int32))
    return tuple(map(str, values if names is None else names)), encoded
