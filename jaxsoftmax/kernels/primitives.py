"""Matrix products with sums in float32, and the form that few classes need on a CPU."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax import placement
from jaxsoftmax.kernels.types import LSEParts, Model, Precision

# Up to so many classes a product over rows is computed with the classes outermost.
FEW_CLASSES_LIMIT = 32

# A product over more classes than this is cut: XLA would split it for a GPU and pad a copy of w.
LONG_SUM_LIMIT = 32_768


def dot(a: Array, b: Array, axes: tuple[int, int], precision: Precision = None) -> Array:
    """The product of two matrices over an axis of each, with sums in float32 or float64."""
    over = ((axes[0],), (axes[1],))
    sums = sum_dtype(a.dtype)
    return lax.dot_general(a, b, (over, ((), ())), precision=precision, preferred_element_type=sums)


def sum_dtype(dtype: DTypeLike) -> DTypeLike:
    """The dtype in which sums are taken: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def operand_dtype(dtype: DTypeLike | None, model: Model) -> DTypeLike:
    """The dtype of the operands of products: what is asked for, or that of x and w together."""
    return jnp.promote_types(model.x.dtype, model.w.dtype) if dtype is None else dtype


def widen(tangents: Iterable[Any], dtype: DTypeLike) -> list[Any]:
    """Tangents in the dtype of the operands of products, or else in that of sums.

    A cast to fewer bits would round, in the transpose, gradients of what many lanes share.
    """
    sums = sum_dtype(dtype)
    return [t if t is None or t.dtype == dtype else t.astype(sums) for t in tangents]


def mask_and_cap(
    z: Array, exists: Array | None, softcap: float | None
) -> tuple[Array, Array | None]:
    """Logits, -inf where they are that already or do not exist, and the softcap's derivative.

    cap tanh(z / cap) would bring a masked class back as -cap.
    """
    dcap = None
    if softcap is not None:
        z, dcap = cap(z, jnp.tanh(z / softcap), softcap)
    return z if exists is None else jnp.where(exists, z, -jnp.inf), dcap


def cap(z: Array, bounded: Array, softcap: float) -> tuple[Array, Array]:
    """Return softcap tanh(z / softcap) and its derivative, from bounded = tanh(z / softcap).

    A logit of -inf stays one: the formula would bring a masked class back as -softcap.
    """
    return jnp.where(z == -jnp.inf, z, softcap * bounded), 1 - bounded * bounded


@jax.custom_jvp
def relative_exp(z: Array, maximum: Array) -> Array:
    """exp(z - maximum): 1 where they are equal, infinite or not, and 0 for -inf.

    The maximum counts as a constant: what is made of these does not depend on it.
    """
    base = jnp.where(maximum == -jnp.inf, 0, maximum)
    return jnp.where(z == base, 1, jnp.exp(z - base))


@relative_exp.defjvp
def _relative_exp_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    e = relative_exp(*primals)
    return e, e * tangents[0]


def row_loss(rows: LSEParts) -> tuple[Array, Array]:
    """-log p of the label, and S = others + e_y, 1 for a row that is masked whole.

    nll = log S + (maximum - z_y); where the label leads, e_y is 1 and nll = log1p(others), which
    keeps what log S loses.
    """
    maximum = lax.stop_gradient(rows.maximum)
    dead = maximum == -jnp.inf
    own = relative_exp(rows.label_logit, maximum)
    total = jnp.where(dead, 1, rows.sum_exp_rest + own)
    leads = rows.label_logit == maximum
    ahead = jnp.log1p(rows.sum_exp_rest / jnp.where(leads & ~dead, own, 1))
    return jnp.where(leads, ahead, jnp.log(total) + (maximum - rows.label_logit)), total


def log1p(e: Array) -> Array:
    """log(1 + e), e from 0 to 1, in a kernel: 2 artanh(s) = 2 (s + s^3 / 3 + ...), s = e / (2 + e).

    A GPU's logarithm is of 1 + e, rounded; a TPU's too, from e = 4e-4 on: a confident label's loss
    would be off by as much as 1e-4 of it. What follows s^13 / 13 is less than 2e-8 of it.
    """
    s = e / (2 + e)
    square, total = s * s, jnp.full_like(s, 1 / 13)
    for n in (11, 9, 7, 5, 3, 1):
        total = total * square + 1 / n
    return 2 * s * total


def weight_gradient(x: Array, dz: Array, precision: Precision = None) -> Array:
    """x^T dz, `[D, K]`: for few classes as the transpose of dz^T x.

    Short rows leave a CPU's vector units idle. With 10 classes dz^T x, whose rows are long, takes
    0.4 of the time. XLA moves transposes back into products, so a barrier holds this one.
    """
    if dz.shape[1] > FEW_CLASSES_LIMIT:
        return dot(x, dz, (0, 0), precision)
    return pin_layout(dot(dz, x, (0, 0), precision)).T


def pin_layout(a: Array) -> Array:
    """The same array, laid out as it is written."""
    return lax.optimization_barrier(a)


def contract_classes(dz: Array, w: Array, axis: int, precision: Precision = None) -> Array:
    """dz w^T, `[R, D]`, with the classes along `axis` of both, a long sum of them in blocks."""
    k = w.shape[axis]
    if k <= LONG_SUM_LIMIT:
        return dot(dz, w, (axis, axis), precision)

    groups = placement.groups(w, axis)
    part, size = k // groups, LONG_SUM_LIMIT // groups

    def step(total: Array, i: Array) -> tuple[Array, None]:
        cut = placement.Cut(jnp.minimum(i * size, part - size), size, groups)
        # Tied to the sum, or the slices of w are all made before the loop over rows.
        total, here = lax.optimization_barrier((total, w))
        a, b = (placement.take(m, cut, axis) for m in (dz, here))
        # The last block starts early: what another one has as well does not count twice.
        fresh = jnp.expand_dims(cut.since(i * size), 1 - axis)
        return total + dot(jnp.where(fresh, a, 0), b, (axis, axis), precision), None

    shape = dz.shape[1 - axis], w.shape[1 - axis]
    zero = placement.full(dz, 0, shape, sum_dtype(dz.dtype))
    return lax.scan(step, zero, jnp.arange(-(-part // size), dtype=jnp.int32))[0]


def weighted_total(values: Array, weights: Array) -> Array:
    """The weighted sum; a weight of 0 silences NaN and infinity, as in `weighted_mean`."""
    return jnp.sum(weights * jnp.where((weights == 0) & ~jnp.isfinite(values), 0, values))
