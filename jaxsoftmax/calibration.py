r"""Calibration: rescale the logits of a fitted classifier so that its probabilities can be trusted.

    temperature_scaling    z / T, one temperature for all
    vector_scaling         a_k z_k + c_k, a scale and an offset for each class or label

by the least negative log-likelihood of validation data that did not train the classifier. Both
problems are convex, and both start from z itself, so that they never make the likelihood worse on
the data they are fitted to. With integer labels `[N]` and logits `[N, K]` the head is a softmax;
with targets of the logits' shape, or logits `[N, 1]`, a sigmoid per label, for which vector scaling
is Platt's method label by label.

Where validation data do not determine an answer, the result says `converged=False`: if all examples
are right, the likelihood grows with the scale forever, and the temperature stops at 1 / limit; a
class without examples loses offset forever, and Newton's method stops where that gains nothing.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from jaxsoftmax import checks, links, losses, metrics, placement
from jaxsoftmax.losses import weighted_mean

PRODUCTS = 4  # conjugate gradients of one Newton step, at most, times the number of parameters
HALVINGS = 30  # of a step that does not descend


class Fit(NamedTuple):
    """A calibration, z -> scale z + bias, and what it did to the data it was fitted to.

    `nll` and `ece` are the mean negative log-likelihood (for a sigmoid of all labels together) and
    the expected calibration error, each `(before, after)`. `converged` is False where the data do
    not determine the optimum; the calibration is then finite and no worse than none. `decrement` is
    Newton's estimate g' H^-1 g / 2 of how far that mean is above its minimum: without a penalty
    there is no proof of it.
    """

    scale: Array  # [], or [K] of vector scaling
    bias: Array  # 0, or [K] of vector scaling
    nll: tuple[float, float]
    ece: tuple[float, float]
    converged: bool
    decrement: float

    def apply(self, logits: ArrayLike) -> Array:
        """Calibrated logits of the same shape; a masked class, -inf, stays masked.

        Args:
            logits: floats, `[..., K]`, or `[...]` of one binary label.

        Returns:
            float32 or float64: half precision would undo what calibration does.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxsoftmax import calibration
            >>> fitted = calibration.Fit(jnp.array(0.5), jnp.array(0.0), (1, 1), (0, 0), True, 0.0)
            >>> print(fitted.apply(jnp.array([4.0, -jnp.inf])))
            [  2. -inf]
        """
        z = checks.accumulated(checks.floating(logits))
        return _affine(self.scale.astype(z.dtype), self.bias.astype(z.dtype), z)


def temperature_scaling(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    limit: float = 1000.0,
) -> Fit:
    r"""Scale all logits by the inverse temperature b = 1 / T of least negative log-likelihood.

    min over 1 / limit <= b <= limit of sum_i w_i loss(b z_i, y_i) / sum_i w_i

    Args:
        logits: of validation data, floats, `[N, K]`, or `[N]` of one binary label.
        targets: integer labels `[N]` of a softmax, or of a sigmoid 0 or 1, numbers or bools, in
            the logits' shape.
        weights: floats, `[N]`.
        limit: the largest scale and the largest temperature.

    Returns:
        `Fit` with a scalar scale, 1 / T > 0, and bias 0: the predicted class does not change.

    Numerics:
        The slope in b is increasing, so its root lies in a bracket that every step shrinks: Newton,
        or the geometric middle where Newton leaves the bracket. At an end of the bracket (all
        right: b = limit; worse than chance: b = 1 / limit) `converged` is False. Logits that do not
        differ keep b = 1.

    Raises:
        TypeError: logits are not floats, or labels of a softmax not integers.
        ValueError: shapes that do not fit, a label out of range, a logit that is NaN or +inf, a
            label on a masked class, bad weights, or limit below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsoftmax import calibration
        >>> logits = jnp.array([[6.0, 0.0], [6.0, 0.0], [6.0, 0.0], [6.0, 0.0]])
        >>> fitted = calibration.temperature_scaling(logits, jnp.array([0, 0, 0, 1]))
        >>> print(f"{fitted.scale:.4f} {fitted.nll[0]:.3f} {fitted.nll[1]:.3f}")
        0.1831 1.502 0.562

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017).
    """
    if not 1 <= limit < float("inf"):
        raise ValueError(f"limit: expected a finite number of at least 1, got {limit}")
    z, t, w = _validation(logits, targets, weights)
    scale, inside, decrement = _inverse_temperature(z, t, w, limit)
    zero = jnp.zeros_like(scale)
    return _fit(z, t, w, scale, zero, converged=bool(inside), decrement=float(decrement))


def vector_scaling(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    iterations: int = 100,
) -> Fit:
    r"""Scale and shift each class's logit by least negative log-likelihood, a_k z_k + c_k.

    min over a, c of sum_i w_i loss(a z_i + c, y_i) / sum_i w_i

    Args:
        logits: of validation data, floats, `[N, K]`, or `[N]` of one binary label.
        targets: as of `temperature_scaling`.
        weights: floats, `[N]`.
        iterations: Newton steps, at most.

    Returns:
        `Fit` with scale `[K]` and bias `[K]`, which sums to 0 for a softmax; scalars for `[N]`. It
        has 2 K parameters: with few examples a class prefer the one of `temperature_scaling`.

    Numerics:
        Starts at the temperature's optimum, which also sets the scale of the problem, and is never
        worse. Newton's systems are solved by conjugate gradients after each class's own 2 by 2
        block of the Hessian, which for sigmoids is all of it. Converged where the Newton decrement
        is within rounding of the mean loss, and neither are all examples right (of a label, for
        sigmoids) nor a class without examples.

    Raises:
        TypeError: as `temperature_scaling`.
        ValueError: as `temperature_scaling`, and iterations below 1.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import calibration
        >>> logits, labels = jnp.array([1.0, 1.0, -1.0, -1.0, -1.0]), jnp.array([1, 0, 1, 0, 0])
        >>> fitted = calibration.vector_scaling(logits, labels)
        >>> print(f"{fitted.scale:.3f} {fitted.bias:.3f}")
        0.347 -0.347

    Reference:
        Guo et al. (2017); Platt, "Probabilistic outputs for support vector machines" (1999).
    """
    if iterations < 1:
        raise ValueError(f"iterations: expected at least 1, got {iterations}")
    z, t, w = _validation(logits, targets, weights)
    start, inside, _ = _inverse_temperature(z, t, w, limit=1000.0)
    start = jnp.where(inside | (start > 1), start, 1)  # worse than chance: scales turn negative
    (a, c), value, decrement = _newton(_affine(start, jnp.zeros_like(start), z), t, w, iterations)
    a = a * start
    settled = bool(decrement <= 4 * jnp.finfo(z.dtype).eps * value)
    settled = settled and _determined(_affine(a, c, z), t, w)
    tempered = _nll(start, jnp.zeros_like(start), z, t, w)
    if not float(_nll(a, c, z, t, w)) <= float(tempered):
        # Rounding, at a start that was the optimum.
        a, c = jnp.full_like(a, start), jnp.zeros_like(c)
    return _fit(z, t, w, a, c, converged=settled, decrement=float(decrement))


def _affine(scale: Array, bias: Array, z: Array) -> Array:
    """scale z + bias; a scale of 0 or below would make NaN or +inf of a masked class."""
    exists = z != -jnp.inf
    return jnp.where(exists, scale * jnp.where(exists, z, 0) + bias, -jnp.inf)


def _losses(z: Array, t: Array) -> Array:
    """Of a softmax `[N]`, of sigmoids `[N, L]` or `[N]`."""
    loss = losses.cross_entropy if _is_softmax(z, t) else losses.binary_cross_entropy
    return loss(z, t)


def _is_softmax(z: Array, t: Array) -> bool:
    return z.ndim > t.ndim


def _nll(scale: Array, bias: Array, z: Array, t: Array, w: Array) -> Array:
    return weighted_mean(_losses(_affine(scale, bias, z), t), weights=w)


@jax.jit
def _inverse_temperature(z: Array, t: Array, w: Array, limit: float) -> tuple[Array, Array, Array]:
    """The root of the mean loss's slope in b, or an end; whether a root; the Newton decrement."""
    if _is_softmax(z, t):
        top = jnp.max(z, -1, keepdims=True)
        z = z - jnp.where(top == -jnp.inf, 0, top)  # an offset is no confidence, but rounds
    slope = jax.grad(lambda b: _nll(b, jnp.zeros_like(b), z, t, w))
    curvature = jax.grad(slope)
    one = placement.full(z, 1, (), z.dtype)
    low, high = one / limit, one * limit

    def unfinished(state: tuple) -> Array:
        _, _, b, step, count = state
        return (step > jnp.finfo(b.dtype).eps * b) & (count < 100)

    def search(state: tuple) -> tuple:
        low, high, b, _, count = state
        s = slope(b)
        low, high = jnp.where(s <= 0, b, low), jnp.where(s >= 0, b, high)
        newton = b - s / curvature(b)
        inside = (newton >= low) & (newton <= high)  # where it ends, on one of them
        following = jnp.where(inside, newton, jnp.sqrt(low) * jnp.sqrt(high))
        return low, high, following, jnp.abs(following - b), count + 1

    root = lax.while_loop(unfinished, search, (low, high, one, high, 0))[2]
    up, down = slope(low) > 0, (slope(high) <= 0) & (slope(low) < 0)
    b = jnp.where(down, high, jnp.where(up, low, root))
    s = slope(b)
    decrement = jnp.where(s == 0, 0, 0.5 * s**2 / curvature(b))
    return b, ~(up | down), decrement


