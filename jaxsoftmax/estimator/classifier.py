"""`SoftmaxClassifier`: one certified fit, and epochs of Adam."""

import functools
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from jaxsoftmax.estimator.base import CertifiedClassifier, check_l1_ratio
from jaxsoftmax.estimator.callbacks import CallbackSupportMixin, Tasks, fit_tasks
from jaxsoftmax.linear_params import LinearParams
from jaxsoftmax.solvers import Solution

if TYPE_CHECKING:
    import optax

    from jaxsoftmax.sharding import Shards


class SoftmaxClassifier(CallbackSupportMixin, CertifiedClassifier):
    """Logistic regression, binary, multi-class or multi-label, with a certificate.

    `fit` minimizes C sum_i s_i l(x_i, y_i) + (1 - l1_ratio) ||w||^2 / 2 + l1_ratio |w|_1 over w and
    the intercepts, where l is the cross-entropy of a softmax, or of a sigmoid for two classes and
    for each label, and s_i is the weight of an example times that of its class.

    Args:
        C: the inverse strength of the penalty, as in scikit-learn; `np.inf` for no penalty, and
            then no certificate.
        l1_ratio: the share of |w|_1 in the penalty.
        tol: the certified relative distance from the optimum at which `fit` stops.
        fit_intercept: whether the model has an intercept, which is not penalized.
        class_weight: None, "balanced" or a dict.
        warm_start: whether `fit` starts from the current parameters.
        max_iter: limit of the outer iterations of `fit`. After 0 of them the parameters are those
            that `fit` starts from, without a certificate.
        learning_rate: learning rate of Adam in `partial_fit`.
        batch_size: batch size of `partial_fit`.
        random_state: determines the order of examples in `partial_fit`.
        shards: `jaxsoftmax.Shards(rows=..., classes=...)`: the axes of the mesh of `jax.set_mesh`
            whose devices share the rows in `fit`, and those that share the classes. Rows are not
            needed for an array of JAX that is sharded so.

    Attributes, after `fit`: `coef_ [K, D]` and `intercept_ [K]` (one row for two classes),
    `classes_`, `n_iter_ [1]`, `gap_` (the certified relative gap), `solution_` (the whole
    `Solution`; None without a certificate, as after `partial_fit`), `n_features_in_`.

    Callbacks of scikit-learn 1.9, from set_callbacks(), see a task for each outer iteration of
    `fit` and, as with scikit-learn's lbfgs, an empty one at the end. After an iteration of a small
    fit, on the host, they see what `fit` with as many iterations returns; after one of a compiled
    program, the intercepts of its last step, which the end replaces by the best ones.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from jaxsoftmax.estimator import SoftmaxClassifier
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxClassifier().fit(x, y)
        >>> print(round(model.score(x, y), 3), model.gap_ <= 1e-6)
        0.973 True

    Reference:
        scikit-learn's `LogisticRegression`, whose objective this is; `solvers.solve` for the
        certificate and the numerics.
    """

    _positive_settings: ClassVar[tuple[str, ...]] = (
        "C",
        "tol",
        "learning_rate",
        "batch_size",
    )

    def __init__(
        self,
        *,
        C: float = 1.0,
        l1_ratio: float = 0.0,
        tol: float = 1e-6,
        fit_intercept: bool = True,
        class_weight: str | dict | None = None,
        warm_start: bool = False,
        max_iter: int = 1000,
        learning_rate: float = 0.01,
        batch_size: int = 256,
        random_state: Any = None,
        shards: "Shards | None" = None,
    ) -> None:
        self.C = C
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.warm_start = warm_start
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.shards = shards

    def fit(self, X: Any, y: Any, sample_weight: Any | None = None) -> Self:
        """Fit to the certified optimum.

        Args:
            X: `[n, D]`, dense or sparse.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`.

        Returns:
            The estimator. A ConvergenceWarning gives the reason if `tol` was not reached.

        Raises:
            ValueError: X or y holds NaN or infinity, or their lengths differ; y has fewer than two
                classes; a weight is negative, or all are 0; a setting is out of its range. The
                message names the argument.
        """
        with fit_tasks(self, X, y, sample_weight) as tasks:
            X, targets, weights = self._validate(X, y, sample_weight)
            start = self._start(X)
            if tasks is not None:
                tasks.begin(start)
            if self.max_iter == 0:
                self._store_start(start, tasks)
            else:
                report = None if tasks is None else tasks.report
                self._solve(X, targets, weights, C=self.C, l1_ratio=self.l1_ratio,
                            init=start, callback=report)  # fmt: skip
        return self

    def _check_settings(self) -> None:
        super()._check_settings()
        check_l1_ratio(self.l1_ratio, "l1_ratio")
        if not isinstance(self.max_iter, int | float | np.number) or not self.max_iter >= 0:
            raise ValueError(f"max_iter: expected a number of at least 0, got {self.max_iter!r}")

    def _start(self, X: Any) -> LinearParams:
        """Return the parameters that `fit` starts from: 0, or the current ones."""
        shape = (X.shape[1], self._num_scores)
        current = self._current_params() if self.warm_start else None
        if current is not None and current.w.shape == shape:
            return current
        bias: Any = np.zeros(shape[1]) if self.fit_intercept else None
        w: Any = np.zeros(shape)
        return LinearParams(w, bias)

    def _store_start(self, start: LinearParams, tasks: Tasks | None) -> None:
        self._store(start, None)
        self.n_iter_ = np.zeros(1, np.int32)
        if tasks is not None:
            tasks.report_params(start)
        warnings.warn("max_iter is 0: nothing was fitted", ConvergenceWarning, stacklevel=3)

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any | None = None,
        sample_weight: Any | None = None,
    ) -> Self:
        """Run one epoch of Adam on minibatches, without a penalty; this voids the certificate.

        Features and parameters are float32. The state of Adam carries over from call to call until
        `fit` is called, from whose solution the next epoch starts.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            classes: all labels; needed at the first call unless `fit` was called before.
            sample_weight: `[n]`.

        Returns:
            The estimator, with `gap_` of infinity and `solution_` of None.

        Raises:
            ValueError: as `fit`; and at the first call without classes, or if y holds a label that
                was not among them.
        """
        first = not hasattr(self, "coef_")
        if first and classes is None and np.ndim(y) == 1:
            raise ValueError("classes: expected all labels at the first call of partial_fit")
        X, targets, weights = self._validate(
            X, y, sample_weight, classes=classes if first else self.classes_, reset=first
        )
        import jax  # which a small `fit` does without, as it does without Optax

        from jaxsoftmax import training

        X = X.toarray() if scipy.sparse.issparse(X) else X
        X, targets = X.astype(np.float32), np.asarray(targets)
        if targets.ndim == 1 and not self._is_softmax:
            targets = targets[:, None]
        optimizer = _adam(self.learning_rate)
        if first or getattr(self, "_state", None) is None:
            width = len(self.classes_) if self._is_softmax else targets.shape[1]
            self._state = self._initial_state(X.shape[1], width, optimizer)
        self._state, _ = training.train_epoch(
            self._state,
            X,
            targets,
            weights=weights,
            batch_size=min(self.batch_size, len(X)),
            loss=training.on_logits(self._loss),
            optimizer=optimizer,
        )
        self._store(jax.device_get(self._state.params), None)
        return self

    def _store(self, params: LinearParams, solution: Solution | None) -> None:
        super()._store(params, solution)
        if solution is not None:
            self._state = None  # `partial_fit` continues from the solution

    def _current_params(self) -> LinearParams | None:
        """Return the current parameters, None before the first fit."""
        if not hasattr(self, "coef_"):
            return None
        coef: Any = self.coef_
        coef = coef.toarray().T if scipy.sparse.issparse(coef) else coef.T
        intercept: Any = self.intercept_ if self.fit_intercept else None
        return LinearParams(coef, intercept)

    def _initial_state(self, features: int, width: int, optimizer: Any) -> Any:
        """Return the state that `partial_fit` starts from: the current parameters, or 0."""
        current = self._current_params()
        w: Any = np.zeros((features, width)) if current is None else current.w
        b: Any = np.zeros(width) if current is None or current.bias is None else current.bias
        b = np.clip(b, -1e4, 1e4).astype(np.float32) if self.fit_intercept else None
        import jax

        from jaxsoftmax import training

        seed = check_random_state(self.random_state).randint(2**31 - 1)
        params = LinearParams(w.astype(np.float32), b)
        return training.init_state(params, optimizer=optimizer, key=jax.random.key(seed))


@functools.lru_cache
def _adam(learning_rate: float) -> "optax.GradientTransformation":
    """Return the same object for the same rate: `train_epoch` recompiles for another object."""
    import optax

    return optax.adam(learning_rate)
