"""A linear probe: the penalty chosen by folds of the training data, and the optimum at it.

grid    values of C in equal ratios
sweep   held-out losses of every C, from one certified fit for each C and fold
fit     the certified optimum at one C
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax import losses, solvers
from jaxsoftmax.app import defaults
from jaxsoftmax.app.data.dataset import Dataset, Split, Task
from jaxsoftmax.app.data.splits import assign_folds
from jaxsoftmax.app.defaults import LossName
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.solvers import Solution


class Path(NamedTuple):
    """What a sweep found: for each C, of examples that its fits had not seen."""

    C: np.ndarray  # [P], rising
    loss: np.ndarray  # [P], the mean over all held-out examples
    error: np.ndarray  # [P], the standard error of that mean over the folds
    gap: np.ndarray  # [P], the largest certified gap of its fits

    @property
    def best(self) -> float:
        """The C of least held-out loss; of equal ones the strongest penalty; NaN is never least."""
        if not np.isfinite(self.loss).any():
            raise ValueError("loss: expected a finite held-out loss of some C, got none")
        return float(self.C[int(np.nanargmin(self.loss))])

    def to_json(self) -> dict[str, list[float]]:
        """The curve in JSON's types."""
        return {name: values.tolist() for name, values in self._asdict().items()}


def grid(strongest: float, weakest: float, points: int) -> np.ndarray:
    """Return inverse strengths of the penalty in equal ratios.

    Args:
        strongest: the least C.
        weakest: the greatest C.
        points: how many.

    Returns:
        Floats `[points]`, rising.

    Raises:
        ValueError: if they are not 0 < strongest <= weakest.

    Example:
        >>> from jaxsoftmax.app import linear_probe
        >>> print(linear_probe.grid(0.01, 100, 5))
        [1.e-02 1.e-01 1.e+00 1.e+01 1.e+02]
    """
    if not 0 < strongest <= weakest < np.inf:
        raise ValueError(
            f"C: expected 0 < strongest <= weakest, got strongest {strongest}, weakest {weakest}"
        )
    return np.geomspace(strongest, weakest, points)


def sweep(
    dataset: Dataset,
    *,
    loss: LossName,
    C: np.ndarray,
    folds: int,
    gap: float = 1e-3,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> Path:
    """Fit every C on every fold of the training split, and judge each fit on the fold it lacks.

    Args:
        dataset: after preprocessing.
        loss: softmax or sigmoid.
        C: inverse strengths of the penalty, as scikit-learn's, floats `[P]`.
        folds: how many; each class is dealt to them evenly, and its only example is in every fit.
        gap: the certified relative distance from the optimum of every fit.
        callback: as of `solve_path`.

    Returns:
        A `Path`.

    Raises:
        ValueError: if the loss has no certified solver, there are fewer than 2 folds, or no C has
            a finite held-out loss, because of the folds that it names.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import data, linear_probe
        >>> digits = data.load("digits")
        >>> path = linear_probe.sweep(digits, loss="softmax", C=np.array([1e-4, 1.0]), folds=2)
        >>> path.best
        1.0
    """
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}")
    train, strengths = dataset.train, np.sort(np.asarray(C, np.float64))
    fold = _folds(train, dataset.schema.task, folds)
    path = solvers.solve_path(
        train.features,
        _targets(dataset, train, loss),
        C=strengths,
        folds=fold,
        loss=_SOLVED[loss],
        gap=gap,
        callback=callback,
    )
    held = np.stack(
        [_held_out(dataset, loss, path.params, fold, number) for number in range(folds)], 1
    )  # [P, F], sums
    _check_finite(held)
    sizes = np.bincount(fold[fold >= 0], minlength=folds)
    spread = np.std(held / sizes, axis=1, ddof=1) / np.sqrt(folds)
    return Path(strengths, held.sum(1) / sizes.sum(), spread, np.asarray(path.gap).max(1))


def fit(dataset: Dataset, *, loss: LossName, C: float, gap: float = 1e-6) -> Solution:
    """Fit the training split to a certified optimum.

    Args:
        dataset: after preprocessing.
        loss: softmax or sigmoid.
        C: inverse strength of the penalty.
        gap: the certified relative distance from the optimum.

    Returns:
        A `Solution`.

    Raises:
        ValueError: if the loss has no certified solver.

    Example:
        >>> from jaxsoftmax.app import data, linear_probe
        >>> solution = linear_probe.fit(data.load("digits"), loss="softmax", C=1.0)
        >>> solution.converged, solution.params.w.shape
        (True, (64, 10))
    """
    return solvers.solve(
        dataset.train.features,
        _targets(dataset, dataset.train, loss),
        loss=_SOLVED[loss],
        C=C,
        gap=gap,
    )


_SOLVED: dict[LossName, Callable] = {
    LossName.softmax: losses.cross_entropy,
    LossName.sigmoid: losses.binary_cross_entropy,
}


def _targets(dataset: Dataset, split: Split, loss: LossName) -> np.ndarray:
    """As the solver takes them: classes for softmax, zeros and ones for sigmoids."""
    if loss not in _SOLVED or dataset.schema.task is Task.numbers:
        raise ValueError(f"loss: expected softmax or sigmoid, of classes or labels, got {loss}")
    if loss == LossName.softmax:
        return split.targets
    if defaults.num_scores(dataset.schema, loss) == 1 or dataset.schema.task is Task.labels:
        return split.targets.astype(np.float32)
    return np.eye(len(dataset.schema.classes), dtype=np.float32)[split.targets]


def _folds(train: Split, task: Task, count: int) -> np.ndarray:
    """Fold numbers `[N]`; -1, in every fit, for the only example of a class."""
    if task is Task.labels:
        return np.arange(len(train.features)) % count
    fold = assign_folds(train.targets, count)
    return np.where(np.bincount(train.targets)[train.targets] == 1, -1, fold)


def _check_finite(held: np.ndarray) -> None:
    """A C can be chosen where one has a finite loss in every fold."""
    unknown = ~np.isfinite(held)
    if unknown.any(1).all():
        folds = np.flatnonzero(unknown.any(0)).tolist()
        raise ValueError(
            f"folds: no C has a finite loss of the examples held out in folds {folds}: one of them "
            "may have a label that no other fold shows, or features too large to score; use fewer "
            "folds, leave such labels out, or scale the features"
        )


def _held_out(
    dataset: Dataset, loss: LossName, params: LinearParams, fold: np.ndarray, number: int
) -> np.ndarray:
    """The summed loss of one fold's examples, by the fits at each C that lack it: `[P]`."""
    rows = fold == number
    x, t = dataset.train.features[rows], dataset.train.targets[rows]
    values = defaults.make_loss(loss, dataset.schema)
    lanes = zip(np.asarray(params.w)[:, number], np.asarray(params.bias)[:, number], strict=True)
    return np.array([np.sum(values(LinearParams(w, bias), x, t)) for w, bias in lanes])