class _Iterate(NamedTuple):
    params: Array  # [2, K], or [2] of one label: a and c
    value: Array
    direction: Array  # Newton's
    decrement: Array
    moved: Array  # whether the last step found descent
    steps: Array | int


@functools.partial(jax.jit, static_argnums=3)
def _newton(z: Array, t: Array, w: Array, iterations: int) -> tuple[Array, Array, Array]:
    """Scale and bias of least loss from (1, 0), that loss, and the Newton decrement there."""

    def objective(params: Array) -> Array:
        return _nll(params[0], params[1], z, t, w)

    def at(params: Array, moved: Array, steps: Array | int) -> _Iterate:
        value, g = jax.value_and_grad(objective)(params)
        d = _direction(objective, params, g, _blocks(_affine(params[0], params[1], z), z, t, w))
        return _Iterate(params, value, d, -0.5 * jnp.sum(g * d), moved, steps)

    def unfinished(last: _Iterate) -> Array:
        eps = jnp.finfo(z.dtype).eps
        far = last.decrement > eps * jnp.maximum(last.value, eps)
        return far & last.moved & (last.steps < iterations)

    def step(last: _Iterate) -> _Iterate:
        length = _length(objective, last)
        return at(last.params + length * last.direction, length > 0, last.steps + 1)

    ones = placement.full(z, 1, z.shape[1:], z.dtype)
    ones = placement.resharded(ones, z, *placement.spec(z)[1:])  # as its Hessian's blocks are
    start = at(jnp.stack([ones, jnp.zeros_like(ones)]), placement.full(z, True, (), bool), 0)
    end = lax.while_loop(unfinished, step, start)
    a, c = end.params
    c = c - jnp.mean(c) if _is_softmax(z, t) else c  # a softmax does not see a shift of all
    return jnp.stack([a, c]), end.value, end.decrement


