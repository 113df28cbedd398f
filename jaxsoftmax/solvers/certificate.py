r"""The certificate: a proven upper bound on an objective's distance from the optimum, in float64.

For any probabilities q_i that satisfy the optimality condition of the unpenalised intercept,

    sum_i s_i (q_i - y_i) = 0,    and    G = sum_i s_i (q_i - y_i) x_i',

Fenchel's inequality, applied to every loss and to the penalty, gives

    F(w, b) - min F <= sum_i s_i KL(q_i || p_i) + 1 / (2 l2) ||G + l2 w||^2,

and with an l1 penalty the last term becomes, over the entries of w and G,

    sum w G + l1 |w| + l2 / 2 w^2 + max(0, |G| - l1)^2 / (2 l2),

or for l2 = 0, where |G| <= l1 is needed, sum w G + l1 |w|, after q has been moved towards y as far
as it takes. y_i is the one-hot code, or the labels' 0 and 1 with KL that of each sigmoid. Every
term is non-negative and is computed without a difference of large numbers.

q is the model's own prediction at trial parameters, after a shift of the intercept by a small
Newton iteration; what remains of the condition is repaired by moving mass from the classes that
have too much to those that have too little. Nothing about the trial parameters needs to be true.

Reference: the duality of logistic regression is Jaakkola and Haussler's, "Probabilistic kernel
regression models" (1999); the rule for l1 is that of Ndiaye, Fercoq, Gramfort and Salmon, "Gap safe
screening rules for sparsity enforcing penalties" (2017).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import links
from jaxsoftmax.solvers import newton, products
from jaxsoftmax.solvers import problem as problems

SHIFTS = 12  # Newton steps of the intercept at most
SLACK = 1e-9  # of the intercept's condition, left to the repair, which moves the gap by its square
WIDE = 128  # classes: beyond, the intercept's Hessian is replaced by its diagonal


class _Shift(NamedTuple):
    shift: Array  # [L, K]
    mass: Array  # of the scores with this shift: [L, K, N]
    excess: Array  # sum_i s_i (p_i - y_i): [L, K]
    steps: Array


class Certificate(NamedTuple):
    """Of each lane: parameters with the best intercept for their weights, and what is proven."""

    theta: Array  # [L, K, D + 1], numbers of the dtype that was asked for
    value: Array  # F: [L]
    gap: Array  # bound on F - min F: [L], inf where there is none
    floor: Array  # what rounding may have added to or taken from the gap: [L]
    gradient_norm: Array  # [L], of a subgradient of least length


@jax.jit(static_argnames=("head", "intercept", "dtype"))
def certify(
    problem: problems.Problem,
    head: problems.Head,
    theta: Array,
    trial: Array | None = None,
    *,
    intercept: bool,
    dtype: str,
) -> Certificate:
    """Bound F at theta, rounded to dtype, by the predictions at the trial parameters or its own."""
    theta = theta.astype(dtype).astype(jnp.float64)
    z = problems.scores(problem, theta)
    shift = _shift(problem, head, z) if intercept else jnp.zeros(z.shape[:2])
    trial_z = z + shift[..., None]
    b = (theta[..., -1] + shift).astype(dtype).astype(jnp.float64)
    z = z + jnp.where(jnp.isfinite(b), b - theta[..., -1], 0)[..., None]
    at = problems.point(problem, head, theta.at[..., -1].set(b), z)
    if trial is not None:
        trial_z = problems.scores(problem, trial.astype(jnp.float64))
        trial_z = trial_z + (_shift(problem, head, trial_z)[..., None] if intercept else 0)
    target, log_p, log_q = _outcomes(head, problem.targets, z, trial_z)
    if intercept:
        log_q = _repaired(_weights(problem), log_q, target)
    g = problems.adjoint(problem, _residual(problem, head, log_q, target))[..., :-1]
    pull = _pull(problem, g)
    g, log_q = pull * g, _mixed(log_q, target, pull[..., None])
    gap = _divergence(_weights(problem), log_q, log_p) + _fenchel(problem, at.theta[..., :-1], g)
    slope = problems.gradient(problem, at, intercept=intercept)
    return Certificate(
        at.theta,
        at.value,
        jnp.where((problem.l2 > 0) | (problem.l1 > 0), gap, jnp.inf),
        _floor(problem, at, log_q, target, intercept),
        newton.norm(steepest(problem, at.theta, slope)),
    )


def steepest(problem: problems.Problem, theta: Array, g: Array) -> Array:
    """The subgradient of least length, from the gradient g of the smooth part."""
    w, slope, l1 = theta[..., :-1], g[..., :-1], problem.l1.astype(g.dtype)[:, None, None]
    at_zero = jnp.sign(slope) * jnp.maximum(jnp.abs(slope) - l1, 0)
    slope = jnp.where(w == 0, at_zero, slope + l1 * jnp.sign(w))
    return jnp.concatenate([slope, g[..., -1:]], -1)


def estimate(
    problem: problems.Problem, head: problems.Head, at: problems.Point, g: Array, *, pure: bool
) -> Array:
    """The gap with q = p in the working dtype and as if the intercept were optimal: `[L]`.

    It costs no product with the features, and tells when it is worth the price to certify.
    """
    dtype = g.dtype
    w, l1, l2 = at.theta[..., :-1], problem.l1.astype(dtype), problem.l2.astype(dtype)
    slope = g[..., :-1] - l2[:, None, None] * w
    penalty = problem._replace(l1=l1, l2=l2)
    if not pure:  # pure l1 somewhere: else q is p, and the divergence 0
        return _fenchel(penalty, w, slope)
    pull = _pull(problem, slope)
    target, log_p = _outcomes(head, problem.targets, at.scores)
    mixed = _mixed(log_p, target.astype(dtype), pull[..., None])
    divergence = _divergence(_weights(problem).astype(dtype), mixed, log_p)
    return divergence + _fenchel(penalty, w, pull * slope)


# Both heads as outcomes `[L, O, M, N]`: a softmax has the K classes and M = 1; K sigmoids have the
# outcomes 1 and 0 and M = K.


def _outcomes(head: problems.Head, targets: Array, *scores: Array) -> tuple[Array, ...]:
    """The targets' probabilities, and the logarithms of those of each array of scores."""
    shape = scores[0].shape
    if head == "softmax":
        hot = jnp.arange(shape[1])[None, :, None] == targets[:, None]
        target = jnp.broadcast_to(hot, shape)[:, :, None].astype(jnp.float64)
        return target, *(_log_softmax(z)[:, :, None] for z in scores)
    t = jnp.broadcast_to(targets, shape).astype(jnp.float64)
    pairs = (jnp.stack([links.log_sigmoid(z), links.log_sigmoid(-z)], 1) for z in scores)
    return jnp.stack([t, 1 - t], 1), *pairs


