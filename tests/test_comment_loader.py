"""The loaders of toxic comments, on comments MADE by this test, and the thresholds of labels."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow_datasets as tfds

FOLDER = Path(__file__).parent.parent / "experiments"
F = tfds.features
TEXTS = ["a made comment", 'with "quotes",\nand a line', "größer"]
TARGETS = np.array([[0, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 0], [1, 1, 0, 1, 0, 1]])


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("comments")


def table(loader: ModuleType, targets: np.ndarray) -> pa.Table:
    columns = dict(zip(loader.LABELS[::-1], targets.T[::-1].astype(np.int8), strict=True))
    return pa.table({"id": ["x", "y", "z"]} | columns | {"comment_text": TEXTS})


def test_reads_a_table(loader: ModuleType, tmp_path: Path) -> None:
    pq.write_table(table(loader, TARGETS), tmp_path / "made.parquet")
    found = loader.load(tmp_path / "made.parquet")
    assert found.texts == TEXTS
    np.testing.assert_array_equal(found.targets, TARGETS)


def test_what_a_table_lacks_is_named(loader: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "made.parquet"
    pq.write_table(table(loader, TARGETS).drop_columns(["threat"]), path)
    with pytest.raises(ValueError, match=r"made\.parquet: expected the columns threat"):
        loader.load(path)
    wrong = TARGETS.copy()
    wrong[1, 4] = -1  # the challenge's mark of a comment that was not scored
    pq.write_table(table(loader, wrong), path)
    with pytest.raises(ValueError, match="comment 2, insult: expected 0 or 1, got -1"):
        loader.load(path)


class _Made(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """The form of wikipedia_toxicity_subtypes, which needs TensorFlow to be made itself."""

    VERSION = tfds.core.Version("0.3.1")
    names: tuple[str, ...] = ()
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name="EnglishSubtypes")]  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        labels = {name: F.Scalar(np.float32) for name in self.names}
        texts = {name: F.Text() for name in ("text", "id", "language")}
        return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(texts | labels))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(3), "test": self._generate_examples(2)}

    def _generate_examples(self, count: int) -> Any:
        for i in range(count):
            labels = dict(zip(self.names, TARGETS[i].astype(np.float32), strict=True))
            yield i, {"text": TEXTS[i], "id": str(i), "language": "en"} | labels


def test_reads_what_tensorflow_datasets_prepares(loader: ModuleType, tmp_path: Path) -> None:
    kind = type(
        "WikipediaToxicitySubtypes", (_Made,), {"names": loader.PREPARED}, skip_registration=True
    )
    kind(data_dir=tmp_path, file_format="array_record").download_and_prepare()
    for split, count in (("train", 3), ("test", 2)):
        found = loader.load_prepared(tmp_path, split=split)
        order = np.argsort([TEXTS.index(text) for text in found.texts])  # prepared in another order
        assert [found.texts[i] for i in order] == TEXTS[:count]
        np.testing.assert_array_equal(found.targets[order], TARGETS[:count])


def test_what_is_not_prepared_is_named(loader: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="wikipedia_toxicity_subtypes"):
        loader.load_prepared(tmp_path)


def test_thresholds_are_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))
    heads = importlib.import_module("label_heads")
    rng = np.random.default_rng(0)
    targets = rng.random((40, 5)) < np.array([0.05, 0.2, 0.5, 0.9, 1.0])
    z = rng.normal(size=(40, 5)) + targets

    def f1(threshold: float, label: int) -> float:
        said, t = z[:, label] > threshold, targets[:, label]
        return 2 * (said & t).sum() / (said.sum() + t.sum())

    for label, threshold in enumerate(heads.thresholds(z, targets)):
        every = [f1(at, label) for at in (*z[:, label], -np.inf)]
        assert f1(threshold, label) == max(every)
