"""`solve` and `solve_path`: from a user's arrays to certified solutions."""

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxsoftmax.linear import LinearParams
from jaxsoftmax.losses import cross_entropy, soft_cross_entropy
from jaxsoftmax.sharding import Shards
from jaxsoftmax.solvers import (
    arguments,
    driver,
    fits,
    host,
    paths,
    prepare,
    row_shards,
    shared_preconditioner,
    stream,
)
from jaxsoftmax.solvers.fits import make_config, make_solution, num_classes
from jaxsoftmax.solvers.limits import DEFAULT_MEMORY
from jaxsoftmax.solvers.outcome import Callback, Outcome, RoundedScores, SolverConfig
from jaxsoftmax.solvers.paths import Engine, Lanes, Stages, solve_stages
from jaxsoftmax.solvers.problem import Problem, extrapolate_scores
from jaxsoftmax.solvers.solution import Solution
from jaxsoftmax.sources import Source
from jaxsoftmax.validation import ArrayLike


def solve(
    features: ArrayLike | Source,
    targets: ArrayLike | None = None,
    *,
    loss: Callable = cross_entropy,
    C: float | None = None,
    alpha: float | None = None,
    l1_ratio: float = 0.0,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    bias: bool = True,
    init: LinearParams | None = None,
    gap: float = 1e-6,
    max_iterations: int = 1000,
    memory: int = DEFAULT_MEMORY,
    shards: Shards | None = None,
    callback: Callback | None = None,
) -> Solution:
    r"""Fit a linear classifier to a certified optimum.

    F(w, b) = sum_i s_i l(x_i w + b, y_i) / sum_i s_i
              + alpha ((1 - l1_ratio) / 2 ||w||^2 + l1_ratio |w|_1),    alpha = 1 / (C sum_i s_i)

    Args:
        features: floats `[N, D]`, or a SciPy sparse matrix, which stays sparse if at most one entry
            in a hundred is not 0, or if it does not fit into `memory` as a dense array. Or a
            `Source`, such as `training.ParquetSource`, for data larger than memory: targets and
            weights are its own, and it needs a penalty.
        targets: integer labels `[N]` for `cross_entropy`; probabilities `[N, K]` for
            `soft_cross_entropy`; numbers in [0, 1], `[N]` or `[N, K]`, for `binary_cross_entropy`.
        loss: `cross_entropy`, `soft_cross_entropy` or `binary_cross_entropy`.
        C: scikit-learn's inverse strength of the penalty; either C or alpha must be given.
        alpha: the strength in the mean form; 0 for no penalty, for which there is no bound.
        l1_ratio: the share of |w|_1 in the penalty, 0 to 1.
        weights: s, numbers of at least 0 or bools, `[N]`, or one number for all. An example of
            weight 0 is ignored whatever it holds: its label may be -100, its features NaN.
        class_weights: `[K]`, or `[2]` for one binary label: factors of s by class. A target shared
            among classes counts as one example of each of them, with weight s t_k.
        bias: whether the model has a bias, which is not penalized.
        init: parameters to start from. The number of classes is that of class_weights, or else of
            init, or else the largest label plus one.
        gap: the certified relative distance from the optimum at which the solver stops.
        max_iterations: limit of the outer iterations.
        memory: bytes for temporary arrays beside the features.
        shards: `Shards(rows=..., classes=...)`, the axes of the mesh of `jax.set_mesh`, or of that
            of the features, whose devices share the rows, and those that share the classes. Rows
            are not needed for an array that is sharded so. Of a source, processes and their devices
            share the rows.
        callback: called after each iteration, under the caller's own setting of float64, with a
            dict: iteration, products, seconds (since the call); objective and estimate (of its
            distance from the optimum), lists of one number; theta, the parameters in float64, a
            NumPy array `[1, K, D + 1]` with the intercepts last.

    Returns:
        A `Solution`: NumPy arrays of parameters in the dtype of the features, and the certificate.

    Numerics:
        Each row of probabilities must sum to 1, within 1e-3 or its dtype's rounding, and is divided
        by its sum; use weights to make a row count for more or less. Probabilities stay in memory,
        in float64 if they were passed in float64 or class_weights are given and in float32
        otherwise: 4 or 8 N K bytes beside the scores, which take as much. Dense features of up to
        2^24 / K entries, and on a CPU those of fewer than 1024 / K columns, are fitted on the host
        in float64, by NumPy and SciPy, without a compiled program, unless l1_ratio is above 0 or
        `memory` is too small; others by compiled programs, whose products run at HIGHEST precision.
        The certificate is evaluated in float64 at the params that are returned; float64 is enabled
        inside this function only.

        A device holds the features, and 24 N K bytes in an iteration in float32, 48 in float64; a
        certificate takes up to 58 N K, or 82 N K once the parameters are float64. With float32
        features 1,281,167 x 2048 and 1,000 classes these are 74 or 105 GB beside 10.

        Of a source, memory holds two blocks, three windows and up to seven samples of one. A window
        has at most `source.window` examples, and at most memory / (16 D + 64 K). Each evaluation
        reads all examples once and draws a sample of them by their curvature; a direction comes
        from the sample's Hessian and the last steps, without a pass, and the certificate takes one.
        With C up to 1 a gap of 1e-6 took 9 to 25 passes over MNIST, and two fits with C = 100 70
        and 79. Examples that fit into one window are read once and fitted in memory. With l1_ratio
        above 0 a step minimizes the sample's objective in memory, tilted to the gradient of all
        examples, for one pass, and Hessian products follow where the sample is too small: a gap of
        1e-6 took 10 to 18 passes with 50 examples a feature in the sample, and 135 with 3. With
        `shards`, the processes of the mesh share the rows of the source: each reads the blocks of
        its own, its devices share each window, and a pass sends sums of K (D + 1) numbers over the
        network at its end. The sample, of one window in all, is the same on every process. Without
        `shards`, a process reads the whole source.

        Where devices share the rows, each multiplies its own, also on several processes, which all
        call this function: a product passes K (D + 1) numbers over the network, features stay where
        they are, and every process returns the same solution. Targets and weights of all examples
        are on the host of each process.

        Where devices share the classes too, each has the parameters, directions, scores and class
        preconditioner of its own classes alone: divide N in the bytes above by the shards of the
        rows, and K by those of the classes. A Hessian product passes two floats of each row and at
        most 2 (D + 1) numbers of the preconditioner between the shards of the classes, and
        K (D + 1) numbers, divided by those shards, between the shards of the rows. A loss passes
        maxima and sums of each row. No device has all parameters or all scores of a row. A
        certificate copies the parameters to the host, from all processes to each. The number of
        classes need not be a multiple of the shards: classes of probability 0 are added. The
        intercepts of a softmax then take one step for each class, as those of more than 128 classes
        do, and not one that couples all classes. With l1_ratio above 0 each trial of a step of a
        softmax exchanges the parameters of a device once, for the median of each feature's weights
        (see `class_shift`), and D medians come back.

        On a TPU float64 is the sum of two float32, with 48 bits and the range of float32; the
        certificate allows for its rounding in `gap_floor`. A sum of float64 over the shards of the
        rows gathers their parts there, 8 K (D + 1) bytes from each, divided by the shards of the
        classes, and maxima cross in two turns of 32 bits.

    Derivatives:
        None: the search runs on the host and returns NumPy arrays.

    Raises:
        TypeError: features or targets of a wrong dtype.
        ValueError: an argument with a wrong shape or value, which the message names; a label too
            large to be a class, if neither class_weights nor init give the number of classes.
        MemoryError: sparse features whose entries alone exceed `memory`, or features that with
            their scores exceed the device's.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> x = np.array([[0.0], [1.0], [2.0], [3.0]])
        >>> found = solvers.solve(x, np.array([0, 1, 0, 1]), C=1.0)
        >>> print(found.converged, round(float(found.objective), 6), found.params.w.shape)
        True 0.62025 (1, 2)

    Reference:
        `certificate` derives the bound. The inexact Newton method is that of Dembo, Eisenstat and
        Steihaug (1982); with l1 its steps are proximal Newton steps, see `proximal`.
    """
    start = time.perf_counter()
    report = _report_to(callback, start)
    gap = arguments.prepare_gap(gap, max_iterations)
    if isinstance(features, Source):
        _check_beside_source(targets=targets, weights=weights)
        _check_source_penalty(l1_ratio, C=C, alpha=alpha)
        classes = num_classes(init)
        with _opened(features, shards, loss, class_weights, classes, memory) as found:
            data = found.sample
            penalty = arguments.prepare_penalties(found.totals, C=C, alpha=alpha, l1_ratio=l1_ratio)
            first = None if init is None else fits.pack_init(data, bias, init)[None]
            config = make_config(data, gap, l1_ratio, bias, max_iterations, memory)
            outcome = _on_source(found, report)(*penalty, first, None, config)
        return make_solution([outcome], data, (), bias, time.perf_counter() - start)
    targets = _require_targets(targets)
    features = row_shards.shard_features(features, shards)
    fit = fits.prepare_fit(
        features,  # type: ignore[arg-type]
        targets,
        kind=prepare.target_kind(loss),
        C=C,
        alpha=alpha,
        l1_ratio=l1_ratio,
        weights=weights,
        class_weights=class_weights,
        bias=bias,
        init=init,
        gap=gap,
        max_iterations=max_iterations,
        memory=memory,
    )
    data, theta, l2, l1, config = fit
    if host.suits(data.features, data.classes, smooth=config.smooth, memory=memory):
        return fits.solve_on_host(fit, start, report)
    s, t = data.weights[None], data.targets[None]
    with row_shards.computing_with(data.features):
        problem = prepare.prepare_lanes(data, s, t, l2, l1)
        pre = shared_preconditioner.build(problem.features, problem.weights[0], memory)
        outcome = driver.minimize(
            problem,
            pre,
            _pad_parameters(theta, problem),
            config,
            callback=report and functools.partial(_report_unpadded, report, theta.shape),
        )
        outcome = outcome._replace(theta=_strip_padding(outcome.theta, theta.shape))
    return make_solution([outcome], data, (), bias, time.perf_counter() - start)


