r"""Calibration: rescale the logits of a fitted classifier so that its probabilities can be trusted.

    temperature_scaling    z / T, one temperature for all
    vector_scaling         a_k z_k + c_k, a scale and an offset for each class or label

by the least negative log-likelihood of validation data that did not train the classifier. Both
problems are convex, are solved in float64, and never make the likelihood worse on the data they are
fitted to. With integer labels `[N]` and logits `[N, K]` the head is a softmax; with targets of the
logits' shape, or logits `[N, 1]`, a sigmoid per label, for which vector scaling is Platt's method
label by label.

Data can leave an answer open in two ways, and the result tells them apart:

- The likelihood has no optimum. If all examples are right it grows with the scale forever, and the
  temperature stops at 1 / limit; a class without examples loses offset forever. The result is then
  finite, and says `converged=False`.
- The probabilities have an optimum, but several scales give it: those of a class whose logits do
  not vary, or of two classes with logits z and -z. Such a scale stays 1, or as near to 1 as the
  optimum allows, and `determined` is False.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import links, losses, metrics, placement, validation
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.validation import ArrayLike

LARGEST = 1e100  # logit, of which float64 has the square
LIMIT = 1000.0  # of the common scale at which vector scaling starts, times the logits' spread
GRADIENT = 1e-7  # at which its search ends: then differences of losses are of rounding alone
STEP = 1e-2  # of Newton's method, in deviations of the logits: at an optimum it is smaller
TOGETHER = 3  # Newton steps between two looks at how the loss bends
PRODUCTS = 200  # of the Hessian for that step, at most


class Fit(NamedTuple):
    """A calibration, z -> scale z + bias, and what it did to the data it was fitted to.

    `nll` and `ece` are the mean negative log-likelihood (for a sigmoid of all labels together) and
    the expected calibration error, each `(before, after)`. `converged` is False where the
    likelihood has no optimum, or the search did not reach it; the calibration is then finite and no
    worse than none. `decrement` is Newton's estimate g' H^-1 g / 2 of how far the mean was above
    its minimum before the last step: without a penalty there is no proof of it. `determined` is
    False for a scale of which the data say nothing, or only together with other scales.
    """

    scale: Array  # [], or [K] of vector scaling
    bias: Array  # 0, or [K] of vector scaling
    nll: tuple[float, float]
    ece: tuple[float, float]
    converged: bool
    decrement: float
    determined: Array  # bools of the scale's shape

    def apply(self, logits: ArrayLike) -> Array:
        """Calibrated logits of the same shape; a masked class, -inf, stays masked.

        Args:
            logits: floats, `[..., K]`, or `[...]` of one binary label.

        Returns:
            float32 or float64: half precision would undo what calibration does.

        Example:
            >>> import jax.numpy as jnp
            >>> from jaxsoftmax import calibration
            >>> half, zero, yes = jnp.array(0.5), jnp.array(0.0), jnp.array(True)
            >>> fitted = calibration.Fit(half, zero, (1, 1), (0, 0), True, 0.0, yes)
            >>> print(fitted.apply(jnp.array([4.0, -jnp.inf])))
            [  2. -inf]
        """
        z = validation.to_sum_dtype(validation.as_floats(logits))
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
        or the geometric middle where Newton leaves the bracket. It is found in float64. At an end
        of the bracket (all right: b = limit; worse than chance: b = 1 / limit) `converged` is
        False. Logits of an example that differ by rounding alone keep b = 1, and `determined` is
        False.

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
    rounding = _rounding(logits)
    with jax.enable_x64():
        wide = _double(z, t, w)
        known = _spread(*wide, rounding) > 0
        b, settled, decrement = _inverse_temperature(*wide, limit) if known else (1, True, 0)
    found = np.array(b, z.dtype), np.zeros((), z.dtype), np.array(known)
    return _fit(z, t, w, *found, converged=bool(settled), decrement=float(decrement))


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
        SciPy's trust-region Newton method with conjugate gradients, in float64, from the best
        common scale, in units of each class: the deviation of its logits from their mean. It is
        converged where Newton's step is small, which it never is where the likelihood has no
        optimum: all examples are right, a class has no examples, or some classes are separable.

        What the data leave open stays at scale 1 and bias 0. A class whose logits differ by
        rounding alone keeps scale 1, and one that is masked in all examples bias 0 too. If the
        logits of all classes are linear functions of one another but for rounding, like z and -z,
        the scales are as near to 1 as the optimum allows. In these cases `determined` is False.
        Masks can part the classes into sets of which no example compares two: each is then a
        softmax of its own, whose biases sum to 0.

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
    rounding = _rounding(logits)
    with jax.enable_x64():
        wide = _double(z, t, w)
        common = _common_scale(*wide, rounding)
        columns, unit = _columns(*wide, rounding)
        start = columns.params(common)
        params, settled, decrement = _minimum(start, unit, *wide[1:], iterations)
    scale, bias = columns.calibration(params, _is_softmax(z, t), z.dtype)
    found = (a.reshape(z.shape[1:]) for a in (scale, bias, columns.varies & ~columns.tied))
    return _fit(z, t, w, *found, converged=settled, decrement=decrement)


def _affine(scale: Array, bias: Array, z: Array) -> Array:
    """scale z + bias; a scale of 0 or below would make NaN or +inf of a masked class."""
    exists = z != -jnp.inf
    return jnp.where(exists, scale * jnp.where(exists, z, 0) + bias, -jnp.inf)


def _below_top(z: Array) -> Array:
    """Logits minus the largest of their example: an offset is no confidence, but rounds."""
    top = jnp.max(z, -1, keepdims=True)
    return z - jnp.where(top == -jnp.inf, 0, top)


def _losses(z: Array, t: Array) -> Array:
    """Of a softmax `[N]`, of sigmoids `[N, L]` or `[N]`."""
    loss = losses.cross_entropy if _is_softmax(z, t) else losses.binary_cross_entropy
    return loss(z, t)


def _is_softmax(z: Array, t: Array) -> bool:
    return z.ndim > t.ndim


@jax.jit
def _nll(scale: Array, bias: Array, z: Array, t: Array, w: Array) -> Array:
    return weighted_mean(_losses(_affine(scale, bias, z), t), weights=w)


def _rounding(logits: ArrayLike) -> float:
    """The relative error of logits: of their own rounding, and of the sums that made them."""
    z = validation.as_floats(logits)
    return float(jnp.finfo(z.dtype).eps + 16 * jnp.finfo(validation.to_sum_dtype(z).dtype).eps)


def _double(z: Array, t: Array, w: Array) -> tuple[Array, Array, Array]:
    """The data with logits `[N, K]` in float64, where that is enabled."""
    z, t = (z[:, None], t[:, None]) if z.ndim == 1 else (z, t)
    return z.astype(jnp.float64), t, w.astype(jnp.float64)


def _spread(z: Array, t: Array, w: Array, rounding: float) -> float:
    """The root mean square of what a loss sees of the logits; 0 where that is rounding alone."""
    seen, size = map(float, _root_mean_squares(z, t, w))
    return seen if seen > rounding * size else 0.0


@jax.jit
def _root_mean_squares(z: Array, t: Array, w: Array) -> tuple[Array, Array]:
    exists = z != -jnp.inf
    share = jnp.where(exists, (w / jnp.sum(w))[:, None], 0)
    seen = _below_top(z) if _is_softmax(z, t) else z
    seen, z = (jnp.where(exists, a, 0) for a in (seen, z))
    return jnp.sqrt(jnp.sum(share * seen**2)), jnp.sqrt(jnp.sum(share * z**2))


@jax.jit
def _inverse_temperature(z: Array, t: Array, w: Array, limit: float) -> tuple[Array, Array, Array]:
    """The root of the mean loss's slope in b, or an end; whether a root; the Newton decrement."""
    z = _below_top(z) if _is_softmax(z, t) else z
    slope = jax.grad(lambda b: _nll(b, jnp.zeros_like(b), z, t, w))

    def slope_and_curvature(b: Array) -> tuple[Array, Array]:
        return jax.jvp(slope, (b,), (jnp.ones_like(b),))

    one = placement.full(z, 1, (), z.dtype)
    low, high = one / limit, one * limit
    up, down = slope(low) > 0, (slope(high) <= 0) & (slope(low) < 0)
    end = jnp.where(down, high, low)

    def unfinished(state: tuple) -> Array:
        _, _, b, step, count = state
        return (step > 64 * jnp.finfo(b.dtype).eps * b) & (count < 100)

    def search(state: tuple) -> tuple:
        low, high, b, _, count = state
        s, c = slope_and_curvature(b)
        low, high = jnp.where(s <= 0, b, low), jnp.where(s >= 0, b, high)
        inside = (b - s / c >= low) & (b - s / c <= high)  # where it ends, on one of them
        following = jnp.where(inside, b - s / c, jnp.sqrt(low) * jnp.sqrt(high))
        return low, high, following, jnp.abs(following - b), count + 1

    start = jnp.where(up | down, end, one), jnp.where(up | down, 0, high)
    *_, b, _, count = lax.while_loop(unfinished, search, (low, high, *start, 0))
    s, c = slope_and_curvature(b)
    settled = ~(up | down) & (count < 100) & jnp.isfinite(s) & jnp.isfinite(c)
    return b, settled, jnp.where(s == 0, 0, 0.5 * s**2 / c)


