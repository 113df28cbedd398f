"""`SoftmaxClassifierCV`: the strength and the kind of the penalty by cross-validation."""

import dataclasses
import inspect
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from sklearn import get_config
from sklearn.metrics import check_scoring, get_scorer, make_scorer
from sklearn.model_selection import check_cv
from sklearn.utils.metadata_routing import (
    UNUSED,
    MetadataRouter,
    MethodMapping,
    _raise_for_params,
    process_routing,
)
from sklearn.utils.validation import _check_method_params, check_is_fitted

from jaxsoftmax.estimator import shared
from jaxsoftmax.estimator.base import CertifiedClassifier, check_l1_ratio
from jaxsoftmax.linear_params import LinearParams
from jaxsoftmax.solvers import Solution, paths
from jaxsoftmax.solvers.limits import DEFAULT_MEMORY

if TYPE_CHECKING:
    from jaxsoftmax.sharding import Shards


class SoftmaxClassifierCV(CertifiedClassifier):
    """`SoftmaxClassifier` with C and l1_ratio chosen by cross-validation, the folds in lockstep.

    Args:
        Cs: values of C, or the number of values from 1e-4 to 1e4.
        l1_ratios: values of the share of |w|_1 in the penalty, each with a path over C.
        cv: as in scikit-learn: a number of folds, a splitter or splits. None is 5 folds, or as many
            as the rarest class has examples, but at least 2.
        scoring: as in scikit-learn; None is accuracy.
        grid_tol: the certified relative gap of the fits of the grid.
        tol: the certified relative gap of the last fit, on all examples.
        fit_intercept: whether the model has an intercept.
        class_weight: None, "balanced" or a dict.
        max_iter: limit of the outer iterations of each fit.
        shards: as in `SoftmaxClassifier`.

    Metadata are routed as by scikit-learn's LogisticRegressionCV.

    Attributes, beside those of `SoftmaxClassifier`: `C_`, `l1_ratio_`, `Cs_`, `l1_ratios_`,
    `scores_` and `path_` (the `Solution` of the grid), both with the leading axes `[folds,
    len(l1_ratios_), len(Cs_)]`, as in scikit-learn. Of equal mean scores the first C wins, then the
    first l1_ratio.

    Example:
        >>> from sklearn.datasets import load_iris
        >>> from jaxsoftmax.estimator import SoftmaxClassifierCV
        >>> x, y = load_iris(return_X_y=True)
        >>> model = SoftmaxClassifierCV(Cs=[0.1, 10.0], cv=3).fit(x, y)
        >>> print(model.C_, model.scores_.shape)
        10.0 (3, 1, 2)

    Reference:
        scikit-learn's `LogisticRegressionCV`; `solvers.solve_path` for the grid of fits.
    """

    # `score` passes its weights to the scorer, and uses none itself.
    __metadata_request__score: ClassVar = {"sample_weight": UNUSED}

    def __init__(
        self,
        *,
        Cs: int | Any = 10,
        l1_ratios: Any = (0.0,),
        cv: Any = None,
        scoring: Any = None,
        grid_tol: float = 1e-3,
        tol: float = 1e-6,
        fit_intercept: bool = True,
        class_weight: str | dict | None = None,
        max_iter: int = 1000,
        shards: "Shards | None" = None,
    ) -> None:
        self.Cs = Cs
        self.l1_ratios = l1_ratios
        self.cv = cv
        self.scoring = scoring
        self.grid_tol = grid_tol
        self.tol = tol
        self.fit_intercept = fit_intercept
        self.class_weight = class_weight
        self.max_iter = max_iter
        self.shards = shards

    def fit(self, X: Any, y: Any, sample_weight: Any | None = None, **metadata: Any) -> Self:
        """Fit every penalty on every fold, then the one with the best mean score on all examples.

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
            ValueError: as `SoftmaxClassifier.fit`; every penalty has a score of NaN in some fold
                (if only some have, a UserWarning reports that they are not chosen); metadata other
                than `groups`, if they are not routed.
            TypeError: metadata that nothing has requested, if they are routed.
        """
        sample_weight = shared.gather(sample_weight)
        to_cv, to_scorer = self._route_metadata("fit", sample_weight, metadata)
        X, targets, weights = self._validate(X, y, sample_weight)
        y = targets if self._multilabel else self.classes_[targets]
        self.Cs_ = np.logspace(-4, 4, self.Cs) if np.ndim(self.Cs) == 0 else np.asarray(self.Cs)
        self.l1_ratios_ = np.asarray(self.l1_ratios)
        cv = _default_folds(y) if self.cv is None else self.cv
        splits = list(check_cv(cv, y, classifier=True).split(X, y, **to_cv))
        self.path_ = self._solve_grid(X, targets, weights, splits)
        self.scores_ = self._score_grid(X, y, splits, to_scorer)
        l1_ratio, C = _best_penalty(self.scores_)
        self.C_, self.l1_ratio_ = float(self.Cs_[C]), float(self.l1_ratios_[l1_ratio])
        self._solve(X, targets, weights, C=self.C_, l1_ratio=self.l1_ratio_)
        return self

    def _check_settings(self) -> None:
        super()._check_settings()
        if np.ndim(self.l1_ratios) != 1 or not len(self.l1_ratios):
            raise ValueError(f"l1_ratios: expected numbers in [0, 1], got {self.l1_ratios!r}")
        for each in self.l1_ratios:
            check_l1_ratio(each, "l1_ratios")

    def _solve_grid(
        self, X: Any, targets: np.ndarray, weights: np.ndarray, splits: list
    ) -> Solution:
        """Return the solutions of every split, l1_ratio and C."""
        masks = np.zeros((len(splits), X.shape[0]), bool)
        for mask, (train, _) in zip(masks, splits, strict=True):
            mask[train] = True
        return _stack_paths([
            self._path(
                X,
                targets,
                C=self.Cs_,
                folds=masks,
                l1_ratio=float(l1_ratio),
                weights=weights,
                class_weights=self._all_classes,
                bias=self.fit_intercept,
                gap=self.grid_tol,
                max_iterations=self.max_iter,
                memory=DEFAULT_MEMORY,
            )
            for l1_ratio in self.l1_ratios_
        ])  # fmt: skip

    def _path(self, X: Any, targets: np.ndarray, **settings: Any) -> Solution:
        """Return what `solve_path` does, which for small problems on the host needs no JAX."""
        start = time.perf_counter()
        if self._is_small(X, settings, lanes=len(settings["folds"])):
            given = paths.prepare_path(X, [targets], kind=self._target_kind, several=False,
                                       **settings)  # fmt: skip
            return paths.solve_on_host(given, start, None)
        from jaxsoftmax.solvers import solve_path

        return solve_path(X, targets, loss=self._loss, shards=self.shards, **settings)

    def _score_grid(
        self, X: Any, y: np.ndarray, splits: list, to_scorer: dict[str, Any]
    ) -> np.ndarray:
        """Return the score of every fit on the held-out part of its split."""
        scores = np.empty((len(splits), len(self.l1_ratios_), len(self.Cs_)))
        w, bias = self.path_.params
        for fold, (_, held_out) in enumerate(splits):
            metadata = _check_method_params(X, to_scorer, held_out)
            for at in np.ndindex(scores.shape[1:]):
                at = (fold, *at)
                self._store(LinearParams(w[at], None if bias is None else bias[at]), None)
                part = self._take_held_out(X, held_out)
                scores[at] = self._score(part, y[held_out], metadata)
        del self.coef_, self.intercept_
        return scores

    def _take_held_out(self, X: Any, rows: np.ndarray) -> Any:
        """Return rows of X, or the current model's scores of them where devices share X."""
        if not shared.is_shared(X):
            return X[rows]
        return shared.HeldOut(shared.gather(self._linear_scores(X))[rows])

    def score(self, X: Any, y: Any, sample_weight: Any | None = None, **metadata: Any) -> float:
        """Return the score of `scoring`, by which C was also chosen.

        Args:
            X: `[n, D]`.
            y: labels `[n]`, or 0 and 1 `[n, K]`.
            sample_weight: `[n]`.
            **metadata: metadata that `scoring` has requested, if scikit-learn routes metadata.

        Returns:
            The score.

        Raises:
            NotFittedError: `fit` was not called.
            ValueError: X holds NaN or infinity, or has another number of columns.
            TypeError: metadata that nothing has requested, if they are routed.
        """
        to_scorer = self._route_metadata("score", shared.gather(sample_weight), metadata)[1]
        check_is_fitted(self)
        return self._score(X, shared.gather(y), to_scorer)

    def get_metadata_routing(self) -> MetadataRouter:
        """Return where scikit-learn sends metadata: to `fit` itself, to `cv` and to `scoring`.

        Returns:
            The router.

        Raises:
            ValueError: `scoring` is not the name of a scorer.
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


def _default_folds(y: np.ndarray) -> int:
    """Return 5, or the number of examples of the rarest class, but at least 2."""
    if y.ndim == 2:
        return 5
    return int(np.clip(np.unique(y, return_counts=True)[1].min(), 2, 5))


def _stack_paths(paths: list[Solution]) -> Solution:
    """Return paths `[len(Cs_), folds]` as one solution `[folds, paths, len(Cs_)]`."""

    def stack(arrays: Any) -> Any:
        return None if arrays[0] is None else np.moveaxis(np.stack(arrays), 2, 0)

    fields = {
        field.name: stack([getattr(path, field.name) for path in paths])
        for field in dataclasses.fields(Solution)
        if field.name != "params"
    }
    params = zip(*(path.params for path in paths), strict=True)
    return Solution(LinearParams(*map(stack, params)), **fields)


def _best_penalty(scores: np.ndarray) -> tuple[int, int]:
    """Return the indices of l1_ratio and C of greatest mean; one with NaN is not chosen."""
    means = scores.mean(0)
    unknown = np.isnan(means)
    folds = np.flatnonzero(~np.isfinite(scores[:, unknown]).all(1)).tolist()
    if unknown.all():
        raise ValueError(
            f"scoring: expected a C with a number in every fold, got NaN for each C, in folds "
            f"{folds}: a score may not be defined where a part lacks a class; give cv fewer folds "
            "or a splitter that stratifies, or another scoring"
        )
    if unknown.any():
        warnings.warn(
            f"scoring: {unknown.sum()} of {means.size} values of C have the score NaN in folds "
            f"{folds} and are not chosen",
            stacklevel=3,
        )
    C, l1_ratio = np.unravel_index(np.nanargmax(means.T), means.T.shape)
    return int(l1_ratio), int(C)


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