def _length(objective: Callable[[Array], Array], last: _Iterate) -> Array:
    """1, or the first of its halves at which the loss falls as it should; 0 where none does."""
    slack = 4 * jnp.finfo(last.value.dtype).eps * last.value  # what rounding adds at the optimum

    def fails(trial: tuple[Array, Array | int]) -> Array:
        length, count = trial
        enough = last.value - 2e-4 * length * last.decrement + slack
        return ~(objective(last.params + length * last.direction) <= enough) & (count < HALVINGS)

    one = placement.full(last.value, 1, (), last.value.dtype)
    length, count = lax.while_loop(fails, lambda trial: (0.5 * trial[0], trial[1] + 1), (one, 0))
    return jnp.where(count < HALVINGS, length, 0)


def _blocks(scores: Array, z: Array, t: Array, w: Array) -> Array:
    """Each class's own part of the Hessian up to a factor: of a a, a c and c c, `[3, K]`."""
    z = jnp.where(z == -jnp.inf, 0, z)
    p = links.softmax(scores) if _is_softmax(z, t) else links.sigmoid(scores)
    h = p * (1 - p) * (w / jnp.sum(w)).reshape(-1, *(1,) * (z.ndim - 1))
    aa, ac, cc = jnp.sum(h * z * z, 0), jnp.sum(h * z, 0), jnp.sum(h, 0)
    # Logits that are all equal make a and c one parameter: a little more keeps the block regular.
    little = 4 * jnp.finfo(z.dtype).eps
    return jnp.stack([aa, ac, cc]) + little * jnp.stack([aa, jnp.zeros_like(ac), cc])


