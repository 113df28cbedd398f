r"""Newton's direction by preconditioned conjugate gradients, with Hessian products alone."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax.solvers import class_preconditioner, shared_preconditioner
from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers.class_preconditioner import Blocks
from jaxsoftmax.solvers.shared_preconditioner import Preconditioner

MAX_PRODUCTS = 500  # Hessian products for one direction
SAMPLE_ACCURACY = 0.1  # the residual that the inverse of a sample's Hessian may leave


class Iterate(NamedTuple):
    """An iterate of conjugate gradients on H d = -g."""

    d: Array
    r: Array  # the residual -g - H d
    p: Array  # the search direction
    rz: Array  # r' M r: [L]
    active: Array  # whether the lane's residual is still above its tolerance: [L]
    products: Array


class SampleHessian(NamedTuple):
    """The Hessian of a sample of the examples, whose inverse is a preconditioner."""

    problem: problems.Problem
    class_variance: Array
    preconditioner: Preconditioner | Blocks  # of the conjugate gradients that apply the inverse


class System(NamedTuple):
    """The Newton system H d = -g, all but H: its preconditioner M and its stopping rule."""

    l2: Array  # [L]
    preconditioner: Preconditioner | Blocks | SampleHessian
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
    class_variance = class_variance.astype(problem.features.dtype)
    c = shared_preconditioner.mean_curvature(problem, link, class_variance)
    system, r, scale = scale_system(problem.l2, c, gradient, preconditioner, tolerance, free)

    def body(last: Iterate) -> Iterate:
        h = problems.hessian_product(problem, link, class_variance, last.p, intercept=intercept)
        return advance(system, link, last, h, intercept)

    last = lax.while_loop(is_unfinished, body, start(system, link, r, intercept))
    return last.d.astype(gradient.dtype) * scale, last.products


def scale_system(
    l2: Array,
    curvature: Array,
    gradient: Array,
    preconditioner: Preconditioner | Blocks,
    tolerance: Array,
    free: Array | None = None,
) -> tuple[System, Array, Array]:
    """Return the system in the dtype of the curvature, its right side -g scaled, and the scale."""
    dtype = curvature.dtype
    g = gradient if free is None else jnp.where(free, gradient, 0)
    length = norm(g)
    scale = jnp.where(length > 0, length, 1)[:, None, None]
    tolerance = (tolerance / scale[:, 0, 0]).astype(dtype)
    preconditioner = jax.tree.map(lambda a: a.astype(dtype), preconditioner)
    factor = _intercept_factor(l2, curvature)
    system = System(l2, preconditioner, curvature, factor, tolerance, free)
    return system, (-g / scale).astype(dtype), scale


def _intercept_factor(l2: Array, c: Array) -> Array:
    """Return l2 / c where it is above 1, `[L, K]`.

    An intercept's residual r counts in the gap as r^2 / c, a weight's as r^2 / l2.
    """
    l2 = l2.astype(c.dtype)[:, None]
    return jnp.where((l2 > c) & (c > 0), l2 / c, 1)


def start(system: System, link: problems.Link, r: Array, intercept: bool) -> Iterate:
    """Return the iterate d = 0, whose residual is r."""
    z = _precondition(system, link, r, intercept)
    active = _exceeds_tolerance(system, r)
    return Iterate(jnp.zeros_like(r), r, z, _dot(r, z), active, jnp.array(0))


def advance(
    system: System, link: problems.Link, last: Iterate, h: Array, intercept: bool
) -> Iterate:
    """Return the iterate after one step along p, with h = H p."""
    h = _zero_fixed(system, h, intercept)
    curvature = _dot(last.p, h)
    # Along a direction without curvature nothing is left but rounding.
    active = last.active & (curvature > 0)
    step = _where_active(active, last.rz / jnp.where(curvature > 0, curvature, 1))
    d, r = last.d + step * last.p, last.r - step * h
    z = _precondition(system, link, r, intercept)
    rz = _dot(r, z)
    # A sample's inverse is approximate, and another one each time: z meets the last residual.
    conjugate = rz - _dot(last.r, z) if isinstance(system.preconditioner, SampleHessian) else rz
    ratio = _where_active(active, conjugate / jnp.where(last.rz > 0, last.rz, 1))
    active = active & _exceeds_tolerance(system, r)
    return Iterate(d, r, z + ratio * last.p, rz, active, last.products + 1)


def is_unfinished(last: Iterate) -> Array:
    """Return whether some lane is not within its tolerance yet."""
    return jnp.any(last.active) & (last.products < MAX_PRODUCTS)


def _precondition(system: System, link: problems.Link, r: Array, intercept: bool) -> Array:
    """Return M r."""
    l2 = system.l2
    match system.preconditioner:
        case Blocks() as blocks:
            z = class_preconditioner.apply(blocks, link, l2, r)
        case SampleHessian(sample, variance, inner):
            how: Any = {"intercept": intercept, "free": system.free}
            enough = SAMPLE_ACCURACY * norm(r)
            z = direction(sample, link, variance, -r, inner, enough, **how)[0]
        case preconditioner:
            z = shared_preconditioner.apply(preconditioner, system.curvature, l2, r)
    return _zero_fixed(system, z, intercept)


def _zero_fixed(system: System, a: Array, intercept: bool) -> Array:
    """Return a with 0 for the parameters that may not move."""
    a = a if intercept else a.at[..., -1].set(0)
    return a if system.free is None else jnp.where(system.free, a, 0)


def _exceeds_tolerance(system: System, r: Array) -> Array:
    return norm(r.at[..., -1].multiply(jnp.sqrt(system.intercept_factor))) > system.tolerance


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, (1, 2))


def norm(a: Array) -> Array:
    """Return the Euclidean length of each lane's parameters, `[L]`."""
    return jnp.sqrt(_dot(a, a))


def _where_active(active: Array, x: Array) -> Array:
    return jnp.where(active, x, 0)[:, None, None]
