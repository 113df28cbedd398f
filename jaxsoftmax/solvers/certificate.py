r"""The certificate: a proven upper bound on an objective's distance from the optimum, in float64.

For any probabilities q_i that satisfy the optimality condition of the unpenalised intercept,

    sum_i s_i (q_i - y_i) = 0,    and    G = sum_i s_i (q_i - y_i) x_i',

Fenchel's inequality, applied to every loss and to the penalty, gives

    F(w, b) - min F <= sum_i s_i KL(q_i || p_i) + 1 / (2 l2) ||G + l2 w||^2,

and with an l1 penalty the last term becomes, over the entries of w and G,

    sum w G + l1 |w| + l2 / 2 w^2 + max(0, |G| - l1)^2 / (2 l2),

or for l2 = 0, where |G| <= l1 is needed, sum w G + l1 |w|, after q has been moved towards y as far
as it takes. y_i is the one-hot code, any distribution that is the target in its place, or the
labels' 0 and 1 with KL that of each sigmoid: the conjugate of log sum exp(z) - y z at q - y is
sum q log q, whatever y is. Every term is non-negative and is computed without a difference of large
numbers.

q is the model's own prediction at trial parameters, whose intercepts a few steps of Newton's method
have made nearly optimal. The next step would be beta, with H beta = -sum_i s_i (p_i - y_i); instead

    q_ik = p_ik (1 + beta_k - sum_j p_ij beta_j)

which meets the condition exactly and is as near to p as the square of beta is small. Any part of
the examples can do so for all: near the optimum, where little is to be corrected, a quarter of them
is enough, and the certificate costs a quarter of a pass over the features. What remains, with very
many classes and where Newton's method fails, is repaired by moving mass from the classes that have
too much to those that have too little. Nothing about the trial parameters needs to be true.

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
from jaxsoftmax.solvers import newton
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.sparse import Sparse

SHIFTS = 12  # Newton steps of the intercept at most
NEAR = 1e-12  # its Newton decrement, relative to the objective, that is left to the correction
SLACK = 1e-9  # of the intercept's condition, left to the repair, which moves the gap by more
EXACT = 64  # eps: of the intercept's condition, left to rounding and its floor
WIDE = 128  # classes: beyond, the intercept's Hessian is replaced by its diagonal
BLOCK, PART = 32, 8  # of each 32 examples, 8 are first asked to meet the intercept's condition
LEAST = 4096  # examples: fewer are not worth another program


class _Centre(NamedTuple):
    point: problems.Point
    move: Array  # Newton's next step of the intercepts: [L, K]
    far: Array  # whether it is worth being made: [L]
    steps: Array | int


class Certificate(NamedTuple):
    """Of each lane: parameters with the best intercept for their weights, and what is proven."""

    theta: Array  # [L, K, D + 1], numbers of the dtype that was asked for
    value: Array  # F: [L]
    gap: Array  # bound on F - min F: [L], inf where there is none
    floor: Array  # what rounding may have added to or taken from the gap: [L]
    gradient_norm: Array  # [L], of a subgradient of least length
    products: Array | int  # passes over all the features


def certify(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    goal: Array,
    *,
    intercept: bool,
) -> Certificate:
    """Bound F at a float64 point with gradient g by its own predictions: a product or two, or none.

    The intercepts are made better where they take more than a tenth of the goal, a gap `[L]`. This
    is rare, and so what it takes is a program of its own, compiled where it is needed.
    """
    smooth = np.all((np.asarray(problem.l1) == 0) & (np.asarray(problem.l2) > 0))
    spent = 0
    if smooth and (not intercept or _coupled(head, at)):
        for rows in _correctors(problem, intercept):
            found, near = _by_itself(problem, head, at, g, goal, rows, intercept=intercept)
            spent += int(found.products)
            if near and (rows is None or np.all(found.gap <= goal)):
                return found._replace(products=spent)
    found = _better(problem, head, at, g, goal, intercept=intercept)
    return found._replace(products=spent + int(found.products))


def _correctors(problem: problems.Problem, intercept: bool) -> list[np.ndarray | None]:
    """Which examples are asked to meet the intercept's condition, in turn; None for all."""
    n = problem.weights.shape[1]
    if not intercept or n < LEAST or isinstance(problem.features, Sparse):
        return [None]
    return [np.flatnonzero(np.arange(n) % BLOCK < PART), None]


