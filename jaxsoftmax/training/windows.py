"""The order in which a source's examples are seen: windows of rows that are held in memory.

An epoch visits the blocks of a source in a random order. The rows in that order are divided among
the parts of a minibatch, each with a span of consecutive rows, and a span into windows of whole
minibatches, whose rows are shuffled. All of it is a function of a key, the number of the window and
the sizes of the blocks, so that training continues in the middle of an epoch without any saved
state of a reader, and so that each process reads the blocks of its own spans alone: no block is
read twice in an epoch, but those where one span ends and the next begins.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from jaxsoftmax.sources import Block, Source


class Plan(NamedTuple):
    """The division of an epoch into windows, steps and parts."""

    rows: int  # in an epoch
    batch_size: int  # of all parts
    steps: int  # of a window, but for the last
    parts: int  # equal parts of each minibatch, each of which is shuffled by itself

    @property
    def total_steps(self) -> int:
        """The number of minibatches of an epoch, the last of which may be padded."""
        return -(-self.rows // self.batch_size)

    @property
    def windows(self) -> int:
        """The number of windows of an epoch."""
        return -(-self.total_steps // self.steps)

    def window_steps(self, window: int) -> int:
        """Return the number of minibatches of a window."""
        return min(self.steps, self.total_steps - window * self.steps)

    def part_range(self, window: int, part: int) -> tuple[int, int]:
        """Return the first row of a part of a window, and the one after its last."""
        first, end = (self.rows * p // self.parts for p in (part, part + 1))
        size = self.steps * self.batch_size // self.parts
        start = min(first + window * size, end)
        return start, min(start + size, end)


class Window(NamedTuple):
    """Minibatches on the host, `[rows of a minibatch, steps, ...]`, with weights 0 for padding."""

    features: np.ndarray
    targets: np.ndarray
    weights: np.ndarray


def read_windows(
    source: Source, plan: Plan, *, seed: Sequence[int], first: int, parts: range
) -> Iterator[Window]:
    """Yield the windows of an epoch from the first one on, with the rows of these parts.

    While a window is in use, another thread reads the next one. At most two windows, a block for
    each part and another block are in memory.
    """
    read = _Reader(source, plan, seed, parts).read
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(read, first)
        for window in range(first, plan.windows):
            found = following.result()
            if window + 1 < plan.windows:
                following = thread.submit(read, window + 1)
            yield found
            del found


class _Reader:
    """Reads windows of shuffled rows, and keeps the block that each part is in."""

    def __init__(self, source: Source, plan: Plan, seed: Sequence[int], parts: range) -> None:
        self._source, self._plan, self._seed, self._parts = source, plan, seed, parts
        self._order = _generator(seed).permutation(len(source.block_sizes))
        self._ends = np.cumsum(np.asarray(source.block_sizes)[self._order])
        self._kept: dict[int, tuple[int, Block]] = {}  # by part

    def read(self, window: int) -> Window:
        parts = [self._read_part(window, part) for part in self._parts]
        return Window(*map(np.concatenate, zip(*parts, strict=True)))

    def _read_part(self, window: int, part: int) -> Window:
        plan = self._plan
        steps, size = plan.window_steps(window), plan.batch_size // plan.parts
        start, stop = plan.part_range(window, part)
        # A part that has no rows left has one that was seen before as padding.
        first = start if start < stop else max(stop - 1, 0)
        rows = self._read_range(first, max(stop, first + 1), part)
        order = _generator([*self._seed, window, part]).permutation(len(rows.features))
        # Padding repeats rows. The steps are the slow axis, so that it is in the last ones.
        positions = np.resize(order, (steps, size)).T
        index = np.arange(steps * size).reshape(steps, size).T
        weights = np.float32(1) if rows.weights is None else rows.weights[positions]
        weights = np.where(index < stop - start, weights, 0).astype(np.float32)
        taken = rows.take(_replace_ignored(positions, weights))
        return Window(taken.features, taken.targets, weights)

    def _read_range(self, start: int, stop: int, part: int) -> Block:
        """Return the rows at positions from start to stop in the order of the blocks."""
        pieces, position = [], start
        while position < stop:
            place = int(np.searchsorted(self._ends, position, side="right"))
            block = int(self._order[place])
            offset = int(self._ends[place]) - self._source.block_sizes[block]
            end = min(stop, int(self._ends[place]))
            rows = self._read_block(block, part)
            pieces.append(rows.take(slice(position - offset, end - offset)))
            position = end
        features, targets, weights = zip(*pieces, strict=True)
        has_weights = weights[0] is not None
        return Block(
            np.concatenate(features),
            np.concatenate(targets),
            np.concatenate(weights) if has_weights else None,
        )

    def _read_block(self, block: int, part: int) -> Block:
        self._kept = {p: kept for p, kept in self._kept.items() if p != part or kept[0] == block}
        if part not in self._kept:  # the one before it has been freed
            known = [rows for number, rows in self._kept.values() if number == block]
            self._kept[part] = block, known[0] if known else self._source.read(block)
        return self._kept[part][1]


def _replace_ignored(positions: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the positions with the first valid one in place of each that has the weight 0.

    A row of weight 0 may hold anything, NaN included.
    """
    valid = weights != 0
    return np.where(valid, positions, positions[valid][0]) if valid.any() else positions


def _generator(seed: Sequence[int]) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(list(seed))))
