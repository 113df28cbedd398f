"""Preprocessing of features for a linear model: logarithms and standardization."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class Preprocessing(NamedTuple):
    """A map of each column of features, x -> (g(x) - mean) / scale, with g log1p or the identity.

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
        """Map features, in float64 and in parts, so that a column of 1e6 + 1e-1 keeps its digits.

        Args:
            features: float32 `[N, D]`; they do not change unless in_place.
            in_place: whether to write the result over the features.
            columns: the names of the D features, for errors.
            ids: the names of the N examples, for errors; by default their numbers from 1.

        Returns:
            float32 `[N, D]`; the features themselves where there is nothing to do.

        Raises:
            ValueError: if log1p is applied to a value of -1 or less, or if a result is beyond
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
        for rows, part in self._map_parts(features, _Names(columns, ids)):
            result[rows] = part
        return result

    def check(
        self,
        features: np.ndarray,
        *,
        columns: Sequence[str] | None = None,
        ids: Sequence[object] | np.ndarray | None = None,
    ) -> None:
        """Raise the errors of `apply`, for instance for some of the examples at a time.

        Args:
            features: as in `apply`.
            columns: as in `apply`.
            ids: as in `apply`.

        Raises:
            ValueError: as in `apply`.

        Example:
            >>> import numpy as np
            >>> from jaxsoftmax.app.data import preprocessing
            >>> preprocessing.Preprocessing(log1p=True).check(np.array([[0.0], [-1.0]]))
            Traceback (most recent call last):
            ValueError: row 2, feature 1: log1p needs values above -1, got -1.0
        """
        if self.log1p or self.mean is not None:
            for _ in self._map_parts(features, _Names(columns, ids)):
                pass

    def _map_parts(
        self, features: np.ndarray, names: "_Names"
    ) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, part in _transform_parts(features, self.log1p, names):
            if self.mean is not None:
                part -= self.mean
                part /= self.scale
            is_beyond = np.abs(part) > np.finfo(np.float32).max
            if is_beyond.any():
                raise ValueError(
                    f"{names.describe_first(is_beyond, rows.start)}: beyond float32 after "
                    "standardization; the scale of the training data is far smaller there"
                )
            yield rows, part


IDENTITY = Preprocessing()
"""Preprocessing that leaves features as they are."""


def learn(
    features: np.ndarray,
    *,
    log1p: bool,
    standardize: bool,
    columns: Sequence[str] | None = None,
    ids: Sequence[object] | np.ndarray | None = None,
) -> Preprocessing:
    """Learn from training data the map that gives each column mean 0 and standard deviation 1.

    The standard deviation is that of the population, sqrt(sum_i (g(x_i) - mean)^2 / N). A column
    with one value keeps scale 1, so that it becomes 0.

    Args:
        features: finite float32 `[N, D]`, the training examples and no others.
        log1p: whether to take logarithms of 1 + x first.
        standardize: whether to learn mean and scale.
        columns: the names of the D features, for errors.
        ids: the names of the N examples, for errors; by default their numbers from 1.

    Returns:
        A `Preprocessing`.

    Numerics:
        Two passes in float64, so that a large mean does not cancel a small deviation.

    Raises:
        ValueError: if log1p is applied to a value of -1 or less; names the example and the column.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.data import preprocessing
        >>> x = np.array([[1.0, 7.0], [3.0, 7.0]], np.float32)
        >>> learned = preprocessing.learn(x, log1p=False, standardize=True)
        >>> print(learned.mean, learned.scale, learned.apply(x).tolist())
        [2. 7.] [1. 1.] [[-1.0, 0.0], [1.0, 0.0]]
    """
    names = _Names(columns, ids)
    if standardize:
        mean, is_constant = _column_means(features, log1p, names)
        scale = np.where(is_constant, 1.0, _column_deviations(features, mean, log1p, names))
        return Preprocessing(log1p=log1p, mean=mean, scale=scale)
    if log1p:
        for rows in _row_slices(features):
            _check_log1p(features[rows], names, rows.start)
    return Preprocessing(log1p=log1p)


def _column_means(
    features: np.ndarray, log1p: bool, names: "_Names"
) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each column, and whether it has only one value."""
    num_rows, width = features.shape
    total = np.zeros(width)
    smallest, largest = np.full(width, np.inf), np.full(width, -np.inf)
    for _, part in _transform_parts(features, log1p, names):
        total += part.sum(0)
        np.minimum(smallest, part.min(0), out=smallest)
        np.maximum(largest, part.max(0), out=largest)
    is_constant = smallest == largest
    # The mean of equal values, computed from their sum, would be off by rounding.
    return np.where(is_constant, smallest, total / num_rows), is_constant


def _column_deviations(
    features: np.ndarray, mean: np.ndarray, log1p: bool, names: "_Names"
) -> np.ndarray:
    """Return the standard deviation of each column, of the population."""
    squares = np.zeros(len(mean))
    for _, part in _transform_parts(features, log1p, names):
        part -= mean
        squares += np.square(part, out=part).sum(0)
    return np.sqrt(squares / len(features))


class _Names(NamedTuple):
    """The names of columns and rows in errors."""

    columns: Sequence[str] | None
    ids: Sequence[object] | np.ndarray | None

    def describe_first(self, is_bad: np.ndarray, start: int) -> str:
        """Describe the first bad entry of a part whose first row is `start`."""
        row, column = np.argwhere(is_bad)[0].tolist()
        example = start + row + 1 if self.ids is None else self.ids[start + row]
        if self.columns:
            return f"row {example}, column {self.columns[column]!r}"
        return f"row {example}, feature {column + 1}"


def _row_slices(features: np.ndarray, max_part_size: int = 2**20) -> Iterator[slice]:
    """Yield parts of the rows, about 8 MB in float64 each.

    A copy of all rows would take twice the memory of the data.
    """
    num_rows, width = features.shape
    rows_per_part = max(1, max_part_size // max(1, width))
    for start in range(0, num_rows, rows_per_part):
        yield slice(start, min(start + rows_per_part, num_rows))


def _transform_parts(
    features: np.ndarray, log1p: bool, names: _Names
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield parts of the rows and their features in float64, after log1p if it is asked for."""
    for rows in _row_slices(features):
        part = features[rows]
        if log1p:
            _check_log1p(part, names, rows.start)
            yield rows, np.log1p(part, dtype=np.float64)
        else:
            yield rows, part.astype(np.float64)


def _check_log1p(part: np.ndarray, names: _Names, start: int) -> None:
    is_bad = part <= -1
    if is_bad.any():
        value = part[tuple(np.argwhere(is_bad)[0])]
        raise ValueError(
            f"{names.describe_first(is_bad, start)}: log1p needs values above -1, got {value}"
        )
