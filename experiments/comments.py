"""Wikipedia's toxic comments, texts and six labels, from a table or from TensorFlow Datasets."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq

LABELS = ("toxic", "severe_toxic", "obscene", "threat", "insult", "identity_hate")
# The names of the same six in TensorFlow Datasets' wikipedia_toxicity_subtypes.
PREPARED = ("toxicity", "severe_toxicity", "obscene", "threat", "insult", "identity_attack")
NAME = "wikipedia_toxicity_subtypes/EnglishSubtypes"


class Comments(NamedTuple):
    """Texts, `[N]`, and whether each has each of the six labels, int `[N, 6]`."""

    texts: list[str]
    targets: np.ndarray


def load(path: Path) -> Comments:
    """Read a Parquet table with the challenge's columns: comment_text and the six labels.

    Raises:
        ValueError: if a column is missing or a label is neither 0 nor 1; names it.
    """
    columns = ("comment_text", *LABELS)
    missing = set(columns) - set(pq.read_schema(path).names)
    if missing:
        raise ValueError(f"{path.name}: expected the columns {', '.join(sorted(missing))}")
    table = pq.read_table(path, columns=list(columns))
    labels = np.stack([table[name].to_numpy() for name in LABELS], 1)
    return checked(Comments(table["comment_text"].to_pylist(), labels), path.name)


def load_prepared(data_dir: Path, *, split: str = "train") -> Comments:
    """Read a split that TensorFlow Datasets has prepared as array_record.

    Raises:
        FileNotFoundError: if the data set is not there.
        ValueError: as in `load`.
    """
    import tensorflow_datasets as tfds  # slow, and not needed for a table

    versions = sorted((data_dir / NAME).glob("*/dataset_info.json"))
    if not versions:
        raise FileNotFoundError(f"{NAME} is not prepared as array_record in {data_dir}")
    source = tfds.builder_from_directory(versions[-1].parent).as_data_source(split=split)
    texts, labels = [], []
    for example in source:
        texts.append(example["text"].decode())
        labels.append([example[name] for name in PREPARED])
    return checked(Comments(texts, np.array(labels)), f"{NAME}, {split}")


def checked(comments: Comments, where: str) -> Comments:
    """Return the comments with labels as integers; raise a ValueError if one is neither 0 nor 1."""
    bad = np.argwhere(~np.isin(comments.targets, (0, 1)))
    if len(bad):
        row, label = bad[0]
        raise ValueError(
            f"{where}, comment {row + 1}, {LABELS[label]}: expected 0 or 1, "
            f"got {comments.targets[row, label]}"
        )
    return comments._replace(targets=comments.targets.astype(int))