def solve_path(
    features: ArrayLike | Source,
    targets: Any = None,
    *,
    C: ArrayLike,
    folds: ArrayLike | None = None,
    loss: Callable = cross_entropy,
    l1_ratio: float = 0.0,
    weights: ArrayLike | None = None,
    class_weights: ArrayLike | None = None,
    bias: bool = True,
    gap: ArrayLike = 1e-6,
    max_iterations: int = 1000,
    memory: int = DEFAULT_MEMORY,
    shards: Shards | None = None,
    callback: Callback | None = None,
) -> Solution:
    r"""Fit a whole grid: every C, fold and label set, in lockstep over the same features.

    Folds and label sets are lanes of one compiled program, which share each product with the
    features; a problem that `solve` fits on the host is fitted there, lane by lane. C goes from the
    strongest penalty to the weakest, and each stage starts from the solutions of the stages before
    it.

    Args:
        features: floats `[N, D]`, or a SciPy sparse matrix. Or a `Source`, as in `solve`, which has
            neither folds nor several label sets; it is surveyed once for all C.
        targets: as in `solve`, or a list or tuple of M label sets with the same number of classes.
        C: `[P]`, in any order.
        folds: integers `[N]`: fold f is fitted without the examples of number f, and examples of a
            negative number are in every fit. Or bools `[F, N]`: the examples of each fit. None fits
            all examples once.
        loss: as in `solve`.
        l1_ratio: the share of |w|_1 in the penalty.
        weights: as in `solve`.
        class_weights: `[K]`, or `[2]` for one binary label.
        bias: whether the model has a bias.
        gap: the certified relative distance from the optimum of every fit; `[P]` gives one for each
            C, as many digits cost little where the penalty is strong.
        max_iterations: limit of the outer iterations of each stage.
        memory: bytes for temporary arrays beside the features.
        shards: as in `solve`.
        callback: called after each stage, under the caller's own setting of float64, with a dict:
            stage, stages, C, converged (a list over the lanes), seconds.

    Returns:
        A `Solution` whose fields have the leading axes `[P, F, M]`, without F if there are no folds
        and without M if there is one label set, in the order in which C was given.

    Numerics:
        Those of `solve`, entry by entry: each certificate is evaluated at the parameters of its own
        entry, and an entry that did not reach its gap says so in `converged` and `reason` while the
        others stand. The start from other solutions changes how long a fit takes, not what is
        proven. A class that a fold's examples lack has the bias -inf in that fold. C may be
        infinite, for no penalty, and has no bound there.

    Derivatives:
        None, as `solve`: the search runs on the host and returns NumPy arrays.

    Raises:
        TypeError: as `solve`.
        ValueError: as `solve`; and if C is empty, folds do not fit the examples, or label sets
            differ in shape.
        MemoryError: as `solve`.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> x, y = np.array([[0.0], [1.0], [2.0], [3.0]]), np.array([0, 1, 0, 1])
        >>> path = solvers.solve_path(x, y, C=[0.1, 1.0], folds=[0, 0, 1, 1])
        >>> print(path.params.w.shape, path.converged.all())
        (2, 2, 1, 2) True

    Reference:
        Friedman, Hastie and Tibshirani, "Regularization paths for generalized linear models via
        coordinate descent" (2010), for warm starts from the strongest penalty to the weakest.
    """
    start = time.perf_counter()
    report = _report_to(callback, start)
    if isinstance(features, Source):
        C, gaps = paths.prepare_grid(C, gap, max_iterations)
        _check_beside_source(targets=targets, weights=weights, folds=folds)
        _check_source_penalty(l1_ratio, C=C, alpha=None)
        with _opened(features, shards, loss, class_weights, None, memory) as opened:
            data, engine = opened.sample, _on_source(opened)
            configs = [make_config(data, g, l1_ratio, bias, max_iterations, memory) for g in gaps]
            penalties = paths.prepare_penalties(opened.totals, C, l1_ratio)
            outcomes = solve_stages(engine, None, Stages(C, penalties, configs), report)
        return make_solution(outcomes, data, (len(C),), bias, time.perf_counter() - start)
    targets = _require_targets(targets)
    features = row_shards.shard_features(features, shards)
    several = _is_label_sets(targets, loss)
    path = paths.prepare_path(
        features,  # type: ignore[arg-type]
        targets if several else [targets],
        kind=prepare.target_kind(loss),
        several=several,
        C=C,
        folds=folds,
        l1_ratio=l1_ratio,
        weights=weights,
        class_weights=class_weights,
        bias=bias,
        gap=gap,
        max_iterations=max_iterations,
        memory=memory,
    )
    data, lanes, theta, stages = path
    smooth = stages.configs[0].smooth
    if host.suits(data.features, data.classes, smooth=smooth, memory=memory, lanes=len(theta)):
        return paths.solve_on_host(path, start, report)
    extrapolate = functools.partial(_extrapolate_scores, data.features)
    engine = _on_device(data, lanes, memory)
    outcomes = solve_stages(engine, theta, stages, report, extrapolate)
    return paths.make_solution(path, outcomes, start)


