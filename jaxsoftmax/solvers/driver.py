r"""The loop around the steps: precisions, certificates, and the status of each lane.

Float32 features are minimized in float32 for as long as that makes progress, then with float64
parameters and gradients, whose Newton systems are still solved in float32, and last with float64
features. Each lane ends with its own certificate; the others continue without it, in a problem of
half the width as soon as half of them have ended.

The functions are called in this order; each returns a new state, and none changes its arguments.

    minimize                    one tier of precision after another
      _enter_tier               the lanes that remain, side by side in slots
        _fill_slots
        _measure                figures on the host: value, estimate of the gap, progress
      _retire_lanes             at once, where a warm start has left nothing to do
      _begin_iterations         the sample for the first iterations
      until no lane is left, max_iterations are reached, or no lane makes progress:
        _iterate
          one of `steps`
          _measure
          _is_sample_useful     or else the sample is dropped
        _report                 for the callback
        _retire_lanes           certifies lanes whose estimate is small enough
          _certify_lanes
          _narrow               fewer slots, once half of the lanes have ended
        _sharpen                a preconditioner from the current point, once it pays
      _certify_lanes            what remains in this precision
    explain                     a sentence for each lane's status
"""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import certificate, class_preconditioner, prepare, row_shards, steps
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.limits import MAX_FORCING, MAX_IDLE_ITERATIONS, MIN_FORCING
from jaxsoftmax.solvers.outcome import Callback, Outcome, RoundedScores, SolverConfig, explain
from jaxsoftmax.solvers.problem import Problem
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner
from jaxsoftmax.solvers.solution import SolverStatus
from jaxsoftmax.solvers.sparse import Sparse
from jaxsoftmax.validation import to_host

MIN_NARROWING_SIZE = 2**25  # features x classes x lanes from which fewer slots save time
SAMPLE_DIVISOR = 4  # a quarter of the examples gives the Hessian of the first iterations
MIN_SAMPLING_DECREMENT = 1e-2  # relative to the objective: below, all examples give the Hessian
MIN_SAMPLING_DESCENT = 0.25  # of the objective, relative to the decrement: below, likewise
MAX_SCORE_ROUNDING = 1e-3  # rounding of the scores, relative to the gap, before they are recomputed


class Tier(NamedTuple):
    """The problem of all lanes in one precision."""

    original: Problem  # as it was passed
    problem: Problem  # with features in the dtype of the tier
    preconditioner: Preconditioner
    dtype: Any  # of the parameters


class Progress(NamedTuple):
    """How far each lane has come in the tier; arrays are over all lanes."""

    trust: np.ndarray  # factor of the estimate's target, below 1 where the estimate was too low
    idle: np.ndarray  # iterations without progress
    best_value: np.ndarray
    best_estimate: np.ndarray

    @classmethod
    def initial(cls, lanes: int) -> Self:
        """Return the progress before the first step."""
        infinite = np.full(lanes, np.inf)
        return cls(np.ones(lanes), np.zeros(lanes, int), infinite, infinite)


class Figures(NamedTuple):
    """The numbers on which the loop decides, on the host; arrays are `[S]`."""

    value: np.ndarray
    estimate: np.ndarray  # of the gap
    norm: np.ndarray  # of the gradient


class LaneState(NamedTuple):
    """The lanes that are open, side by side in S slots; copies fill up to a power of two."""

    outcome: Outcome  # of all lanes
    progress: Progress  # of all lanes
    slots: np.ndarray  # which lane each slot holds: [S]
    active: np.ndarray  # False for a copy and for a lane that has ended: [S]
    problem: Problem
    point: problems.Point
    gradient: Array
    rounding: float  # accumulated by the scores, see RoundedScores
    preconditioner: Preconditioner | Blocks
    figures: Figures
    first_norm: np.ndarray  # of the gradient at the first iteration, or 1 where that is 0: [S]
    stiffness: Array | None = None  # of the last proximal step: [S]
    sample: steps.Sample | None = None  # of all lanes
    spent: int = 0  # products for Newton systems since the preconditioner was built
    sharpened: int = 0  # number of times that a preconditioner was built for the current point

    @property
    def lanes(self) -> np.ndarray:
        """The lanes that are still open."""
        return self.slots[self.active]


