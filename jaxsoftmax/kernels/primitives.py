"""Building blocks that the implementations share: products, exponentials, row losses and sums."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax import placement, validation
from jaxsoftmax.kernels import loop_operands
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    Model,
    Options,
    Precision,
    RowCotangents,
)

# Up to this many classes, a product over rows is computed with the classes outermost.
FEW_CLASSES_LIMIT = 32

FLOAT_BYTES = 4  # of an entry of a sum

# The best approximation of log(1 + e) / e on [0, 1] by a polynomial, relative to it (Remez).
LOG1P_COEFFICIENTS = (
    1.0,
    -0.4999990165233612,
    0.3332996666431427,
    -0.24954168498516083,
    0.1967606097459793,
    -0.15305814146995544,
    0.10603854805231094,
    -0.05696006491780281,
    0.019851094111800194,
    -0.0032438193447887897,
)

# A product over more classes than this is cut, but for arrays that a GPU multiplies in place. XLA
# would split it for a GPU and pad a copy of w.
LONG_SUM_LIMIT = 32_768

# A GPU's matrix library multiplies half precision in vectors of 16 bytes: XLA pads other arrays.
VECTOR = 8


def dot(
    a: Array,
    b: Array,
    axes: tuple[int, int],
    precision: Precision = None,
    dtype: DTypeLike | None = None,
) -> Array:
    """Return the product of two matrices over an axis of each, summed in float32 or float64.

    The result has the dtype of the sums, or a given one: see `rounded_dtype`.
    """
    contracting = (axes[0],), (axes[1],)
    return lax.dot_general(
        a,
        b,
        (contracting, ((), ())),
        precision=precision,
        preferred_element_type=sum_dtype(a.dtype) if dtype is None else dtype,
    )


def rounded_dtype(dtype: DTypeLike, options: Options) -> DTypeLike:
    """Return the dtype of a product that needs no further sum and is wanted in this dtype.

    A GPU's matrix library sums in float32 and rounds once, if the result has the dtype of the
    operands. A cast afterwards is a pass of its own: the gradient of w would be stored in float32
    first, 4 D K bytes that are written and read again.
    """
    if options.target.platform == "gpu" and dtype == options.dtype:
        return dtype
    return sum_dtype(options.dtype)


def sum_dtype(dtype: DTypeLike) -> DTypeLike:
    """Return the dtype in which sums are taken: float64 for float64, else float32."""
    return jnp.float64 if dtype == jnp.float64 else jnp.float32


def operand_dtype(dtype: DTypeLike | None, model: Model) -> DTypeLike:
    """Return the dtype of the operands of products: the requested one, or that of x and w."""
    return jnp.promote_types(model.x.dtype, model.w.dtype) if dtype is None else dtype


def widen(tangents: Iterable[Any], dtype: DTypeLike) -> list[Any]:
    """Cast tangents that are not in the dtype of the operands of products to that of sums.

    In the transpose, a cast to fewer bits would round gradients of arrays that many lanes share.
    """
    sums = sum_dtype(dtype)
    return [t if t is None or t.dtype == dtype else t.astype(sums) for t in tangents]


def mask_and_cap(
    z: Array, exists: Array | None, softcap: float | None
) -> tuple[Array, Array | None]:
    """Return capped logits, -inf where a class does not exist, and the softcap's derivative."""
    dcap = None
    if softcap is not None:
        z, dcap = cap(z, jnp.tanh(z / softcap), softcap)
    return z if exists is None else jnp.where(exists, z, -jnp.inf), dcap


def cap(z: Array, bounded: Array, softcap: float) -> tuple[Array, Array]:
    """Return softcap tanh(z / softcap) and its derivative, from bounded = tanh(z / softcap).

    A logit of -inf stays -inf: the formula would bring a masked class back as -softcap.
    """
    return jnp.where(z == -jnp.inf, z, softcap * bounded), 1 - bounded * bounded


@jax.custom_jvp
def relative_exp(z: Array, maximum: Array) -> Array:
    """Return exp(z - maximum): 1 where they are equal, finite or not, and 0 where z is -inf.

    The maximum counts as a constant: results that are computed from these exponentials do not
    depend on it.
    """
    base = jnp.where(maximum == -jnp.inf, 0, maximum)
    return jnp.where(z == base, 1, jnp.exp(z - base))


@relative_exp.defjvp
def _relative_exp_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple:
    e = relative_exp(*primals)
    return e, e * tangents[0]


def row_loss(parts: LSEParts) -> tuple[Array, Array]:
    """Return nll = -log p_y of each row and S = sum_exp_rest + e_y, with e_y = exp(z_y - maximum).

    nll = log S + (maximum - z_y). Where the label leads, e_y is 1 and nll = log1p(sum_exp_rest),
    which keeps the digits that log S loses. S is 1 for a row whose classes are all masked.
    """
    maximum = lax.stop_gradient(parts.maximum)
    is_masked = maximum == -jnp.inf
    e_y = relative_exp(parts.label_logit, maximum)
    total = jnp.where(is_masked, 1, parts.sum_exp_rest + e_y)
    leads = parts.label_logit == maximum
    leading = jnp.log1p(parts.sum_exp_rest / jnp.where(leads & ~is_masked, e_y, 1))
    return jnp.where(leads, leading, jnp.log(total) + (maximum - parts.label_logit)), total


def nll_cotangents(parts: LSEParts, weights: Array) -> tuple[Array, RowCotangents, Array]:
    """Return nll of each row, the cotangents of its parts, and which rows are ignored.

    They are those of the weighted sum, in which a row of weight 0 is ignored if its loss is not
    finite.
    """
    nll, total = row_loss(parts)
    is_ignored = (weights == 0) & ~jnp.isfinite(nll)
    scale = jnp.where(is_ignored, 0, weights / total)
    label_logit = jnp.where(is_ignored, 0, -parts.sum_exp_rest * scale)
    return nll, RowCotangents(scale, label_logit, None), is_ignored


