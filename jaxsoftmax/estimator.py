"""scikit-learn estimators whose `fit` returns a proven distance from the optimum.

`SoftmaxClassifier` minimizes scikit-learn's objective of logistic regression, C sum_i s_i l_i +
||w||^2 / 2, to a certified relative gap `tol`; `SoftmaxClassifierCV` does so for a whole grid of C
and folds at once, see `solvers`. Two classes have one sigmoid score, more classes a softmax; a
matrix of 0 and 1 as y has one sigmoid per label.
"""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, ClassVar, Self

import jax
import numpy as np
import optax
import scipy.sparse  # type: ignore[import-untyped]
import scipy.special  # type: ignore[import-untyped]
from sklearn import get_config
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning, DataConversionWarning
from sklearn.linear_model._base import SparseCoefMixin
from sklearn.metrics import check_scoring, get_scorer, make_scorer
from sklearn.model_selection import check_cv
from sklearn.utils import Tags, check_random_state
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metadata_routing import (
    UNUSED,
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    process_routing,
)
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import (
    _check_method_params,
    _check_sample_weight,
    check_is_fitted,
    validate_data,
)

from jaxsoftmax import training
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.losses import binary_cross_entropy, cross_entropy
from jaxsoftmax.solvers import Solution, solve, solve_path


class CertifiedClassifier(ClassifierMixin, SparseCoefMixin, BaseEstimator):
    """What the estimators share: validation, the certified solution, and predictions."""

    l1_ratio: float
    tol: float
    fit_intercept: bool
    class_weight: str | dict | None
    max_iter: int
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

        Raises:
            ValueError: the scores of X overflow its dtype.
        """
        scores = self._linear_scores(X)
        return self._squeeze_binary(_replace_unbounded(scores, np.isinf(self.intercept_)))

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable labels `[n]`, or 0 and 1 `[n, K]`.

        Args:
            X: `[n, D]`.

        Returns:
            The labels.
        """
        scores = self._squeeze_binary(self._linear_scores(X))
        if self._multilabel:
            return (scores > 0).astype(int)
        best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return the probabilities of the classes, or of each label, `[n, K]`.

        Args:
            X: `[n, D]`.

        Returns:
            The probabilities.
        """
        scores = self._squeeze_binary(self._linear_scores(X))
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
            The logarithms.
        """
        scores = self._squeeze_binary(self._linear_scores(X))
        if scores.ndim == 1:
            return scipy.special.log_expit(np.stack([-scores, scores], 1))
        if self._multilabel:
            return scipy.special.log_expit(scores)
        return scipy.special.log_softmax(scores, axis=1)

    def _linear_scores(self, X: Any) -> np.ndarray:
        """Return scores `[n, K]`, one column for two classes, infinite where an intercept is."""
        check_is_fitted(self)
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
        if not isinstance(self.l1_ratio, int | float | np.number) or not 0 <= self.l1_ratio <= 1:
            raise ValueError(f"l1_ratio: expected a number in [0, 1], got {self.l1_ratio!r}")

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
    def _loss(self) -> Any:
        softmax = not self._multilabel and len(self.classes_) > 2
        return cross_entropy if softmax else binary_cross_entropy

    @property
    def _all_classes(self) -> np.ndarray | None:
        """Class weights that make all classes of a softmax exist, also those not in y."""
        return np.ones(len(self.classes_)) if self._loss is cross_entropy else None

    def _solve(
        self, X: Any, targets: np.ndarray, weights: np.ndarray, C: float, init: LinearParams | None
    ) -> None:
        """Solve, store the solution, and warn if the certificate is not what was asked for.

        It is called by `fit` directly, from which the warning gets its stack level.
        """
        width = len(self.classes_) if self._loss is cross_entropy or self._multilabel else 1
        if init is not None and init.w.shape != (X.shape[1], width):
            init = None
        unpenalized = np.isinf(C)
        solution = solve(
            X,
            targets,
            loss=self._loss,
            C=None if unpenalized else C,
            alpha=0.0 if unpenalized else None,
            l1_ratio=self.l1_ratio,
            weights=weights,
            bias=self.fit_intercept,
            init=init,
            gap=self.tol,
            max_iterations=self.max_iter,
            class_weights=self._all_classes,
        )
        self._store(solution.params, solution)
        if not solution.converged:
            warnings.warn(str(solution.reason), ConvergenceWarning, stacklevel=3)

    def _store(self, params: LinearParams, solution: Solution | None) -> None:
        """Set the attributes of a fitted model; without a solution there is no certificate."""
        self.coef_ = np.ascontiguousarray(params.w.T)
        self.intercept_ = np.zeros(len(self.coef_), self.coef_.dtype)
        if params.bias is not None:
            self.intercept_ = np.asarray(params.bias)
        self.solution_, self.gap_ = solution, np.inf if solution is None else solution.gap
        if solution is not None:
            self.n_iter_ = np.array([max(1, solution.iterations)], np.int32)


