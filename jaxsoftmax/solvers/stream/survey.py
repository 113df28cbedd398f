"""The first pass over a source: what must be known of all examples, and a sample of them."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxsoftmax import losses
from jaxsoftmax.solvers import arguments, prepare, row_shards
from jaxsoftmax.solvers.arguments import Data
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.stream.examples import Examples, join, take
from jaxsoftmax.solvers.stream.processes import Processes
from jaxsoftmax.sources import Source
from jaxsoftmax.validation import ArrayLike

UNKNOWN_CLASSES = 2**31 - 1  # labels are below it, whatever they are
ALONE = Processes()
MAX_INFERRED_CLASSES = (
    2**16
)  # of labels alone: more would be a mistake, and a count of each is kept


class Stream(NamedTuple):
    """A source and what is known of all its examples."""

    examples: Examples
    rows: int  # of a window
    total: float  # the sum of all weights
    limits: np.ndarray  # of the intercepts, as of `arguments.initial_intercepts`: [K]
    share: np.ndarray  # the weight of each class or label among all: [K]
    column_max_abs: np.ndarray  # [D]
    sample: Data  # random examples of all processes, which stay in the memory of each
    drawn: int  # how many of them are of this process

    @property
    def totals(self) -> np.ndarray:
        """The sum of all weights of the one lane: `[1]`."""
        return np.array([self.total])

    @property
    def processes(self) -> Processes:
        """The processes that share the source."""
        return self.examples.processes

    def problems(self) -> Iterator[tuple[Data, Problem]]:
        """Yield each window, and its problem without penalty, with its weights among all."""
        for window in self.examples.windows(self.rows):
            yield window, self.to_problem(window, self.rows)

    def gather(self, sample: Data) -> Data:
        """Return the samples of all processes as one, the only features that they exchange."""
        return _gather_sample(self.processes, sample)

    def to_problem(self, window: Data, rows: int) -> Problem:
        """Return a window as a problem of one lane, padded to this number of rows.

        Several devices share it; there may then be more padding.
        """
        sharding = self.processes.row_sharding
        rows += 0 if sharding is None else -rows % sharding.mesh.size
        padding = rows - len(window.weights)
        targets = prepare.pad_targets(window.targets[None], padding, window.link)
        zeros, x = jnp.zeros(1), window.features
        x = np.pad(x, ((0, padding), (0, 0))) if padding else x
        features = jnp.asarray(x) if sharding is None else row_shards.put_rows(x, sharding)
        weights = np.pad(window.weights / self.total, (0, padding))[None]
        return Problem(
            features=features,
            targets=row_shards.to_device(features, targets),
            weights=row_shards.to_device(features, weights),
            l2=zeros,
            l1=zeros,
            column_max_abs=jnp.asarray(self.column_max_abs),
        )


def open_stream(
    source: Source,
    *,
    loss: Callable,
    class_weights: ArrayLike | None,
    classes: int | None,
    memory: int,
    processes: Processes = ALONE,
) -> Stream:
    """Read all examples once, check them, and return the stream of them."""
    c = None if class_weights is None else arguments.prepare_class_weights(class_weights)
    known = classes if c is None else len(c)
    examples = Examples(source, loss, c, known or UNKNOWN_CLASSES, processes, {})
    if examples.rows < processes.size:
        raise ValueError(
            f"features: expected a row for each of {processes.size} processes, got a source of "
            f"{examples.rows}"
        )
    survey = _Survey(examples.rows, len(processes.span(examples.rows)))
    for data in examples.blocks():
        survey.add(data, memory, source.window)
    classes = max(processes.gather(survey.classes).tolist())
    classes = classes if known is None or loss is not losses.cross_entropy else known
    share, in_all, total, largest = _merge(processes, survey, classes)
    if not share.sum() > 0 and not total > 0:
        raise ValueError("weights: expected some above 0")
    own = join(survey.parts)
    sample = _gather_sample(processes, own)
    if processes.row_sharding is None:  # the host needs no copy of it
        sample = sample._replace(features=jnp.asarray(sample.features))
    return Stream(
        examples._replace(classes=classes),
        survey.rows,
        total,
        arguments.intercept_limits(survey.parts[0].link, share, in_all),
        share / total,
        largest,
        sample._replace(classes=classes),
        len(own.weights),
    )


def _merge(
    processes: Processes, survey: "_Survey", classes: int
) -> tuple[np.ndarray, np.ndarray, float, np.ndarray]:
    """Return the sums of all processes: share, in_all, total and largest."""
    share, in_all = (np.pad(a, (0, classes - len(a))) for a in (survey.share, survey.in_all))
    own = share, in_all, np.float64(survey.total), survey.largest
    share, in_all, total, largest = map(np.asarray, processes.gather(own))
    return share.sum(0), in_all.all(0), float(total.sum()), largest.max(0)


def _gather_sample(processes: Processes, sample: Data) -> Data:
    """Return the samples of all processes as one."""
    if processes.size == 1:
        return sample
    sizes = processes.gather(len(sample.weights)).tolist()
    arrays = sample.features, sample.targets, sample.weights
    padding = max(sizes) - len(sample.weights)
    padded = [np.pad(a, ((0, padding),) + ((0, 0),) * (a.ndim - 1)) for a in arrays]
    gathered = map(np.asarray, processes.gather(padded))
    parts = [[a[:size] for a, size in zip(each, sizes, strict=True)] for each in gathered]
    x, t, s = map(np.concatenate, parts)
    return sample._replace(features=x, targets=t, weights=s)


class _Survey:
    """Sums over the blocks that have been seen, of `own` examples among `count`."""

    def __init__(self, count: int, own: int) -> None:
        self.count, self.own = count, own
        self.total, self.rows, self.classes = 0.0, 0, 1
        self.share, self.in_all = np.zeros(0), np.ones(0, bool)
        self.largest = np.zeros(0)
        self.parts: list[Data] = []
        self.rng = np.random.default_rng(0)

    def add(self, data: Data, memory: int, window: int) -> None:
        """Count a block, and keep some of its examples."""
        width, known = data.features.shape[1], len(self.largest)
        if known and width != known:
            raise ValueError(f"features: expected {known} columns in every block, got {width}")
        if data.targets.ndim == 1:
            data = data._replace(classes=self._count_classes(data.targets))
        self.classes = max(self.classes, data.classes)
        share, in_all = arguments.count_targets(data, data.targets, data.weights)
        padding = (0, self.classes - len(share))
        grown = np.pad(self.share, (0, self.classes - len(self.share)))
        every = np.pad(self.in_all, (0, self.classes - len(self.in_all)), constant_values=True)
        self.share = grown + np.pad(share, padding)
        self.in_all = every & np.pad(in_all, padding)
        self.total += float(data.weights.sum())
        largest = np.maximum(data.features.max(0), -data.features.min(0)).astype(np.float64)
        self.largest = np.maximum(self.largest, largest) if len(self.largest) else largest
        self.rows = rows_of_window(self.own, window, data, self.classes, memory)
        self._keep_some(data)

    def _count_classes(self, labels: np.ndarray) -> int:
        largest = int(labels.max())
        if largest >= max(MAX_INFERRED_CLASSES, 2 * self.count):
            raise ValueError(
                f"targets: label {largest} implies {largest + 1} classes for {self.count} "
                "examples; renumber the labels as 0 ... K - 1, or pass class_weights=numpy.ones(K)"
            )
        return largest + 1

    def _keep_some(self, data: Data) -> None:
        """Keep a random part of a block: as many in all, of all processes, as a window has."""
        n = len(data.weights)
        size = min(n, -(-n * self.rows // self.count))
        kept = np.sort(self.rng.permutation(n)[:size])
        self.parts.append(take(data, kept))


def rows_of_window(count: int, window: int, data: Data, classes: int, memory: int) -> int:
    """Return the number of examples of which a product, with its temporaries, fits into memory.

    These are two windows of features, one of them in float64, and some arrays of scores.
    """
    bytes_per_row = 16 * data.features.shape[1] + 64 * classes
    rows = min(count, window, max(1, memory // bytes_per_row))
    return -(-count // -(-count // rows))  # windows of equal size
