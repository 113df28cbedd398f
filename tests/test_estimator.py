"""The estimators after scikit-learn's rules, and their certificate."""

import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import scipy.special
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris, make_classification, make_multilabel_classification
from sklearn.exceptions import (
    ConvergenceWarning,
    DataConversionWarning,
    NotFittedError,
    UnsetMetadataPassedError,
)
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import get_scorer, log_loss, roc_auc_score
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, StratifiedKFold, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, label_binarize
from sklearn.utils.estimator_checks import check_estimator

from jaxsoftmax.estimator import SoftmaxClassifier, SoftmaxClassifierCV

pytestmark = pytest.mark.usefixtures("unoptimized")


@pytest.fixture(scope="module")
def iris() -> tuple[np.ndarray, np.ndarray]:
    return load_iris(return_X_y=True)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the checks provoke what they then catch
@pytest.mark.parametrize("estimator", [SoftmaxClassifier, SoftmaxClassifierCV])
def test_all_of_scikit_learns_checks(estimator: type) -> None:
    results = check_estimator(estimator(), on_fail=None, on_skip=None)
    failed = [(r["check_name"], repr(r["exception"])) for r in results if r["status"] == "failed"]
    assert not failed
    assert sum(r["status"] == "passed" for r in results) >= 60


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_the_objective_is_scikit_learns(iris: Any, classes: int, class_weight: Any) -> None:
    x, y = iris
    x, y = x[y < classes], y[y < classes]
    s = np.random.default_rng(0).random(len(y))
    ours = SoftmaxClassifier(C=0.5, tol=1e-11, class_weight=class_weight).fit(x, y, s)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=10_000, class_weight=class_weight)
    theirs.fit(x, y, s)
    assert ours.coef_.shape == theirs.coef_.shape
    np.testing.assert_allclose(ours.predict_proba(x), theirs.predict_proba(x), atol=1e-5, rtol=0)
    assert ours.gap_ <= 1e-11


def test_the_rarest_class_limits_the_folds(iris: Any) -> None:
    x, y = iris
    for rarest, folds in ((1, 2), (3, 3), (9, 5)):
        kept = np.r_[:100, 100 : 100 + rarest]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a class with fewer examples than folds
            model = SoftmaxClassifierCV(Cs=[1.0]).fit(x[kept], y[kept])
        assert model.scores_.shape == (folds, 1, 1)


def test_predictions_agree_with_each_other(iris: Any) -> None:
    x, y = iris
    names = np.array(["setosa", "versicolor", "virginica"])[y]
    model = SoftmaxClassifier().fit(x, names)
    p = model.predict_proba(x)
    assert np.array_equal(model.classes_[p.argmax(1)], model.predict(x))
    np.testing.assert_allclose(np.log(p), model.predict_log_proba(x), rtol=1e-9)
    np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    assert model.score(x, names) > 0.95


def test_sparse_input_is_dense_input(iris: Any) -> None:
    x, y = iris
    x = np.where(x > 2, x, 0)
    dense, sparse = (
        SoftmaxClassifier().fit(x, y),
        SoftmaxClassifier().fit(scipy.sparse.csr_array(x), y),
    )
    np.testing.assert_array_equal(dense.coef_, sparse.coef_)
    np.testing.assert_allclose(
        dense.predict_proba(x), sparse.predict_proba(scipy.sparse.csr_array(x)), rtol=1e-12
    )


def test_sparse_coefficients_predict_as_dense_ones_and_warm_start(iris: Any) -> None:
    x, y = iris
    model = SoftmaxClassifier(C=0.1, l1_ratio=1.0, warm_start=True).fit(x, y)
    scores, iterations = model.decision_function(x), model.solution_.iterations
    model.sparsify()
    assert scipy.sparse.issparse(model.coef_)
    assert model.coef_.nnz < 12
    np.testing.assert_allclose(model.decision_function(x), scores, rtol=1e-12)
    np.testing.assert_allclose(
        model.decision_function(scipy.sparse.csr_array(x)), scores, rtol=1e-12
    )
    assert model.fit(x, y).solution_.iterations < iterations


