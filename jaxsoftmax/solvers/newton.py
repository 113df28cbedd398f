r"""Newton's direction by preconditioned conjugate gradients, with Hessian products alone."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import class_preconditioner, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

MAX_PRODUCTS = 500  # Hessian products for one direction


class _Iterate(NamedTuple):
    """An iterate of conjugate gradients on H d = -g."""

    d: Array
    r: Array  # the residual -g - H d
    p: Array  # the search direction
    rz: Array  # r' M r: [L]
    active: Array  # whether the lane's residual is still above its tolerance: [L]
    products: Array


class _System(NamedTuple):
    """The Newton system H d = -g, its preconditioner M and its stopping rule."""

    problem: problems.Problem
    class_variance: Array
    preconditioner: Preconditioner | Blocks
    curvature: Array  # the mean curvature of each class: [L, K]
    intercept_factor: Array  # weight of the intercept's squared residual in the norm: [L, K]
    tolerance: Array  # [L]
    free: Array | None  # which parameters may move


def direction(
    problem: problems.Problem,
    link: problems.Link,
    class_variance: Array,
    gradient: Array,
    preconditioner: Preconditioner | Blocks,
    tolerance: Array,
    *,
    intercept: bool,
    free: Array | None = None,
) -> tuple[Array, Array]:
    """Return d with ||H d + g|| <= tolerance for each lane, and the number of Hessian products.

    The iteration runs in the dtype of the features, on a gradient scaled to length 1, so that
    float32 resolves the residual of a small gradient. A lane whose gradient is within the tolerance
    gets d = 0. With `free`, a bool for each parameter, the other parameters are held fixed.
    """
    dtype = problem.features.dtype
    g = gradient if free is None else jnp.where(free, gradient, 0)
    length = norm(g)
    scale = jnp.where(length > 0, length, 1)[:, None, None]
    r = (-g / scale).astype(dtype)
    tolerance = (tolerance / scale[:, 0, 0]).astype(dtype)
    class_variance = class_variance.astype(dtype)
    preconditioner = jax.tree.map(lambda a: a.astype(dtype), preconditioner)
    c = shared_preconditioner.mean_curvature(problem, link, class_variance)
    factor = _intercept_factor(problem, c)
    system = _System(problem, class_variance, preconditioner, c, factor, tolerance, free)
    last = _conjugate_gradients(system, link, r, intercept)
    return last.d.astype(g.dtype) * scale, last.products


def _intercept_factor(problem: problems.Problem, c: Array) -> Array:
    """Return l2 / c where it is above 1, `[L, K]`.

    An intercept's residual r counts in the gap as r^2 / c, a weight's as r^2 / l2.
    """
    l2 = problem.l2.astype(c.dtype)[:, None]
    return jnp.where((l2 > c) & (c > 0), l2 / c, 1)


def _conjugate_gradients(
    system: _System, link: problems.Link, r: Array, intercept: bool
) -> _Iterate:
    """Iterate from d = 0, whose residual is r, until every lane is within its tolerance."""

    def body(last: _Iterate) -> _Iterate:
        h = problems.hessian_product(
            system.problem, link, system.class_variance, last.p, intercept=intercept
        )
        h = _zero_fixed(system, h, intercept)
        curvature = _dot(last.p, h)
        # Along a direction without curvature nothing is left but rounding.
        active = last.active & (curvature > 0)
        step = _where_active(active, last.rz / jnp.where(curvature > 0, curvature, 1))
        d, r = last.d + step * last.p, last.r - step * h
        z = _precondition(system, link, r, intercept)
        rz = _dot(r, z)
        ratio = _where_active(active, rz / jnp.where(last.rz > 0, last.rz, 1))
        active = active & _exceeds_tolerance(system, r)
        return _Iterate(d, r, z + ratio * last.p, rz, active, last.products + 1)

    def unfinished(last: _Iterate) -> Array:
        return jnp.any(last.active) & (last.products < MAX_PRODUCTS)

    z = _precondition(system, link, r, intercept)
    active = _exceeds_tolerance(system, r)
    first = _Iterate(jnp.zeros_like(r), r, z, _dot(r, z), active, jnp.array(0))
    return lax.while_loop(unfinished, body, first)


def _precondition(system: _System, link: problems.Link, r: Array, intercept: bool) -> Array:
    """Return M r."""
    l2 = system.problem.l2
    match system.preconditioner:
        case Blocks() as blocks:
            z = class_preconditioner.apply(blocks, link, l2, r)
        case preconditioner:
            z = shared_preconditioner.apply(preconditioner, system.curvature, l2, r)
    return _zero_fixed(system, z, intercept)


def _zero_fixed(system: _System, a: Array, intercept: bool) -> Array:
    """Return a with 0 for the parameters that may not move."""
    a = a if intercept else a.at[..., -1].set(0)
    return a if system.free is None else jnp.where(system.free, a, 0)


def _exceeds_tolerance(system: _System, r: Array) -> Array:
    return norm(r.at[..., -1].multiply(jnp.sqrt(system.intercept_factor))) > system.tolerance


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, (1, 2))


def norm(a: Array) -> Array:
    """Return the Euclidean length of each lane's parameters, `[L]`."""
    return jnp.sqrt(_dot(a, a))


def _where_active(active: Array, x: Array) -> Array:
    return jnp.where(active, x, 0)[:, None, None]
