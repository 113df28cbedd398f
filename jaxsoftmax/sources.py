"""Sources: examples that are read in blocks, for data larger than memory."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np


class Block(NamedTuple):
    """Examples on the host, as in `fit`; None stands for weights of 1."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray | None

    def take(self, rows: Any) -> "Block":
        """Return the examples at these positions."""
        features, targets, weights = self
        return Block(features[rows], targets[rows], None if weights is None else weights[rows])


@runtime_checkable
class Source(Protocol):
    """Examples in blocks, each of which is read as a whole.

    Reading may take place in another thread, one block at a time.
    """

    @property
    def block_sizes(self) -> Sequence[int]:
        """The number of examples in each block."""

    @property
    def window(self) -> int:
        """The number of examples that are held in memory and shuffled together."""

    def read(self, block: int) -> Block:
        """Return the examples of a block."""


class ParquetSource:
    """The examples of Parquet files, in blocks of one row group each.

    A row group is the least that can be read of a file. Files with groups of about a thousand to a
    hundred thousand rows are shuffled well and read fast.

    Args:
        paths: one file, a folder, whose files `*.parquet` are taken in the order of their names, or
            a sequence of files.
        features: the name of a column of fixed-size lists, `[D]`, or the names of D columns of
            numbers, which become float32.
        targets: the name of one column for `[N]`, or of K columns or of a column of fixed-size
            lists for `[N, K]`.
        weights: the name of a column, or None for weights of 1.
        window: the number of rows that are held in memory and shuffled together, in whole
            minibatches. Memory is that of two windows and two row groups; with `virtual_shards`, of
            a row group for each of a process's.

    Raises:
        ModuleNotFoundError: if PyArrow is not installed.
        ValueError: if there are no files, no rows, no such column, or a column has missing values.

    Example:
        >>> import tempfile, pyarrow, pyarrow.parquet
        >>> from jaxsoftmax import training
        >>> table = pyarrow.table({"width": [1.0, 2.0], "height": [0.0, 3.0], "kind": [0, 1]})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     pyarrow.parquet.write_table(table, f"{folder}/0.parquet")
        ...     source = training.ParquetSource(
        ...         folder, features=["width", "height"], targets="kind")
        ...     print(source.block_sizes, source.read(0).features.tolist())
        [2] [[1.0, 0.0], [2.0, 3.0]]
    """

    def __init__(
        self,
        paths: str | Path | Sequence[str | Path],
        *,
        features: str | Sequence[str],
        targets: str | Sequence[str],
        weights: str | None = None,
        window: int = 65_536,
    ) -> None:
        self.window = _check_window(window)
        parquet = _import_parquet()
        self._features, self._targets, self._weights = features, targets, weights
        files = _list_files(paths)
        if missing := [str(path) for path in files if not path.is_file()]:
            raise ValueError(f"paths must be files or a folder, got {missing}")
        metadata = [(path, parquet.read_metadata(path)) for path in files]
        self._groups = [
            (path, group, meta.row_group(group).num_rows)
            for path, meta in metadata
            for group in range(meta.num_row_groups)
            if meta.row_group(group).num_rows
        ]
        if not self._groups:
            raise ValueError(f"paths must hold Parquet files with rows, got {paths}")
        for path in files:
            self._check_columns(path, parquet.read_schema(path).names)

    @property
    def block_sizes(self) -> Sequence[int]:
        """The number of rows in each row group of all files."""
        return [size for _, _, size in self._groups]

    def read(self, block: int) -> Block:
        """Return the examples of a row group."""
        path, group, _ = self._groups[block]
        with _import_parquet().ParquetFile(path) as file:
            table = file.read_row_group(group, columns=self._columns())
        where = f"row group {group} of {path}"
        weights = None if self._weights is None else _to_numpy(table, self._weights, where)
        features = _to_numpy(table, self._features, where).astype(np.float32, copy=False)
        targets = _to_numpy(table, self._targets, where)
        _release_arrow_memory()
        return Block(features, targets, weights)

    def _columns(self) -> list[str]:
        given = (self._features, self._targets, self._weights)
        return [
            n for names in given if names for n in ([names] if isinstance(names, str) else names)
        ]

    def _check_columns(self, path: Path, names: Sequence[str]) -> None:
        missing = [name for name in self._columns() if name not in names]
        if missing:
            raise ValueError(f"{path} has no column {missing}; it has {list(names)}")


class RecordSource:
    """The examples of a sequence of records, such as array_record files, in blocks of one size.

    Args:
        records: `records[i]` is a record. With a method `__getitems__`, as of `tfds.data_source`
            and Grain's data sources, a block is read by one call.
        parse: from a record to `(features, target)`, or `(features, target, weight)`.
        block_size: the number of records in a block.
        window: as in `ParquetSource`.

    Raises:
        ValueError: if there are no records, or a size is below 1.

    Example:
        >>> from jaxsoftmax import training
        >>> records = [{"x": [1.0, 2.0], "y": 0}, {"x": [3.0, 4.0], "y": 1}]
        >>> source = training.RecordSource(records, lambda record: (record["x"], record["y"]))
        >>> print(source.read(0).targets)
        [0 1]
    """

    def __init__(
        self,
        records: Any,
        parse: Callable[[Any], tuple],
        *,
        block_size: int = 1024,
        window: int = 65_536,
    ) -> None:
        self.window = _check_window(window)
        if block_size < 1:
            raise ValueError(f"block_size must be at least 1, got {block_size}")
        if not len(records):
            raise ValueError("records must not be empty")
        self._records, self._parse, self._block_size = records, parse, block_size

    @property
    def block_sizes(self) -> Sequence[int]:
        """The number of records in each block: one size, but for the last."""
        starts = range(0, len(self._records), self._block_size)
        return [min(self._block_size, len(self._records) - start) for start in starts]

    def read(self, block: int) -> Block:
        """Return the examples of a block."""
        start = block * self._block_size
        indices = range(start, min(start + self._block_size, len(self._records)))
        if hasattr(self._records, "__getitems__"):
            records = self._records.__getitems__(list(indices))
        else:
            records = [self._records[i] for i in indices]
        features, targets, *weights = zip(*map(self._parse, records), strict=True)
        x = np.asarray(features)
        x = x.astype(np.float32) if x.dtype == np.float64 else x
        return Block(x, np.asarray(targets), np.asarray(weights[0]) if weights else None)


def _check_window(window: int) -> int:
    if window < 1:
        raise ValueError(f"window must be at least 1, got {window}")
    return window


def _import_parquet() -> Any:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Parquet files need PyArrow: pip install 'jaxsoftmax[scale]'", name="pyarrow"
        ) from error
    return pyarrow.parquet


def _release_arrow_memory() -> None:
    """Give back what earlier row groups took, which Arrow keeps for a while."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


def _list_files(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    if not isinstance(paths, str | Path):
        return [Path(path) for path in paths]
    return sorted(Path(paths).glob("*.parquet")) if Path(paths).is_dir() else [Path(paths)]


def _to_numpy(table: Any, names: str | Sequence[str], where: str) -> np.ndarray:
    """Return one column, `[N]` or `[N, D]` for lists, or several columns, `[N, D]`."""
    if not isinstance(names, str):
        return np.stack([_to_numpy(table, name, where) for name in names], axis=1)
    column = table[names].combine_chunks()
    size = getattr(column.type, "list_size", None)
    values = column if size is None else column.flatten()
    if column.null_count or values.null_count:
        raise ValueError(f"{names} must have no missing values, got some in {where}")
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{names} must be numbers or fixed-size lists of them, got {column.type}")
    return array if size is None else array.reshape(len(column), size)