def test_multi_label_targets() -> None:
    x, y = make_multilabel_classification(n_samples=120, n_classes=3, random_state=0)
    model = SoftmaxClassifier().fit(x, y)
    p = model.predict_proba(x)
    assert p.shape == (120, 3)
    assert np.array_equal(model.predict(x), (p > 0.5).astype(int))
    alone = SoftmaxClassifier(tol=1e-9).fit(x, y[:, 1])
    np.testing.assert_allclose(p[:, 1], alone.predict_proba(x)[:, 1], atol=1e-3, rtol=0)
    with pytest.raises(ValueError, match="multiclass-multioutput"):
        SoftmaxClassifier().fit(x, y + np.arange(3))
    with pytest.warns(DataConversionWarning):
        column = SoftmaxClassifier().fit(x, y[:, :1])
    assert column.predict(x).shape == (120,)


@pytest.mark.parametrize("gone", [[1], [0, 3], [1, 2, 3]])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_class_without_weight_has_finite_scores_and_no_probability(
    gone: list[int], dtype: type
) -> None:
    x, y = make_classification(200, n_classes=4, n_informative=5, random_state=0)
    s = ~np.isin(y, gone)
    model = SoftmaxClassifier().fit(x.astype(dtype), y, s.astype(float))
    scores = model.decision_function(x.astype(dtype))
    assert scores.dtype == dtype
    assert np.isfinite(scores).all()
    assert not scipy.special.softmax(scores, 1)[:, gone].any()
    alone = [model.decision_function(x[i : i + 1].astype(dtype)) for i in range(5)]
    np.testing.assert_allclose(scores[:5], np.concatenate(alone), rtol=1e-5)
    p, log_p = model.predict_proba(x.astype(dtype)), model.predict_log_proba(x.astype(dtype))
    assert not p[:, gone].any()
    assert np.isneginf(log_p[:, gone]).all()
    kept = np.setdiff1d(range(4), gone)
    np.testing.assert_allclose(p[:, kept], scipy.special.softmax(scores[:, kept], 1), rtol=1e-5)
    assert np.isin(model.predict(x), kept).all()
    auc = roc_auc_score(label_binarize(y, classes=range(4)), scores, average=None)
    assert np.isfinite(auc).all()
    if len(kept) > 1:
        assert auc[kept].min() > 0.6


@pytest.mark.parametrize("classes", [2, 4])
def test_a_class_without_weight_can_be_calibrated(classes: int) -> None:
    x, y = make_classification(200, n_classes=classes, n_informative=5, random_state=0)
    s = (y != 1).astype(float)
    calibrated = CalibratedClassifierCV(SoftmaxClassifier(tol=1e-3), cv=2).fit(x, y, s)
    p = calibrated.predict_proba(x)
    assert np.isfinite(p).all()
    assert p[:, 1].max() < 0.1
    assert not (calibrated.predict(x) == 1).any()


def test_scores_of_an_only_class_and_of_constant_labels_are_finite(iris: Any) -> None:
    x, y = iris
    x, y = x[y < 2], y[y < 2]
    for only, sign in ((0, -1), (1, 1)):
        model = SoftmaxClassifier().fit(x, y, (y == only).astype(float))
        np.testing.assert_array_equal(model.decision_function(x), np.full(100, sign * 1000.0))
        assert (model.predict_proba(x)[:, only] == 1).all()
        np.testing.assert_array_equal(
            model.predict_log_proba(x)[:, 1 - only], np.full(100, -np.inf)
        )
    labels = np.stack([y, y < 5, y > 5], 1).astype(int)
    model = SoftmaxClassifier().fit(x, labels)
    scores = model.decision_function(x)
    assert np.isfinite(scores).all()
    assert (scores[:, 1] >= np.maximum(scores[:, 0], 0) + 1000).all()
    assert (scores[:, 2] <= np.minimum(scores[:, 0], 0) - 1000).all()
    np.testing.assert_array_equal(model.predict_proba(x)[:, 1:], np.tile([1.0, 0.0], (100, 1)))
    np.testing.assert_array_equal(model.predict(x)[:, 1:], np.tile([1, 0], (100, 1)))


def test_stand_ins_are_beyond_large_scores_too() -> None:
    x = np.array([[-2.0], [-1.0], [1.0], [2.0]], np.float32)
    y = np.array([0, 0, 1, 2])
    model = SoftmaxClassifier().fit(x, y, np.array([1.0, 1.0, 1.0, 0.0]))
    scores = model.decision_function(np.array([[1e12], [-1e12]], np.float32))
    assert not scipy.special.softmax(scores, 1)[:, 2].any()
    with pytest.raises(ValueError, match=r"X: the scores of X\[1\] overflow float32; scale"):
        SoftmaxClassifier(C=1e4).fit(x, y).predict(np.array([[0.0], [3e38]], np.float32))


