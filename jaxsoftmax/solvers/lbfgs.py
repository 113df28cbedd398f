r"""L-BFGS directions: the inverse Hessian from the last steps, on top of the preconditioner.

Reference: Liu and Nocedal, "On the limited memory BFGS method for large scale optimization" (1989).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers import shared_preconditioner
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

PAIRS = 12


class History(NamedTuple):
    """The last steps and gradient changes, oldest first; `inverse` is 1 / (s y), 0 where unused."""

    s: Array  # [PAIRS, L, K, D + 1]
    y: Array
    inverse: Array  # [PAIRS, L]


def empty(g: Array) -> History:
    """No pairs yet."""
    zeros = jnp.zeros((PAIRS, *g.shape), g.dtype)
    return History(zeros, zeros, jnp.zeros((PAIRS, len(g)), g.dtype))


def remember(history: History, s: Array, y: Array) -> History:
    """Put a pair in the place of the oldest; one without positive curvature counts for nothing."""
    s = jnp.where(jnp.isfinite(s), s, 0)
    product = jnp.sum(s * y, (1, 2))
    usable = product > jnp.finfo(s.dtype).eps * jnp.sum(y * y, (1, 2))
    inverse = jnp.where(usable, 1 / jnp.where(usable, product, 1), 0)
    return jax.tree.map(
        lambda old, new: jnp.concatenate([old[1:], new[None]]), history, History(s, y, inverse)
    )


def direction(
    problem: problems.Problem,
    head: problems.Head,
    mass: Array,
    g: Array,
    pre: Preconditioner,
    history: History,
    *,
    intercept: bool,
) -> Array:
    """-H g by the two loops over the pairs."""

    def back(q: Array, pair: History) -> tuple[Array, Array]:
        a = pair.inverse * jnp.sum(pair.s * q, (1, 2))
        return q - a[:, None, None] * pair.y, a

    def forth(r: Array, step: tuple[History, Array]) -> tuple[Array, None]:
        pair, a = step
        b = pair.inverse * jnp.sum(pair.y * r, (1, 2))
        return r + (a - b)[:, None, None] * pair.s, None

    q, a = jax.lax.scan(back, g, history, reverse=True)
    c = shared_preconditioner.curvatures(problem, head, mass)
    r = shared_preconditioner.apply(pre, c, problem.l2, q).astype(g.dtype)
    r = r if intercept else r.at[..., -1].set(0)
    return -jax.lax.scan(forth, r, (history, a))[0]
