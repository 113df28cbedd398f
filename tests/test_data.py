"""Data sets by name: what they hold, how they are split, and what is said where one is missing."""

import io
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from PIL import Image

from jaxsoftmax import data

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
        for row, label in zip(split.features * 16, split.labels, strict=True)
    ]
    assert len(ours) == len(set(ours)) == 1797
    assert set(ours) == rows


def test_digits_split_follows_its_rule() -> None:
    digits = data.load("digits")
    with (ROOT / "jaxsoftmax/digits.npz").open("rb") as file:
        stored = np.load(file)
        images, labels = stored["images"], stored["labels"]
    seen: Counter[int] = Counter()
    dealt: dict[int, list[int]] = {fold: [] for fold in range(5)}
    for index, label in enumerate(labels.tolist()):
        dealt[seen[label] % 5].append(index)
        seen[label] += 1
    for split, folds in ((digits.train, (0, 1, 2)), (digits.validation, (3,)), (digits.test, (4,))):
        chosen = sorted(index for fold in folds for index in dealt[fold])
        np.testing.assert_array_equal(split.labels, labels[chosen])
        np.testing.assert_array_equal(split.features, images[chosen].reshape(-1, 64) / 16)


def test_digits_types_and_names() -> None:
    digits = data.load("digits")
    for split in (digits.train, digits.validation, digits.test):
        assert (split.features.dtype, split.labels.dtype) == (np.float32, np.int32)
        assert split.features.min() == 0
        assert split.features.max() == 1
        assert set(split.labels.tolist()) == set(range(10))
    assert digits.classes == tuple("0123456789")
    assert digits.shape == (8, 8)
    assert "CC BY 4.0" in digits.source


def test_digits_load_nothing_heavy() -> None:
    code = (
        "import sys; from jaxsoftmax import data; data.load('digits');"
        "sys.exit('tensorflow_datasets' in sys.modules or 'PIL' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@given(st.lists(st.integers(-3, 3), max_size=60), st.integers(1, 12))
def test_folds_deal_each_class_round_and_round(labels: list[int], count: int) -> None:
    seen: Counter[int] = Counter()
    expected = []
    for label in labels:
        expected.append(seen[label] % count)
        seen[label] += 1
    assert data.folds(np.array(labels, dtype=int), count).tolist() == expected


# What is refused.


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"digits, mnist, fashion_mnist, cifar10, got 'digitz'"):
        data.load("digitz")


def test_missing_data_set_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as error:
        data.load("mnist", data_dir=tmp_path)
    text = str(error.value)
    assert f"mnist is not prepared as array_record in {tmp_path}" in text
    assert "--data-dir" in text
    assert f"tfds build mnist --file_format=array_record --data_dir={tmp_path}" in text


def test_default_folder_is_that_of_tensorflow_datasets(tmp_path: Path) -> None:
    code = "from jaxsoftmax import data; data.load('cifar10')"
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
        np.testing.assert_array_equal(split.labels, chosen % 3)
        expected = pixels[chosen].reshape(-1, 784).astype(np.float32) / np.float32(255)
        np.testing.assert_array_equal(split.features, expected)
    assert reports == [(70, 90), (90, 90)]
    assert mnist.shape == (28, 28, 1)


def test_tfrecord_has_no_random_access(tmp_path: Path) -> None:
    _prepare_mnist(tmp_path, file_format="tfrecord")
    with pytest.raises(FileNotFoundError, match="mnist is not prepared as array_record"):
        data.load("mnist", data_dir=tmp_path)


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
    assert tuple(len(split.labels) for split in splits) == sizes
    assert " ".join(dataset.classes).startswith(names)
    assert len(dataset.classes) == 10
    for split in splits:
        assert split.features.shape == (len(split.labels), int(np.prod(dataset.shape)))
        assert (split.features.dtype, split.labels.dtype) == (np.float32, np.int32)
        assert split.features.min() == 0
        assert split.features.max() == 1
    counts = [np.bincount(split.labels, minlength=10) for split in splits]
    assert np.all(np.abs(counts[1] - (counts[0] + counts[1]) / 10) < 1)
    pixels = [split.features.mean(dtype=np.float64) for split in splits[:2]]
    assert np.average(pixels, weights=sizes[:2]) == pytest.approx(mean, abs=2e-4)


def test_licence_of_the_digits_is_beside_them() -> None:
    text = (ROOT / "jaxsoftmax/digits.LICENSE").read_text()
    assert re.search(r"Alpaydin.*Kaynak", text)
    assert "Attribution 4.0" in text
    assert "BSD 3-Clause" in text
