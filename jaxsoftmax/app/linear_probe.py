"""A linear probe: choose the penalty by cross-validation, then fit the optimum at it.

grid             values of C in equal ratios
cross_validate   the held-out loss of every C, from one certified fit for each C and fold
refit            the certified optimum at one C, on all training examples
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from jaxsoftmax import losses, solvers
from jaxsoftmax.app import defaults
from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.data.splits import assign_folds
from jaxsoftmax.app.names import TASK_LOSSES, LossName
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.solvers import Solution


class ProbePath(NamedTuple):
    """The result of a cross-validation: for each C, the loss of the held-out examples."""

    C: np.ndarray  # [P], increasing
    loss: np.ndarray  # [P], the mean over all held-out examples
    error: np.ndarray  # [P], the standard error of that mean over the folds
    gap: np.ndarray  # [P], the largest certified gap of its fits

    @property
    def best(self) -> float:
        """The C with the least held-out loss, and of equal ones the strongest penalty.

        NaN is never the least loss.
        """
        if not np.isfinite(self.loss).any():
            raise ValueError("loss: expected a finite held-out loss of some C, got none")
        return float(self.C[int(np.nanargmin(self.loss))])

    def to_json(self) -> dict[str, list[float]]:
        """Return the curve in JSON types."""
        return {name: values.tolist() for name, values in self._asdict().items()}


def grid(strongest: float, weakest: float, points: int) -> np.ndarray:
    """Return inverse strengths of the penalty in equal ratios.

    Args:
        strongest: the smallest C, which is the strongest penalty.
        weakest: the largest C.
        points: the number of values.

    Returns:
        Floats `[points]`, increasing.

    Raises:
        ValueError: unless 0 < strongest <= weakest and weakest is finite.

    Example:
        >>> from jaxsoftmax.app import linear_probe
        >>> print(linear_probe.grid(0.01, 100, 5))
        [1.e-02 1.e-01 1.e+00 1.e+01 1.e+02]
    """
    if not 0 < strongest <= weakest < np.inf:
        raise ValueError(
            "--strongest must be above 0 and at most --weakest, which must be finite, "
            f"got {strongest} and {weakest}"
        )
    return np.geomspace(strongest, weakest, points)


def choose_loss(schema: Schema, loss: LossName | None = None) -> LossName:
    """Return the loss of a probe, or refuse data that have none.

    Args:
        schema: the schema of the data.
        loss: the loss that is asked for, or None for the default of the task.

    Raises:
        ValueError: if the targets are numbers, or if the loss has no certified solver.

    Example:
        >>> from jaxsoftmax.app import data, linear_probe
        >>> linear_probe.choose_loss(data.load("digits").schema).value
        'softmax'
    """
    if schema.task is Task.numbers:
        names = ", ".join(map(repr, schema.classes))
        raise ValueError(
            f"probe is for classes and labels, and {names} holds numbers: use fit, or --task "
            "classes if they are classes"
        )
    loss = LossName(loss or defaults.default_loss(schema))
    if loss not in _SOLVED_LOSSES or loss not in TASK_LOSSES[schema.task]:
        expected = "sigmoid" if schema.task is Task.labels else "softmax or sigmoid"
        raise ValueError(f"--loss must be {expected} for a probe of {schema.task}, got {loss}")
    return loss


def check(dataset: Dataset, *, folds: int, gap: float) -> None:
    """Check the settings of a probe before its fits begin.

    Args:
        dataset: the data.
        folds: the number of folds.
        gap: the certified relative distance of the model from its optimum.

    Raises:
        ValueError: if a fold would have no example, or if the gap is not above 0 and finite.

    Example:
        >>> from jaxsoftmax.app import data, linear_probe
        >>> linear_probe.check(data.load("digits"), folds=1000, gap=1e-6)
        Traceback (most recent call last):
        ValueError: --folds must be at most 111, for every fold to have an example, got 1000
    """
    if not 0 < gap < np.inf:
        raise ValueError(f"--gap must be above 0 and finite, got {gap}")
    fold = _assign_folds(dataset.train, dataset.schema.task, folds)
    num_filled = len(np.unique(fold[fold >= 0]))
    if num_filled < folds:
        raise ValueError(
            f"--folds must be at most {num_filled}, for every fold to have an example, got {folds}"
        )


def cross_validate(
    dataset: Dataset,
    *,
    loss: LossName,
    C: np.ndarray,
    folds: int,
    gap: float = 1e-3,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> ProbePath:
    """Fit every C without each fold of the training split, and score the fit on that fold.

    Args:
        dataset: the data, after preprocessing.
        loss: softmax or sigmoid.
        C: inverse strengths of the penalty as in scikit-learn, floats `[P]`.
        folds: the number of folds. The examples of each class are spread evenly over the folds; the
            only example of a class is part of every fit.
        gap: the certified relative distance of every fit from its optimum.
        callback: as in `solve_path`.

    Returns:
        A `ProbePath`.

    Raises:
        ValueError: if the loss has no certified solver, if there are fewer than 2 folds, or if no C
            has a finite held-out loss. The message then names the folds that have none.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app import data, linear_probe
        >>> digits = data.load("digits")
        >>> C = np.array([1e-4, 1.0])
        >>> path = linear_probe.cross_validate(digits, loss="softmax", C=C, folds=2)
        >>> path.best
        1.0
    """
    if folds < 2:
        raise ValueError(f"folds: expected at least 2, got {folds}")
    train, C = dataset.train, np.sort(np.asarray(C, np.float64))
    fold = _assign_folds(train, dataset.schema.task, folds)
    path = solvers.solve_path(
        train.features,
        _solver_targets(dataset, loss),
        C=C,
        folds=fold,
        loss=_SOLVED_LOSSES[loss],
        gap=gap,
        callback=callback,
    )
    held_out_sums = np.stack(
        [_held_out_sums(dataset, loss, path.params, fold, number) for number in range(folds)], 1
    )  # [P, F]
    _check_finite(held_out_sums)
    sizes = np.bincount(fold[fold >= 0], minlength=folds)
    mean = held_out_sums.sum(1) / sizes.sum()
    standard_error = np.std(held_out_sums / sizes, axis=1, ddof=1) / np.sqrt(folds)
    return ProbePath(C, mean, standard_error, np.asarray(path.gap).max(1))


def refit(dataset: Dataset, *, loss: LossName, C: float, gap: float = 1e-6) -> Solution:
    """Fit all of the training split to a certified optimum.

    Args:
        dataset: the data, after preprocessing.
        loss: softmax or sigmoid.
        C: the inverse strength of the penalty.
        gap: the certified relative distance from the optimum.

    Returns:
        A `Solution`.

    Raises:
        ValueError: if the loss has no certified solver.

    Example:
        >>> from jaxsoftmax.app import data, linear_probe
        >>> solution = linear_probe.refit(data.load("digits"), loss="softmax", C=1.0)
        >>> solution.converged, solution.params.w.shape
        (True, (64, 10))
    """
    return solvers.solve(
        dataset.train.features,
        _solver_targets(dataset, loss),
        loss=_SOLVED_LOSSES[loss],
        C=C,
        gap=gap,
    )


_SOLVED_LOSSES: dict[LossName, Callable] = {
    LossName.softmax: losses.cross_entropy,
    LossName.sigmoid: losses.binary_cross_entropy,
}


def _solver_targets(dataset: Dataset, loss: LossName) -> np.ndarray:
    """Return the training targets that the solver takes: classes for softmax, else 0 or 1."""
    targets, schema = dataset.train.targets, dataset.schema
    if loss not in _SOLVED_LOSSES or schema.task is Task.numbers:
        raise ValueError(f"loss: expected softmax or sigmoid, of classes or labels, got {loss}")
    if loss == LossName.softmax:
        return targets
    if defaults.num_scores(schema, loss) == 1 or schema.task is Task.labels:
        return targets.astype(np.float32)
    return np.eye(len(schema.classes), dtype=np.float32)[targets]


def _assign_folds(train: Split, task: Task, num_folds: int) -> np.ndarray:
    """Return fold numbers `[N]`; -1, for the only example of a class, stands for every fit."""
    if task is Task.labels:
        return np.arange(len(train.features)) % num_folds
    is_only_example = np.bincount(train.targets)[train.targets] == 1
    return np.where(is_only_example, -1, assign_folds(train.targets, num_folds))


def _check_finite(held_out_sums: np.ndarray) -> None:
    """Check that some C has a finite loss in every fold, so that one can be chosen."""
    is_bad = ~np.isfinite(held_out_sums)
    if is_bad.any(1).all():
        folds = np.flatnonzero(is_bad.any(0)).tolist()
        raise ValueError(
            f"folds: no C has a finite loss of the examples held out in folds {folds}: one of them "
            "may have a label that no other fold has, or features too large to score; use fewer "
            "folds, leave such labels out, or scale the features"
        )


def _held_out_sums(
    dataset: Dataset, loss: LossName, params: LinearParams, fold: np.ndarray, number: int
) -> np.ndarray:
    """Return the summed loss of one fold's examples under the fit without it at each C: `[P]`."""
    rows = fold == number
    x, t = dataset.train.features[rows], dataset.train.targets[rows]
    loss_function = defaults.make_loss(loss, dataset.schema)
    models = zip(np.asarray(params.w)[:, number], np.asarray(params.bias)[:, number], strict=True)
    return np.array([np.sum(loss_function(LinearParams(w, bias), x, t)) for w, bias in models])
