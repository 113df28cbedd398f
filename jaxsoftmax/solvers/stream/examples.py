"""A source's examples as the solvers take them: checked blocks, joined to windows of one size."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jaxsoftmax import losses
from jaxsoftmax.solvers import arguments, prepare
from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.stream.processes import Processes
from jaxsoftmax.sources import Source

MAX_DRIFT = 1e-5  # of the sum of a block's features, relative to the sum of their sizes


class Examples(NamedTuple):
    """A source, and how its targets and weights are meant."""

    source: Source
    loss: Callable
    class_weights: np.ndarray | None
    classes: int  # of labels, an upper bound before all of them have been seen
    processes: Processes
    sums: dict[int, float]  # of the features of each block that was read, as they were at first

    @property
    def rows(self) -> int:
        """The number of examples of all processes."""
        return sum(self.source.block_sizes)

    def read(self, block: int) -> Data:
        """Return a block after all checks; an error names the block."""
        x, t, s = self.source.read(block)
        if hasattr(x, "toarray"):
            raise TypeError(f"block {block}: features: expected a dense array, got {type(x)}")
        ignored = s is not None and not np.any(s)
        if ignored:  # its features and targets may hold anything
            x, t, s = np.zeros_like(x), self._any_targets(t), None
        try:
            data = prepare.prepare_data(
                x, t, loss=self.loss, weights=s, class_weights=None, memory=0, classes=self.classes
            )
        except (TypeError, ValueError) as error:
            raise type(error)(f"block {block}: {error}") from None
        self._require_same(block, data.features)
        if ignored:
            return data._replace(weights=np.zeros(len(data.weights)))
        if self.class_weights is None:
            return data
        t, s = arguments.apply_class_weights(
            data.targets, data.weights, self.class_weights, data.link
        )
        return data._replace(targets=t, weights=s)

    def _require_same(self, block: int, x: np.ndarray) -> None:
        """Raise ValueError for features that are not, but for rounding, what they were at first."""
        found = float(x.sum(dtype=np.float64))
        first = self.sums.setdefault(block, found)
        if found == first:  # mostly, and without an array of sizes
            return
        if abs(found - first) > MAX_DRIFT * float(np.abs(x).sum(dtype=np.float64)):
            raise ValueError(
                f"block {block}: features: expected the same values in every pass, got a sum of "
                f"{found:g} after {first:g}; a source must not draw or change what it reads"
            )

    def _any_targets(self, t: np.ndarray) -> np.ndarray:
        if self.loss is losses.soft_cross_entropy:
            return np.broadcast_to(np.eye(1, t.shape[-1], dtype=t.dtype), t.shape)
        return np.zeros_like(t)

    def blocks(self) -> Iterator[Data]:
        """Yield the blocks of this process in their order, cut to its rows.

        A thread reads a block while the one before it is in use.
        """
        return _read_ahead(self._read_own_blocks())

    def _read_own_blocks(self) -> Iterator[Data]:
        for block, size, rows in self._own_blocks():
            data = self.read(block)
            if len(data.weights) != size:
                found = len(data.weights)
                raise ValueError(f"block {block}: expected {size} rows, its size, got {found}")
            yield data if rows == slice(0, size) else take(data, rows)

    def _own_blocks(self) -> list[tuple[int, int, slice]]:
        """Return the blocks that this process reads, with their sizes, and its rows of each."""
        span, start, own = self.processes.span(self.rows), 0, []
        for block, size in enumerate(self.source.block_sizes):
            rows = slice(max(span.start - start, 0), min(span.stop - start, size))
            if rows.start < rows.stop:
                own.append((block, size, rows))
            start += size
        return own

    def windows(self, rows: int) -> Iterator[Data]:
        """Yield the examples of this process, `rows` at a time but for the last of them.

        A thread reads a window while the one before it is in use.
        """
        return _read_ahead(self._join_to_windows(rows))

    def _join_to_windows(self, rows: int) -> Iterator[Data]:
        pending: list[Data] = []
        missing = rows
        for block in self._read_own_blocks():
            start = 0
            while start < len(block.weights):
                part = take(block, slice(start, start + missing))
                pending.append(part)
                start, missing = start + len(part.weights), missing - len(part.weights)
                if not missing:
                    window, pending, missing = join(pending), [], rows
                    yield window
                    del window
        if pending:
            yield join(pending)


def _read_ahead(items: Iterator[Data]) -> Iterator[Data]:
    """Yield the items, each of which a thread makes while the one before it is in use."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, items, None)
        while (found := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield found
            del found


def take(data: Data, rows: slice | np.ndarray) -> Data:
    """Return some of the examples."""
    return data._replace(
        features=data.features[rows], targets=data.targets[rows], weights=data.weights[rows]
    )


def join(parts: list[Data]) -> Data:
    """Return the examples of all parts."""
    if len(parts) == 1:
        return parts[0]
    return parts[0]._replace(
        features=np.concatenate([part.features for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        weights=np.concatenate([part.weights for part in parts]),
    )
