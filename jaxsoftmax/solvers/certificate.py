r"""The certificate: a proven upper bound on an objective's distance from the optimum, in float64.

For any probabilities q_i that satisfy the optimality condition of the unpenalized intercept,

    sum_i s_i (q_i - y_i) = 0,    and    G = sum_i s_i (q_i - y_i) x_i',

Fenchel's inequality, applied to every loss and to the penalty, gives

    F(w, b) - min F <= sum_i s_i KL(q_i || p_i) + 1 / (2 l2) ||G + l2 w||^2,

and with an l1 penalty the last term becomes, over the entries of w and G,

    sum w G + l1 |w| + l2 / 2 w^2 + max(0, |G| - l1)^2 / (2 l2),

or for l2 = 0, where |G| <= l1 is needed, sum w G + l1 |w|, after q has been moved as far towards y
as this requires. y_i is the one-hot code of the label, or the distribution that is the target, or
the 0 and 1 of each label, for which KL is that of each sigmoid: the conjugate of log sum exp(z) -
y z at q - y is sum q log q, whatever y is. Every term is non-negative and is computed without a
difference of large numbers.

q is the model's own prediction at trial parameters, whose intercepts a few steps of Newton's method
have made nearly optimal. The next step would be beta, with H beta = -sum_i s_i (p_i - y_i); instead

    q_ik = p_ik (1 + beta_k - sum_j p_ij beta_j)

satisfies the condition exactly, and is as near to p as the square of beta is small. Any subset of
the examples can make this correction for all: near the optimum, where the correction is small, a
quarter of them is enough, and the certificate costs a quarter of a pass over the features. The rest
of the condition, which remains with very many classes and where Newton's method fails, is met by
moving probability from the classes that have too much to those that have too little. The bound does
not depend on any property of the trial parameters.

Reference: the duality of logistic regression is Jaakkola and Haussler's, "Probabilistic kernel
regression models" (1999); the rule for l1 is that of Ndiaye, Fercoq, Gramfort and Salmon, "Gap safe
screening rules for sparsity enforcing penalties" (2017).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import links
from jaxsoftmax.exponential import float_limits
from jaxsoftmax.solvers import newton, row_shards
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.limits import MAX_INTERCEPT_DECREMENT, MAX_INTERCEPT_STEPS, MAX_ROUNDING
from jaxsoftmax.solvers.sparse import Sparse

# The violation of the intercept's condition that is left to moving probability, which costs more.
MAX_CONDITION_VIOLATION = 1e-9
MAX_COUPLED_CLASSES = 128  # above, the intercept's Hessian is replaced by its diagonal
# Of each 32 examples, the first 8 are asked to meet the intercept's condition first.
SUBSET_PERIOD, SUBSET_ROWS = 32, 8
MIN_SUBSET_EXAMPLES = 4096  # with fewer examples a subset is not worth another program


class Certificate(NamedTuple):
    """Parameters of each lane with the best intercept for their weights, and what is proven."""

    theta: Array  # [L, K, D + 1], rounded to the dtype that was asked for
    value: Array  # F: [L]
    gap: Array  # bound on F - min F: [L], inf where there is none
    floor: Array  # by how much rounding may have changed the gap: [L]
    gradient_norm: Array  # [L], of a subgradient of least length
    products: Array | int  # passes over all the features


class _Bound(NamedTuple):
    gap: Array  # [L]
    floor: Array  # [L]


class _Correction(NamedTuple):
    """The correction of some examples' q that meets the intercept's condition for all examples."""

    change: Array  # of G and of the intercept's condition: [L, K, D + 1]
    divergence: Array  # a bound on sum_i s_i KL(q_i || p_i): [L]
    valid: Array  # whether q are probabilities that meet the condition: one bool


class _CenteringState(NamedTuple):
    point: problems.Point
    move: Array  # Newton's next step of the intercepts: [L, K]
    unfinished: Array  # whether the lane needs that step: [L]
    steps: Array | int


def certify(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    goal: Array,
    *,
    intercept: bool,
) -> Certificate:
    """Bound F at a float64 point by its own predictions, in at most a few products.

    The intercepts are improved only where their error takes more than a tenth of the goal, a gap
    `[L]`. This is rare, so it is a separate program, which is compiled where it is needed.
    """
    smooth = np.all((np.asarray(problem.l1) == 0) & (np.asarray(problem.l2) > 0))
    spent = 0
    if smooth and (not intercept or _solves_intercept_exactly(problem, link, point.scores)):
        for rows in _row_subsets(problem, intercept):
            found, sufficient = _certify_without_centering(
                problem, link, point, gradient, goal, rows, intercept=intercept
            )
            spent += int(found.products)
            if sufficient and (rows is None or np.all(found.gap <= goal)):
                return found._replace(products=spent)
    found = _certify_with_centering(problem, link, point, gradient, goal, intercept=intercept)
    return found._replace(products=spent + int(found.products))


def _row_subsets(problem: problems.Problem, intercept: bool) -> list[np.ndarray | None]:
    """Return the examples to meet the intercept's condition with, in turn; None for all."""
    n = problem.weights.shape[1]
    if not intercept or n < MIN_SUBSET_EXAMPLES or isinstance(problem.features, Sparse):
        return [None]
    positions = np.arange(row_shards.rows_per_shard(problem.features))
    return [np.flatnonzero(positions % SUBSET_PERIOD < SUBSET_ROWS), None]


