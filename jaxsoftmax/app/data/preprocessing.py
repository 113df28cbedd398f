"""What is done to features before a linear model sees them: logarithms, and a common scale."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Preprocessing(NamedTuple):
    """A map of features, column by column: x -> (g(x) - mean) / scale, where g is log1p or nothing.

    log1p: whether logarithms of 1 + x are taken first. mean, scale: float64 `[D]`, or None where
    columns keep their scale.
    """

    log1p: bool = False
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None

    def apply(
        self,
        features: np.ndarray,
        *,
        in_place: bool = False,
        columns: Sequence[str] | None = None,
        ids: Sequence[object] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Map features, in float64 by parts, so that a column of 1e6 + 1e-1 keeps its digits.

        Args:
            features: float32 `[N, D]`; they are not changed, but in_place.
            in_place: whether to write the result over the features.
            columns: the names of the D features, for errors.
            ids: what names the N examples, for errors; by default their numbers from 1.

        Returns:
            float32 `[N, D]`; the features themselves where there is nothing to do.

        Raises:
            ValueError: if a logarithm is asked of a value of -1 or less, or a result is beyond
                float32; names the example and the column.

        Example:
            >>> import numpy as np
            >>> from jaxsoftmax.app.data import preprocessing
            >>> halves = preprocessing.Preprocessing(mean=np.array([1.0]), scale=np.array([2.0]))
            >>> print(halves.apply(np.array([[1.0], [2.0]], np.float32)).ravel())
            [0.  0.5]
        """
        if not self.log1p and self.mean is None:
            return features
        result = features if in_place else np.empty_like(features)
        for rows, part in self._mapped(features, _Names(columns, ids)):
            result[rows] = part
        return result

    def check(
        self,
        features: np.ndarray,
        *,
        columns: Sequence[str] | None = None,
        ids: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        """Raise what `apply` would, which may be called with a part of the examples at a time.

        Args:
            features: as in `apply`.
            columns: as in `apply`.
            ids: as in `apply`.

        Raises:
            ValueError: as `apply`.

        Example:
            >>> import numpy as np
            >>> from jaxsoftmax.app.data import preprocessing
            >>> preprocessing.Preprocessing(log1p=True).check(np.array([[0.0], [-1.0]]))
            Traceback (most recent call last):
            ValueError: row 2, feature 1: log1p needs values above -1, got -1.0
        """
        if self.log1p or self.mean is not None:
            for _ in self._mapped(features, _Names(columns, ids)):
                pass

    def _mapped(self, features: np.ndarray, names: "_Names") -> Iterator[tuple[slice, np.ndarray]]:
        for rows in _parts(features):
            part = _transformed(features[rows], self.log1p, names, rows.start)
            if self.mean is not None:
                part -= self.mean
                part /= self.scale
            beyond = np.abs(part) > np.finfo(np.float32).max
            if beyond.any():
                raise ValueError(
                    f"{names.first(beyond, rows.start)}: no number of float32 after "
                    "standardisation; the training data's scale there is far smaller"
                )
            yield rows, part


IDENTITY = Preprocessing()
"""Features as they are."""


def fit(
    features: np.ndarray,
    *,
    log1p: bool,
    standardize: bool,
    columns: Sequence[str] | None = None,
    ids: Sequence[object] | np.ndarray | None = None,
) -> Preprocessing:
    """Learn from training data the map that gives each column mean 0 and standard deviation 1.

    The deviation is the population's, sqrt(sum_i (g(x_i) - mean)^2 / N). A column with one value
    keeps scale 1, so that it becomes 0.

    Args:
        features: float32 `[N, D]`, finite: the training examples and no others.
        log1p: whether to take logarithms of 1 + x first.
        standardize: whether to learn mean and scale.
        columns: the names of the D features, for errors.
        ids: what names the N examples, for errors; by default their numbers from 1.

    Returns:
        A `Preprocessing`.

    Numerics:
        Two passes in float64, so that a large mean does not cancel a small deviation.

    Raises:
        ValueError: if log1p meets a value of -1 or less; names the example and the column.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.data import preprocessing
        >>> x = np.array([[1.0, 7.0], [3.0, 7.0]], np.float32)
        >>> learned = preprocessing.fit(x, log1p=False, standardize=True)
        >>> print(learned.mean, learned.scale, learned.apply(x).tolist())
        [2. 7.] [1. 1.] [[-1.0, 0.0], [1.0, 0.0]]
    """
    names = _Names(columns, ids)
    if not standardize:
        if log1p:
            for rows in _parts(features):
                _check_log1p(features[rows], names, rows.start)
        return Preprocessing(log1p=log1p)

    size, width = features.shape
    total, squares = np.zeros(width), np.zeros(width)
    least, greatest = np.full(width, np.inf), np.full(width, -np.inf)
    for rows in _parts(features):
        part = _transformed(features[rows], log1p, names, rows.start)
        total += part.sum(0)
        np.minimum(least, part.min(0), out=least)
        np.maximum(greatest, part.max(0), out=greatest)
    constant = least == greatest
    mean = np.where(constant, least, total / size)  # a sum divided again would be off by rounding
    for rows in _parts(features):
        part = _transformed(features[rows], log1p, names, rows.start)
        part -= mean
        squares += np.square(part, out=part).sum(0)
    scale = np.where(constant, 1.0, np.sqrt(squares / size))
    return Preprocessing(log1p=log1p, mean=mean, scale=scale)


class _Names(NamedTuple):
    """What errors call a row and a column."""

    columns: Sequence[str] | None
    ids: Sequence[object] | np.ndarray | None

    def first(self, bad: np.ndarray, start: int) -> str:
        row, column = np.argwhere(bad)[0].tolist()
        example = start + row + 1 if self.ids is None else self.ids[start + row]
        name = f"feature {column + 1}" if self.columns is None else repr(self.columns[column])
        return f"row {example}, column {name}" if self.columns else f"row {example}, {name}"


def _parts(features: np.ndarray, numbers: int = 2**20) -> Iterator[slice]:
    """Rows by parts of about 8 MB in float64: a whole copy would take twice the data's memory."""
    size, width = features.shape
    count = max(1, numbers // max(1, width))
    for start in range(0, size, count):
        yield slice(start, min(start + count, size))


def _transformed(part: np.ndarray, log1p: bool, names: _Names, start: int) -> np.ndarray:
    if not log1p:
        return part.astype(np.float64)
    _check_log1p(part, names, start)
    return np.log1p(part, dtype=np.float64)


def _check_log1p(part: np.ndarray, names: _Names, start: int) -> None:
    bad = part <= -1
    if bad.any():
        value = part[tuple(np.argwhere(bad)[0])]
        raise ValueError(f"{names.first(bad, start)}: log1p needs values above -1, got {value}")
