"""Reliability diagrams and the expected calibration error."""

from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from jaxsoftmax import calls, links, validation
from jaxsoftmax.metrics.arguments import (
    flatten_replicated,
    mark_undefined,
    prepare_binary,
    prepare_weights,
)
from jaxsoftmax.metrics.means import hits
from jaxsoftmax.metrics.sums import group_ties, sum_by_index, sum_ties
from jaxsoftmax.validation import ArrayLike


class Reliability(NamedTuple):
    """A reliability diagram and the expected calibration error, its mean gap.

    Bin b holds the confidences in (edges[b], edges[b + 1]]; the first bin includes its lower edge.
    A bin may be empty because of ties with a large weight: its count is then 0 and its means are
    NaN.

    Attributes:
        error: sum_b counts_b |accuracy_b - confidence_b| / sum_b counts_b, a scalar.
        confidence: `[B]`, the mean probability in each bin.
        accuracy: `[B]`, the mean target.
        counts: `[B]`, the weight of the examples.
        edges: `[B + 1]`, the ends of the bins.
    """

    error: Array
    confidence: Array
    accuracy: Array
    counts: Array
    edges: Array


Binning = Literal["equal_mass", "equal_width"]


@calls.compiled("bins", "binning")
def reliability(
    probabilities: ArrayLike,
    targets: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal_mass",
    weights: ArrayLike | None = None,
) -> Reliability:
    r"""Compare probabilities with frequencies, in bins of equal mass or of equal width.

    error = sum_b |sum over i in b of w_i (t_i - p_i)| / sum_i w_i

    With equal mass, ties are never split: an example, or all examples of one probability together,
    are in the bin that holds the middle of their weight among the sorted weights,
    floor(B (below + own / 2) / all). The order of the examples thus does not matter, and without
    ties the bins' counts differ by at most 1 (for unit weights).

    With equal width, bin b holds the probabilities in (b / B, (b + 1) / B], the first bin also 0.

    Args:
        probabilities: floats of any shape, all of which go into the same bins.
        targets: the events' outcomes, of the same shape: 0 or 1 as numbers or bools.
        bins: B.
        binning: `"equal_mass"` or `"equal_width"`, which most published figures use.
        weights: numbers or bools of the same shape, or a scalar.

    Returns:
        `Reliability`, of floats. For no examples and for zero total weight the counts are 0 and
        everything else is NaN.

    Numerics:
        Within a bin the gaps t - p are summed, rather than subtracting two sums. The edges of bins
        of equal width are b / B in the dtype of the sums, in which probabilities are compared with
        them: a float32 0.2 is in the third of fifteen bins. A probability outside [0, 1] by
        rounding is in the first or the last bin.

    Raises:
        TypeError: probabilities are not floats, or targets or weights are not numbers.
        ValueError: shapes do not match, bins is below 1, or binning is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> p, t = jnp.array([0.25, 0.5, 0.5, 1.0]), jnp.array([0, 0, 1, 1])
        >>> result = metrics.reliability(p, t, bins=2)
        >>> print(result.counts, result.edges, result.error)
        [1. 3.] [0.25 0.25 1.  ] 0.0625
        >>> result = metrics.reliability(p, t, bins=2, binning="equal_width")
        >>> print(result.counts, result.edges, result.error)
        [3. 1.] [0.  0.5 1. ] 0.0625

    Reference:
        Nguyen and O'Connor, "Posterior calibration and exploratory analysis for natural language
        processing models" (2015), for bins of equal mass; Guo, Pleiss, Sun and Weinberger, "On
        calibration of modern neural networks" (2017), for fifteen of equal width.
    """
    validation.check_at_least_one(bins=bins)
    if binning not in get_args(Binning):
        raise ValueError(f"binning: expected one of {get_args(Binning)}, got {binning!r}")
    p, is_positive, undefined_entries = prepare_binary(probabilities, targets, "probabilities")
    w, is_undefined = prepare_weights(weights, undefined_entries, p.dtype)
    p, t, w = map(flatten_replicated, (p, is_positive.astype(p.dtype), w))
    assign_bins = _equal_mass_bins if binning == "equal_mass" else _equal_width_bins
    index, edges = assign_bins(p, w, bins)
    result = _summarize_bins(p, t, w.astype(p.dtype), index, edges)
    return Reliability(*(mark_undefined(field, is_undefined) for field in result))


