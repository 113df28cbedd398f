"""True values, in more digits than the tested dtypes hold, and errors counted in ulps.

Vectorised truths are computed in np.longdouble (64 bits of mantissa and a huge range of exponents
on x86), with the rounding of z - max z carried along, so that they are good to about 2^-60. They
are checked themselves against mpmath, at 60 digits.
"""

from typing import NamedTuple

import jax
import mpmath
import numpy as np

Array = np.ndarray
extended = np.longdouble

# How many ulps of each entry a link or a loss may be off. CPU: the promise. GPU: measured
# there. TPU: not measured, so only a stated bound.
BOUND = {"cpu": 8.0, "gpu": 16.0, "tpu": 64.0}


def bound() -> float:
    """The bound in ulps of the platform that runs the tests."""
    return BOUND[jax.default_backend()]


def has_oracle(dtype: np.dtype | type) -> bool:
    """Whether np.longdouble is wide enough, here, to judge results of `dtype`."""
    return np.finfo(extended).nmant >= np.finfo(dtype).nmant + 11


def ulp_error(got: Array, true: Array, *, scale: Array | None = None) -> Array:
    """How far each entry of `got` is from `true`, in units in the last place of got's dtype.

    The unit is the spacing of numbers at |true|, or at max(|true|, scale) for a sum that cancels.
    Where that is below the smallest normal number only the sign and the smallness are checked; an
    infinity or NaN has to be one. What breaks these rules is infinitely far off.
    """
    info = np.finfo(got.dtype)
    tiny = extended(info.tiny)
    got_, true = np.asarray(got, extended), np.asarray(true, extended)
    size = np.abs(true) if scale is None else np.maximum(np.abs(true), np.asarray(scale, extended))
    size = np.broadcast_to(size, true.shape)
    with np.errstate(invalid="ignore"):
        _, exponent = np.frexp(np.where(np.isfinite(size), size, 1))
        unit = np.ldexp(extended(1), exponent - 1 - info.nmant)
        error = np.abs(got_ - true) / unit
        # A true value below the normal range may come out as 0 or round up to the range's edge.
        small = (np.abs(got_) <= tiny * (1 + 8 * extended(info.eps))) & (got_ * true >= 0)
        error = np.where(size < tiny, np.where(small, 0.0, np.inf), error)
        same = (got_ == true) | (np.isnan(got_) & np.isnan(true))
    error = np.where(np.isfinite(true) & np.isfinite(got_), error, np.inf)
    signs = np.signbit(got_) == np.signbit(true)
    overflows = (np.abs(true) > extended(info.max)) & np.isinf(got_) & signs
    return np.where(same | overflows, 0.0, error).astype(np.float64)


def assert_ulps(
    got: object, true: Array, *, scale: Array | None = None, limit: float | None = None
) -> None:
    """Fail, and name the worst entry, where `got` is off by more than the platform's bound."""
    result = np.asarray(got)
    limit = bound() if limit is None else limit
    assert result.shape == true.shape, f"shape {result.shape}, expected {true.shape}"
    error = ulp_error(result, true, scale=scale)
    worst = np.unravel_index(np.argmax(error), error.shape)
    assert error[worst] <= limit, (
        f"{error[worst]:.3g} ulp off (limit {limit}) at {tuple(map(int, worst))}: "
        f"got {result[worst]!r}, true {true[worst]!r}"
    )


class Row(NamedTuple):
    """The exponentials of a row of logits, relative to its largest."""

    largest: Array  # m = max_k z_k, 0 where all are masked
    distance: Array  # z_k - m, at most 0
    exponential: Array  # exp(z_k - m)
    total: Array  # sum_k exp(z_k - m), 0 where all are masked
    others: Array  # the same sum without (one of) the largest


def row(logits: Array, where: Array | None = None) -> Row:
    z = np.asarray(logits, extended)
    if where is not None:
        z = np.where(where, z, -np.inf)
    largest = z.max(-1, keepdims=True)
    largest = np.where(np.isneginf(largest), 0, largest)
    with np.errstate(invalid="ignore", under="ignore"):
        # TwoSum: `rest` is what rounding took from the distance.
        distance = z - largest
        back = distance - z
        rest = (z - (distance - back)) + (-largest - back)
        rest = np.where(np.isfinite(rest), rest, 0)
        exponential = np.exp(distance) * (1 + rest)
    others = exponential.copy()
    np.put_along_axis(others, z.argmax(-1)[..., None], extended(0), -1)
    return Row(largest[..., 0], distance, exponential, exponential.sum(-1), others.sum(-1))


def divide(numerator: Array, denominator: Array) -> Array:
    """The quotient, 0 where the denominator is: the probabilities of a row that is all masked."""
    return np.where(denominator == 0, 0, numerator / np.where(denominator == 0, 1, denominator))


def onehot(labels: Array, classes: int) -> Array:
    return labels[..., None] == np.arange(classes)


def softmax(logits: Array, where: Array | None = None) -> Array:
    r = row(logits, where)
    return divide(r.exponential, r.total[..., None])


def log_softmax(logits: Array, where: Array | None = None) -> Array:
    # Both terms are at most 0, so nothing cancels.
    r = row(logits, where)
    return r.distance - np.log1p(r.others)[..., None]


def logsumexp(logits: Array, where: Array | None = None) -> tuple[Array, Array]:
    """The value and the size of its largest term."""
    r = row(logits, where)
    rest = np.log1p(r.others)
    value = np.where(r.total == 0, -np.inf, r.largest + rest)
    return value, np.maximum(np.abs(r.largest), rest)