def minimize(
    problem: Problem,
    preconditioner: Preconditioner,
    theta: np.ndarray,
    config: SolverConfig,
    *,
    scores: RoundedScores | None = None,
    callback: Callback | None = None,
) -> Outcome:
    """Minimize every lane to a certified relative gap.

    Args:
        problem: the lanes.
        preconditioner: a preconditioner for all of them.
        theta: parameters to start from.
        config: the settings.
        scores: scores of theta, which save a pass over the features if they are known.
        callback: called after each iteration with a dictionary of figures.

    Returns:
        The outcome of every lane.
    """
    outcome = Outcome.initial(theta)
    for features_dtype, dtype in _precisions(problem, config.memory):
        lanes = np.flatnonzero(outcome.open & (outcome.iterations < config.max_iterations))
        if not lanes.size:
            break
        cast = problem._replace(features=problem.features.astype(features_dtype))
        shared = jax.tree.map(lambda a, to=features_dtype: a.astype(to), preconditioner)
        tier = Tier(problem, cast, shared, dtype)
        outcome = _minimize_in_tier(config, tier, outcome, lanes, scores, callback)
        scores = None  # they belong to the start of the first tier
    return explain(config, outcome, _is_unpenalized(problem))


def _precisions(problem: Problem, memory: int) -> list[tuple[Any, Any]]:
    """Return the dtypes of features and parameters, one tier after another."""
    if problem.features.dtype == jnp.float64:
        return [(jnp.float64, jnp.float64)]
    last = [(jnp.float64, jnp.float64)] if 8 * problem.features.size <= memory else []
    return [(jnp.float32, jnp.float32), (jnp.float32, jnp.float64), *last]


def _minimize_in_tier(
    config: SolverConfig,
    tier: Tier,
    outcome: Outcome,
    lanes: np.ndarray,
    scores: RoundedScores | None,
    callback: Callback | None,
) -> Outcome:
    """Iterate on the lanes for as long as this precision makes progress, and certify them."""
    state = _enter_tier(config, tier, outcome, lanes, scores)
    if _is_ready(config, state).all():
        state = _retire_lanes(config, tier, state)
    state = _begin_iterations(config, tier, state)
    while state.lanes.size:
        state = _iterate(config, tier, state)
        if callback is not None:
            callback(_report(state))
        state = _sharpen(config, tier, _retire_lanes(config, tier, state))
        if state.outcome.iterations.max() >= config.max_iterations:
            break
        if _is_idle(state):
            if state.sample is None:
                break
            state = _drop_sample(state)
    outcome = _certify_lanes(config, tier, state, state.lanes)
    known = np.array_equal(to_host(state.point.theta), outcome.theta)
    scores = RoundedScores(state.point.scores, state.rounding) if known else None
    return outcome._replace(scores=scores)


def _enter_tier(
    config: SolverConfig,
    tier: Tier,
    outcome: Outcome,
    lanes: np.ndarray,
    scores: RoundedScores | None,
) -> LaneState:
    """Return the state of the lanes before the first iteration in a precision."""
    return _fill_slots(config, tier, outcome, Progress.initial(len(outcome.theta)), lanes, scores)


def _fill_slots(
    config: SolverConfig,
    tier: Tier,
    outcome: Outcome,
    progress: Progress,
    lanes: np.ndarray,
    scores: RoundedScores | None,
) -> LaneState:
    """Put the lanes side by side, with copies of them up to a power of two."""
    width = min(1 << (len(lanes) - 1).bit_length(), len(outcome.theta))
    slots, active = np.resize(lanes, width), np.arange(width) < len(lanes)
    problem = _take_lanes(tier.problem, slots)
    theta = row_shards.put_parameters(problem.features, outcome.theta[slots].astype(tier.dtype))
    if (
        scores is None
        or scores.values.dtype != theta.dtype
        or _is_rounding_large(config, tier, scores.rounding)
    ):
        z, rounding = None, 0.0
    else:
        z, rounding = scores
    point, gradient = steps.point_and_gradient(
        problem, config.link, theta, z, intercept=config.intercept
    )
    figures = _measure(config, problem, point, gradient, np.full(width, np.inf))
    return LaneState(
        outcome=outcome._replace(products=_add_at(outcome.products, lanes, 2 if z is None else 1)),
        progress=_update_progress(progress, slots, active, figures, tier.dtype),
        slots=slots,
        active=active,
        problem=problem,
        point=point,
        gradient=gradient,
        rounding=rounding,
        preconditioner=tier.preconditioner,
        figures=figures,
        first_norm=np.where(figures.norm > 0, figures.norm, 1),
    )