def _summarize_bins(p: Array, t: Array, w: Array, index: Array, edges: Array) -> Reliability:
    """Return the means of each bin, and their mean gap."""

    def total(x: Array) -> Array:
        return sum_by_index(jnp.where(w == 0, 0, w * x), (index,), (edges.shape[0] - 1,))

    mass, counts = jnp.sum(w), total(jnp.ones_like(w))
    return Reliability(
        error=jnp.sum(jnp.abs(total(t - p))) / mass,
        confidence=total(p) / counts,
        accuracy=total(t) / counts,
        counts=counts,
        edges=jnp.where(mass > 0, edges, jnp.nan),
    )


def _equal_mass_bins(p: Array, w: Array, bins: int) -> tuple[Array, Array]:
    """Return the bin that holds the middle of the weight of an example's ties, and the edges."""
    order, group = group_ties(p)
    own = sum_ties(w[order], group)
    middle = jnp.cumsum(own).astype(p.dtype) - own.astype(p.dtype) / 2
    sorted_index = jnp.floor(bins * middle / jnp.sum(w.astype(p.dtype)))[group]
    sorted_index = jnp.clip(jnp.nan_to_num(sorted_index), 0, bins - 1).astype(jnp.int32)
    index = jnp.zeros_like(sorted_index).at[order].set(sorted_index)
    lowest = jnp.min(jnp.where(w == 0, jnp.inf, p), initial=jnp.inf, keepdims=True)
    highest = jax.ops.segment_max(jnp.where(w == 0, -jnp.inf, p), index, num_segments=bins)
    return index, lax.cummax(jnp.concatenate([lowest, highest]))


def _equal_width_bins(p: Array, w: Array, bins: int) -> tuple[Array, Array]:
    """Return the bin (lower, upper] of each probability, and the edges."""
    edges = jnp.asarray(np.arange(bins + 1) / bins, p.dtype)
    index = jnp.searchsorted(edges[1:-1], p, side="left", method="compare_all")
    return index.astype(jnp.int32), edges


@calls.compiled("bins", "binning")
def expected_calibration_error(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    bins: int = 15,
    binning: Binning = "equal_mass",
    weights: ArrayLike | None = None,
) -> Reliability:
    r"""Return the expected calibration error of the predicted class, with its bins.

    It is the `reliability` of max_k p_k as the probability that the predicted class is the label.
    For a sigmoid head use `reliability(sigmoid(logits), targets)`.

    Args:
        logits: floats, `[..., K]`.
        labels: integers, `[...]`.
        bins: the number of bins.
        binning: `"equal_mass"`, or `"equal_width"` to compare with published figures.
        weights: numbers or bools, `[...]` or a scalar.

    Returns:
        `Reliability`, whose `error` is the expected calibration error: NaN for no examples and for
        zero total weight.

    Numerics:
        Equal confidences stay in one bin, including those that round to 1; see `reliability`.

    Raises:
        TypeError: logits are not floats, labels are not integers, or weights are not numbers.
        ValueError: shapes do not match, bins is below 1, or binning is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import metrics
        >>> logits, labels = jnp.zeros((3, 2)), jnp.array([0, 0, 1])
        >>> print(metrics.expected_calibration_error(logits, labels, bins=2).error)
        0.16666667

    Reference:
        Guo, Pleiss, Sun and Weinberger, "On calibration of modern neural networks" (2017), whose
        fifteen bins are of equal width.
    """
    # In the dtype of sums: the rounding of half-precision confidences would exceed their error.
    z = validation.to_sum_dtype(validation.as_floats(logits))
    confidence = jnp.max(links.softmax(z), -1)
    return reliability(confidence, hits(z, labels), bins=bins, binning=binning, weights=weights)