def cross_entropy(logits: Array, labels: Array, where: Array | None = None) -> Array:
    r = row(logits, where)
    at_label = np.take_along_axis(r.distance, labels[..., None], -1)[..., 0]
    return np.where(r.total == 0, 0, np.log1p(r.others) - at_label)


def cross_entropy_gradient(logits: Array, labels: Array, where: Array | None = None) -> Array:
    r = row(logits, where)
    hot = onehot(labels, logits.shape[-1])
    not_label = np.where(hot, 0, r.exponential).sum(-1, keepdims=True)
    return divide(np.where(hot, -not_label, r.exponential), r.total[..., None])


def entropy(logits: Array, where: Array | None = None) -> Array:
    return -plogq(softmax(logits, where), log_softmax(logits, where)).sum(-1)


def entropy_gradient(logits: Array) -> tuple[Array, Array]:
    """p_k (g_k - sum p g) with the gaps g = max z - z, and p_k (g_k + sum p g)."""
    r = row(logits)
    p = divide(r.exponential, r.total[..., None])
    gaps = np.where(p == 0, 0, -r.distance)
    mean = (p * gaps).sum(-1, keepdims=True)
    return p * (gaps - mean), p * (gaps + mean)


def entropy_of_subnormals(logits: Array, dtype: np.dtype | type) -> Array:
    """The part of the entropy from probabilities that `dtype` has no normal numbers for."""
    p = softmax(logits)
    return -plogq(np.where(p < np.finfo(dtype).tiny, p, 0), log_softmax(logits)).sum(-1)


def brier(logits: Array, labels: Array, where: Array | None = None) -> Array:
    return np.square(cross_entropy_gradient(logits, labels, where)).sum(-1)


def plogq(p: Array, log_q: Array) -> Array:
    """p log q, 0 where p is 0."""
    return np.where(p == 0, 0, p * np.where(p == 0, 0, log_q))


def soft_cross_entropy(logits: Array, targets: Array) -> tuple[Array, Array]:
    """The value and its largest term."""
    terms = -plogq(np.asarray(targets, extended), log_softmax(logits))
    return terms.sum(-1), np.abs(terms).max(-1)


def kl_divergence(logits: Array, targets: Array) -> tuple[Array, Array]:
    """The value, and the larger of the two sums of opposite sign that it is made of.

    The terms of one class are no measure: with K equal logits every log p_k has the same rounding,
    half an ulp of log K, and all of it stays in the sum however small its terms are.
    """
    t = np.asarray(targets, extended)
    cross = plogq(t, log_softmax(logits))
    own = plogq(t, np.log(np.where(t == 0, 1, t)))
    return (own - cross).sum(-1), np.maximum(np.abs(cross.sum(-1)), np.abs(own.sum(-1)))


def soft_cross_entropy_gradient(logits: Array, targets: Array) -> tuple[Array, Array]:
    """p_k sum t - t_k, and the larger of the two terms."""
    t = np.asarray(targets, extended)
    expected = softmax(logits) * t.sum(-1, keepdims=True)
    return expected - t, np.maximum(expected, t)


def softplus(z: Array) -> Array:
    z = np.asarray(z, extended)
    with np.errstate(under="ignore"):
        return np.maximum(z, 0) + np.log1p(np.exp(-np.abs(z)))


def sigmoid(z: Array) -> Array:
    z = np.asarray(z, extended)
    with np.errstate(under="ignore"):
        e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1, e) / (1 + e)


def binary_cross_entropy(z: Array, targets: Array, pos_weight: Array | float = 1.0) -> Array:
    weight, t = np.asarray(pos_weight, extended), np.asarray(targets, extended)
    return plogq(weight * t, softplus(-z)) + plogq(1 - t, softplus(z))


def binary_cross_entropy_gradient(
    z: Array, targets: Array, pos_weight: Array | float = 1.0
) -> Array:
    weight, t = np.asarray(pos_weight, extended), np.asarray(targets, extended)
    return (1 - t) * sigmoid(z) - weight * t * sigmoid(-z)


def softmax_hessian(logits: Array) -> Array:
    """diag(p) - p p'."""
    p = softmax(logits)
    return p[..., None] * np.eye(p.shape[-1], dtype=extended) - p[..., None] * p[..., None, :]


def softmax_hessian_product(logits: Array, tangents: Array) -> tuple[Array, Array]:
    """p_k (u_k - sum p u) with u relative to the leading class, and the scale of its error.

    The scale is the largest term; but products of the size of the smallest normal number are lost
    one by one, so that it is at least K of those.
    """
    p, v = softmax(logits), np.asarray(tangents, extended)
    u = v - np.take_along_axis(v, p.argmax(-1)[..., None], -1)
    mean = (p * u).sum(-1, keepdims=True)
    largest = np.maximum(np.abs(u), np.abs(p * u).max(-1, keepdims=True))
    info = np.finfo(logits.dtype)
    return p * (u - mean), np.maximum(p * largest, p.shape[-1] * extended(info.tiny) / info.eps)


def mp_cross_entropy(logits: list[float], label: int) -> tuple[mpmath.mpf, list[mpmath.mpf]]:
    """Value and gradient of one example at 60 digits, in the textbook's own form."""
    with mpmath.workdps(60):
        e = [mpmath.exp(mpmath.mpf(z)) for z in logits]
        total = mpmath.fsum(e)
        others = mpmath.fsum(x for k, x in enumerate(e) if k != label)
        value = mpmath.log1p(others / e[label])
        gradient = [-others / total if k == label else x / total for k, x in enumerate(e)]
        return value, gradient


def from_mp(number: mpmath.mpf) -> extended:
    """An mpmath number as np.longdouble, whose range float64 does not have."""
    return extended(mpmath.nstr(number, 30))
