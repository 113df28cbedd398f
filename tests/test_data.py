"""Data sets by name: what they hold, how they are split, and what is said where one is missing."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jaxsoftmax.app import data
from jaxsoftmax.app.data.dataset import Task

ROOT = Path(__file__).parent.parent
DATA_DIR = Path(os.environ.get("JAXSOFTMAX_DATA_DIR", ROOT / "../shared/tfds"))


# The embedded digits.


def test_digits_are_those_of_scikit_learn() -> None:
    datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn is not installed")
    theirs = datasets.load_digits()
    digits = data.load("digits")
    rows = {(*row, label) for row, label in zip(theirs.data, theirs.target, strict=True)}
    splits = (digits.train, digits.validation, digits.test)
    ours = [
        (*row, label)
        for split in splits
        for row, label in zip(split.features * 16, split.targets, strict=True)
    ]
    assert len(ours) == len(set(ours)) == 1797
    assert set(ours) == rows


def test_digits_split_follows_its_rule() -> None:
    digits = data.load("digits")
    with (ROOT / "jaxsoftmax/app/data/digits.npz").open("rb") as file:
        stored = np.load(file)
        images, labels = stored["images"], stored["labels"]
    seen: Counter[int] = Counter()
    dealt: dict[int, list[int]] = {fold: [] for fold in range(5)}
    for index, label in enumerate(labels.tolist()):
        dealt[seen[label] % 5].append(index)
        seen[label] += 1
    for split, folds in ((digits.train, (0, 1, 2)), (digits.validation, (3,)), (digits.test, (4,))):
        chosen = sorted(index for fold in folds for index in dealt[fold])
        np.testing.assert_array_equal(split.targets, labels[chosen])
        np.testing.assert_array_equal(split.features, images[chosen].reshape(-1, 64) / 16)


def test_digits_types_and_names() -> None:
    digits = data.load("digits")
    for split in (digits.train, digits.validation, digits.test):
        assert (split.features.dtype, split.targets.dtype) == (np.float32, np.int32)
        assert split.features.min() == 0
        assert split.features.max() == 1
        assert set(split.targets.tolist()) == set(range(10))
    assert digits.schema.classes == tuple("0123456789")
    assert digits.schema.shape == (8, 8)
    assert "CC BY 4.0" in digits.source


def test_digits_load_nothing_heavy() -> None:
    code = (
        "import sys; from jaxsoftmax.app import data; data.load('digits');"
        "sys.exit('tensorflow_datasets' in sys.modules or 'PIL' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# What is refused.


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"digits, mnist, fashion_mnist, cifar10, got 'digitz'"):
        data.load("digitz")


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "mnist*", "/", "mnist:", "a b", "mnist/"])
def test_what_is_no_name_is_not_looked_for(tmp_path: Path, name: str) -> None:
    info = tmp_path / "data" / "mnist" / "3.0.1" / "dataset_info.json"
    info.parent.mkdir(parents=True)
    info.touch()
    with pytest.raises(ValueError, match="nor a name of TensorFlow Datasets"):
        data.load(name, data_dir=tmp_path / "data")


def test_missing_data_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", data_dir=tmp_path)
    text = str(error.value)
    assert f"mnist is not prepared as array_record in {tmp_path}" in text
    assert "--data-dir" in text
    assert f"tfds build mnist --file_format=array_record --data_dir={tmp_path}" in text


def test_default_folder_is_that_of_tensorflow_datasets(tmp_path: Path) -> None:
    code = "from jaxsoftmax.app import data; data.load('cifar10')"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "TFDS_DATA_DIR": str(tmp_path)},
    )
    assert done.returncode == 1
    assert f"cifar10 is not prepared as array_record in {tmp_path}" in done.stderr


# A prepared data set, written here byte by byte: TensorFlow, which could write one, is not needed.


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field of a protocol buffer."""
    length, size = len(payload), b""
    while length > 127:
        size, length = size + bytes([length & 127 | 128]), length >> 7
    return bytes([number << 3 | 2]) + size + bytes([length]) + payload


def _example(image: np.ndarray, label: int) -> bytes:
    """A tf.train.Example with a PNG and a label below 128."""
    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG")
    features = {
        b"image": _field(1, _field(1, png.getvalue())),
        b"label": _field(3, _field(1, bytes([label]))),
    }
    return _field(1, b"".join(_field(1, _field(1, k) + _field(2, v)) for k, v in features.items()))