def _measure(
    config: SolverConfig,
    problem: Problem,
    point: problems.Point,
    gradient: Array,
    decrement: np.ndarray,
) -> Figures:
    """Fetch the figures of every slot; without a penalty the decrement estimates the gap."""
    l2, l1 = _penalties(problem)
    pure_l1 = bool(np.any((l2 == 0) & (l1 > 0)))
    figures = _figures(problem, config.link, point, gradient, pure_l1=pure_l1)
    value, estimate, norm = (np.asarray(figure, float) for figure in figures)
    return Figures(value, np.where(l2 + l1 > 0, estimate, decrement), norm)


def _update_progress(
    progress: Progress, slots: np.ndarray, active: np.ndarray, figures: Figures, dtype: Any
) -> Progress:
    """Note which lanes make progress: a lower value, or half of the estimated gap."""
    lanes, value, estimate = slots[active], figures.value[active], figures.estimate[active]
    best_value, best_estimate = progress.best_value[lanes], progress.best_estimate[lanes]
    rounding = 4 * float_limits(dtype).eps * np.abs(value)
    better = (value + rounding < best_value) | (estimate < 0.5 * best_estimate)
    # A NaN is replaced by the next number.
    best_value = np.where(best_value < value, best_value, value)
    best_estimate = np.where(best_estimate < estimate, best_estimate, estimate)
    return progress._replace(
        idle=_put(progress.idle, lanes, np.where(better, 0, progress.idle[lanes] + 1)),
        best_value=_put(progress.best_value, lanes, best_value),
        best_estimate=_put(progress.best_estimate, lanes, best_estimate),
    )


def _is_ready(config: SolverConfig, state: LaneState) -> np.ndarray:
    """Return which slots hold no lane that has to continue, by what is known without a product."""
    value, estimate, _ = state.figures
    target = config.gap * state.progress.trust[state.slots] * np.abs(value)
    done = (estimate <= 0.9 * target) | ~np.isfinite(value)
    return ~state.active | done | _is_separated(config, state)


def _retire_lanes(config: SolverConfig, tier: Tier, state: LaneState) -> LaneState:
    """Certify the lanes that seem done by their estimate, and continue with the others."""
    ready = state.active & _is_ready(config, state)
    if not ready.any():
        return state
    tried = state.slots[ready]
    outcome = _certify_lanes(config, tier, state, tried)
    trust = _put(state.progress.trust, tried, 0.2 * state.progress.trust[tried])
    state = state._replace(
        outcome=outcome,
        progress=state.progress._replace(trust=trust),
        active=state.active & outcome.open[state.slots],
    )
    size = tier.problem.features.size * state.point.theta.shape[1] * len(state.slots)
    if size > MIN_NARROWING_SIZE and 0 < 2 * len(state.lanes) <= len(state.slots):
        return _narrow(config, tier, state)
    return state


def _narrow(config: SolverConfig, tier: Tier, state: LaneState) -> LaneState:
    """Go on with the open lanes in fewer slots."""
    outcome = _store_theta(state)
    narrow = _fill_slots(config, tier, outcome, state.progress, state.lanes, None)
    narrow = narrow._replace(
        progress=state.progress,  # which has counted this iteration
        first_norm=np.resize(state.first_norm[state.active], len(narrow.slots)),
        sample=state.sample,
        sharpened=state.sharpened,
    )
    # Other lanes have ended: those that are left are near their end too.
    return _drop_sample_of_rows(narrow)


def _begin_iterations(config: SolverConfig, tier: Tier, state: LaneState) -> LaneState:
    """Add what iterations need beyond a certificate: a sample, and the first gradient's norm."""
    if not state.lanes.size:
        return state
    norm = state.figures.norm
    state = state._replace(
        first_norm=np.where(norm > 0, norm, 1), sample=_make_sample(config, tier, state)
    )
    if len(state.slots) < len(state.outcome.theta):
        return _drop_sample_of_rows(state)
    return state