def _direction(
    objective: Callable[[Array], Array], params: Array, g: Array, blocks: Array
) -> Array:
    """-H^-1 g by conjugate gradients, nearly; Hessian products are derivatives of the gradient."""
    aa, ac, cc = blocks
    determinant = aa * cc - ac * ac
    usable = determinant > 0

    def inverse(r: Array) -> Array:
        solved = jnp.stack([cc * r[0] - ac * r[1], aa * r[1] - ac * r[0]])
        return jnp.where(usable, solved / jnp.where(usable, determinant, 1), 0)

    def unfinished(state: tuple) -> Array:
        *_, rz, count = state
        return (rz > 1e-8 * first) & (count < PRODUCTS * params.size)

    def body(state: tuple) -> tuple:
        d, r, p, rz, count = state
        h = jax.jvp(jax.grad(objective), (params,), (p,))[1]
        bend = jnp.sum(p * h)
        step = jnp.where(bend > 0, rz / jnp.where(bend > 0, bend, 1), 0)
        d, r = d + step * p, r - step * h
        m = inverse(r)
        following = jnp.where(bend > 0, jnp.sum(r * m), 0)  # nothing but rounding is left
        return d, r, m + following / rz * p, following, count + 1

    m = inverse(-g)
    first = jnp.sum(-g * m)
    return lax.while_loop(unfinished, body, (jnp.zeros_like(g), -g, m, first, 0))[0]


def _determined(z: Array, t: Array, w: Array) -> bool:
    """Whether the data bound the optimum: some example is wrong, and every class occurs."""
    counts = metrics.Counts(*(jnp.atleast_1d(c) for c in _counts(z, t, w)))
    wrong, found = counts.false_positive + counts.false_negative, counts.true_positive
    if _is_softmax(z, t):
        return bool(jnp.any(wrong > 0) & jnp.all(found + counts.false_negative > 0))
    return bool(jnp.all(wrong > 0))


def _counts(z: Array, t: Array, w: Array) -> metrics.Counts:
    count = metrics.class_counts if _is_softmax(z, t) else metrics.label_counts
    return count(z, t, weights=w)


def _ece(z: Array, t: Array, w: Array) -> float:
    if _is_softmax(z, t):
        return float(metrics.expected_calibration_error(z, t, weights=w).error)
    each = jnp.broadcast_to(w.reshape(w.shape + (1,) * (z.ndim - 1)), z.shape)
    return float(metrics.reliability(links.sigmoid(z), t, weights=each).error)


def _fit(
    z: Array,
    t: Array,
    w: Array,
    scale: Array,
    bias: Array,
    *,
    converged: bool,
    decrement: float,
) -> Fit:
    """The result; no calibration at all where rounding makes the likelihood worse than before."""
    one, zero = jnp.ones_like(scale), jnp.zeros_like(bias)
    before, after = float(_nll(one, zero, z, t, w)), float(_nll(scale, bias, z, t, w))
    if not after <= before:
        scale, bias, after = one, zero, before
    ece = _ece(z, t, w), _ece(_affine(scale, bias, z), t, w)
    return Fit(scale, bias, (before, after), ece, converged, decrement)


def _validation(
    logits: ArrayLike, targets: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Validation data as arrays, after a look at their values."""
    z = checks.accumulated(checks.floating(logits))
    t = checks.numbers(targets, "targets")
    if z.ndim == 2 and z.shape[1] == 1 and t.ndim == 1:
        t = t[:, None]
    if z.ndim not in (1, 2) or 0 in z.shape or t.shape not in (z.shape, z.shape[:1]):
        raise ValueError(
            "logits, targets: expected [N, K] and labels [N], or one shape [N] or [N, L], "
            f"got {z.shape} and {t.shape}"
        )
    if _is_softmax(z, t):
        losses.check_labels(targets, z.shape[1])
    if bool(jnp.any(jnp.isnan(z) | (z == jnp.inf))):
        raise ValueError("logits: expected finite numbers, or -inf for a masked class")
    w = jnp.ones(z.shape[:1], z.dtype) if weights is None else checks.floating(weights, "weights")
    checks.shaped(w, z.shape[:1], "weights", "one per example")
    if not bool(jnp.all((w >= 0) & jnp.isfinite(w)) & jnp.any(w > 0)):
        raise ValueError("weights: expected finite numbers of at least 0, some above 0")
    if not _is_softmax(z, t) and not bool(jnp.all((t == 0) | (t == 1))):
        raise ValueError("targets: expected 0 or 1 for a sigmoid")
    if not bool(jnp.all(jnp.isfinite(_losses(z, t)))):
        raise ValueError("targets: expected no example on a masked class, where its loss is inf")
    return z, t, w.astype(z.dtype)