class SoftmaxClassifier(CertifiedClassifier):
    """Logistic regression, binary, multi-class or multi-label, with a certificate.

    Args:
        C: the inverse strength of the penalty, as in scikit-learn; `np.inf` for no penalty, and
            then no certificate.
        l1_ratio: the share of |w|_1 in the penalty.
        tol: the certified relative distance from the optimum at which `fit` stops.
        fit_intercept: whether the model has an intercept, which is not penalized.
        class_weight: None, "balanced" or a dict.
        warm_start: whether `fit` starts from the current parameters.
        max_iter: limit of the outer iterations of `fit`.
        learning_rate: learning rate of Adam in `partial_fit`.
        batch_size: batch size of `partial_fit`.
        random_state: determines the order of examples in `partial_fit`.

    Attributes, after `fit`: `coef_ [K, D]` and `intercept_ [K]` (one row for two classes),
    `classes_`, `n_iter_ [1]`, `gap_` (the certified relative gap), `solution_` (the whole
    `Solution`; None after `partial_fit`, which voids the certificate), `n_features_in_`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from jaxsoftmax.estimator import SoftmaxClassifier
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxClassifier().fit(x, y)
        >>> print(round(model.score(x, y), 3), model.gap_ <= 1e-6)
        0.973 True
    """

    _positive_settings: ClassVar[tuple[str, ...]] = (
        "C",
        "tol",
        "max_iter",
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

    def fit(self, X: Any, y: Any, sample_weight: Any | None = None) -> Self:
        """Fit to the certified optimum.

        Args:
            X: `[n, D]`, dense or sparse.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`.

        Returns:
            The estimator. A ConvergenceWarning gives the reason if `tol` was not reached.
        """
        X, targets, weights = self._validate(X, y, sample_weight)
        self._solve(
            X, targets, weights, self.C, self._current_params() if self.warm_start else None
        )
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any | None = None,
        sample_weight: Any | None = None,
    ) -> Self:
        """Run one epoch of Adam on minibatches, without a penalty; this voids the certificate.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            classes: all labels; needed at the first call unless `fit` was called before.
            sample_weight: `[n]`.

        Returns:
            The estimator.
        """
        first = not hasattr(self, "coef_")
        if first and classes is None and np.ndim(y) == 1:
            raise ValueError("classes: expected all labels at the first call of partial_fit")
        X, targets, weights = self._validate(
            X, y, sample_weight, classes=classes if first else self.classes_, reset=first
        )
        X = X.toarray() if scipy.sparse.issparse(X) else X
        X, targets = X.astype(np.float32), np.asarray(targets)
        if targets.ndim == 1 and self._loss is not cross_entropy:
            targets = targets[:, None]
        optimizer = _adam(self.learning_rate)
        if first or getattr(self, "_state", None) is None:
            width = len(self.classes_) if self._loss is cross_entropy else targets.shape[1]
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
            self._state = None  # `partial_fit` goes on from the solution

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
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        params = LinearParams(w.astype(np.float32), b)
        return training.init_state(params, optimizer=optimizer, key=jax.random.key(seed))