def _prepare_mnist(data_dir: Path, file_format: str = "array_record") -> dict[str, np.ndarray]:
    from array_record.python.array_record_module import ArrayRecordWriter

    folder = data_dir / "mnist" / "3.0.1"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    images = {split: rng.integers(0, 256, (n, 28, 28), np.uint8) for split, n in _SIZES.items()}
    kinds = "tensorflow_datasets.core.features"
    image = {"dtype": "uint8", "shape": {"dimensions": ["28", "28", "1"]}}
    label = {"numClasses": "10"}
    features = {
        "image": {"image": image, "pythonClassName": f"{kinds}.image_feature.Image"},
        "label": {
            "classLabel": label,
            "pythonClassName": f"{kinds}.class_label_feature.ClassLabel",
        },
    }
    info = {
        "name": "mnist",
        "version": "3.0.1",
        "fileFormat": file_format,
        "splits": [
            {
                "name": split,
                "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                "numBytes": "1",
                "shardLengths": [str(size)],
            }
            for split, size in _SIZES.items()
        ],
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    (folder / "features.json").write_text(
        json.dumps(
            {
                "pythonClassName": f"{kinds}.features_dict.FeaturesDict",
                "featuresDict": {"features": features},
            }
        )
    )
    for split, pixels in images.items():
        path = folder / f"mnist-{split}.{file_format}-00000-of-00001"
        writer = ArrayRecordWriter(str(path), "group_size:1")
        for index, one in enumerate(pixels):
            writer.write(_example(one, index % 3))
        writer.close()
    return images


_SIZES = {"train": 70, "test": 20}


def test_prepared_data_set_is_read_and_split(tmp_path: Path) -> None:
    images = _prepare_mnist(tmp_path)
    reports: list[tuple[int, int]] = []
    mnist = data.load("mnist", data_dir=tmp_path, progress=lambda *done: reports.append(done))
    index = np.arange(70)
    tenth = index // 3 % 10 == 9  # labels go 0, 1, 2, 0, 1, 2, ...
    for split, pixels, chosen in (
        (mnist.train, images["train"], index[~tenth]),
        (mnist.validation, images["train"], index[tenth]),
        (mnist.test, images["test"], np.arange(20)),
    ):
        np.testing.assert_array_equal(split.targets, chosen % 3)
        expected = pixels[chosen].reshape(-1, 784).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(split.features, expected)
    assert reports == [(70, 90), (90, 90)]
    assert mnist.schema.shape == (28, 28, 1)


def test_tfrecord_has_no_random_access(tmp_path: Path) -> None:
    _prepare_mnist(tmp_path, file_format="tfrecord")
    with pytest.raises(FileNotFoundError, match="mnist is not prepared as array_record") as error:
        data.load("mnist", data_dir=tmp_path)
    version = tmp_path / "mnist" / "3.0.1"
    assert f"--dataset_version_dir={version} --out_file_format=array_record" in str(error.value)
    assert "but as tfrecord" in str(error.value)


def test_missing_decoder(tmp_path: Path) -> None:
    _prepare_mnist(tmp_path)
    code = (
        "import sys; sys.modules['PIL'] = None; from jaxsoftmax.app import data;"
        f"data.load('mnist', data_dir={str(tmp_path)!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == (
        "ModuleNotFoundError: images need a decoder: pip install pillow"
    )


# Any other name. TensorFlow Datasets prepares vectors without TensorFlow, so it does here.

F = tfds.features


class _Rows(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Rows of features whose parts are what a test says."""

    VERSION = tfds.core.Version("1.2.0")
    features: dict[str, Any]
    supervised: tuple[str, str] | None = None
    rows: dict[str, list[dict[str, Any]]]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self, features=F.FeaturesDict(self.features), supervised_keys=self.supervised
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: enumerate(rows) for split, rows in self.rows.items()}

    def _generate_examples(self) -> None:
        raise AssertionError("the splits are generators already")


def _prepare(
    folder: Path,
    features: dict[str, Any],
    rows: dict[str, list[dict[str, Any]]],
    supervised: tuple[str, str] | None = None,
) -> None:
    parts = {"features": features, "rows": rows, "supervised": supervised}
    kind = type("Rows", (_Rows,), parts, skip_registration=True)
    builder = kind(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()


VECTORS = {"x": F.Tensor(shape=(3,), dtype=np.float32), "kind": F.ClassLabel(names=["p", "q"])}


def _rows(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [{"x": np.float32([i, -i, i / 3]), "kind": i % 2} for i in range(start, start + count)]


def test_vectors_without_splits_of_their_own(tmp_path: Path) -> None:
    _prepare(tmp_path, VECTORS, {"train": _rows(40)})
    dataset = data.load("rows", data_dir=tmp_path)
    schema = dataset.schema
    assert (schema.task, schema.classes, schema.shape) == (Task.classes, ("p", "q"), (3,))
    assert (schema.divisor, schema.target, schema.columns) == (1, ("kind",), None)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [np.bincount(split.targets).tolist() for split in splits] == [[14] * 2, [3] * 2, [3] * 2]
    seen = np.concatenate([split.features[:, 0] for split in splits])
    assert sorted(seen.tolist()) == list(range(40))
    for split in splits:
        np.testing.assert_array_equal(split.targets, split.features[:, 0] % 2)
        np.testing.assert_array_equal(split.features[:, 1], -split.features[:, 0])
    again = data.read("rows", schema, targets=True, data_dir=tmp_path)
    np.testing.assert_array_equal(again.features, dataset.test.features)
    assert "rows/1.2.0" in dataset.source


@pytest.mark.parametrize(
    ("own", "sizes"),
    [
        ({"test": 6}, [34, 6, 6]),
        ({"validation": 6}, [34, 6, 6]),
        ({"validation": 4, "test": 8, "unlabelled": 3}, [40, 4, 8]),
    ],
)
def test_splits_of_its_own_are_kept(tmp_path: Path, own: dict[str, int], sizes: list[int]) -> None:
    others = {name: _rows(size, start=100) for name, size in own.items()}
    _prepare(tmp_path, VECTORS, {"train": _rows(40), **others})
    dataset = data.load("rows", data_dir=tmp_path)
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    assert [len(split.ids) for split in splits.values()] == sizes
    for name, split in splits.items():
        assert (split.features[:, 0] >= 100).all() == (name in own)


def test_declared_keys_and_integers_for_classes(tmp_path: Path) -> None:
    features = {
        "grid": F.Tensor(shape=(2, 2), dtype=np.uint8),
        "other": F.Tensor(shape=(5,), dtype=np.float64),
        "rank": F.Scalar(np.int64),
        "label": F.Scalar(np.int64),
    }
    rows = [
        {
            "grid": np.full((2, 2), i, np.uint8),
            "other": np.zeros(5),
            "rank": 7 + i % 3 * 4,
            "label": 0,
        }
        for i in range(30)
    ]
    _prepare(tmp_path, features, {"train": rows}, supervised=("grid", "rank"))
    dataset = data.load("rows", data_dir=tmp_path)
    assert (dataset.schema.classes, dataset.schema.shape) == (("7", "11", "15"), (2, 2))
    np.testing.assert_array_equal(dataset.train.features[:, 3] % 3, dataset.train.targets)


@pytest.mark.parametrize(
    ("features", "described"),
    [
        ({"text": F.Text(), "kind": F.ClassLabel(num_classes=2)}, r"text: Text \(\)"),
        (
            {"x": F.Tensor(shape=(None,), dtype=np.float32), "kind": F.ClassLabel(num_classes=2)},
            "None",
        ),
        ({**VECTORS, "z": F.Tensor(shape=(2,), dtype=np.float32)}, r"z: Tensor \(2,\)"),
        ({"x": F.Tensor(shape=(3,), dtype=np.float32)}, r"x: Tensor \(3,\)$"),
    ],
)
def test_features_that_are_no_vector_and_class(
    tmp_path: Path, features: dict[str, Any], described: str
) -> None:
    values = {"text": "t", "kind": 1, "x": np.zeros(3, np.float32), "z": np.zeros(2, np.float32)}
    _prepare(tmp_path, features, {"train": [{key: values[key] for key in features}] * 5})
    with pytest.raises(ValueError, match=f"must have one image .* its features are .*{described}"):
        data.load("rows", data_dir=tmp_path)


def test_values_that_cannot_be(tmp_path: Path) -> None:
    rows = _rows(20)
    rows[3]["x"] = np.float32([0, np.nan, 0])
    _prepare(tmp_path / "nan", VECTORS, {"train": rows})
    with pytest.raises(ValueError, match=r"rows/1.2.0, train, example \d+, x\[1\]: not finite"):
        data.load("rows", data_dir=tmp_path / "nan")
    unlabelled = [row | {"kind": -1} for row in _rows(5)]
    _prepare(tmp_path / "label", VECTORS, {"train": _rows(20), "test": unlabelled})
    with pytest.raises(
        ValueError, match=r"test, example 1: its label is -1, which is none of the 2"
    ):
        data.load("rows", data_dir=tmp_path / "label")


def test_versions_and_configurations(tmp_path: Path) -> None:
    _prepare(tmp_path, VECTORS, {"train": _rows(20)})
    folder = tmp_path / "rows"
    newer = json.loads((folder / "1.2.0/dataset_info.json").read_text()) | {"version": "1.10.0"}
    shutil.copytree(folder / "1.2.0", folder / "1.10.0")
    (folder / "1.10.0/dataset_info.json").write_text(json.dumps(newer))
    assert "rows/1.10.0" in data.load("rows", data_dir=tmp_path).source
    assert "rows/1.2.0" in data.load("rows:1.2.0", data_dir=tmp_path).source
    (tmp_path / "many").mkdir()
    folder.rename(tmp_path / "many/large")
    with pytest.raises(ValueError, match="many has configurations: ask for one of many/large"):
        data.load("many", data_dir=tmp_path)
    assert len(data.load("many/large", data_dir=tmp_path).train.ids) == 14


# Preparing.


class JaxsoftmaxVectors(_Rows):
    """Needs neither a network nor TensorFlow."""

    features = VECTORS
    rows = {"train": _rows(40)}  # noqa: RUF012


class JaxsoftmaxImages(_Rows):
    """Needs TensorFlow, to encode its images."""

    features = {"x": F.Image(shape=(2, 2, 1)), "kind": F.ClassLabel(num_classes=2)}  # noqa: RUF012
    rows = {"train": [{"x": np.zeros((2, 2, 1), np.uint8), "kind": 0}]}  # noqa: RUF012


def test_a_registered_name_can_be_prepared(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tfds build jaxsoftmax_vectors"):
        data.load("jaxsoftmax_vectors", data_dir=tmp_path)
    first = data.load("jaxsoftmax_vectors", data_dir=tmp_path, download=True)
    again = data.load("jaxsoftmax_vectors", data_dir=tmp_path)
    np.testing.assert_array_equal(first.train.features, again.train.features)


@pytest.mark.skipif(find_spec("tensorflow") is not None, reason="TensorFlow is installed")
def test_preparing_needs_tensorflow(tmp_path: Path) -> None:
    with pytest.raises(ModuleNotFoundError) as error:
        data.load("jaxsoftmax_images", data_dir=tmp_path, download=True)
    assert "preparing jaxsoftmax_images needs" in str(error.value)
    assert "pip install 'jaxsoftmax[prepare]'" in str(error.value)


def test_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # where nobody listens
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConnectionError) as error:
        data.load("mnist", data_dir=tmp_path, download=True)
    text = str(error.value)
    assert text.startswith(f"mnist is not prepared in {tmp_path} and cannot be downloaded: no netw")
    assert f"tfds build mnist --file_format=array_record --data_dir={tmp_path}" in text


# The real ones. Means over all training pixels as published, to four digits; re-encoding CIFAR-10
# as JPEG moves its own by 1e-4.


@pytest.mark.parametrize(
    ("name", "sizes", "mean", "names"),
    [
        ("mnist", (54_004, 5_996, 10_000), 0.1307, "0 1 2 3"),
        ("fashion_mnist", (54_000, 6_000, 10_000), 0.2860, "T-shirt/top Trouser Pullover Dress"),
        ("cifar10", (45_000, 5_000, 10_000), 0.4734, "airplane automobile bird cat"),
    ],
)
def test_real_data_sets(name: str, sizes: tuple[int, ...], mean: float, names: str) -> None:
    if not (DATA_DIR / name).is_dir():
        pytest.skip(f"{name} is not prepared beside this repository (JAXSOFTMAX_DATA_DIR)")
    dataset = data.load(name, data_dir=DATA_DIR)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert tuple(len(split.targets) for split in splits) == sizes
    assert " ".join(dataset.schema.classes).startswith(names)
    assert len(dataset.schema.classes) == 10
    for split in splits:
        assert split.features.shape == (len(split.targets), int(np.prod(dataset.schema.shape)))
        assert (split.features.dtype, split.targets.dtype) == (np.float32, np.int32)
        assert split.features.min() == 0
        assert split.features.max() == 1
    counts = [np.bincount(split.targets, minlength=10) for split in splits]
    assert np.all(np.abs(counts[1] - (counts[0] + counts[1]) / 10) < 1)
    pixels = [split.features.mean(dtype=np.float64) for split in splits[:2]]
    assert np.average(pixels, weights=sizes[:2]) == pytest.approx(mean, abs=2e-4)


def test_licence_of_the_digits_is_beside_them() -> None:
    text = (ROOT / "jaxsoftmax/app/data/digits.LICENSE").read_text()
    assert re.search(r"Alpaydin.*Kaynak", text)
    assert "Attribution 4.0" in text
    assert "BSD 3-Clause" in text
