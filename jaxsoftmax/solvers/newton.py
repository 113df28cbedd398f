r"""Newton's direction by preconditioned conjugate gradients: Hessian products, and no Hessian."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import class_preconditioner, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

LIMIT = 500  # products of one direction


class _Iterate(NamedTuple):
    d: Array
    r: Array  # -g - H d
    p: Array
    rz: Array  # r' M r
    active: Array  # [L]
    products: Array


def direction(
    problem: problems.Problem,
    head: problems.Head,
    mass: Array,
    g: Array,
    pre: Preconditioner | Blocks,
    goal: Array,
    *,
    intercept: bool,
    free: Array | None = None,
) -> tuple[Array, Array]:
    """d with ||H d + g|| <= goal for each lane, and the number of Hessian products.

    It runs in the dtype of the features, on a gradient scaled to length 1, so that float32 holds
    what is left of a small one. A lane whose gradient is within the goal gets d = 0. With `free`,
    a bool for each parameter, the others stay where they are.
    """
    dtype = problem.features.dtype
    g = g if free is None else jnp.where(free, g, 0)
    size = norm(g)
    scale = jnp.where(size > 0, size, 1)[:, None, None]
    r = (-g / scale).astype(dtype)
    goal = (goal / scale[:, 0, 0]).astype(dtype)
    mass, pre = mass.astype(dtype), jax.tree.map(lambda a: a.astype(dtype), pre)
    c = shared_preconditioner.curvatures(problem, head, mass)
    # An intercept's residual r counts in the gap as r^2 / c, a weight's as r^2 / l2.
    stiff = problem.l2.astype(dtype)[:, None] > c
    heavy = jnp.where(stiff & (c > 0), problem.l2.astype(dtype)[:, None] / c, 1)

    def large(r: Array) -> Array:
        return norm(r.at[..., -1].multiply(jnp.sqrt(heavy))) > goal

    def kept(a: Array) -> Array:
        a = a if intercept else a.at[..., -1].set(0)
        return a if free is None else jnp.where(free, a, 0)

    def precondition(r: Array) -> Array:
        if isinstance(pre, Blocks):
            return kept(class_preconditioner.apply(pre, head, problem.l2, r))
        return kept(shared_preconditioner.apply(pre, c, problem.l2, r))

    def body(at: _Iterate) -> _Iterate:
        h = kept(problems.hessian_product(problem, head, mass, at.p, intercept=intercept))
        bend = _dot(at.p, h)
        # A direction without curvature is one in which rounding is all that is left.
        active = at.active & (bend > 0)
        step = _where(active, at.rz / jnp.where(bend > 0, bend, 1))
        d, r = at.d + step * at.p, at.r - step * h
        z = precondition(r)
        rz = _dot(r, z)
        ratio = _where(active, rz / jnp.where(at.rz > 0, at.rz, 1))
        return _Iterate(d, r, z + ratio * at.p, rz, active & large(r), at.products + 1)

    z = precondition(r)
    start = _Iterate(jnp.zeros_like(r), r, z, _dot(r, z), large(r), jnp.array(0))
    end = lax.while_loop(lambda at: jnp.any(at.active) & (at.products < LIMIT), body, start)
    return end.d.astype(g.dtype) * scale, end.products


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, (1, 2))


def norm(a: Array) -> Array:
    """Euclidean length of each lane's parameters, `[L]`."""
    return jnp.sqrt(_dot(a, a))


def _where(active: Array, x: Array) -> Array:
    return jnp.where(active, x, 0)[:, None, None]
