r"""A direction for each pass: the limited-memory BFGS method with a sample's Hessian.

Every pass gives the gradient at new parameters, and with the one before a pair: a step s and the
change of the gradient y, which is the Hessian times s. BFGS takes the inverse Hessian M of a
sample, which is in memory, and corrects it to map each y to its s. Where the sample is right, M is
all that is needed, and where it is not, each pair removes the worst of the error, as a product of
conjugate gradients does. No pass is spent on a product alone, and pairs serve until the end.

A sample lacks curvature where it has few examples, and its steps are too long there: M is scaled by
the best length of the steps before. That M is far too large along few directions does no harm, as
pairs correct it; to be far too small along many, as with much damping, costs a pass for each. So
damping is only what keeps the scale at about a third.

Reference: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization" (1989);
Moritz, Nishihara and Jordan, "A linearly-convergent stochastic L-BFGS algorithm" (2016).
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import newton
from jaxsoftmax.solvers.stream import systems
from jaxsoftmax.solvers.stream.state import Run, State

MAX_PAIRS = 60
SCALE = 0.35  # of M: it has more damping where the scale is smaller, and less where it is larger
MIN_CAUTION, MAX_CAUTION = 1e-3, 1e6  # the damping, relative to the sampling error
MAX_CHANGE = 4  # of the scale or the damping from one step to the next, down or up
MAX_RETURN = 2  # likewise, the other way


def direction(run: Run, state: State) -> tuple[Array, State]:
    """Return the direction at the state, and the state with the products that it took."""
    q, shares = state.gradient, []
    for s, y in reversed(state.pairs):
        shares.append(_dot(s, q) / _dot(s, y))
        q = q - shares[-1] * y
    z, state = _sample_newton_step(run, state, q)
    z = state.scale * z
    for (s, y), share in zip(state.pairs, reversed(shares), strict=True):
        z = z + (share - _dot(y, z) / _dot(s, y)) * s
    return run.stream.processes.agree(-z), state


def _sample_newton_step(run: Run, state: State, q: Array) -> tuple[Array, State]:
    """Return M q, and the state with the products that it took.

    Conjugate gradients in float32 that take more products than there are parameters do not end but
    for rounding, as with columns of very different sizes: float64 follows.
    """
    link, sample = run.config.link, state.sample
    if state.is_exact:
        sample = sample._replace(features=sample.features.astype(jnp.float64))
    damping = state.caution * systems.sampling_error(run, state)
    z, products = _solve(
        sample._replace(l2=sample.l2 + damping), link,
        systems.sample_variance(sample, link, state.theta),
        -q, state.preconditioner, newton.SAMPLE_ACCURACY * newton.norm(q),
        intercept=run.config.intercept,
    )  # fmt: skip
    spent = state.spent + 2 * int(products)
    is_exact = state.is_exact or int(products) >= min(q.size, newton.MAX_PRODUCTS)
    return z, state._replace(spent=spent, is_exact=is_exact)


def learn(run: Run, state: State, end: State, d: Array) -> State:
    """Return the state with the pair, scale and damping after a step along d to another state."""
    s, y = jnp.where(d == 0, 0, end.theta - state.theta), end.gradient - state.gradient
    if not _dot(s, y) > 0:  # nothing but rounding
        return state._replace(pairs=())
    length = float(jnp.sqrt(_dot(s, s) / _dot(d, d)))
    best = -length * _dot(d, state.gradient) / _dot(d, y)  # where the slope would be 0
    scale = min(1, state.scale * _limit(best, 1 / MAX_CHANGE, MAX_RETURN))
    caution = state.caution * _limit(SCALE / scale, 1 / MAX_RETURN, MAX_CHANGE)
    return state._replace(
        pairs=(*state.pairs, (s, y))[-_num_pairs(run, s) :],
        scale=scale,
        caution=_limit(caution, MIN_CAUTION, MAX_CAUTION),
    )


def _limit(x: float, least: float, most: float) -> float:
    return min(max(x, least), most)


def _num_pairs(run: Run, s: Array) -> int:
    """Return how many pairs are kept, in a quarter of the memory for temporary arrays."""
    return max(1, min(MAX_PAIRS, run.config.memory // (4 * 2 * s.nbytes)))


def _dot(a: Array, b: Array) -> float:
    return float(jnp.sum(a * b))


_solve = jax.jit(newton.direction, static_argnames=("link", "intercept"))