class SoftmaxClassifierCV(CertifiedClassifier):
    """`SoftmaxClassifier` with C chosen by cross-validation: all C and folds in lockstep.

    Args:
        Cs: values of C, or the number of values from 1e-4 to 1e4.
        cv: as in scikit-learn: a number of folds, a splitter or splits. None is 5 folds, or as many
            as the rarest class has examples, but at least 2.
        scoring: as in scikit-learn; None is accuracy.
        grid_tol: the certified relative gap of the fits of the grid.
        l1_ratio: as in `SoftmaxClassifier`, like all that follow.
        tol: the certified relative gap of the last fit, on all examples.
        fit_intercept: whether the model has an intercept.
        class_weight: None, "balanced" or a dict.
        max_iter: limit of the outer iterations of each fit.

    Metadata are routed as by scikit-learn's LogisticRegressionCV.

    Attributes, beside those of `SoftmaxClassifier`: `C_`, `Cs_`, `scores_ [len(Cs_), folds]`,
    `path_` (the `Solution` of the grid).

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from jaxsoftmax.estimator import SoftmaxClassifierCV
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxClassifierCV(Cs=[0.1, 10.0], cv=3).fit(x, y)
        >>> print(model.C_, model.scores_.shape)
        10.0 (2, 3)
    """

    # `score` passes its weights to the scorer, and uses none itself.
    __metadata_request__score: ClassVar = {"sample_weight": UNUSED}

    def __init__(
        self,
        *,
        Cs: int | Any = 10,
        cv: Any = None,
        scoring: Any = None,
        grid_tol: float = 1e-3,
        l1_ratio: float = 0.0,
        tol: float = 1e-6,
        fit_intercept: bool = True,
        class_weight: str | dict | None = None,
        max_iter: int = 1000,
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.grid_tol = grid_tol
        self.l1_ratio = l1_ratio
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter

    def fit(self, X: Any, y: Any, sample_weight: Any | None = None, **metadata: Any) -> Self:
        """Fit every C on every fold, then the C with the best mean score on all examples.

        Args:
            X: `[n, D]`, dense or sparse.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`, weights of the fits and, unless metadata are routed, of the
                scores.
            **metadata: `groups` `[n]` for `cv`. With scikit-learn's
                `set_config(enable_metadata_routing=True)`, the metadata that `cv` and `scoring`
                have requested; `sample_weight` too is passed to the scores only if `scoring`
                requests it.

        Returns:
            The estimator.

        Raises:
            ValueError: every C has a score of NaN in some fold (if only some have, a UserWarning
            reports that they are not chosen); metadata other than `groups`, if they are not routed.
            TypeError: metadata that nothing has requested, if they are routed.
        """
        to_cv, to_scorer = self._route_metadata("fit", sample_weight, metadata)
        X, targets, weights = self._validate(X, y, sample_weight)
        y = targets if self._multilabel else self.classes_[targets]
        self.Cs_ = np.logspace(-4, 4, self.Cs) if np.ndim(self.Cs) == 0 else np.asarray(self.Cs)
        cv = _default_folds(y) if self.cv is None else self.cv
        splits = list(check_cv(cv, y, classifier=True).split(X, y, **to_cv))
        self.path_ = self._solve_grid(X, targets, weights, splits)
        self.scores_ = self._score_grid(X, y, splits, to_scorer)
        self.C_ = float(self.Cs_[_best_row(self.scores_)])
        self._solve(X, targets, weights, self.C_, None)
        return self

    def _solve_grid(
        self, X: Any, targets: np.ndarray, weights: np.ndarray, splits: list
    ) -> Solution:
        """Return the solutions of every C and split."""
        masks = np.zeros((len(splits), X.shape[0]), bool)
        for mask, (train, _) in zip(masks, splits, strict=True):
            mask[train] = True
        return solve_path(
            X,
            targets,
            C=self.Cs_,
            folds=masks,
            loss=self._loss,
            l1_ratio=self.l1_ratio,
            weights=weights,
            class_weights=self._all_classes,
            bias=self.fit_intercept,
            gap=self.grid_tol,
            max_iterations=self.max_iter,
        )

    def _score_grid(
        self, X: Any, y: np.ndarray, splits: list, to_scorer: dict[str, Any]
    ) -> np.ndarray:
        """Return the score of every C on the held-out part of every split, `[len(Cs_), folds]`."""
        scores = np.empty((len(self.Cs_), len(splits)))
        w, bias = self.path_.params
        for fold, (_, held_out) in enumerate(splits):
            metadata = _check_method_params(X, to_scorer, held_out)
            for i in range(len(self.Cs_)):
                self._store(LinearParams(w[i, fold], None if bias is None else bias[i, fold]), None)
                scores[i, fold] = self._score(X[held_out], y[held_out], metadata)
        del self.coef_, self.intercept_
        return scores

    def score(self, X: Any, y: Any, sample_weight: Any | None = None, **metadata: Any) -> float:
        """Return the score of `scoring`, by which C was also chosen.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`.
            **metadata: metadata that `scoring` has requested, if scikit-learn routes metadata.

        Returns:
            The score.
        """
        return self._score(X, y, self._route_metadata("score", sample_weight, metadata)[1])

    def get_metadata_routing(self) -> MetadataRouter:
        """Return where scikit-learn sends metadata: to `fit` itself, to `cv` and to `scoring`.

        Returns:
            The router.
        """
        to_scorer = MethodMapping().add(caller="fit", callee="score")
        return (
            MetadataRouter(owner=type(self).__name__)
            .add_self_request(self)
            .add(
                splitter=self.cv,  # not listed here: that would use up an iterator
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
            .add(
                scorer=get_scorer(self.scoring or "accuracy"),
                method_mapping=to_scorer.add(caller="score", callee="score"),
            )
        )

    def _route_metadata(
        self, method: str, sample_weight: Any, metadata: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the metadata of the splitter and those of the scorer."""
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, method, **weights, **metadata)
            return routed["splitter"].get("split", {}), routed["scorer"]["score"]
        _raise_for_params(metadata, self, method, allow=["groups"] if method == "fit" else None)
        return metadata, weights

    def _score(self, X: Any, y: Any, metadata: dict[str, Any]) -> float:
        scorer = check_scoring(self, self.scoring or "accuracy")
        if not self._multilabel:
            scorer = _with_all_classes(scorer, self.classes_)
        return scorer(self, X, y, **metadata)


@functools.lru_cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """Return the same object for the same rate: `train_epoch` recompiles for another object."""
    return optax.adam(learning_rate)


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


def _default_folds(y: np.ndarray) -> int:
    """Return 5, or the number of examples of the rarest class, but at least 2."""
    if y.ndim == 2:
        return 5
    return int(np.clip(np.unique(y, return_counts=True)[1].min(), 2, 5))


def _best_row(scores: np.ndarray) -> int:
    """Return the row of greatest mean, the first of equal ones; a row with NaN is not chosen."""
    means = scores.mean(1)
    unknown = np.isnan(means)
    folds = np.flatnonzero(~np.isfinite(scores[unknown]).all(0)).tolist()
    if unknown.all():
        raise ValueError(
            f"scoring: expected a C with a number in every fold, got NaN for each C, in folds "
            f"{folds}: a score may not be defined where a part lacks a class; give cv fewer folds "
            "or a splitter that stratifies, or another scoring"
        )
    if unknown.any():
        warnings.warn(
            f"scoring: {unknown.sum()} of {len(means)} values of C have the score NaN in folds "
            f"{folds} and are not chosen",
            stacklevel=3,
        )
    return int(np.nanargmax(means))


def _with_all_classes(scorer: Callable, classes: np.ndarray) -> Callable:
    """Return the scorer with all classes as `labels`, if its function has such an argument.

    A held-out part may lack some of the classes.
    """
    parameters = inspect.signature(getattr(scorer, "_score_func", len)).parameters
    if "labels" not in parameters:
        return scorer
    arguments = {"labels": classes} | scorer._kwargs  # type: ignore[attr-defined]
    if "pos_label" in parameters and len(classes) == 2:
        arguments = {"pos_label": classes[1]} | arguments
    return make_scorer(
        scorer._score_func,  # type: ignore[attr-defined]
        greater_is_better=scorer._sign > 0,  # type: ignore[attr-defined]
        response_method=scorer._response_method,  # type: ignore[attr-defined]
        **arguments,
    )


def _replace_unbounded(scores: np.ndarray, unbounded: np.ndarray) -> np.ndarray:
    """Return scores whose unbounded columns are finite, beyond 0 and the row's other scores."""
    if not unbounded.any():
        return scores
    others = scores[:, ~unbounded]
    # A difference of 1000 underflows in a softmax; for large scores it must exceed their rounding.
    margin = np.maximum(1000, 1e-3 * np.abs(others).max(1, initial=0))[:, None]
    least, greatest = (f(others, 1, initial=0, keepdims=True) for f in (np.min, np.max))
    finite = np.where(scores < 0, least - margin, greatest + margin)
    return np.where(unbounded, finite, scores).astype(scores.dtype)
