"""The loader of the protein images reads the competition's form, on a sample MADE by this test."""

import importlib
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

FOLDER = Path(__file__).parent.parent / "experiments"


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("protein_images")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """Three made examples of 8 x 8 pixels: a grey for each stain, its upper half brighter."""
    (tmp_path / "train").mkdir()
    (tmp_path / "train.csv").write_text("Id,Target\naaa,16 0\nbbb,7\nccc,27 2 25\n")
    for row, name in enumerate(("aaa", "bbb", "ccc")):
        for place, stain in enumerate(("red", "green", "blue", "yellow")):
            pixels = np.full((8, 8), 10 * row + place, np.uint8)
            pixels[:4] += 100
            Image.fromarray(pixels).save(tmp_path / "train" / f"{name}_{stain}.png")
    return tmp_path


def test_reads_stains_and_classes(loader: ModuleType, made: Path) -> None:
    split, schema = loader.load(made / "train.csv", made / "train", size=2)
    assert split.ids.tolist() == ["aaa", "bbb", "ccc"]
    assert [np.flatnonzero(t).tolist() for t in split.targets] == [[0, 16], [7], [2, 25, 27]]
    assert schema.shape == (2, 2, 4)
    assert len(schema.classes) == len(set(schema.classes)) == 28
    grey = np.arange(3)[:, None] * 10 + np.arange(4)
    expected = np.stack([grey + 100, grey + 100, grey, grey], 1).reshape(3, 2, 2, 4)
    found = split.features.reshape(3, *schema.shape) * 255
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert split.features.dtype == np.float32


def test_a_missing_image_is_named(loader: ModuleType, made: Path) -> None:
    (made / "train" / "bbb_blue.png").unlink()
    with pytest.raises(FileNotFoundError, match="bbb_blue"):
        loader.load(made / "train.csv", made / "train")


@pytest.mark.parametrize("target", ["28", "-1", "nucleus", "1.0", ""])
def test_a_bad_class_is_named(loader: ModuleType, made: Path, target: str) -> None:
    (made / "train.csv").write_text(f"Id,Target\naaa,3\nbbb,{target}\n")
    message = re.escape(f"train.csv, row 2: expected class numbers from 0 to 27, got {target!r}")
    with pytest.raises(ValueError, match=message):
        loader.load(made / "train.csv", made / "train")


def test_another_table_is_refused(loader: ModuleType, made: Path) -> None:
    (made / "train.csv").write_text("id,label\naaa,3\n")
    with pytest.raises(ValueError, match="expected rows with Id and Target"):
        loader.load(made / "train.csv", made / "train")


def test_the_document_runs_on_them(
    loader: ModuleType, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = importlib.import_module("protein_classes")
    parts, names = document.examples(made)
    assert [part.features.shape for part in parts] == [(3, 32 * 32 * 4), (0, 4096), (0, 4096)]
    assert names == loader.CLASSES