@jax.jit(static_argnames=("head", "intercept"))
def _by_itself(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    goal: Array,
    rows: Array | None,
    *,
    intercept: bool,
) -> tuple[Certificate, Array]:
    """The bound from p's gradient g, for an l2 penalty, and whether better intercepts are no use.

    The examples `rows` get q = p (1 + e), e_ik = beta_k - sum_j p_ij beta_j. The divergence is at
    most the sum of s p e^2 = beta' H beta = -beta' sum_i s_i (p_i - y_i), where H is theirs, and
    with |e| <= r <= 1/2 at most 1 / 2 + r / 4 of it.
    """
    used, sound = jnp.zeros_like(at.value), jnp.array(True)
    slope = g[..., :-1]
    if intercept:
        part, mass = _of(problem, head, at, rows)
        excess = g[..., -1]
        beta = _intercept_step(part, head, mass, excess)
        move = problems.curvature(part, head, mass, jnp.broadcast_to(beta[..., None], mass.shape))
        change = problems.adjoint(part, move)
        slope = slope + change[..., :-1]
        if head == "softmax":
            reach = jnp.max(beta, -1) - jnp.min(beta, -1)
            sound = jnp.all(move >= -part.weights.astype(mass.dtype)[:, None] * mass)
        else:
            reach = jnp.max(jnp.abs(beta), -1)
            sound = jnp.all(reach <= 1)
        # Where these examples are certain of a class, nothing of it is theirs to move.
        met = jnp.abs(change[..., -1] + excess) <= EXACT * jnp.finfo(excess.dtype).eps
        sound = sound & jnp.all(met)
        used = jnp.where(reach <= 0.5, 0.5 + 0.25 * reach, 1) * -jnp.sum(beta * excess, -1)
    gap = used + newton.norm(slope) ** 2 / (2 * problem.l2)
    size = jnp.abs(at.residual).sum(-1)
    left = jnp.finfo(size.dtype).eps * size.sum(-1)
    floor = _floor(problem, at, jnp.sum(size**2, -1), left)
    spent = int(intercept and rows is None)
    no_use = sound & jnp.all((gap <= goal) | (used <= 0.1 * goal))
    return _certificate(problem, at, g, gap, floor, spent), no_use


def _of(
    problem: problems.Problem, head: problems.Head, at: problems.Point, rows: Array | None
) -> tuple[problems.Problem, Array]:
    """The problem and the mass of some examples, or of all."""
    if rows is None:
        return problem, problems.mass(problem, head, at)
    assert not isinstance(problem.features, Sparse)  # whose rows are not at hand
    part = problem._replace(
        features=problem.features[rows],
        targets=problem.targets[..., rows],
        weights=problem.weights[:, rows],
    )
    return part, problems.mass(part, head, at._replace(residual=at.residual[..., rows]))


@jax.jit(static_argnames=("head", "intercept"))
def _better(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    g: Array,
    goal: Array,
    *,
    intercept: bool,
) -> Certificate:
    """The bound after Newton's steps of the intercepts, for any penalty."""
    if not intercept:
        return _certificate(problem, at, g, *_judged(problem, head, at, at, None), 1)
    near, beta = _centred(problem, head, at, 0.1 * goal)
    g = problems.gradient(problem, near, intercept=True)
    return _certificate(problem, near, g, *_judged(problem, head, near, near, beta), 2)