@jax.jit(static_argnames=("link", "intercept"))
def _certify_without_centering(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    goal: Array,
    rows: Array | None,
    *,
    intercept: bool,
) -> tuple[Certificate, Array]:
    """Return the bound from the point's gradient, for an l2 penalty, and whether it is sufficient.

    It is sufficient where better intercepts would not help: the gap is at most the goal, or the
    correction of the examples `rows` takes at most a tenth of the goal.
    """
    if intercept:
        correction = _correct_rows(problem, link, point, gradient[..., -1], rows)
        slope = gradient[..., :-1] + correction.change[..., :-1]
        divergence, valid = correction.divergence, correction.valid
    else:
        slope, divergence, valid = gradient[..., :-1], jnp.zeros_like(point.value), jnp.array(True)
    gap = divergence + newton.norm(slope) ** 2 / (2 * problem.l2)
    size = jnp.abs(point.residual).sum(-1)
    rounding = float_limits(size.dtype).eps * size.sum(-1)
    floor = rounding_floor(problem, point, jnp.sum(size**2, -1), rounding)
    spent = int(intercept and rows is None)
    enough = jnp.all((gap <= goal) | (divergence <= 0.1 * goal))
    found = _make_certificate(problem, point, gradient, _Bound(gap, floor), spent)
    return found, valid & enough


def _correct_rows(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    excess: Array,
    rows: Array | None,
) -> _Correction:
    """Correct q = p of the examples `rows` by q = p (1 + e), e_ik = beta_k - sum_j p_ij beta_j.

    The divergence is at most the sum of s p e^2 = beta' H beta = -beta' sum_i s_i (p_i - y_i),
    where H is the Hessian of these examples, and with |e| <= r <= 1/2 at most 1 / 2 + r / 4 of it.
    """
    part, variance = _restrict_to_rows(problem, link, point, rows)
    beta = _intercept_step(part, link, variance, excess)
    move = problems.scores_hessian_product(
        part, link, variance, jnp.broadcast_to(beta[..., None], variance.shape)
    )
    change = problems.linear_scores_adjoint(part, move)
    if link == "softmax":
        largest = jnp.max(beta, -1) - jnp.min(beta, -1)
        valid = jnp.all(move >= -part.weights.astype(variance.dtype)[:, None] * variance)
    else:
        largest = jnp.max(jnp.abs(beta), -1)
        valid = jnp.all(largest <= 1)
    # Examples that are certain of a class have no probability to move to or from it.
    met = jnp.abs(change[..., -1] + excess) <= MAX_ROUNDING * float_limits(excess.dtype).eps
    factor = jnp.where(largest <= 0.5, 0.5 + 0.25 * largest, 1)
    return _Correction(change, factor * -jnp.sum(beta * excess, -1), valid & jnp.all(met))


def _restrict_to_rows(
    problem: problems.Problem, link: problems.Link, point: problems.Point, rows: Array | None
) -> tuple[problems.Problem, Array]:
    """Return the problem and the class variance of some examples, or of all."""
    if rows is None:
        return problem, problems.class_variance(problem, link, point)
    part = problems.take_rows(problem, rows)
    residual = row_shards.take_columns(problem.features, point.residual, rows)
    point = point._replace(residual=residual)
    return part, problems.class_variance(part, link, point)