def test_one_epoch_of_optax_voids_the_certificate(iris: Any) -> None:
    x, y = iris
    model = SoftmaxClassifier(learning_rate=0.05, random_state=0)
    with pytest.raises(ValueError, match="classes: expected all labels"):
        model.partial_fit(x, y)
    for _ in range(60):
        model.partial_fit(x, y, classes=[0, 1, 2])
    assert model.score(x, y) > 0.9
    assert model.solution_ is None
    assert np.isinf(model.gap_)
    model.fit(x, y)
    assert model.gap_ <= 1e-6
    before = model.coef_.copy()
    model.partial_fit(x[y < 2], y[y < 2])
    assert model.coef_.shape == before.shape
    assert 0 < np.abs(model.coef_ - before).max() < 1


def test_warm_start_clone_and_pickle(iris: Any) -> None:
    x, y = iris
    model = SoftmaxClassifier(warm_start=True, C=2.0).fit(x, y)
    first = model.solution_.iterations
    model.fit(x, y)
    assert model.solution_.iterations <= 1 < first
    assert clone(model).get_params() == model.get_params()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(x), model.predict_proba(x))
    assert again.gap_ == model.gap_


def test_in_a_pipeline_and_a_grid_search(iris: Any) -> None:
    x, y = iris
    pipeline = make_pipeline(StandardScaler(), SoftmaxClassifier(tol=1e-4))
    search = GridSearchCV(pipeline, {"softmaxclassifier__C": [1e-3, 1.0]}, cv=3).fit(x, y)
    assert search.best_params_ == {"softmaxclassifier__C": 1.0}


