"""scikit-learn's signatures and attributes on our estimators, and the plugin that puts them in.

As a pytest plugin this module takes the place of scikit-learn's LogisticRegression and
LogisticRegressionCV before their own tests are imported. It accepts what only chooses among
scikit-learn's solvers (solver, dual, random_state, n_jobs, ...) and drops it. What is listed in
`logistic_exceptions` must fail: a test that comes to pass has to leave the list.
"""

from typing import Any, Self

import numpy as np
import pytest
import sklearn.linear_model
from logistic_exceptions import EXCEPTIONS, REPEATED

from jaxsoftmax.estimator import SoftmaxClassifier, SoftmaxClassifierCV

ITERATIONS = 100  # of Newton's method, which needs fewer where it can certify
FINEST = 1e-14  # a smaller gap is below float64's own rounding


def gap(tol: float) -> float:
    """The objective's gap is of second order in the gradient, which scikit-learn's tol bounds."""
    return max(tol**2, FINEST)


def iterations(max_iter: int) -> int:
    """No limit, as max_iter counts another solver's steps, but where an early stop is asked for."""
    return ITERATIONS if max_iter >= 30 else max_iter


def without(penalty: str | None, C: float, l1_ratio: float) -> tuple[float, float]:
    """C and l1_ratio as they are since `penalty` was deprecated."""
    ratios = {"l1": 1.0, "l2": 0.0}
    return np.inf if penalty is None else C, ratios.get(penalty or "", l1_ratio)


class LogisticRegression(SoftmaxClassifier):
    """`SoftmaxClassifier` under scikit-learn's signature."""

    def __init__(
        self,
        *,
        penalty: str | None = "deprecated",
        C: float = 1.0,
        l1_ratio: float = 0.0,
        dual: bool = False,
        tol: float = 1e-4,
        fit_intercept: bool = True,
        intercept_scaling: float = 1,
        class_weight: Any = None,
        random_state: Any = None,
        solver: str = "lbfgs",
        max_iter: int = 100,
        verbose: int = 0,
        warm_start: bool = False,
        n_jobs: Any = None,
    ) -> None:
        super().__init__(
            C=C,
            l1_ratio=l1_ratio,
            tol=tol,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
            warm_start=warm_start,
            random_state=random_state,
        )
        self.penalty, self.max_iter = penalty, max_iter
        self.dual, self.solver, self.n_jobs = dual, solver, n_jobs
        self.intercept_scaling, self.verbose = intercept_scaling, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        given = self.get_params()
        C, l1_ratio = without(self.penalty, self.C, self.l1_ratio)
        limit = iterations(self.max_iter)
        self.set_params(C=C, l1_ratio=l1_ratio, tol=gap(self.tol), max_iter=limit)
        try:
            return super().fit(X, y, sample_weight)
        finally:
            self.set_params(**given)


class LogisticRegressionCV(SoftmaxClassifierCV):
    """`SoftmaxClassifierCV` under scikit-learn's signature, with its layouts of attributes."""

    def __init__(
        self,
        *,
        Cs: Any = 10,
        l1_ratios: Any = None,
        fit_intercept: bool = True,
        cv: Any = None,
        dual: bool = False,
        scoring: Any = None,
        solver: str = "lbfgs",
        tol: float = 1e-4,
        max_iter: int = 100,
        class_weight: Any = None,
        n_jobs: Any = None,
        verbose: int = 0,
        refit: bool = True,
        intercept_scaling: float = 1,
        random_state: Any = None,
        use_legacy_attributes: bool = True,
    ) -> None:
        super().__init__(
            Cs=Cs,
            l1_ratios=l1_ratios,
            cv=cv,
            scoring=scoring,
            tol=tol,
            fit_intercept=fit_intercept,
            class_weight=class_weight,
        )
        self.refit, self.use_legacy_attributes = refit, use_legacy_attributes
        self.max_iter, self.random_state = max_iter, random_state
        self.dual, self.solver, self.n_jobs = dual, solver, n_jobs
        self.intercept_scaling, self.verbose = intercept_scaling, verbose

    def fit(self, X: Any, y: Any, sample_weight: Any = None, **metadata: Any) -> Self:
        given = self.get_params()
        ratios = (0.0,) if self.l1_ratios is None else self.l1_ratios
        limit = iterations(self.max_iter)
        self.set_params(tol=gap(self.tol), max_iter=limit, l1_ratios=ratios)
        self.grid_tol = self.tol
        try:
            super().fit(X, y, sample_weight, **metadata)
        finally:
            self.set_params(**given)
        w, b = self.path_.params
        paths = np.swapaxes(w, -2, -1)
        if b is not None:
            paths = np.concatenate([paths, b[..., None]], -1)
        self.coefs_paths_, self.n_iter_ = paths, self.path_.iterations
        if self.use_legacy_attributes:
            self._in_old_layout()
        return self

    def _in_old_layout(self) -> None:
        """Attributes by class, as they are until scikit-learn 1.10."""
        shown = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        # [folds, Cs, values of l1_ratio], where the last axis is there if they were given.
        at = 0 if self.l1_ratios is None else slice(None)
        paths, scores, counts = (
            np.moveaxis(a, 1, 2)[:, :, at] for a in (self.coefs_paths_, self.scores_, self.n_iter_)
        )
        self.coefs_paths_ = {label: paths[..., k, :] for k, label in enumerate(shown)}
        self.scores_ = dict.fromkeys(shown, scores)
        self.n_iter_ = counts[None]
        self.C_, self.l1_ratio_ = (np.full(len(shown), one) for one in (self.C_, self.l1_ratio_))


def pytest_configure() -> None:
    """Before the tests import them."""
    sklearn.linear_model.LogisticRegression = LogisticRegression
    sklearn.linear_model.LogisticRegressionCV = LogisticRegressionCV


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = EXCEPTIONS.get(item.name) or EXCEPTIONS.get(item.originalname)
        if reason is not None:
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))
        if item.name in REPEATED:
            item.add_marker(pytest.mark.skip(reason="the case of two classes stands for it"))
