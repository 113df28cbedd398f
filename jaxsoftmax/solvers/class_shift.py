r"""The shift of all classes that makes the penalty of a softmax least, and changes no probability.

Only the penalty depends on what the weights of a feature have in common. Where it is weak, an
optimizer takes very long to follow it: the metric of a proximal step assumes some curvature c in
every direction, so that a step is of length l1 / c, where the distance may be a million times that.
But the best shift of each feature,

    t = argmin_t sum_k l2 / 2 (w_k - t)^2 + l1 |w_k - t|

is the median of the 2 K + 1 numbers

    w_1, ..., w_K    and    mean(w) + l1 / l2 (K - 2 i) / K,    i = 0, ..., K,

without l2 that of the weights alone. Of an even number of them it is the number nearest to 0
between the two in the middle, so that weights that are 0 stay 0. A tilt of the problem, sum(c w),
adds mean(c) / l2 to mean(w).

Reference: Li and Osher, "A new median formula with applications to PDE based denoising" (2009).
"""

import jax.numpy as jnp
from jax import Array

from jaxsoftmax.solvers import problem as problems
from jaxsoftmax.solvers import row_shards


def remove(problem: problems.Problem, link: problems.Link, theta: Array) -> Array:
    """Return theta `[L, K, D + 1]` without the shift that the classes with examples share."""
    if link != "softmax":
        return theta
    w, present = theta[..., :-1], jnp.isfinite(theta[..., -1:])
    l2, l1 = (a.astype(w.dtype)[:, None, None] for a in (problem.l2, problem.l1))
    tilts = [] if problem.tilt is None else [problem.tilt[..., :-1].astype(w.dtype)]
    of_classes = [jnp.where(present, a, jnp.nan) for a in (w, *tilts)]
    shift = row_shards.map_columns(_best_shift, problem.features, *of_classes, replicated=(l2, l1))
    return theta.at[..., :-1].set(jnp.where(present, w - shift, w))


def _best_shift(l2: Array, l1: Array, w: Array, tilt: Array | None = None) -> Array:
    """Return t, `[L, 1, D]`, from weights and tilts that are NaN for a class without examples."""
    count = jnp.sum(~jnp.isnan(w), 1, keepdims=True)
    centre = w if tilt is None else w + tilt / jnp.where(l2 > 0, l2, jnp.inf)
    mean = jnp.nansum(centre, 1, keepdims=True) / count
    i = jnp.arange(w.shape[1] + 1)[None, :, None]
    signs = (count - 2 * i).astype(w.dtype)
    shrunk = mean + l1 / jnp.where(l2 > 0, l2, 1) * signs / count
    bound = jnp.where(signs == 0, 0, jnp.sign(signs) * jnp.inf)
    others = jnp.where(i <= count, jnp.where(l2 > 0, shrunk, bound), jnp.nan)
    return jnp.nanmedian(jnp.concatenate([w, others], 1), 1, keepdims=True)
