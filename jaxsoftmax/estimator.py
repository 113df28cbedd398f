"""scikit-learn estimators whose `fit` ends with a proof of how far from the optimum it is.

`SoftmaxClassifier` minimises scikit-learn's objective of logistic regression, C sum_i s_i l_i +
||w||^2 / 2, to a certified relative gap `tol`; `SoftmaxClassifierCV` does so for a whole grid of C
and folds at once, see `solvers`. Two classes have one sigmoid score, more a softmax; a matrix of 0
and 1 as y has one sigmoid for each label.
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


class SoftmaxClassifier(ClassifierMixin, SparseCoefMixin, BaseEstimator):
    """Logistic regression, binary, multi-class or multi-label, with a certificate.

    Args:
        C: the inverse strength of the penalty, as scikit-learn's; `np.inf` for none, and then no
            certificate.
        l1_ratio: the share of |w|_1 in the penalty.
        tol: the certified relative distance from the optimum at which `fit` stops.
        fit_intercept: whether the model has an intercept, which is not penalised.
        class_weight: None, "balanced" or a dict.
        warm_start: whether `fit` starts where the last one ended.
        max_iter: outer iterations of `fit`.
        learning_rate: of Adam in `partial_fit`.
        batch_size: of `partial_fit`.
        random_state: of the order of examples in `partial_fit`.

    Attributes, after `fit`: `coef_ [K, D]` and `intercept_ [K]` (one row for two classes),
    `classes_`, `n_iter_ [1]`, `gap_` (the certified relative gap), `solution_` (everything that is
    known; None after `partial_fit`, which voids the certificate), `n_features_in_`.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from jaxsoftmax.estimator import SoftmaxClassifier
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxClassifier().fit(x, y)
        >>> print(round(model.score(x, y), 3), model.gap_ <= 1e-6)
        0.973 True
    """

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
            Itself; a ConvergenceWarning tells where `tol` was not reached, and why.
        """
        X, targets, weights = self._checked(X, y, sample_weight)
        self._solved(X, targets, weights, self.C, self._initial() if self.warm_start else None)
        return self

    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any | None = None,
        sample_weight: Any | None = None,
    ) -> Self:
        """One epoch of Adam on minibatches, without a penalty: it voids the certificate.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            classes: all labels there are; needed at the first call unless `fit` came before.
            sample_weight: `[n]`.

        Returns:
            Itself.
        """
        first = not hasattr(self, "coef_")
        if first and classes is None and np.ndim(y) == 1:
            raise ValueError("classes: expected all labels at the first call of partial_fit")
        X, targets, weights = self._checked(
            X, y, sample_weight, classes=classes if first else self.classes_, reset=first
        )
        X = X.toarray() if scipy.sparse.issparse(X) else X
        X, targets = X.astype(np.float32), np.asarray(targets)
        targets = (
            targets[:, None] if targets.ndim == 1 and self._loss is not cross_entropy else targets
        )
        how = {"loss": training.on_logits(self._loss), "optimizer": _adam(self.learning_rate)}
        if first or getattr(self, "_state", None) is None:
            self._state = _first_state(self, X.shape[1], self._width(targets), how["optimizer"])
        self._state, _ = training.train_epoch(
            self._state, X, targets, weights=weights, batch_size=min(self.batch_size, len(X)), **how
        )
        self._take(jax.device_get(self._state.params), None)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores `[n, K]`, or `[n]` for two classes: X coef_' + intercept_.

        The intercept of a class without weight is infinite, for its probability is 0 (or 1 of the
        other of two). Here such a score is finite, as metrics and calibrators want it, and lies at
        least 1000 below (above) 0 and the example's other scores, so that the softmax or the
        sigmoid of the scores has the same probabilities.

        Args:
            X: `[n, D]`.

        Returns:
            The scores, finite; those of an example depend on no other.

        Raises:
            ValueError: X whose scores overflow its dtype.
        """
        return self._by_class(_finite(self._scores(X), np.isinf(self.intercept_)))

    def _scores(self, X: Any) -> np.ndarray:
        """Scores `[n, K]`, one column for two classes, with the infinite ones of the intercepts."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=[np.float64, np.float32], reset=False)
        with np.errstate(over="ignore", invalid="ignore"):
            product = X @ self.coef_.T  # sparse where both are, after `sparsify`
        product = product.toarray() if scipy.sparse.issparse(product) else product
        if not np.isfinite(product).all():
            at = int(np.argwhere(~np.isfinite(product))[0, 0])
            raise ValueError(
                f"X: the scores of X[{at}] overflow {product.dtype}; scale the features"
            )
        return product + self.intercept_

    def _by_class(self, scores: np.ndarray) -> np.ndarray:
        return scores if scores.shape[1] > 1 or self._multilabel else scores.ravel()

    def predict(self, X: Any) -> np.ndarray:
        """Most probable labels `[n]`, or 0 and 1 `[n, K]`.

        Args:
            X: `[n, D]`.

        Returns:
            The labels.
        """
        scores = self._by_class(self._scores(X))
        if self._multilabel:
            return (scores > 0).astype(int)
        best = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        return self.classes_[best]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities `[n, K]`: of the classes, or of each label.

        Args:
            X: `[n, D]`.

        Returns:
            The probabilities.
        """
        scores = self._by_class(self._scores(X))
        if scores.ndim == 1:
            return scipy.special.expit(np.stack([-scores, scores], 1))
        link = scipy.special.expit if self._multilabel else _softmax
        return link(scores)

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Logarithms of the probabilities, `[n, K]`, exact where those underflow.

        Args:
            X: `[n, D]`.

        Returns:
            The logarithms.
        """
        scores = self._by_class(self._scores(X))
        if scores.ndim == 1:
            return scipy.special.log_expit(np.stack([-scores, scores], 1))
        link = scipy.special.log_expit if self._multilabel else _log_softmax
        return link(scores)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coef_")  # a fit that failed may have left other attributes

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        tags.target_tags.multi_output = True
        tags.target_tags.single_output = True
        tags.input_tags.sparse = True
        return tags

    def _checked(
        self,
        X: Any,
        y: Any,
        sample_weight: Any | None,
        *,
        classes: Any | None = None,
        reset: bool = True,
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """X, encoded targets, and weights with the class weights in them; sets `classes_`."""
        _check_settings(self)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse="csr",
            dtype=[np.float64, np.float32],
            multi_output=True,
            reset=reset,
        )
        if y.ndim == 2 and y.shape[1] == 1:
            warnings.warn(
                "A column-vector y was passed when a 1d array was expected. Please change the "
                "shape of y to (n_samples,), for example using ravel().",
                DataConversionWarning,
                stacklevel=3,
            )
            y = y.ravel()
        check_classification_targets(y)
        kind = type_of_target(y, input_name="y")
        if kind == "multiclass-multioutput":
            raise ValueError("y: expected labels [n] or 0 and 1 [n, K], got multiclass-multioutput")
        weights = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self._multilabel = kind == "multilabel-indicator"
        if self._multilabel:
            y = np.asarray(y.todense() if scipy.sparse.issparse(y) else y).astype(int)
            self.classes_ = np.arange(y.shape[1])
            if self.class_weight is not None:
                weights = weights * compute_sample_weight(self.class_weight, y)
            return X, y, weights
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
        return X, codes, weights

    def _class_factors(self, y: Any, codes: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """The class weights, "balanced" by the examples' weights as scikit-learn 1.9 has it."""
        if self.class_weight != "balanced":
            return compute_class_weight(self.class_weight, classes=self.classes_, y=y)
        shares = np.bincount(codes, weights, len(self.classes_))
        return weights.sum() / (len(shares) * np.where(shares > 0, shares, 1))

    @property
    def _loss(self) -> Any:
        softmax = not self._multilabel and len(self.classes_) > 2
        return cross_entropy if softmax else binary_cross_entropy

    def _width(self, targets: np.ndarray) -> int:
        return len(self.classes_) if self._loss is cross_entropy else targets.shape[1]

    def _penalty(self, C: float) -> dict[str, Any]:
        return {"alpha": 0.0} if np.isinf(C) else {"C": C}

    def _initial(self) -> LinearParams | None:
        if not hasattr(self, "coef_"):
            return None
        coef: Any = self.coef_
        coef = coef.toarray().T if scipy.sparse.issparse(coef) else coef.T
        intercept: Any = self.intercept_ if self.fit_intercept else None
        return LinearParams(coef, intercept)

    def _solved(
        self, X: Any, targets: np.ndarray, weights: np.ndarray, C: float, init: LinearParams | None
    ) -> None:
        """Solve, take the parameters over, and warn where the certificate is not what was asked."""
        # All classes exist, whether or not y shows the last one.
        every = np.ones(len(self.classes_)) if self._loss is cross_entropy else None
        width = len(self.classes_) if self._loss is cross_entropy or self._multilabel else 1
        if init is not None and init.w.shape != (X.shape[1], width):
            init = None
        solution = solve(
            X,
            targets,
            loss=self._loss,
            **self._penalty(C),
            l1_ratio=self.l1_ratio,
            weights=weights,
            bias=self.fit_intercept,
            init=init,
            gap=self.tol,
            max_iterations=self.max_iter,
            class_weights=every,
        )
        self._take(solution.params, solution)
        if not solution.converged:
            warnings.warn(str(solution.reason), ConvergenceWarning, stacklevel=3)

    def _take(self, params: LinearParams, solution: Solution | None) -> None:
        self.coef_ = np.ascontiguousarray(params.w.T)
        self.intercept_ = np.zeros(len(self.coef_), self.coef_.dtype)
        if params.bias is not None:
            self.intercept_ = np.asarray(params.bias)
        self.solution_, self.gap_ = solution, np.inf if solution is None else solution.gap
        if solution is not None:
            self.n_iter_ = np.array([max(1, solution.iterations)], np.int32)
            self._state = None


class SoftmaxClassifierCV(SoftmaxClassifier):
    """`SoftmaxClassifier` with C chosen by cross-validation: all C and folds in lockstep.

    Args:
        Cs: values of C, or how many from 1e-4 to 1e4.
        cv: scikit-learn's: a number of folds, a splitter or splits.
        scoring: scikit-learn's; None is accuracy.
        grid_tol: the certified relative gap of the fits of the grid.
        l1_ratio: as of `SoftmaxClassifier`, like all that follow.
        tol: of the last fit, on all examples.
        fit_intercept: whether the model has an intercept.
        class_weight: None, "balanced" or a dict.
        max_iter: outer iterations of each fit.

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

    # `score` hands its weights to the scorer, and uses none itself.
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
        super().__init__(
            l1_ratio=l1_ratio,
            tol=tol,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
            max_iter=max_iter,
        )
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.grid_tol = grid_tol

    def fit(self, X: Any, y: Any, sample_weight: Any | None = None, **metadata: Any) -> Self:
        """Fit every C on every fold, then the C with the best mean score on all examples.

        Args:
            X: `[n, D]`, dense or sparse.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`, of the fits and, where metadata are not routed, of the scores.
            **metadata: `groups` `[n]` for `cv`. With scikit-learn's
                `set_config(enable_metadata_routing=True)`, what `cv` and `scoring` have requested;
                `sample_weight` too goes to the scores only where `scoring` requests it.

        Returns:
            Itself.

        Raises:
            ValueError: if each C has a score that is NaN in some fold; where only some of them
            have, a UserWarning says that they are not chosen. Other metadata than `groups`, where
            they are not routed. TypeError: where they are, but nobody has requested them.
        """
        to_cv, to_scorer = self._routed("fit", sample_weight, metadata)
        X, targets, weights = self._checked(X, y, sample_weight)
        y = targets if self._multilabel else self.classes_[targets]
        self.Cs_ = np.logspace(-4, 4, self.Cs) if np.ndim(self.Cs) == 0 else np.asarray(self.Cs)
        splits = list(check_cv(self.cv, y, classifier=True).split(X, y, **to_cv))
        masks = np.zeros((len(splits), X.shape[0]), bool)
        for mask, (train, _) in zip(masks, splits, strict=True):
            mask[train] = True
        softmax = self._loss is cross_entropy
        self.path_ = solve_path(
            X,
            targets,
            C=self.Cs_,
            folds=masks,
            loss=self._loss,
            l1_ratio=self.l1_ratio,
            weights=weights,
            class_weights=np.ones(len(self.classes_)) if softmax else None,
            bias=self.fit_intercept,
            gap=self.grid_tol,
            max_iterations=self.max_iter,
        )
        self.scores_ = np.empty((len(self.Cs_), len(splits)))
        path = self.path_.params
        for fold, (_, held_out) in enumerate(splits):
            given = _check_method_params(X, to_scorer, held_out)
            for i in range(len(self.Cs_)):
                bias = None if path.bias is None else path.bias[i, fold]
                self._take(LinearParams(path.w[i, fold], bias), None)
                self.scores_[i, fold] = self._scored(X[held_out], y[held_out], given)
        del self.coef_, self.intercept_
        self.C_ = float(self.Cs_[_best(self.scores_)])
        self._solved(X, targets, weights, self.C_, None)
        return self

    def score(self, X: Any, y: Any, sample_weight: Any | None = None, **metadata: Any) -> float:
        """What `scoring` says, which is also what C was chosen by.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`.
            **metadata: what `scoring` has requested, where scikit-learn routes metadata.

        Returns:
            The score.
        """
        return self._scored(X, y, self._routed("score", sample_weight, metadata)[1])

    def get_metadata_routing(self) -> MetadataRouter:
        """Where scikit-learn sends metadata: to `fit` itself, to `cv` and to `scoring`.

        Returns:
            The router.
        """
        scored = MethodMapping().add(caller="fit", callee="score")
        return (
            MetadataRouter(owner=type(self).__name__)
            .add_self_request(self)
            .add(
                splitter=self.cv,  # as it is: to look into an iterator would use it up
                method_mapping=MethodMapping().add(caller="fit", callee="split"),
            )
            .add(
                scorer=get_scorer(self.scoring or "accuracy"),
                method_mapping=scored.add(caller="score", callee="score"),
            )
        )

    def _routed(
        self, method: str, sample_weight: Any, metadata: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What goes to the splitter and to the scorer."""
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        if get_config()["enable_metadata_routing"]:
            routed = process_routing(self, method, **weights, **metadata)
            return routed["splitter"].get("split", {}), routed["scorer"]["score"]
        _raise_for_params(metadata, self, method, allow=["groups"] if method == "fit" else None)
        return metadata, weights

    def _scored(self, X: Any, y: Any, given: dict[str, Any]) -> float:
        scorer = check_scoring(self, self.scoring or "accuracy")
        if not self._multilabel:
            scorer = _of_all_classes(scorer, self.classes_)
        return scorer(self, X, y, **given)

    def partial_fit(self, *arguments: Any, **named: Any) -> Self:
        """Not of a grid.

        Raises:
            NotImplementedError: always; fit a `SoftmaxClassifier` with the C that was found.
        """
        raise NotImplementedError("partial_fit: use SoftmaxClassifier(C=model.C_)")


@functools.lru_cache
def _adam(learning_rate: float) -> optax.GradientTransformation:
    """One object for one rate: `train_epoch` compiles anew for another."""
    return optax.adam(learning_rate)


def _check_settings(model: SoftmaxClassifier) -> None:
    """The errors that the solver would raise, in the names that the estimator has for them."""
    for name in ("C", "tol", "max_iter", "learning_rate", "batch_size"):
        value = getattr(model, name)
        if not isinstance(value, int | float | np.number) or not value > 0:
            raise ValueError(f"{name}: expected a number above 0, got {value!r}")
    if not isinstance(model.l1_ratio, int | float | np.number) or not 0 <= model.l1_ratio <= 1:
        raise ValueError(f"l1_ratio: expected a number in [0, 1], got {model.l1_ratio!r}")


def _best(scores: np.ndarray) -> int:
    """The row of greatest mean, the first of equal ones; NaN never wins."""
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


def _of_all_classes(scorer: Callable, classes: np.ndarray) -> Callable:
    """The scorer, told of all classes where it asks: a held-out part may not show each of them."""
    asked = inspect.signature(getattr(scorer, "_score_func", len)).parameters
    if "labels" not in asked:
        return scorer
    known = {"labels": classes} | scorer._kwargs  # type: ignore[attr-defined]
    if "pos_label" in asked and len(classes) == 2:
        known = {"pos_label": classes[1]} | known
    return make_scorer(
        scorer._score_func,  # type: ignore[attr-defined]
        greater_is_better=scorer._sign > 0,  # type: ignore[attr-defined]
        response_method=scorer._response_method,  # type: ignore[attr-defined]
        **known,
    )


def _first_state(model: SoftmaxClassifier, features: int, width: int, optimizer: Any) -> Any:
    """The state of `partial_fit`, from the parameters that there are or from 0."""
    initial = model._initial()
    w: Any = np.zeros((features, width)) if initial is None else initial.w
    b: Any = np.zeros(width) if initial is None or initial.bias is None else initial.bias
    b = np.clip(b, -1e4, 1e4).astype(np.float32) if model.fit_intercept else None
    seed = check_random_state(model.random_state).randint(2**31 - 1)
    key = jax.random.key(seed)
    return training.init_state(LinearParams(w.astype(np.float32), b), optimizer=optimizer, key=key)


def _finite(scores: np.ndarray, unbounded: np.ndarray) -> np.ndarray:
    """Scores with finite ones in the unbounded columns, beyond 0 and the row's others."""
    if not unbounded.any():
        return scores
    others = scores[:, ~unbounded]
    # 1000 is more than the softmax resolves; of large scores, more than their rounding.
    beyond = np.maximum(1000, 1e-3 * np.abs(others).max(1, initial=0))[:, None]
    least, greatest = (f(others, 1, initial=0, keepdims=True) for f in (np.min, np.max))
    ends = np.where(scores < 0, least - beyond, greatest + beyond)
    return np.where(unbounded, ends, scores).astype(scores.dtype)


def _softmax(scores: np.ndarray) -> np.ndarray:
    return scipy.special.softmax(scores, axis=1)


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    return scipy.special.log_softmax(scores, axis=1)