# -- Vector scaling --


class _Columns(NamedTuple):
    """The logits of each class in units of their own, z = mean + deviation unit."""

    mean: np.ndarray  # [K]
    deviation: np.ndarray  # [K], 1 where the logits do not vary
    varies: np.ndarray  # [K], whether they do
    group: np.ndarray  # [K], a number that classes share which some example compares
    sign: np.ndarray  # [K], of the correlation with the first class of the group
    tied: np.ndarray  # [K], whether all units of the group are equal up to the sign

    def params(self, common: float) -> np.ndarray:
        """Return scale and bias of the units, `[2, K]`, of one scale for all logits and no bias."""
        return common * np.stack([self.deviation, self.mean])

    def calibration(self, params: np.ndarray, softmax: bool, dtype: np.dtype) -> list[np.ndarray]:
        """Return scale and bias of the logits; of several that are equal, those nearest to 1, 0."""
        scale, free = params[0] / self.deviation, self.sign / self.deviation
        excess = _group_sums(free * (scale - 1), self.group) / _group_sums(free**2, self.group)
        scale = scale - np.where(self.tied, free * excess, 0)
        scale = np.where(self.varies, scale, 1).astype(dtype)
        bias = params[1] - scale * self.mean  # what is lost in rounding the scale comes back here
        sizes = _group_sums(np.ones_like(bias), self.group)
        return [scale, (bias - softmax * _group_sums(bias, self.group) / sizes).astype(dtype)]