def _log_softmax(z: Array) -> Array:
    """To float64's rounding of z itself, of which the gap needs no more: `links` takes longer."""
    return z - jax.nn.logsumexp(z, axis=1, keepdims=True)


def _weights(problem: problems.Problem) -> Array:
    return problem.weights.astype(jnp.float64)[:, None, None]


def _residual(problem: problems.Problem, head: problems.Head, log_q: Array, target: Array) -> Array:
    """s (q - y) in the form of scores, `[L, K, N]`."""
    difference = _weights(problem) * (jnp.exp(log_q) - target)
    return difference[:, :, 0] if head == "softmax" else difference[:, 0]


def _shift(problem: problems.Problem, head: problems.Head, z: Array) -> Array:
    """What to add to the intercepts, `[L, K]`, so that sum_i s_i (p_i - y_i) is nearly 0."""
    s = problem.weights.astype(z.dtype)[:, None]
    coupled = head == "softmax" and z.shape[1] <= WIDE
    if head == "softmax":
        hot = jnp.arange(z.shape[1])[None, :, None] == problem.targets[:, None]
        shares = jnp.sum(jnp.where(hot, s, 0), -1)

    def predicted(shift: Array) -> tuple[Array, Array]:
        moved = z + shift[..., None]
        if head == "softmax":
            p = jax.nn.softmax(moved, axis=1)
            return p, jnp.sum(s * p, -1) - shares
        at = problems.point(problem, head, jnp.zeros((*z.shape[:2], 1)), moved)
        return at.mass, at.residual.sum(-1)

    def step(shift: Array, p: Array, excess: Array) -> Array:
        diagonal = jnp.sum(s * (p * (1 - p) if head == "softmax" else p), -1)
        diagonal = diagonal + jnp.finfo(z.dtype).eps
        if not coupled:  # Newton's step for each alone, halved where classes share their mass
            move = excess / diagonal * (0.5 if head == "softmax" else 1)
            return shift - jnp.clip(move, -1, 1)
        hessian = -jnp.einsum("lkn,ljn->lkj", s * p, p)
        # Equal shifts of all classes change nothing: what is added makes that direction stiff.
        ones = jnp.ones_like(hessian) * jnp.mean(diagonal, -1)[:, None, None] / z.shape[1]
        on = jnp.eye(z.shape[1], dtype=bool)
        hessian = jnp.where(on, diagonal[..., None], hessian) + ones
        move = jnp.linalg.solve(hessian, excess[..., None])[..., 0]
        return shift - jnp.clip(jnp.where(jnp.isfinite(move), move, 0), -1, 1)

    def body(state: _Shift) -> _Shift:
        shift = step(state.shift, state.mass, state.excess)
        return _Shift(shift, *predicted(shift), state.steps + 1)

    def unfinished(state: _Shift) -> Array:
        return (state.steps < SHIFTS) & jnp.any(jnp.abs(state.excess) > SLACK)

    zero = jnp.zeros(z.shape[:2], z.dtype)
    start = _Shift(zero, *predicted(zero), jnp.array(0))
    return lax.while_loop(unfinished, body, start).shift