@jax.jit(static_argnames=("link", "intercept"))
def _certify_with_centering(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    goal: Array,
    *,
    intercept: bool,
) -> Certificate:
    """Return the bound after Newton's steps of the intercepts, for any penalty."""
    if not intercept:
        bound = _bound(problem, link, point, point, None)
        return _make_certificate(problem, point, gradient, bound, 1)
    centered, beta = _center_intercepts(problem, link, point, 0.1 * goal)
    gradient = problems.gradient(problem, centered, intercept=True)
    bound = _bound(problem, link, centered, centered, beta)
    return _make_certificate(problem, centered, gradient, bound, 2)


@jax.jit(static_argnames=("link", "intercept", "dtype"))
def certify_rounded(
    problem: problems.Problem,
    link: problems.Link,
    theta: Array,
    trial: Array | None,
    *,
    intercept: bool,
    dtype: str,
) -> Certificate:
    """Bound F at theta rounded to dtype, by the predictions at the trial parameters or its own."""

    def center(theta: Array) -> tuple[problems.Point, Array | None]:
        theta = theta.astype(jnp.float64)
        scores = problems.linear_scores(problem, theta)
        point = problems.point_from_scores(problem, link, theta, scores)
        if not intercept:
            return point, None
        enough = MAX_INTERCEPT_DECREMENT * jnp.abs(point.value)
        return _center_intercepts(problem, link, point, enough)

    predictor, beta = center(theta.astype(dtype))
    point = _with_intercept(problem, link, predictor, predictor.theta[..., -1].astype(dtype))
    if trial is not None:
        predictor, beta = center(trial)
    gradient = problems.gradient(problem, point, intercept=intercept)
    bound = _bound(problem, link, point, predictor, beta)
    return _make_certificate(problem, point, gradient, bound, 3 if trial is None else 4)


def _make_certificate(
    problem: problems.Problem, point: problems.Point, gradient: Array, bound: _Bound, spent: int
) -> Certificate:
    norm = newton.norm(least_subgradient(problem, point.theta, gradient))
    gap = jnp.where((problem.l2 > 0) | (problem.l1 > 0), bound.gap, jnp.inf)
    return Certificate(point.theta, point.value, gap, bound.floor, norm, spent)


def _bound(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    predictor: problems.Point,
    beta: Array | None,
) -> _Bound:
    """Bound F at a point by the predictions q of another one, the predictor.

    `beta` is Newton's next step of the predictor's intercepts, None without intercepts.
    """
    target, log_p, log_q = outcome_probabilities(
        link, problem.targets, point.scores, predictor.scores
    )
    s = outcome_weights(problem)
    if beta is not None:
        log_q = _meet_intercept_condition(s, log_q, target, outcome_steps(link, beta))
    residual = outcome_residual(problem, link, log_q, target)
    g = problems.linear_scores_adjoint(problem, residual)[..., :-1]
    scaling = dual_scaling(problem, g)
    g, log_q = scaling * g, log_mixture(log_q, target, scaling[..., None])
    gap = weighted_divergence(s, log_q, log_p) + penalty_gap(problem, point.theta[..., :-1], g)
    difference = s * (jnp.exp(log_q) - target)
    if beta is None:
        violation = jnp.zeros_like(gap)
    else:
        violation = jnp.sum(jnp.abs(jnp.sum(difference, -1)), (1, 2))
    squares = jnp.sum(jnp.sum(jnp.abs(difference), -1) ** 2, (1, 2))
    return _Bound(gap, rounding_floor(problem, point, squares, violation))


def least_subgradient(problem: problems.Problem, theta: Array, gradient: Array) -> Array:
    """Return the subgradient of F of least length, from the gradient of the smooth part."""
    w, g, l1 = theta[..., :-1], gradient[..., :-1], problem.l1.astype(gradient.dtype)[:, None, None]
    at_zero = jnp.sign(g) * jnp.maximum(jnp.abs(g) - l1, 0)
    g = jnp.where(w == 0, at_zero, g + l1 * jnp.sign(w))
    return jnp.concatenate([g, gradient[..., -1:]], -1)