def _require_targets(targets: Any) -> Any:
    """Return the targets, which only a source has of its own."""
    if targets is None:
        raise ValueError("targets: expected an array beside features that are one, got None")
    return targets


def _check_beside_source(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise ValueError(f"{name}: expected None beside a source, got {type(value).__name__}")


def _check_source_penalty(l1_ratio: float, *, C: Any, alpha: float | None) -> None:
    """Check the penalty before a source is read."""
    for c in [C] if np.ndim(C) == 0 else C:
        arguments.prepare_penalties(np.ones(1), C=c, alpha=alpha, l1_ratio=l1_ratio)
    if alpha == 0:
        raise ValueError(
            "alpha: expected a number above 0 for a source, got 0; arrays that fit into memory "
            "take every penalty"
        )


@contextmanager
def _opened(
    source: Source,
    shards: Shards | None,
    loss: Callable,
    class_weights: ArrayLike | None,
    classes: int | None,
    memory: int,
) -> Iterator[stream.Stream]:
    """Survey a source, and compute as one of the processes that share it."""
    processes = stream.find_processes(shards)
    with processes.computing():
        yield stream.open_stream(
            source,
            loss=loss,
            class_weights=class_weights,
            classes=classes,
            memory=memory,
            processes=processes,
        )


def _on_source(found: stream.Stream, report: Callback | None = None) -> Engine:
    """Return the engine for sources, which has one lane."""

    def minimize(
        l2: np.ndarray, l1: np.ndarray, theta: np.ndarray | None, _scores: Any, config: SolverConfig
    ) -> Outcome:
        return stream.minimize(found, theta, l2.item(), l1.item(), config, callback=report)

    return minimize


def _on_device(data: prepare.Data, lanes: Lanes, memory: int) -> Engine:
    """Return the compiled engine, which takes all lanes in lockstep."""
    with row_shards.computing_with(data.features):
        zeros = np.zeros(len(lanes.weights))
        problem = prepare.prepare_lanes(data, lanes.weights, lanes.targets, zeros, zeros)
        mean_weights = jnp.mean(problem.weights, 0)
        pre = shared_preconditioner.build(problem.features, mean_weights, memory)

    def minimize(
        l2: np.ndarray,
        l1: np.ndarray,
        theta: np.ndarray,
        scores: RoundedScores | None,
        config: SolverConfig,
    ) -> Outcome:
        with row_shards.computing_with(data.features):
            penalized = problem._replace(l2=jnp.asarray(l2), l1=jnp.asarray(l1))
            padded = _pad_parameters(theta, problem)
            outcome = driver.minimize(penalized, pre, padded, config, scores=scores)
        return outcome._replace(theta=_strip_padding(outcome.theta, theta.shape))

    return minimize


def _extrapolate_scores(features: Any, first: Any, second: Any, reach: float) -> Any:
    """Return `problems.extrapolate_scores`, computed where the features are."""
    with row_shards.computing_with(features):
        return extrapolate_scores(first, second, reach)


def _report_to(callback: Callback | None, start: float) -> Callback | None:
    """Return a callback that adds the seconds since `start` to its figures.

    It runs under the caller's own setting of float64 and mesh, which are the current ones.
    """
    if callback is None:
        return None
    float64_enabled = jnp.result_type(float) == jnp.float64
    mesh = jax.sharding.get_mesh()

    def report(figures: dict[str, Any]) -> object:
        with jax.enable_x64(float64_enabled), jax.set_mesh(mesh):
            return callback(figures | {"seconds": time.perf_counter() - start})

    return report


def _report_unpadded(report: Callback, shape: tuple[int, ...], figures: dict[str, Any]) -> object:
    """Report the figures with the parameters of the user's classes and columns alone."""
    return report(figures | {"theta": _strip_padding(figures["theta"], shape)})


def _is_label_sets(targets: Any, loss: Callable) -> bool:
    """Return whether the targets are a list of label sets, rather than one set as a list."""
    row_axes = 1 if loss is soft_cross_entropy else 0
    return isinstance(targets, list | tuple) and np.ndim([*targets, 0][0]) > row_axes


def _pad_parameters(theta: np.ndarray, problem: Problem) -> np.ndarray:
    """Return parameters with zeros for the problem's columns of padding, and absent classes.

    A class that is there for the shards alone has the intercept of one without examples.
    """
    _, classes, width = theta.shape
    extra = row_shards.padded_classes(problem.features, classes) - classes
    theta = np.insert(theta, [width - 1] * (problem.features.shape[1] - width + 1), 0, -1)
    theta = np.pad(theta, ((0, 0), (0, extra), (0, 0)))
    theta[:, classes:, -1] = -np.inf
    return theta


def _strip_padding(theta: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the parameters without the classes and columns of padding."""
    _, classes, width = shape
    return np.delete(theta[:, :classes], np.s_[width - 1 : -1], -1)