@jax.jit(static_argnames=("head", "intercept", "dtype"))
def certify_rounded(
    problem: problems.Problem,
    head: problems.Head,
    theta: Array,
    trial: Array | None,
    *,
    intercept: bool,
    dtype: str,
) -> Certificate:
    """Bound F at theta, rounded to dtype, by the predictions at the trial parameters or its own."""

    def centred(theta: Array) -> tuple[problems.Point, Array | None]:
        theta = theta.astype(jnp.float64)
        at = problems.point(problem, head, theta, problems.scores(problem, theta))
        return _centred(problem, head, at, NEAR * jnp.abs(at.value)) if intercept else (at, None)

    by, beta = centred(theta.astype(dtype))
    at = _with_intercept(problem, head, by, by.theta[..., -1].astype(dtype))
    if trial is not None:
        by, beta = centred(trial)
    g = problems.gradient(problem, at, intercept=intercept)
    spent = 3 if trial is None else 4
    return _certificate(problem, at, g, *_judged(problem, head, at, by, beta), spent)


def _certificate(
    problem: problems.Problem, at: problems.Point, g: Array, gap: Array, floor: Array, spent: int
) -> Certificate:
    norm = newton.norm(steepest(problem, at.theta, g))
    gap = jnp.where((problem.l2 > 0) | (problem.l1 > 0), gap, jnp.inf)
    return Certificate(at.theta, at.value, gap, floor, norm, spent)


def _judged(
    problem: problems.Problem,
    head: problems.Head,
    at: problems.Point,
    by: problems.Point,
    beta: Array | None,
) -> tuple[Array, Array]:
    """The bound and its floor by the predictions of a point whose intercepts would move by beta."""
    target, log_p, log_q = _outcomes(head, problem.targets, at.scores, by.scores)
    if beta is not None:
        log_q = _balanced(_weights(problem), log_q, target, _of_outcomes(head, beta))
    g = problems.adjoint(problem, _residual(problem, head, log_q, target))[..., :-1]
    pull = _pull(problem, g)
    g, log_q = pull * g, _mixed(log_q, target, pull[..., None])
    gap = _divergence(_weights(problem), log_q, log_p) + _fenchel(problem, at.theta[..., :-1], g)
    off = _weights(problem) * (jnp.exp(log_q) - target)
    left = jnp.zeros_like(gap) if beta is None else jnp.sum(jnp.abs(jnp.sum(off, -1)), (1, 2))
    return gap, _floor(problem, at, jnp.sum(jnp.sum(jnp.abs(off), -1) ** 2, (1, 2)), left)


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
        target = jnp.broadcast_to(problems.expected(targets, shape[1], jnp.float64), shape)
        return target[:, :, None], *(_log_softmax(z)[:, :, None] for z in scores)
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


def _centred(
    problem: problems.Problem, head: problems.Head, at: problems.Point, enough: Array
) -> tuple[problems.Point, Array]:
    """The point after Newton's steps of its intercepts, and the next one, worth at most enough."""

    def measured(point: problems.Point, steps: Array | int) -> _Centre:
        excess = point.residual.sum(-1)
        move = _intercept_step(problem, head, problems.mass(problem, head, point), excess)
        far = -jnp.sum(move * excess, -1) > enough
        if not _coupled(head, at):  # the step is not Newton's, and what remains is repaired
            far = jnp.any(jnp.abs(excess) > SLACK, -1)
        return _Centre(point, move, far, steps)

    def body(last: _Centre) -> _Centre:
        b = last.point.theta[..., -1] + jnp.clip(last.move, -1, 1)
        return measured(_with_intercept(problem, head, last.point, b), last.steps + 1)

    def unfinished(last: _Centre) -> Array:
        return (last.steps < SHIFTS) & jnp.any(last.far)

    end = lax.while_loop(unfinished, body, measured(at, jnp.array(0)))
    return end.point, end.move