def estimate_gap(
    problem: problems.Problem,
    link: problems.Link,
    point: problems.Point,
    gradient: Array,
    *,
    pure_l1: bool,
) -> Array:
    """Return the gap with q = p in the working dtype and as if the intercept were optimal, `[L]`.

    It costs no product with the features, and indicates when a certificate is worth its cost.
    `pure_l1` is whether some lane has an l1 penalty and no l2.
    """
    dtype = gradient.dtype
    w, l1, l2 = point.theta[..., :-1], problem.l1.astype(dtype), problem.l2.astype(dtype)
    g = gradient[..., :-1] - l2[:, None, None] * w
    penalty = problem._replace(l1=l1, l2=l2)
    if not pure_l1:  # q is p, and the divergence is 0
        return penalty_gap(penalty, w, g)
    scaling = dual_scaling(problem, g)
    target, log_p = outcome_probabilities(link, problem.targets, point.scores)
    log_q = log_mixture(log_p, target.astype(dtype), scaling[..., None])
    divergence = weighted_divergence(outcome_weights(problem).astype(dtype), log_q, log_p)
    return divergence + penalty_gap(penalty, w, scaling * g)


# Both links as outcomes `[L, O, M, N]`: a softmax has the K classes as outcomes and M = 1; K
# sigmoids have the outcomes 1 and 0 and M = K.


def outcome_probabilities(link: problems.Link, targets: Array, *scores: Array) -> tuple[Array, ...]:
    """Return the targets' probabilities, and the log-probabilities of each array of scores."""
    shape = scores[0].shape
    if link == "softmax":
        t = problems.as_distributions(targets, shape[1], jnp.float64)
        target = jnp.broadcast_to(t, shape)
        return target[:, :, None], *(_log_softmax(z)[:, :, None] for z in scores)
    t = jnp.broadcast_to(targets, shape).astype(jnp.float64)
    pairs = (jnp.stack([links.log_sigmoid(z), links.log_sigmoid(-z)], 1) for z in scores)
    return jnp.stack([t, 1 - t], 1), *pairs


def _log_softmax(z: Array) -> Array:
    """Return the log-softmax to float64's rounding of z, enough for the gap; `links` is slower."""
    return z - jax.nn.logsumexp(z, axis=1, keepdims=True)


def outcome_weights(problem: problems.Problem) -> Array:
    """Return s in float64, with axes for the outcomes, `[L, 1, 1, N]`."""
    return problem.weights.astype(jnp.float64)[:, None, None]


def outcome_residual(
    problem: problems.Problem, link: problems.Link, log_q: Array, target: Array
) -> Array:
    """Return s (q - y) in the shape of scores, `[L, K, N]`."""
    difference = outcome_weights(problem) * (jnp.exp(log_q) - target)
    return difference[:, :, 0] if link == "softmax" else difference[:, 0]


def outcome_steps(link: problems.Link, move: Array) -> Array:
    """Return steps of the intercepts as steps of the outcomes, `[L, O, M, 1]`."""
    if link == "softmax":
        return move[:, :, None, None]
    return jnp.stack([move, jnp.zeros_like(move)], 1)[..., None]


def _center_intercepts(
    problem: problems.Problem, link: problems.Link, point: problems.Point, enough: Array
) -> tuple[problems.Point, Array]:
    """Return the point after Newton's steps of its intercepts, and the step that would be next.

    The next step would lower F by at most `enough`, `[L]`, unless MAX_INTERCEPT_STEPS end it.
    """

    def assess(point: problems.Point, steps: Array | int) -> _CenteringState:
        excess = point.residual.sum(-1)
        variance = problems.class_variance(problem, link, point)
        move = _intercept_step(problem, link, variance, excess)
        if _solves_intercept_exactly(problem, link, variance):
            unfinished = -jnp.sum(move * excess, -1) > enough
        else:  # the step is not Newton's, and the rest is met by moving probability
            unfinished = jnp.any(jnp.abs(excess) > MAX_CONDITION_VIOLATION, -1)
        return _CenteringState(point, move, unfinished, steps)

    def body(state: _CenteringState) -> _CenteringState:
        b = state.point.theta[..., -1] + jnp.clip(state.move, -1, 1)
        return assess(_with_intercept(problem, link, state.point, b), state.steps + 1)

    def unfinished(state: _CenteringState) -> Array:
        return (state.steps < MAX_INTERCEPT_STEPS) & jnp.any(state.unfinished)

    last = lax.while_loop(unfinished, body, assess(point, jnp.array(0)))
    return last.point, last.move