def with_mean(parts: LSEParts) -> LSEParts:
    """Return the parts with the mean of the logits in place of their sum."""
    if parts.stats is None:
        return parts
    mean = parts.stats.mean / jnp.maximum(parts.stats.classes, 1)
    return parts._replace(stats=parts.stats._replace(mean=mean))


def per_class(mean: Array | None, parts: LSEParts) -> Array | None:
    """Divide a tangent or cotangent of a row's mean logit by the number of its classes."""
    if mean is None or parts.stats is None:
        return None
    return mean / jnp.maximum(parts.stats.classes, 1)


def statistics(parts: LSEParts) -> tuple[Array, Array, Array | None, Array | None]:
    """Return nll, lse = maximum + log S and, with stats, mean logit and predicted class."""
    nll, total = row_loss(parts)
    maximum = lax.stop_gradient(parts.maximum)
    leads = parts.label_logit == maximum
    lse = jnp.where(leads, parts.label_logit + nll, maximum + jnp.log(total))
    lse = jnp.where(maximum == -jnp.inf, -jnp.inf, lse)
    lse = jnp.where(jnp.isnan(nll), nll, lse)  # a maximum may lose a NaN
    if parts.stats is None:
        return nll, lse, None, None
    return nll, lse, parts.stats.mean, parts.stats.predicted


def valid_row_losses(
    forward: Callable[[Head, Options], LSEParts], head: Head, valid: Array | None, options: Options
) -> Array:
    """Return the loss of each row from a forward pass, 0 for a row that is not valid."""
    if valid is not None:
        head = head._replace(x=validation.zero_ignored_rows(head.x, valid, 1))
    return validation.zero_ignored(row_loss(forward(head, options))[0], valid)


def log1p(e: Array) -> Array:
    """Return log(1 + e) in a kernel, for e from 0 to 1.

    A GPU takes the logarithm of 1 + e, rounded, and so does a TPU from e = 4e-4 on: the loss of a
    confident label would be off by as much as 1e-4 of its value. The polynomial is off by at most
    4.8e-9 of the result, and its sums by 2.1 ulp.
    """
    total = jnp.full_like(e, LOG1P_COEFFICIENTS[-1])
    for coefficient in LOG1P_COEFFICIENTS[-2::-1]:
        total = total * e + coefficient
    return total * e


def weight_gradient(
    x: Array, dz: Array, precision: Precision = None, dtype: DTypeLike | None = None
) -> Array:
    """Return x^T dz, `[D, K]`, computed for few classes as the transpose of dz^T x.

    Short rows leave a CPU's vector units idle. With 10 classes dz^T x, whose rows are long, takes
    0.4 of the time. XLA moves transposes back into products, so a barrier holds this one.
    """
    if dz.shape[1] > FEW_CLASSES_LIMIT:
        return dot(x, dz, (0, 0), precision, dtype)
    return pin_layout(dot(dz, x, (0, 0), precision, dtype)).T


def pin_layout(a: Array) -> Array:
    """Return the same array, behind a barrier that keeps XLA from transposing it."""
    return lax.optimization_barrier(a)


def is_padded(w: Array, options: Options) -> bool:
    """Return whether XLA multiplies a padded copy of w on a GPU."""
    is_half = jnp.dtype(options.dtype).itemsize == 2
    return is_half and any(size % VECTOR for size in w.shape)


def contract_classes(
    dz: Array, w: Array, axis: int, options: Options, dtype: DTypeLike | None = None
) -> Array:
    """Return dz w^T, `[R, D]`, with the classes along `axis` of both.

    A sum over more than `LONG_SUM_LIMIT` classes is taken in blocks, and has the dtype of sums,
    unless a GPU can multiply the arrays where they lie.
    """
    k = w.shape[axis]
    is_in_place = options.target.platform == "gpu" and not is_padded(w, options)
    if k <= LONG_SUM_LIMIT or is_in_place:
        return dot(dz, w, (axis, axis), options.precision, dtype)

    groups = placement.count_groups(w, axis)
    group_size, size = k // groups, LONG_SUM_LIMIT // groups
    dz_in_loop, w_in_loop = (loop_operands.hold_matrix(a, options) for a in (dz, w))

    def step(total: Array, i: Array) -> tuple[Array, None]:
        cut = placement.Cut(jnp.minimum(i * size, group_size - size), size, groups)
        # Tied to the sum: otherwise all slices of w are made before the loop over rows.
        total, tied_w = lax.optimization_barrier((total, w_in_loop()))
        dz_block, w_block = (placement.take_block(m, cut, axis) for m in (dz_in_loop(), tied_w))
        # The last block starts early; classes that another block has as well do not count twice.
        is_new = jnp.expand_dims(cut.since(i * size), 1 - axis)
        dz_block = jnp.where(is_new, dz_block, 0)
        return total + dot(dz_block, w_block, (axis, axis), options.precision), None

    shape = dz.shape[1 - axis], w.shape[1 - axis]
    zero = placement.full(dz, 0, shape, sum_dtype(dz.dtype))
    return lax.scan(step, zero, jnp.arange(-(-group_size // size), dtype=jnp.int32))[0]


def weighted_total(values: Array, weights: Array) -> Array:
    """Return the weighted sum, in which NaN and infinity with weight 0 are ignored.

    `weighted_mean` has the same rule.
    """
    return jnp.sum(weights * jnp.where((weights == 0) & ~jnp.isfinite(values), 0, values))