def test_it_says_where_the_tolerance_was_not_reached(iris: Any) -> None:
    x, y = iris
    with pytest.warns(ConvergenceWarning, match="raise max_iterations"):
        SoftmaxClassifier(max_iter=1).fit(x, y)
    with pytest.warns(ConvergenceWarning, match="separates the classes"):
        SoftmaxClassifier(C=np.inf).fit(x[y < 2], y[y < 2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"C": -1.0}, "C: expected a number above 0, got -1.0"),
        ({"tol": 0}, "tol: expected a number above 0"),
        ({"l1_ratio": 2}, r"l1_ratio: expected a number in \[0, 1\]"),
        ({"l1_ratio": None}, r"l1_ratio: expected a number in \[0, 1\], got None"),
    ],
)
def test_bad_settings_are_named(iris: Any, settings: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SoftmaxClassifier(**settings).fit(*iris)


def test_a_grid_of_folds_in_lockstep(iris: Any) -> None:
    x, y = iris
    cv = KFold(3, shuffle=True, random_state=0)
    model = SoftmaxClassifierCV(Cs=[1e-3, 1.0], cv=cv, grid_tol=1e-8).fit(x, y)
    assert model.path_.converged.all()
    for i, c in enumerate(model.Cs_):
        for j, (train, test) in enumerate(cv.split(x, y)):
            alone = SoftmaxClassifier(C=c, tol=1e-8).fit(x[train], y[train])
            assert model.scores_[j, 0, i] == alone.score(x[test], y[test])
    assert model.C_ == 1.0
    assert model.gap_ <= 1e-6
    assert not hasattr(model, "partial_fit")


def test_a_path_in_the_l1_ratio_and_c(iris: Any) -> None:
    x, y = iris
    cv = StratifiedKFold(2)
    given: dict[str, Any] = {
        "Cs": [0.03, 1.0],
        "cv": cv,
        "scoring": "neg_log_loss",
        "grid_tol": 1e-6,
    }
    model = SoftmaxClassifierCV(l1_ratios=[1.0, 0.0], **given).fit(x, y)
    assert model.path_.converged.shape == model.scores_.shape == (2, 2, 2)
    assert model.path_.converged.all()
    alone = SoftmaxClassifierCV(l1_ratios=(0.0,), **given).fit(x, y)
    np.testing.assert_array_equal(model.scores_[:, 1:], alone.scores_)
    best = np.unravel_index(model.scores_.mean(0).argmax(), (2, 2))
    assert (model.l1_ratio_, model.C_) == (model.l1_ratios_[best[0]], model.Cs_[best[1]])
    w, b = model.path_.params
    strong = np.count_nonzero(w[:, :, 0], (-2, -1))  # [folds, l1_ratios]
    assert (strong[:, 0] < strong[:, 1]).all()
    for fold, (_, test) in enumerate(cv.split(x, y)):
        p = scipy.special.softmax(x[test] @ w[fold, 0, 0] + b[fold, 0, 0], 1)
        np.testing.assert_allclose(model.scores_[fold, 0, 0], -log_loss(y[test], p), rtol=1e-12)


def test_of_equal_scores_the_first_c_wins(iris: Any) -> None:
    model = SoftmaxClassifierCV(Cs=[2.0, 1.0], l1_ratios=[0.5, 0.0], cv=2, scoring=lambda *_: 1.0)
    model.fit(*iris)
    assert (model.C_, model.l1_ratio_) == (2.0, 0.5)


@pytest.mark.parametrize("ratios", [0.5, [], [0.5, 2.0], [None]])
def test_bad_l1_ratios_are_named(iris: Any, ratios: Any) -> None:
    with pytest.raises(ValueError, match=r"l1_ratios: expected .* in \[0, 1\], got"):
        SoftmaxClassifierCV(l1_ratios=ratios).fit(*iris)


# -- The start, and callbacks --


def test_no_iterations_leave_the_start(iris: Any) -> None:
    x, y = iris
    with pytest.warns(ConvergenceWarning, match="max_iter is 0") as caught:
        model = SoftmaxClassifier(max_iter=0).fit(x, y)
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(model.predict_proba(x), np.full((150, 3), 1 / 3))
    assert (model.n_iter_.tolist(), model.solution_, model.gap_) == ([0], None, np.inf)
    model.set_params(max_iter=1000, warm_start=True).fit(x, y)
    fitted = model.coef_.copy()
    with pytest.warns(ConvergenceWarning, match="max_iter is 0"):
        model.set_params(max_iter=0).fit(x, y)
    np.testing.assert_array_equal(model.coef_, fitted)
    with pytest.raises(ValueError, match="max_iter: expected a number of at least 0, got -1"):
        SoftmaxClassifier(max_iter=-1).fit(x, y)
    with pytest.raises(ValueError, match="max_iter: expected a number above 0, got 0"):
        SoftmaxClassifierCV(max_iter=0).fit(x, y)


class Recorder:
    """A callback of scikit-learn that keeps what it is told."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, Any]] = []

    def setup(self, estimator: Any, context: Any) -> None:
        self.seen.append(("setup", context.task_name, None))

    def on_fit_task_begin(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None
    ) -> None:
        self.seen.append(("begin", context.task_name, fitted_estimator))

    def on_fit_task_end(
        self, estimator: Any, context: Any, *, fitted_estimator: Any = None
    ) -> None:
        self.seen.append(("end", context.task_name, fitted_estimator))

    def teardown(self, estimator: Any, context: Any) -> None:
        self.seen.append(("teardown", context.task_name, None))


def test_callbacks_see_a_fitted_estimator_after_each_iteration(iris: Any) -> None:
    x, y = iris
    recorder = Recorder()
    model = SoftmaxClassifier(fit_intercept=False).set_callbacks(recorder).fit(x, y)
    steps = [each for each in recorder.seen if each[1] == "iteration"]
    count = int(model.n_iter_[0])
    assert [each[0] for each in steps] == ["begin", "end"] * (count + 1)
    assert [each[0] for each in recorder.seen[:2]] == ["setup", "begin"]
    assert [each[0] for each in recorder.seen[-2:]] == ["end", "teardown"]
    np.testing.assert_array_equal(steps[0][2].predict_proba(x), np.full((150, 3), 1 / 3))
    losses = [log_loss(y, each[2].predict_proba(x)) for each in steps[1:-1:2]]
    assert len(losses) == count
    assert np.argmax(losses) == 0
    np.testing.assert_allclose(steps[-3][2].coef_, model.coef_, rtol=1e-12)
    assert steps[-1][2] is None
    assert not hasattr(clone(model.set_callbacks()).fit(x, y), "_skl_callbacks")


@pytest.mark.parametrize("classes", [2, 3])
def test_callbacks_see_what_a_fit_of_as_many_iterations_returns(iris: Any, classes: int) -> None:
    x, y = iris
    x, y = x[y < classes], y[y < classes]
    recorder = Recorder()
    model = SoftmaxClassifier().set_callbacks(recorder).fit(x, y)
    ends = [each[2] for each in recorder.seen if each[:2] == ("end", "iteration")][:-1]
    assert len(ends) == model.n_iter_[0] > 2
    for count, seen in enumerate(ends, 1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            alone = SoftmaxClassifier(max_iter=count).fit(x, y)
        np.testing.assert_array_equal(seen.coef_, alone.coef_)
        np.testing.assert_array_equal(seen.intercept_, alone.intercept_)


def test_callbacks_are_torn_down_after_an_error(iris: Any) -> None:
    x, y = iris
    recorder = Recorder()
    with pytest.raises(ValueError, match="C: expected"):
        SoftmaxClassifier(C=-1.0).set_callbacks(recorder).fit(x, y)
    assert recorder.seen[-1][0] == "teardown"


def test_sample_weights_choose_with_the_weights(iris: Any) -> None:
    x, y = iris
    s = (y != 2).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SoftmaxClassifierCV(Cs=3, cv=2, scoring="neg_log_loss").fit(x, y, s + 0.5)
    assert model.scores_.shape == (2, 1, 3)
    assert (model.scores_ < 0).all()


def test_a_weight_counts_in_the_held_out_part_too(iris: Any) -> None:
    x, y = iris
    s = np.random.default_rng(0).integers(1, 4, len(y))
    fold = np.arange(len(y)) % 2
    # The same splits of copies: each example's copies lie together.
    weighted = SoftmaxClassifierCV(Cs=[0.01, 1.0], cv=_splits(fold), scoring="neg_log_loss")
    copies = clone(weighted).set_params(cv=_splits(np.repeat(fold, s)))
    weighted.fit(x, y, s)
    copies.fit(np.repeat(x, s, 0), np.repeat(y, s))
    # Both are within grid_tol of one optimum; unweighted scores differ by 6e-3 and more.
    np.testing.assert_allclose(weighted.scores_, copies.scores_, rtol=2e-3)


def _splits(fold: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]


def test_score_is_what_c_was_chosen_by(iris: Any) -> None:
    x, y = iris
    model = SoftmaxClassifierCV(Cs=[0.1, 1.0], cv=3, scoring="neg_log_loss").fit(x, y)
    expected = -log_loss(y, model.predict_proba(x))
    assert model.score(x, y) == expected


def weakest_is_nan(model: SoftmaxClassifier, x: Any, y: Any) -> float:
    """Worse by the length of the coefficients, and NaN where they are long."""
    size = np.abs(model.coef_).sum()
    return np.nan if size > 9 else -size


def test_nan_never_wins(iris: Any) -> None:
    model = SoftmaxClassifierCV(Cs=[0.1, 1e-3, 10.0], cv=3, scoring=weakest_is_nan)
    with pytest.warns(
        UserWarning, match=r"1 of 3 values of C have the score NaN in folds \[0, 1, 2"
    ):
        model.fit(*iris)
    assert np.isnan(model.scores_[..., 2]).all()
    assert model.C_ == 1e-3


@pytest.mark.filterwarnings("ignore:Only one class is present")
def test_where_every_c_is_nan_the_folds_are_named(iris: Any) -> None:
    x, y = iris
    x, y = x[y < 2], y[y < 2]
    fold = np.r_[0, 0, np.arange(98) % 2 + 1]  # the first holds one class out
    model = SoftmaxClassifierCV(Cs=[0.1, 1.0], cv=_splits(fold), scoring="roc_auc")
    with pytest.raises(ValueError, match=r"scoring: .* NaN for each C, in folds \[0\]: .* cv"):
        model.fit(x, y)
    assert np.isfinite(model.scores_[1:]).all()
    for method, arguments in ((model.predict, (x,)), (model.score, (x, y))):
        with pytest.raises(NotFittedError):
            method(*arguments)


def test_folds_need_not_hold_every_class(iris: Any) -> None:
    x, y = iris
    model = SoftmaxClassifierCV(Cs=[0.1], cv=KFold(3), scoring="neg_log_loss").fit(x, y)
    assert (model.scores_ < 0).all()


# -- Metadata --


@pytest.fixture
def routing() -> Iterator[None]:
    with config_context(enable_metadata_routing=True):
        yield


def weighed(scoring: str) -> Any:
    return get_scorer(scoring).set_score_request(sample_weight=True)


@pytest.mark.parametrize("routed", [False, True])
def test_groups_go_to_the_splitter(iris: Any, routed: bool) -> None:
    x, y = iris
    groups = np.arange(len(y)) % 7
    splits = list(GroupKFold(3).split(x, y, groups))
    expected = SoftmaxClassifierCV(Cs=2, cv=splits).fit(x, y)
    with config_context(enable_metadata_routing=routed):
        model = SoftmaxClassifierCV(Cs=2, cv=GroupKFold(3)).fit(x, y, groups=groups)
        again = SoftmaxClassifierCV(Cs=2, cv=iter(splits)).fit(x, y)
    np.testing.assert_array_equal(model.scores_, expected.scores_)
    np.testing.assert_array_equal(again.scores_, expected.scores_)


def test_other_metadata_are_refused(iris: Any, routing: None) -> None:
    x, y = iris
    with pytest.raises(TypeError, match=r"unexpected argument\(s\) \{'groups'\}.* not routed"):
        SoftmaxClassifierCV(Cs=2, cv=3).fit(x, y, groups=y)
    with pytest.raises(UnsetMetadataPassedError, match=r"sample_weight.*not explicitly set"):
        SoftmaxClassifierCV(Cs=2, cv=3).fit(x, y, sample_weight=np.ones(150))
    with config_context(enable_metadata_routing=False):
        with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
            SoftmaxClassifierCV(Cs=2, cv=3).fit(x, y, size=3)
        model = SoftmaxClassifierCV(Cs=2, cv=3).fit(x, y)
        with pytest.raises(ValueError, match="only supported if enable_metadata_routing=True"):
            model.score(x, y, groups=y)


def test_weights_go_to_the_scorer_that_requests_them(iris: Any, routing: None) -> None:
    x, y = iris
    s = np.random.default_rng(0).integers(1, 9, len(y))
    models = {
        asked: SoftmaxClassifierCV(
            Cs=[0.01],
            cv=3,
            scoring=get_scorer("neg_log_loss").set_score_request(sample_weight=asked),
        ).fit(x, y, sample_weight=s)
        for asked in (False, True)
    }
    np.testing.assert_array_equal(models[False].path_.params.w, models[True].path_.params.w)
    np.testing.assert_array_equal(models[False].coef_, models[True].coef_)
    assert (models[False].scores_ != models[True].scores_).all()
    p = models[True].predict_proba(x)
    assert models[True].score(x, y, sample_weight=s) == -log_loss(y, p, sample_weight=s)
    assert models[False].score(x, y) == -log_loss(y, p)
    with pytest.raises(TypeError, match="not routed"):
        models[False].score(x, y, sample_weight=s)


def test_metadata_reach_the_estimators_inside_of_others(iris: Any, routing: None) -> None:
    x, y = iris
    groups, s = np.arange(len(y)) % 8, np.random.default_rng(0).integers(1, 9, len(y))
    scoring, given = weighed("neg_log_loss"), {"sample_weight": s, "groups": groups}
    inner = SoftmaxClassifierCV(Cs=[0.01, 1.0], cv=GroupKFold(2), scoring=scoring)
    inner.set_fit_request(sample_weight=True)
    scores = cross_validate(
        make_pipeline(StandardScaler().set_fit_request(sample_weight=False), inner),
        x, y, cv=GroupKFold(3), scoring=scoring, params=given,
    )["test_score"]  # fmt: skip
    for (train, test), score in zip(GroupKFold(3).split(x, y, groups), scores, strict=True):
        scaler = StandardScaler().fit(x[train])
        alone = clone(inner).fit(scaler.transform(x[train]), y[train], sample_weight=s[train],
                                 groups=groups[train])  # fmt: skip
        assert score == alone.score(scaler.transform(x[test]), y[test], sample_weight=s[test])
    single = SoftmaxClassifier(tol=1e-4).set_fit_request(sample_weight=True)
    search = GridSearchCV(single, {"C": [0.01, 1.0]}, cv=GroupKFold(3), scoring=scoring)
    search.fit(x, y, **given)
    own = clone(single).set_params(C=search.best_params_["C"]).fit(x, y, s)
    np.testing.assert_array_equal(search.best_estimator_.coef_, own.coef_)
