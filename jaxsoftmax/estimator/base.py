"""The base of the estimators: validation, the certified solution, and predictions."""

import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import scipy.sparse  # type: ignore[import-untyped]
import scipy.special  # type: ignore[import-untyped]
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.utils import Tags
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from jaxsoftmax.estimator import shared
from jaxsoftmax.host_arrays import is_jax_array
from jaxsoftmax.linear_params import LinearParams
from jaxsoftmax.solvers import Solution, fits, host
from jaxsoftmax.solvers.arguments import TargetKind
from jaxsoftmax.solvers.limits import DEFAULT_MEMORY

if TYPE_CHECKING:
    from jaxsoftmax.sharding import Shards


class CertifiedClassifier(ClassifierMixin, BaseEstimator):
    """Logistic regression without its choice of a penalty: the predictions of both estimators.

    X may be an array of JAX whose rows several devices share, also of several processes. It stays
    where it is: every process fits the same model, and scores and probabilities are arrays of JAX
    whose rows are where those of X are. Predicted labels are on every host.

    JAX is imported where it is used, which a small dense problem on a host never does.
    """

    tol: float
    fit_intercept: bool
    class_weight: str | dict | None
    max_iter: int
    shards: "Shards | None"
    coef_: np.ndarray
    intercept_: np.ndarray

    _positive_settings: ClassVar[tuple[str, ...]] = ("tol", "max_iter")

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores `[n, K]`, or `[n]` for two classes: X coef_' + intercept_.

        The intercept of a class without weight is infinite, because its probability is 0 (and that
        of the other of two classes is 1). Its score is replaced by a finite one, which metrics and
        calibrators need. The finite score is at least 1000 below (above) 0 and the example's other
        scores, so that the softmax or the sigmoid of the scores has the same probabilities.

        Args:
            X: `[n, D]`.

        Returns:
            The scores, finite; those of an example do not depend on other examples.

        Numerics:
            One product in the dtype that X and `coef_` promote to, float32 or float64.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X holds NaN or infinity, or has another number of columns, or its scores
                overflow its dtype.
        """
        scores = self._linear_scores(X)
        return self._squeeze_binary(_replace_unbounded(scores, np.isinf(self.intercept_)))

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable labels `[n]`, or 0 and 1 `[n, K]`.

        Args:
            X: `[n, D]`.

        Returns:
            The labels, of the dtype of `classes_`, or integers.

        Numerics:
            The scores decide, so that labels differ where probabilities round to ties. Of equal
            scores the first class is predicted, and a score of 0 alone, a probability of one half,
            predicts the first class or the label 0.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X holds NaN or infinity, or has another number of columns, or its scores
                overflow its dtype.
        """
        scores = self._squeeze_binary(self._linear_scores(X))
        if self._multilabel:
            return shared.gather(scores > 0).astype(int)
        best = scores.argmax(1) if scores.ndim > 1 else scores > 0
        return self.classes_[shared.gather(best).astype(int)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, or of each label, `[n, K]`.

        Args:
            X: `[n, D]`.

        Returns:
            The probabilities, of the dtype of the scores.

        Numerics:
            Those of two classes are both sigmoids, so that neither is 1 minus the other. One below
            the smallest number of the dtype is 0, which `predict_log_proba` still tells apart. A
            class without weight in `fit` has exactly 0.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X holds NaN or infinity, or has another number of columns, or its scores
                overflow its dtype.
        """
        scores = self._linear_scores(X)
        if is_jax_array(scores):
            from jaxsoftmax.estimator import on_devices

            return on_devices.probabilities(scores, multilabel=self._multilabel, log=False)
        scores = self._squeeze_binary(scores)
        if scores.ndim == 1:
            return scipy.special.expit(np.stack([-scores, scores], 1))
        if self._multilabel:
            return scipy.special.expit(scores)
        return scipy.special.softmax(scores, axis=1)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return the logarithms of the probabilities, `[n, K]`, exact where those underflow.

        Args:
            X: `[n, D]`.

        Returns:
            The logarithms, of the dtype of the scores.

        Numerics:
            Finite where a probability underflows to 0; -inf for a class without weight in `fit`.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X holds NaN or infinity, or has another number of columns, or its scores
                overflow its dtype.
        """
        scores = self._linear_scores(X)
        if is_jax_array(scores):
            from jaxsoftmax.estimator import on_devices

            return on_devices.probabilities(scores, multilabel=self._multilabel, log=True)
        scores = self._squeeze_binary(scores)
        if scores.ndim == 1:
            return scipy.special.log_expit(np.stack([-scores, scores], 1))
        if self._multilabel:
            return scipy.special.log_expit(scores)
        return scipy.special.log_softmax(scores, axis=1)

    def score(self, X: Any, y: Any, sample_weight: Any | None = None) -> float:
        """Return the accuracy of `predict`.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`.

        Returns:
            The accuracy: of several labels, the share of the examples with all of them right.

        Numerics:
            A weighted mean of 0 and 1 in float64, as scikit-learn's `accuracy_score`.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X holds NaN or infinity, or has another number of columns, or its scores
                overflow its dtype.
        """
        return super().score(X, shared.gather(y), shared.gather(sample_weight))

    def sparsify(self) -> Self:
        """Store `coef_` as a SciPy sparse matrix, from which all methods predict.

        Returns:
            The estimator.

        Raises:
            NotFittedError: `fit` was not called.
        """
        check_is_fitted(self)
        self.coef_ = scipy.sparse.csr_matrix(self.coef_)
        return self

    def densify(self) -> Self:
        """Store `coef_` as a NumPy array, as it is after `fit`.

        Returns:
            The estimator.

        Raises:
            NotFittedError: `fit` was not called.
        """
        check_is_fitted(self)
        coef: Any = self.coef_
        self.coef_ = coef.toarray() if scipy.sparse.issparse(coef) else coef
        return self

    def _linear_scores(self, X: Any) -> Any:
        """Return scores `[n, K]`, one column for two classes, infinite where an intercept is."""
        check_is_fitted(self)
        if isinstance(X, shared.HeldOut):
            return X.scores
        if shared.is_shared(X):
            from jaxsoftmax.estimator import on_devices

            on_devices.check_features(self, X, reset=False)
            coef: Any = self.coef_
            coef = coef.toarray() if scipy.sparse.issparse(coef) else coef
            return on_devices.linear_scores(X, coef, self.intercept_)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        with np.errstate(over="ignore", invalid="ignore"):
            product = X @ self.coef_.T  # sparse if both are, after `sparsify`
        product = product.toarray() if scipy.sparse.issparse(product) else product
        if not np.isfinite(product).all():
            at = int(np.argwhere(~np.isfinite(product))[0, 0])
            raise ValueError(
                f"X: the scores of X[{at}] overflow {product.dtype}; scale the features"
            )
        return product + self.intercept_

    def _squeeze_binary(self, scores: np.ndarray) -> np.ndarray:
        """Return the scores of two classes as `[n]`, and others as they are."""
        return scores if scores.shape[1] > 1 or self._multilabel else scores.ravel()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")  # a fit that failed may have left other attributes

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.input_tags.sparse = True
        return tags

    def _validate(
        self,
        X: Any,
        y: Any,
        sample_weight: Any | None,
        *,
        classes: Any | None = None,
        reset: bool = True,
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return X, encoded targets, and weights times class weights; set `classes_`.

        It is called by `fit` and `partial_fit` directly, from which warnings get their stack level.
        """
        self._check_settings()
        y, sample_weight = shared.gather(y), shared.gather(sample_weight)
        if shared.is_shared(X):
            from jaxsoftmax.estimator import on_devices

            X, y = on_devices.validate(self, X, y, reset=reset)
        else:
            X, y = validate_data(
                self,
                X,
                y,
                accept_sparse="csr",
                dtype=[np.float64, np.float32],
                multi_output=True,
                reset=reset,
            )
        y = _ravel_column(y)
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise ValueError("y: expected labels [n] or 0 and 1 [n, K], got multiclass-multioutput")
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._multilabel = kind == "multilabel-indicator"
        if self._multilabel:
            return X, *self._encode_multilabel(y, weights)
        return X, *self._encode_labels(y, weights, classes)

    def _check_settings(self) -> None:
        """Raise the errors of the solver under the estimator's names of the settings."""
        for name in self._positive_settings:
            value = getattr(self, name)
            if not isinstance(value, int | float | np.number) or not value > 0:
                raise ValueError(f"{name}: expected a number above 0, got {value!r}")
        if self.shards is None:
            return
        from jaxsoftmax.sharding import Shards

        if not isinstance(self.shards, Shards):
            raise ValueError(f"shards: expected jaxsoftmax.Shards or None, got {self.shards!r}")

    def _encode_multilabel(self, y: Any, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        y = np.asarray(y.todense() if scipy.sparse.issparse(y) else y).astype(int)
        self.classes_ = np.arange(y.shape[1])
        if self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, y)
        return y, weights

    def _encode_labels(
        self, y: Any, weights: np.ndarray, classes: Any | None
    ) -> tuple[np.ndarray, np.ndarray]:
        self.classes_ = unique_labels(y) if classes is None else np.unique(classes)
        unknown = np.setdiff1d(y, self.classes_)
        if len(unknown):
            raise ValueError(f"y: expected labels of {self.classes_}, got {unknown}")
        if len(self.classes_) < 2:
            raise ValueError(
                "This solver needs samples of at least 2 classes in the data, but the data "
                f"contains only one class: {self.classes_[0]!r}"
            )
        codes = np.searchsorted(self.classes_, y)
        if self.class_weight is not None:
            weights = weights * self._class_factors(y, codes, weights)[codes]
        return codes, weights

    def _class_factors(self, y: Any, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the class weights; "balanced" uses the examples' weights, as scikit-learn 1.9."""
        if self.class_weight != "balanced":
            return compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        totals = np.bincount(codes, weights, len(self.classes_))
        return weights.sum() / (len(totals) * np.where(totals > 0, totals, 1))

    @property
    def _is_softmax(self) -> bool:
        """Whether the probabilities are a softmax, rather than sigmoids."""
        return not self._multilabel and len(self.classes_) > 2

    @property
    def _loss(self) -> Any:
        from jaxsoftmax import losses

        return losses.cross_entropy if self._is_softmax else losses.binary_cross_entropy

    @property
    def _num_scores(self) -> int:
        """The number of rows of `coef_`: one for two classes."""
        return len(self.classes_) if self._is_softmax or self._multilabel else 1

    @property
    def _all_classes(self) -> np.ndarray | None:
        """Class weights that make all classes of a softmax exist, also those not in y."""
        return np.ones(len(self.classes_)) if self._is_softmax else None

    def _solve(
        self,
        X: Any,
        targets: np.ndarray,
        weights: np.ndarray,
        *,
        C: float,
        l1_ratio: float,
        init: LinearParams | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
    ) -> None:
        """Solve, store the solution, and warn if the certificate is not what was asked for.

        It is called by `fit` directly, from which the warning gets its stack level.
        """
        unpenalized = np.isinf(C)
        solution = self._solution(
            X,
            targets,
            callback,
            C=None if unpenalized else C,
            alpha=0.0 if unpenalized else None,
            l1_ratio=l1_ratio,
            weights=weights,
            bias=self.fit_intercept,
            init=init,
            gap=self.tol,
            max_iterations=self.max_iter,
            class_weights=self._all_classes,
            memory=DEFAULT_MEMORY,
        )
        self._store(solution.params, solution)
        if not solution.converged:
            warnings.warn(str(solution.reason), ConvergenceWarning, stacklevel=3)

    def _solution(
        self, X: Any, targets: np.ndarray, callback: Callable | None, **settings: Any
    ) -> Solution:
        """Return what `solve` does, which for a small problem on the host needs no JAX."""
        start = time.perf_counter()
        if self._is_small(X, settings):
            fit = fits.prepare_fit(X, targets, kind=self._target_kind, **settings)
            return fits.solve_on_host(fit, start, callback)
        from jaxsoftmax.solvers import solve

        return solve(X, targets, loss=self._loss, shards=self.shards, callback=callback, **settings)

    def _is_small(self, X: Any, settings: dict[str, Any], *, lanes: int = 1) -> bool:
        """Return whether fits with these settings are those of the host's engine."""
        smooth, memory = settings["l1_ratio"] == 0, settings["memory"]
        small = host.suits(X, self._num_scores, smooth=smooth, memory=memory, lanes=lanes)
        return small and self.shards is None

    @property
    def _target_kind(self) -> TargetKind:
        return "labels" if self._is_softmax else "probabilities"

    def _store(self, params: LinearParams, solution: Solution | None) -> None:
        """Set the attributes of a fitted model; without a solution there is no certificate."""
        self.coef_ = np.ascontiguousarray(params.w.T)
        self.intercept_ = np.zeros(len(self.coef_), self.coef_.dtype)
        if params.bias is not None:
            self.intercept_ = np.asarray(params.bias)
        self.solution_, self.gap_ = solution, np.inf if solution is None else solution.gap
        if solution is not None:
            self.n_iter_ = np.array([max(1, solution.iterations)], np.int32)


def check_l1_ratio(value: Any, name: str) -> None:
    """Raise an error under the name of the setting."""
    if not isinstance(value, int | float | np.number) or not 0 <= value <= 1:
        raise ValueError(f"{name}: expected a number in [0, 1], got {value!r}")


def _ravel_column(y: Any) -> Any:
    """Return y `[n, 1]` as `[n]`, with scikit-learn's warning."""
    if y.ndim != 2 or y.shape[1] != 1:
        return y
    warnings.warn(
        "A column-vector y was passed when a 1d array was expected. Please change the shape of y "
        "to (n_samples,), for example using ravel().",
        DataConversionWarning,
        stacklevel=4,
    )
    return y.ravel()


def _replace_unbounded(scores: Any, unbounded: np.ndarray) -> Any:
    """Return scores whose unbounded columns are finite, beyond 0 and the row's other scores."""
    if not unbounded.any():
        return scores
    xp = scores.__array_namespace__()  # NumPy's or JAX's
    others = xp.where(unbounded, 0, scores)
    least, greatest = (f(others, axis=1, keepdims=True) for f in (xp.min, xp.max))
    # A difference of 1000 underflows in a softmax; for large scores it must exceed their rounding.
    margin = xp.maximum(1000, 1e-3 * xp.maximum(-least, greatest))
    finite = xp.where(scores < 0, least - margin, greatest + margin)
    return xp.where(unbounded, finite, scores).astype(scores.dtype)