def _repaired(s: Array, log_q: Array, target: Array) -> Array:
    """log q after mass has moved from over-full outcomes to the others, so that none is either."""
    q = jnp.exp(log_q)
    excess = jnp.sum(s * (q - target), -1, keepdims=True)  # [L, O, M, 1], of sum 0 over O
    over, under = jnp.maximum(excess, 0), jnp.maximum(-excess, 0)
    share = over / jnp.where(over > 0, jnp.sum(s * q, -1, keepdims=True), 1)
    moved = jnp.sum(share * q, 1, keepdims=True)
    total = jnp.sum(under, 1, keepdims=True)
    part = under / jnp.where(total > 0, total, 1)
    gain = moved * part
    relative = jnp.where(gain > 0, gain / jnp.where(q > 0, q, 1), 0)
    return jnp.where(
        (gain > 0) & (q == 0),
        jnp.log(moved) + jnp.log(part),
        log_q + jnp.log1p(-share) + jnp.log(1 + relative),  # beside log q, log1p gains nothing
    )


def _pull(problem: problems.Problem, g: Array) -> Array:
    """For pure l1, how far q stays from y so that no entry of G is above l1: `[L, 1, 1]`."""
    room = problem.l1.astype(g.dtype) / jnp.max(jnp.abs(g), (1, 2))
    pull = jnp.where((problem.l2 == 0) & (problem.l1 > 0), jnp.minimum(1, room), 1)
    return pull.astype(g.dtype)[:, None, None]


def _mixed(log_q: Array, target: Array, pull: Array) -> Array:
    """log of pull q + (1 - pull) y."""
    q = jnp.exp(log_q)
    return jnp.where(pull == 1, log_q, jnp.log1p((1 - pull) * (target - q) + q - 1))


def _divergence(s: Array, log_q: Array, log_p: Array) -> Array:
    """sum_i s_i KL(q_i || p_i), `[L]`: of each outcome q log(q / p) - q + p, never negative.

    With d = log q - log p that is p (d e^d - e^d + 1); its power series is used where it cancels.
    """
    p, q = jnp.exp(log_p), jnp.exp(log_q)
    d = jnp.where(q > 0, log_q - log_p, 0)
    series = 0.5 + d * (1 / 3 + d * (1 / 8 + d * (1 / 30 + d * (1 / 144 + d / 840))))
    terms = jnp.where(jnp.abs(d) < 0.01, p * d * d * series, q * d - q + p)
    terms = jnp.where(q > 0, terms, p)
    return jnp.sum(jnp.where(s == 0, 0, s * terms), (1, 2, 3))


def _fenchel(problem: problems.Problem, w: Array, g: Array) -> Array:
    """What the penalty and its conjugate leave: `[L]`, a sum of terms that are never negative."""
    l1, l2 = problem.l1[:, None, None], problem.l2[:, None, None]
    # By the sign of G: u is w where it pulls the objective down, and -|w| where it does not.
    u = jnp.where(g < 0, w, -w)
    flat = jnp.abs(w) * jnp.maximum(l1 - jnp.abs(g), 0)
    flat = flat + jnp.where(u < 0, 2 * jnp.abs(w) * jnp.minimum(jnp.abs(g), l1), 0)
    excess = jnp.maximum(jnp.abs(g) - l1, 0)
    square = (l2 * u - excess) ** 2 / (2 * jnp.where(l2 > 0, l2, 1))
    return jnp.sum(flat + jnp.where(l2 > 0, square, 0), (1, 2))


def _floor(
    problem: problems.Problem, at: problems.Point, log_q: Array, target: Array, intercept: bool
) -> Array:
    """What rounding may have done to the gap: an estimate of its size.

    The terms of G and l2 w are each right to an ulp, so that their sum is uncertain by a few ulp of
    its largest terms; what rounding leaves of the intercept's condition counts by the intercept.
    """
    eps = jnp.finfo(jnp.float64).eps
    w, b = at.theta[..., :-1], at.theta[..., -1]
    s, q = _weights(problem), jnp.exp(log_q)
    size = products.largest(problem.features).astype(jnp.float64)
    terms = jnp.sum(jnp.sum(s * jnp.abs(q - target), -1) ** 2, (1, 2)) * jnp.sum(size**2)
    terms = terms + problem.l2**2 * jnp.sum(w**2, (1, 2))
    smooth = jnp.where(problem.l2 > 0, problem.l2, 1)
    left = jnp.sum(jnp.abs(jnp.sum(s * (q - target), -1)), (1, 2))
    far = 1 + jnp.max(jnp.where(jnp.isfinite(b), jnp.abs(b), 0), 1)
    rounding = 4 * eps**2 * terms / smooth + 4 * eps * at.value
    return rounding + left * far if intercept else rounding