def _with_intercept(
    problem: problems.Problem, link: problems.Link, point: problems.Point, b: Array
) -> problems.Point:
    """Return the point with other intercepts, `[L, K]`; -inf stays -inf."""
    b, old = b.astype(point.scores.dtype), point.theta[..., -1]
    z = point.scores + jnp.where(jnp.isfinite(b), b - old, 0)[..., None]
    return problems.point_from_scores(problem, link, point.theta.at[..., -1].set(b), z)


def _solves_intercept_exactly(problem: problems.Problem, link: problems.Link, z: Array) -> bool:
    """Return whether the intercept's step is Newton's, for scores `[L, K, N]`.

    The Hessian of sigmoids is diagonal. That of a softmax is K x K, from all classes of each row.
    """
    coupled = z.shape[1] <= MAX_COUPLED_CLASSES and row_shards.class_count(problem.features) == 1
    return link == "sigmoid" or coupled


def _intercept_step(
    problem: problems.Problem, link: problems.Link, class_variance: Array, excess: Array
) -> Array:
    """Return Newton's step of the intercepts, `[L, K]`, or a safe one where it is too expensive."""
    p = class_variance
    s = problem.weights.astype(p.dtype)[:, None]
    eps = float_limits(p.dtype).eps
    if link == "sigmoid":
        return -excess / (jnp.sum(s * p, -1) + eps)
    # Halved, because the classes share their probability.
    if not _solves_intercept_exactly(problem, link, p):
        return -0.5 * excess / (jnp.sum(s * p * (1 - p), -1) + eps)
    return coupled_step(shared_probability(s, p), excess)


def shared_probability(s: Array, p: Array) -> Array:
    """Return sum_i s_i p_ik p_ij, `[L, K, K]`: what couples the intercepts of a softmax."""
    return jnp.einsum("lkn,ljn->lkj", s * p, p)


def coupled_step(shared: Array, excess: Array) -> Array:
    """Return Newton's step of a softmax's intercepts, `[L, K]`."""
    classes, eps = shared.shape[-1], float_limits(shared.dtype).eps
    on_diagonal = jnp.eye(classes, dtype=bool)
    # The Hessian's rows sum to 0, and this sum of the others is without cancellation.
    diagonal = jnp.sum(jnp.where(on_diagonal, 0, shared), -1) + eps
    # Equal shifts of all classes change nothing: the added constant makes that direction stiff.
    stiffness = jnp.mean(diagonal, -1)[:, None, None] / classes
    hessian = jnp.where(on_diagonal, diagonal[..., None], -shared) + stiffness
    step = jnp.linalg.solve(hessian, -excess[..., None])[..., 0]
    return jnp.where(jnp.isfinite(step), step, 0)


def _meet_intercept_condition(s: Array, log_q: Array, target: Array, beta: Array) -> Array:
    """Return log q with sum_i s_i (q_i - y_i) = 0, near q: the first-order effect of the step."""
    q = jnp.exp(log_q)
    tilt = beta - jnp.sum(q * beta, 1, keepdims=True)
    # Where Newton's method is still far, a longer step than half would not leave probabilities.
    largest = jnp.max(jnp.abs(tilt), (1, 3), keepdims=True)
    log_q = log_q + jnp.log1p(tilt * jnp.minimum(1, 0.5 / jnp.where(largest > 0, largest, 1)))
    excess = jnp.sum(s * (jnp.exp(log_q) - target), -1, keepdims=True)
    violated = jnp.any(jnp.abs(excess) > MAX_ROUNDING * float_limits(q.dtype).eps)
    return lax.cond(violated, lambda: _move_excess(s, log_q, target), lambda: log_q)