def _with_intercept(
    problem: problems.Problem, head: problems.Head, at: problems.Point, b: Array
) -> problems.Point:
    """The point with other intercepts, `[L, K]`; -inf stays."""
    b, old = b.astype(at.scores.dtype), at.theta[..., -1]
    z = at.scores + jnp.where(jnp.isfinite(b), b - old, 0)[..., None]
    return problems.point(problem, head, at.theta.at[..., -1].set(b), z)


def _coupled(head: problems.Head, at: problems.Point) -> bool:
    """Whether the intercept's Hessian is worth solving; that of sigmoids is diagonal."""
    return head == "sigmoid" or at.scores.shape[1] <= WIDE


def _intercept_step(
    problem: problems.Problem, head: problems.Head, p: Array, excess: Array
) -> Array:
    """Newton's step of the intercepts, `[L, K]`, or one that is safe where it is too expensive."""
    s = problem.weights.astype(p.dtype)[:, None]
    eps = jnp.finfo(p.dtype).eps
    if head == "sigmoid":
        return -excess / (jnp.sum(s * p, -1) + eps)
    if p.shape[1] > WIDE:  # halved, because the classes share their mass
        return -0.5 * excess / (jnp.sum(s * p * (1 - p), -1) + eps)
    shared = jnp.einsum("lkn,ljn->lkj", s * p, p)
    on = jnp.eye(p.shape[1], dtype=bool)
    # The Hessian's rows have the sum 0, and this sum is without cancellation.
    diagonal = jnp.sum(jnp.where(on, 0, shared), -1) + eps
    # Equal shifts of all classes change nothing: what is added makes that direction stiff.
    stiff = jnp.mean(diagonal, -1)[:, None, None] / p.shape[1]
    hessian = jnp.where(on, diagonal[..., None], -shared) + stiff
    move = jnp.linalg.solve(hessian, -excess[..., None])[..., 0]
    return jnp.where(jnp.isfinite(move), move, 0)


def _of_outcomes(head: problems.Head, move: Array) -> Array:
    """Steps of the intercepts as those of the outcomes, `[L, O, M, 1]`."""
    if head == "softmax":
        return move[:, :, None, None]
    return jnp.stack([move, jnp.zeros_like(move)], 1)[..., None]


def _balanced(s: Array, log_q: Array, target: Array, beta: Array) -> Array:
    """log q with sum_i s_i (q_i - y_i) = 0, near q: what the step beta does to first order."""
    q = jnp.exp(log_q)
    tilt = beta - jnp.sum(q * beta, 1, keepdims=True)
    # Half of everything may go: more, where Newton's method has not come near, is no probability.
    most = jnp.max(jnp.abs(tilt), (1, 3), keepdims=True)
    log_q = log_q + jnp.log1p(tilt * jnp.minimum(1, 0.5 / jnp.where(most > 0, most, 1)))
    excess = jnp.sum(s * (jnp.exp(log_q) - target), -1, keepdims=True)
    left = jnp.any(jnp.abs(excess) > EXACT * jnp.finfo(q.dtype).eps)
    return lax.cond(left, lambda: _repaired(s, log_q, target), lambda: log_q)


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


def _floor(problem: problems.Problem, at: problems.Point, squares: Array, left: Array) -> Array:
    """What rounding may have done to the gap: an estimate of its size.

    The terms of G and l2 w are each right to an ulp, so that their sum is uncertain by a few ulp of
    its largest terms, whose squares come without the features'; what rounding leaves of the
    intercept's condition counts by the intercept.
    """
    eps = jnp.finfo(jnp.float64).eps
    w, b = at.theta[..., :-1], at.theta[..., -1]
    terms = squares * jnp.sum(problem.largest**2)
    terms = terms + problem.l2**2 * jnp.sum(w**2, (1, 2))
    smooth = jnp.where(problem.l2 > 0, problem.l2, 1)
    far = 1 + jnp.max(jnp.where(jnp.isfinite(b), jnp.abs(b), 0), 1)
    return 4 * eps**2 * terms / smooth + 4 * eps * at.value + left * far
