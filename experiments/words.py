"""Texts as windows of word numbers, for the language models to copy.

The words of highest frequency are numbered from 1. Every other word is 0, and so is the padding of
a short window: a model reads a 0, but is not asked to predict it.
"""

import argparse
import re
from collections import Counter
from pathlib import Path

import comments
import numpy as np

HERE = Path(__file__).parent
FILE = HERE.parent.parent / "shared" / "data" / "toxic" / "comments.parquet"


def arguments(docstring: str) -> argparse.Namespace:
    """Read the command line, --smoke and --text, and the texts that they name."""
    parser = argparse.ArgumentParser(description=docstring.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a small model of a small text")
    parser.add_argument("--text", type=Path, default=FILE, help="a Parquet table of comments")
    options = parser.parse_args()
    options.texts = pages() if options.smoke else comments.load(options.text).texts
    return options


def pages() -> list[str]:
    """Read the paragraphs of two pages of this repository."""
    found = (HERE / "README.md", HERE.parent / "CONTRIBUTING.md")
    return [part for page in found for part in page.read_text().split("\n\n")]


def windows(texts: list[str], vocabulary: int, length: int) -> np.ndarray:
    """Return int32 `[N, length + 1]`: each text cut into windows that overlap by one word."""
    split = [re.findall(r"[a-z]+|[^\sa-z]", text.lower()) for text in texts]
    counts = Counter(word for words in split for word in words)
    number = {word: i for i, (word, _) in enumerate(counts.most_common(vocabulary - 1), 1)}
    rows = []
    for words in split:
        numbers = [number.get(word, 0) for word in words]
        for start in range(0, len(numbers) - 1, length):
            row = numbers[start : start + length + 1]
            rows.append(row + [0] * (length + 1 - len(row)))
    return np.array(rows, np.int32)