def _move_excess(s: Array, log_q: Array, target: Array) -> Array:
    """Return log q after probability has moved from outcomes with too much of it to the others.

    No outcome then has too much or too little.
    """
    q = jnp.exp(log_q)
    excess = jnp.sum(s * (q - target), -1, keepdims=True)  # [L, O, M, 1], of sum 0 over O
    over, under = jnp.maximum(excess, 0), jnp.maximum(-excess, 0)
    loss_share = over / jnp.where(over > 0, jnp.sum(s * q, -1, keepdims=True), 1)
    moved = jnp.sum(loss_share * q, 1, keepdims=True)
    total = jnp.sum(under, 1, keepdims=True)
    gain_share = under / jnp.where(total > 0, total, 1)
    gain = moved * gain_share
    relative = jnp.where(gain > 0, gain / jnp.where(q > 0, q, 1), 0)
    return jnp.where(
        (gain > 0) & (q == 0),
        jnp.log(moved) + jnp.log(gain_share),
        # Beside log q, log1p of the relative gain would not be more accurate.
        log_q + jnp.log1p(-loss_share) + jnp.log(1 + relative),
    )


def dual_scaling(problem: problems.Problem, g: Array) -> Array:
    """Return, for l1 without l2, the factor that brings every entry of G to at most l1.

    q then becomes the mixture of q, with this share, and y, `[L, 1, 1]`.
    """
    room = problem.l1.astype(g.dtype) / jnp.max(jnp.abs(g), (1, 2))
    scaling = jnp.where((problem.l2 == 0) & (problem.l1 > 0), jnp.minimum(1, room), 1)
    return scaling.astype(g.dtype)[:, None, None]


def log_mixture(log_q: Array, target: Array, share: Array) -> Array:
    """Return the logarithm of share q + (1 - share) y."""
    q = jnp.exp(log_q)
    return jnp.where(share == 1, log_q, jnp.log1p((1 - share) * (target - q) + q - 1))


def weighted_divergence(s: Array, log_q: Array, log_p: Array) -> Array:
    """Return sum_i s_i KL(q_i || p_i), `[L]`.

    Each outcome's term is q log(q / p) - q + p, which is never negative. With d = log q - log p
    it is p (d e^d - e^d + 1); its power series is used where this cancels.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    d = jnp.where(q > 0, log_q - log_p, 0)
    series = 0.5 + d * (1 / 3 + d * (1 / 8 + d * (1 / 30 + d * (1 / 144 + d / 840))))
    terms = jnp.where(jnp.abs(d) < 0.01, p * d * d * series, q * d - q + p)
    terms = jnp.where(q > 0, terms, p)
    return jnp.sum(jnp.where(s == 0, 0, s * terms), (1, 2, 3))


def penalty_gap(problem: problems.Problem, w: Array, g: Array) -> Array:
    """Return Fenchel's gap of the penalty, `[L]`: a sum of terms that are never negative."""
    l1, l2 = problem.l1[:, None, None], problem.l2[:, None, None]
    # u = -sign(G) w is |w| where w has the sign that lowers the objective, and -|w| elsewhere.
    u = jnp.where(g < 0, w, -w)
    linear = jnp.abs(w) * jnp.maximum(l1 - jnp.abs(g), 0)
    linear = linear + jnp.where(u < 0, 2 * jnp.abs(w) * jnp.minimum(jnp.abs(g), l1), 0)
    excess = jnp.maximum(jnp.abs(g) - l1, 0)
    square = (l2 * u - excess) ** 2 / (2 * jnp.where(l2 > 0, l2, 1))
    return jnp.sum(linear + jnp.where(l2 > 0, square, 0), (1, 2))


def rounding_floor(
    problem: problems.Problem, point: problems.Point, squares: Array, violation: Array
) -> Array:
    """Return an estimate of the size of what rounding may have done to the gap, `[L]`.

    The terms of G and l2 w are each right to an ulp, so that their sum is uncertain by a few ulp of
    its largest terms. `squares` are the squares of these terms without the features' part. The
    violation of the intercept's condition that rounding leaves is multiplied by the intercept.
    """
    eps = float_limits(jnp.float64).eps
    w, b = point.theta[..., :-1], point.theta[..., -1]
    terms = squares * jnp.sum(problem.column_max_abs**2)
    terms = terms + problem.l2**2 * jnp.sum(w**2, (1, 2))
    l2 = jnp.where(problem.l2 > 0, problem.l2, 1)
    intercept_size = 1 + jnp.max(jnp.where(jnp.isfinite(b), jnp.abs(b), 0), 1)
    return 4 * eps**2 * terms / l2 + 4 * eps * point.value + violation * intercept_size