def _group_sums(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    return np.bincount(group, x)[group]


def _columns(z: Array, t: Array, w: Array, rounding: float) -> tuple[_Columns, Array]:
    """Means, deviations and what the data leave open; the units `[N, K]`, -inf where masked.

    A unit is exactly 0 where logits vary by rounding alone, and units are exactly equal where they
    differ by rounding alone. The gradient along what the data leave open is then 0, and Krylov's
    methods never move there; the rounding would determine scales of a million.
    """
    softmax = _is_softmax(z, t)
    w = _compared(z, w) if softmax else w
    mean, deviation = map(validation.to_host, _moments(z, w))
    error = rounding * np.hypot(mean, deviation)
    varies = deviation > error
    deviation = np.where(varies, deviation, 1)
    unit = _units(z, mean, deviation, varies)
    first, group = _groups(z, w) if softmax else (np.arange(len(mean)),) * 2
    sign, apart = map(validation.to_host, _correlated(unit, w, first))
    error = error / deviation
    alike = varies & (apart <= error + error[first]) & softmax
    tied = _group_sums(~alike, group) == 0
    return _Columns(mean, deviation, varies, group, sign, tied), _tied(unit, first, sign, tied)


def _common_scale(z: Array, t: Array, w: Array, rounding: float) -> float:
    """The best scale of all logits; where it has no end, one at which losses do not vanish."""
    spread = _spread(z, t, w, rounding)
    if not spread:
        return 1.0
    best = float(_inverse_temperature(z / spread, t, w, LIMIT)[0])
    return (best if best < LIMIT else 1.0) / spread


@jax.jit
def _compared(z: Array, w: Array) -> Array:
    """The weights of examples with two classes or more; of one class the loss is always 0."""
    return jnp.where(jnp.sum(z != -jnp.inf, 1) > 1, w, 0)


@jax.jit
def _moments(z: Array, w: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of each class's logits, `[K]`; 0 where there are none."""
    mean = _column_means(z, z != -jnp.inf, w)
    return mean, jnp.sqrt(_column_means((z - mean[None]) ** 2, z != -jnp.inf, w))


def _column_means(x: Array, exists: Array, w: Array) -> Array:
    weights = jnp.where(exists, w[:, None], 0)
    total = jnp.sum(weights, 0)
    return jnp.sum(weights * jnp.where(exists, x, 0), 0) / jnp.where(total == 0, 1, total)


@jax.jit
def _units(z: Array, mean: Array, deviation: Array, varies: Array) -> Array:
    unit = jnp.where(varies[None], (z - mean[None]) / deviation[None], 0)
    return jnp.where(z == -jnp.inf, -jnp.inf, unit)


def _groups(z: Array, w: Array) -> tuple[np.ndarray, np.ndarray]:
    """The first class of each class's group, and the number of the group, `[K]`.

    Classes are of one group if some example has both, or if both are of one group with a third.
    """
    from scipy.sparse import csgraph  # type: ignore[import-untyped]

    if not bool(jnp.any(z == -jnp.inf)):
        return np.zeros(z.shape[1], int), np.zeros(z.shape[1], int)
    exists = validation.to_host((z != -jnp.inf) & (w > 0)[:, None])
    kinds = np.unique(exists, axis=0).astype(np.float32)
    number = csgraph.connected_components(kinds.T @ kinds)[1]
    return np.unique(number, return_index=True)[1][number], number


@jax.jit
def _correlated(unit: Array, w: Array, first: Array) -> tuple[Array, Array]:
    """The sign of each class's correlation with the first of its group, and the deviation left."""
    other = _of_first(unit, first)
    both = (unit != -jnp.inf) & (other != -jnp.inf)
    sign = jnp.where(_column_means(unit * other, both, w) < 0, -1, 1)
    return sign, jnp.sqrt(_column_means((unit - sign[None] * other) ** 2, both, w))


@jax.jit
def _tied(unit: Array, first: Array, sign: Array, tied: Array) -> Array:
    """The units, those of the first class of the group where all are equal but for rounding."""
    return jnp.where(tied[None] & (unit != -jnp.inf), sign[None] * _of_first(unit, first), unit)


def _of_first(unit: Array, first: Array) -> Array:
    """For each class the units of the first class of its group, `[N, K]`."""
    other = placement.gather_axis(unit, 1)[:, first]
    return placement.reshard(other, unit, *placement.partition_spec(unit))


class _Problem:
    """The mean loss as SciPy sees it: of steps from given parameters, all of which bend it alike.

    A class's scale acts on its units minus a center, around which its bias does not bend the loss.
    """

    def __init__(self, params: np.ndarray, unit: Array, t: Array, w: Array) -> None:
        self.params, self.data = params, (unit, t, w)
        self.real = jnp.where(unit == -jnp.inf, 0, unit), t, w  # where it is -inf p is 0
        self.last = np.zeros(params.size), _probabilities(params, unit, t)
        center, curvatures = map(validation.to_host, _bends(self.last[1], *self.real))
        self.center, self.size = center, _sizes(curvatures)

    def step(self, x: np.ndarray) -> np.ndarray:
        """The change of scale and bias of the units, `[2, K]`."""
        scale, bias = x.reshape(2, -1) * self.size
        return np.stack([scale, bias - self.center * scale])

    def _gradient(self, g: Array) -> np.ndarray:
        """The transpose of `step`."""
        scale, bias = validation.to_host(g)
        return (np.stack([scale - self.center * bias, bias]) * self.size).ravel()

    def value_and_gradient(self, x: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = _value_and_gradient(self.params + self.step(x), *self.data)
        return float(value), self._gradient(gradient)

    def product(self, x: np.ndarray, v: np.ndarray) -> np.ndarray:
        """The Hessian at x times v; a search asks for many at one x."""
        if not np.array_equal(x, self.last[0]):
            params = self.params + self.step(x)
            self.last = x.copy(), _probabilities(params, *self.data[:2])
        return self._gradient(_product(self.last[1], self.step(v), *self.real))


def _minimum(
    params: np.ndarray, unit: Array, t: Array, w: Array, iterations: int
) -> tuple[np.ndarray, bool, float]:
    """Scale and bias of least loss, whether it is an optimum, and the Newton decrement.

    Differences of losses are blind to the last digits, so that SciPy's search ends before them, and
    a Newton step goes the rest of the way. Where the likelihood has no optimum the loss falls like
    exp(-x), whose Newton step is 1 however small its slope.
    """
    import scipy.optimize  # type: ignore[import-untyped]
    from scipy.sparse import linalg

    for done in range(0, iterations, TOGETHER):
        problem = _Problem(params, unit, t, w)
        found = scipy.optimize.minimize(
            problem.value_and_gradient,
            np.zeros(params.size),
            jac=True,
            hessp=problem.product,
            method="trust-ncg",
            options={"gtol": GRADIENT, "maxiter": min(TOGETHER, iterations - done)},
        )
        params = params + problem.step(found.x)
        if found.success:
            break
    product = functools.partial(problem.product, found.x)
    hessian = linalg.LinearOperator((params.size, params.size), matvec=product)
    newton, _ = linalg.cg(hessian, -found.jac, rtol=1e-3, maxiter=PRODUCTS)
    step = problem.step(newton)
    settled = bool(np.max(np.abs(step)) <= STEP)
    return params + step if settled else params, settled, float(-0.5 * found.jac @ newton)


def _sizes(curvatures: np.ndarray) -> np.ndarray:
    """Changes of the parameters that change the mean loss alike."""
    least = 1e-8 * curvatures.max()
    return 1 / np.sqrt(np.maximum(curvatures, least)) if least > 0 else np.ones_like(curvatures)


@jax.jit
def _value_and_gradient(params: Array, unit: Array, t: Array, w: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(lambda x: _nll(x[0], x[1], unit, t, w))(params)


@jax.jit
def _probabilities(params: Array, unit: Array, t: Array) -> Array:
    scores = _affine(params[0], params[1], unit)
    return links.softmax(scores) if _is_softmax(unit, t) else links.sigmoid(scores)


@jax.jit
def _product(p: Array, tangent: Array, unit: Array, t: Array, w: Array) -> Array:
    """The Hessian of the mean loss, at these probabilities, times a tangent, `[2, K]`."""
    change = tangent[0] * unit + tangent[1]
    mean = jnp.sum(p * change, 1, keepdims=True) if _is_softmax(unit, t) else p * change
    return _sums(p * (change - mean), unit, t, w)


@jax.jit
def _bends(p: Array, unit: Array, t: Array, w: Array) -> tuple[Array, Array]:
    """Where the mean loss bends with each class's score, and the Hessian's diagonal around it."""
    first, total = _sums(p * (1 - p), unit, t, w)
    center = first / jnp.where(total == 0, 1, total)
    apart = unit - center[None]
    return center, jnp.stack([_sums(p * (1 - p) * apart, apart, t, w)[0], total])


def _sums(x: Array, unit: Array, t: Array, w: Array) -> Array:
    """Sums over the examples of x unit and of x, as in the mean loss."""
    share = (w / jnp.sum(w))[:, None] / (1 if _is_softmax(unit, t) else unit.shape[1])
    return jnp.stack([jnp.sum(share * x * unit, 0), jnp.sum(share * x, 0)])


def _ece(z: Array, t: Array, w: Array) -> float:
    if _is_softmax(z, t):
        return float(metrics.expected_calibration_error(z, t, weights=w).error)
    each = jnp.broadcast_to(w.reshape(w.shape + (1,) * (z.ndim - 1)), z.shape)
    return float(metrics.reliability(links.sigmoid(z), t, weights=each).error)


def _fit(
    z: Array,
    t: Array,
    w: Array,
    scale: np.ndarray,
    bias: np.ndarray,
    determined: np.ndarray,
    *,
    converged: bool,
    decrement: float,
) -> Fit:
    """The result; no calibration at all where that makes the likelihood no better than before."""
    none = np.ones_like(scale), np.zeros_like(bias)
    with jax.enable_x64():
        wide = z.astype(jnp.float64), t, w.astype(jnp.float64)
        before, after = (float(_nll(*each, *wide)) for each in (none, (scale, bias)))
    if not after <= before:
        (scale, bias), after = none, before
    params = jnp.asarray(scale), jnp.asarray(bias)
    ece = _ece(z, t, w), _ece(_affine(*params, z), t, w)
    return Fit(*params, (before, after), ece, converged, decrement, jnp.asarray(determined))


def _validation(
    logits: ArrayLike, targets: ArrayLike, weights: ArrayLike | None
) -> tuple[Array, Array, Array]:
    """Validation data as arrays, after a look at their values; zeros where the weight is 0."""
    z = validation.to_sum_dtype(validation.as_floats(logits))
    t = validation.as_numbers(targets, "targets")
    if z.ndim == 2 and z.shape[1] == 1 and t.ndim == 1:
        t = t[:, None]
    if z.ndim not in (1, 2) or 0 in z.shape or t.shape not in (z.shape, z.shape[:1]):
        raise ValueError(
            "logits, targets: expected [N, K] and labels [N], or one shape [N] or [N, L], "
            f"got {z.shape} and {t.shape}"
        )
    w = _shares(weights, z)
    if _is_softmax(z, t):
        losses.check_labels(targets, z.shape[1], valid=w > 0)
    z, t = (jnp.where((w > 0).reshape(-1, *(1,) * (a.ndim - 1)), a, 0) for a in (z, t))
    with jax.enable_x64():
        wide = z.astype(jnp.float64)
        usable = bool(jnp.all((jnp.abs(wide) <= LARGEST) | (wide == -jnp.inf)))
        possible = bool(jnp.all(jnp.isfinite(_losses(wide, t))))
    if not usable:
        raise ValueError(
            f"logits: expected finite numbers of at most {LARGEST:g}, or -inf for a masked class"
        )
    if not _is_softmax(z, t) and not bool(jnp.all((t == 0) | (t == 1))):
        raise ValueError("targets: expected 0 or 1 for a sigmoid")
    if not possible:
        raise ValueError("targets: expected no example on a masked class, where its loss is inf")
    return z, t, w


def _shares(weights: ArrayLike | None, z: Array) -> Array:
    """The weights in units of the largest, whose sum is finite."""
    if weights is None:
        return jnp.ones(z.shape[:1], z.dtype)
    w = validation.check_shape(
        validation.as_numbers(weights, "weights"), z.shape[:1], "weights", "one per example"
    )
    with jax.enable_x64():
        wide = w.astype(jnp.float64)
        shares = (wide / jnp.max(wide)).astype(z.dtype)
    if not bool(jnp.all((w >= 0) & jnp.isfinite(shares)) & jnp.any(shares > 0)):
        raise ValueError("weights: expected finite numbers of at least 0, some above 0")
    return shares