def _make_sample(config: SolverConfig, tier: Tier, state: LaneState) -> steps.Sample | None:
    """Return a cheaper problem for the Hessian of the first iterations, if one is worth it.

    It has a quarter of the examples in float32, and float32 features in place of float64.
    """
    if not config.smooth or _is_small(tier, state):
        return None
    if tier.dtype == jnp.float32:
        return None if isinstance(tier.problem.features, Sparse) else _sample_rows(tier.problem)
    if tier.original.features.dtype == jnp.float64:
        features = tier.problem.features.astype(jnp.float32)
        return steps.Sample(tier.problem._replace(features=features), None)
    return None


def _sample_rows(problem: Problem) -> steps.Sample:
    """Return a random part of the examples, the same one each time, from every shard."""
    n = row_shards.rows_per_shard(problem.features)
    rows = jnp.asarray(np.sort(np.random.default_rng(1).permutation(n)[: n // SAMPLE_DIVISOR]))
    part = problems.take_rows(problem, rows)
    total = jnp.maximum(part.weights.sum(1, keepdims=True), 1e-30)
    return steps.Sample(part._replace(weights=part.weights / total), rows)


def _is_sample_useful(state: LaneState, figures: Figures, decrement: np.ndarray) -> bool:
    """Return whether a step by the sample's Hessian, to these figures, was good in some open lane.

    Where the sample has too few examples for its features, its Hessian lacks curvature: the
    decrement stays large, while the line search ends near the start. As in a trust-region method,
    the descent is therefore compared with the prediction.
    """
    value = state.figures.value
    far = decrement > MIN_SAMPLING_DECREMENT * np.abs(value)
    predicted = value - figures.value >= MIN_SAMPLING_DESCENT * decrement
    return bool(np.any(state.active & far & predicted))


def _drop_sample(state: LaneState) -> LaneState:
    """Return the state with the whole problem's Hessian, and a new chance for every lane."""
    idle = np.zeros_like(state.progress.idle)
    return state._replace(sample=None, progress=state.progress._replace(idle=idle))


def _drop_sample_of_rows(state: LaneState) -> LaneState:
    """Return the state without its sample, if that has fewer examples."""
    if state.sample is None or state.sample.rows is None:
        return state
    return state._replace(sample=None)


def _is_small(tier: Tier, state: LaneState) -> bool:
    """Return whether a step takes less time than to decide how to save some of it."""
    size = tier.problem.features.size * state.outcome.theta.shape[1] * len(state.lanes)
    return size <= prepare.MAX_FLOAT64_SIZE


def _iterate(config: SolverConfig, tier: Tier, state: LaneState) -> LaneState:
    """Take one step in every open lane."""
    step = _take_step(config, tier, state)
    products, decrement = int(step.products), np.asarray(step.decrement, float)
    figures = _measure(config, state.problem, step.point, step.gradient, decrement)
    if not _is_sample_useful(state, figures, decrement):
        state = _drop_sample_of_rows(state)
    outcome = state.outcome._replace(
        iterations=_add_at(state.outcome.iterations, state.lanes, 1),
        products=_add_at(state.outcome.products, state.lanes, products),
    )
    return state._replace(
        outcome=outcome,
        progress=_update_progress(state.progress, state.slots, state.active, figures, tier.dtype),
        point=step.point,
        gradient=step.gradient,
        stiffness=step.stiffness,
        rounding=state.rounding + 1,
        spent=state.spent + products,
        figures=figures,
    )


def _take_step(config: SolverConfig, tier: Tier, state: LaneState) -> steps.Step:
    """Return the step that suits the penalty."""
    shared = (
        state.problem,
        config.link,
        state.point,
        state.gradient,
        state.preconditioner,
        _tolerances(config, tier, state),
    )
    if not config.smooth:
        return steps.proximal_newton(*shared, state.stiffness, intercept=config.intercept)
    sample = state.sample
    if sample is not None:
        sample = sample._replace(problem=_take_lanes(sample.problem, state.slots))
    return steps.newton_cg(*shared, sample, intercept=config.intercept)


def _tolerances(config: SolverConfig, tier: Tier, state: LaneState) -> Array:
    """Return the residual that each Newton system may leave, `[S]`; inf for a lane that is done."""
    value, estimate, norm = state.figures
    size = np.abs(value)
    # Newton's method squares the relative distance, so the system may leave half of its root.
    distance = np.sqrt(estimate / np.maximum(size, np.finfo(float).tiny))
    forcing = np.minimum(np.sqrt(norm / state.first_norm), 0.5 * distance)
    loose = np.clip(forcing, MIN_FORCING, MAX_FORCING) * norm
    l2, trust = _penalties(state.problem)[0], state.progress.trust[state.slots]
    enough = 0.8 * np.sqrt(2 * l2 * config.gap * trust * size)
    tolerance = np.maximum(np.maximum(loose, np.minimum(enough, MAX_FORCING * norm)), 0)
    return jnp.asarray(np.where(state.active, tolerance, np.inf), tier.dtype)


def _sharpen(config: SolverConfig, tier: Tier, state: LaneState) -> LaneState:
    """Build the preconditioner of the current point, once its cost has been spent on products."""
    if not config.smooth or _is_small(tier, state) or not state.lanes.size:
        return state
    slots, classes = state.point.theta.shape[:2]
    # Each preconditioner is of use for longer than the one before, because the lanes settle.
    cost = (
        class_preconditioner.cost_in_products(state.problem, slots, classes, config.memory)
        * 2**state.sharpened
    )
    if state.spent < cost:
        return state
    variance = problems.class_variance(state.problem, config.link, state.point)
    blocks = class_preconditioner.build(state.problem, config.link, variance)
    return state._replace(
        preconditioner=state.preconditioner if blocks is None else blocks,
        spent=0,
        sharpened=state.sharpened + 1,
    )


def _is_idle(state: LaneState) -> bool:
    """Return whether no open lane makes progress."""
    return bool(np.all(state.progress.idle[state.lanes] >= MAX_IDLE_ITERATIONS))


def _is_separated(config: SolverConfig, state: LaneState) -> np.ndarray:
    """Return which slots have no penalty and classify everything: no optimum is attained."""
    unpenalized = _is_unpenalized(state.problem)
    if not unpenalized.any():
        return unpenalized
    margin = _least_margin(state.problem, config.link, state.point.scores)
    return unpenalized & np.asarray(margin > 0)


def _is_rounding_large(config: SolverConfig, tier: Tier, rounding: float) -> bool:
    """Return whether the scores may be further from those of theta than the gap allows."""
    size = rounding * float_limits(tier.dtype).eps
    return rounding > 3 and size > MAX_SCORE_ROUNDING * config.gap


def _store_theta(state: LaneState) -> Outcome:
    """Return the outcome with the current parameters of the open lanes."""
    theta = to_host(state.point.theta).astype(np.float64)[state.active]
    return state.outcome._replace(theta=_put(state.outcome.theta, state.lanes, theta))


def _certify_lanes(
    config: SolverConfig, tier: Tier, state: LaneState, lanes: np.ndarray
) -> Outcome:
    """Return the outcome with the certificates of some open lanes, and the status of those done."""
    outcome = _store_theta(state)
    if not lanes.size:
        return outcome
    chosen = [int(np.flatnonzero(state.active & (state.slots == lane))[0]) for lane in lanes]
    padded = np.resize(chosen, len(state.slots))  # so that one width is compiled
    problem = _take_lanes(tier.original, state.slots[padded])
    found = jax.tree.map(to_host, _certificate(config, tier, state, problem, padded))
    found = found._replace(**{  # without the padding
        name: getattr(found, name)[: len(lanes)] for name in found._fields if name != "products"
    })  # fmt: skip
    size = np.where(found.value == 0, 1.0, np.abs(found.value))
    with np.errstate(invalid="ignore"):  # of a value that is not finite
        gap, floor = found.gap / size, found.floor / size
    unpenalized = _is_unpenalized(problem)[: len(lanes)]
    status = np.full(len(lanes), None, object)
    status[~unpenalized & (gap <= config.gap)] = SolverStatus.CONVERGED
    small = state.figures.estimate[chosen] <= config.gap * size
    status[unpenalized & small] = SolverStatus.CONVERGED_WITHOUT_BOUND
    status[~np.isfinite(found.value)] = SolverStatus.NOT_FINITE
    status[unpenalized & _is_separated(config, state)[chosen]] = SolverStatus.SEPARABLE
    return outcome._replace(
        theta=_put(outcome.theta, lanes, found.theta),
        value=_put(outcome.value, lanes, found.value),
        gap=_put(outcome.gap, lanes, gap),
        floor=_put(outcome.floor, lanes, floor),
        gradient_norm=_put(outcome.gradient_norm, lanes, found.gradient_norm),
        products=_add_at(outcome.products, lanes, int(found.products)),
        status=_put(outcome.status, lanes, status),
    )


def _certificate(
    config: SolverConfig, tier: Tier, state: LaneState, problem: Problem, slots: np.ndarray
) -> certificate.Certificate:
    """Return the certificate of some slots, whose problem in its original precision is given."""
    point, gradient = state.point, state.gradient
    if config.dtype == "float32":
        theta = point.theta[slots]
        # Rounded parameters are certified by the predictions of those before rounding.
        trial = theta if theta.dtype == jnp.float64 else None
        return certificate.certify_rounded(
            problem, config.link, theta, trial, dtype=config.dtype, intercept=config.intercept
        )
    products = 0
    if not np.array_equal(slots, np.arange(len(state.slots))):
        point, gradient = jax.tree.map(lambda a: a[slots], (point, gradient))
    if _is_rounding_large(config, tier, state.rounding):
        point, gradient = steps.point_and_gradient(
            problem, config.link, point.theta, None, intercept=config.intercept
        )
        products = 2
    goal = jnp.asarray(config.gap * np.abs(state.figures.value[slots]))
    found = certificate.certify(
        problem, config.link, point, gradient, goal, intercept=config.intercept
    )
    return found._replace(products=found.products + products)


def _report(state: LaneState) -> dict[str, Any]:
    """Return the figures of the lanes that took the last step, without arrays of JAX.

    An array of float64 is of no use to a caller who has not enabled float64.
    """
    return {
        "iteration": int(state.outcome.iterations.max()),
        "lanes": state.lanes.tolist(),
        "objective": state.figures.value[state.active].tolist(),
        "estimate": state.figures.estimate[state.active].tolist(),
        "products": int(state.outcome.products.max()),
        "theta": to_host(state.point.theta).astype(np.float64)[state.active],
    }


def _put(array: np.ndarray, index: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a copy of the array with other values at an index."""
    copy = array.copy()
    copy[index] = values
    return copy


def _add_at(counts: np.ndarray, lanes: np.ndarray, number: int) -> np.ndarray:
    """Return counts with a number added for some lanes."""
    return _put(counts, lanes, counts[lanes] + number)


def _take_lanes(problem: Problem, lanes: np.ndarray) -> Problem:
    """Return the problem of some of the lanes."""
    if np.array_equal(lanes, np.arange(len(problem.weights))):
        return problem
    shared = len(problem.targets) == 1 and len(problem.weights) > 1
    return problem._replace(
        targets=problem.targets if shared else problem.targets[lanes],
        weights=problem.weights[lanes],
        l2=problem.l2[lanes],
        l1=problem.l1[lanes],
    )


def _penalties(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Return l2 and l1 on the host, where a few numbers are compared faster."""
    return np.asarray(problem.l2), np.asarray(problem.l1)


def _is_unpenalized(problem: Problem) -> np.ndarray:
    """Return which lanes have no penalty."""
    l2, l1 = _penalties(problem)
    return (l2 == 0) & (l1 == 0)


@jax.jit(static_argnames=("link", "pure_l1"))
def _figures(
    problem: Problem, link: problems.Link, point: problems.Point, gradient: Array, *, pure_l1: bool
) -> tuple[Array, Array, Array]:
    """Return value, estimated gap and gradient norm; only pure l1 needs the examples for it."""
    gap = certificate.estimate_gap(problem, link, point, gradient, pure_l1=pure_l1)
    g = certificate.least_subgradient(problem, point.theta, gradient)
    return point.value, gap, jnp.sqrt(jnp.sum(g**2, (1, 2)))


@jax.jit(static_argnames="link")
def _least_margin(problem: Problem, link: problems.Link, z: Array) -> Array:
    """Return the least margin of the examples with weight, `[L]`: above 0 all are classified."""
    if link == "softmax":
        t = problems.as_distributions(problem.targets, z.shape[1], z.dtype)
        target_score = jnp.max(jnp.where(t > 0.5, z, -jnp.inf), 1)
        margin = target_score - jnp.max(jnp.where(t > 0.5, -jnp.inf, z), 1)
    else:
        t = problem.targets
        margin = jnp.min(jnp.where(t > 0.5, z, -z), 1)
    # Targets between 0 and 1 are never fitted with loss 0.
    margin = jnp.where(jnp.any((t > 0) & (t < 1), 1), -jnp.inf, margin)
    return jnp.min(jnp.where(problem.weights > 0, margin, jnp.inf), -1)
