"""The types that every implementation of the fused losses takes and returns.

An implementation is a module with these functions. Those of the sigmoid loss have the prefix
`binary_`.

    unsupported(head, options) -> str | None                why it cannot run here, or None
    forward(head, options) -> LSEParts                      one pass over the classes
    tangent(head, parts, tangents, options) -> RowTangents
    backward(head, parts, cotangents, needs_grad, options) -> ModelCotangents
                                                            the transpose of `tangent`
    value_and_gradients(head, valid, weights, needs_grad, options) -> (nll, ModelCotangents)
    rows_and_gradients(head, weights, constants, function, needs_grad, options)
                                                            -> (RowTerms, ModelCotangents)
                                                            of a loss of the rows (`row_losses`)

x and w are given in the dtype of the products. Their tangents may be wider, and so may the
gradients that are asked for.

`LSEParts` holds the terms of a row's loss, relative to a maximum that counts as a constant. The
derivative of a row is then two numbers. With e_k = exp(z_k - maximum) for k != y, a tangent dz of
the logits gives

    d sum_exp_rest = sum_{k != y} e_k dz_k,    d label_logit = dz_y

and the transpose takes the cotangents of these two numbers, marked by a bar, to that of the logits:

    z_bar_k = e_k sum_exp_rest_bar,    z_bar_y = label_logit_bar

No term is a difference of nearly equal numbers, so a confident example keeps the digits of its
small loss and gradient.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax.kernels.target import Target
from jaxsoftmax.kernels.tiles import Tiles

type Precision = lax.PrecisionLike


class Model(NamedTuple):
    """Features and parameters."""

    x: Array  # [N, D]
    w: Array  # [D, K]
    bias: Array | None  # [K], in the dtype of sums


class ModelTangents(NamedTuple):
    """Tangents of a `Model`: None where a tangent is zero."""

    x: Array | None
    w: Array | None
    bias: Array | None


# Cotangents of a `Model`: None where no gradient is needed. `linear_map` maps one tree to another
# and back, so both directions have one type.
ModelCotangents = ModelTangents


class NeedsGrad(NamedTuple):
    """The dtypes of the gradients that are needed, and None for the others."""

    x: DTypeLike | None = None
    w: DTypeLike | None = None
    bias: DTypeLike | None = None


class Head(NamedTuple):
    """A linear head and its data: scores z = x w + bias, which of them exist, and the targets."""

    x: Array  # [N, D]
    w: Array  # [D, K]
    bias: Array | None  # [K], in the dtype of sums
    where: Array | None  # bool [1, K] or [N, K]: which classes exist
    targets: Array  # softmax: labels [N], in range; sigmoid: targets [N, K]
    pos_weight: Array | None = None  # [1, K], for the sigmoid only

    @property
    def model(self) -> Model:
        """The differentiable part."""
        return Model(self.x, self.w, self.bias)


class Stats(NamedTuple):
    """Further statistics of each row that one pass can compute, `[N]` each."""

    mean: Array  # of the logits that exist
    classes: Array  # the number of classes that exist
    predicted: Array  # the first k with z_k = maximum


class LSEParts(NamedTuple):
    """The terms of each row's loss, `[N]` each."""

    maximum: Array  # max_k z_k, a constant to derivatives
    sum_exp_rest: Array  # sum over k != y of exp(z_k - maximum)
    label_logit: Array  # z_y
    stats: Stats | None


class RowTangents(NamedTuple):
    """Tangents of `LSEParts`."""

    sum_exp_rest: Array
    label_logit: Array
    mean: Array | None


# Cotangents of `LSEParts`, for the same reason as `ModelCotangents`.
RowCotangents = RowTangents

# From the parts of rows and their weights: the numbers of each row that are returned, the
# cotangents of the parts, and which rows are ignored.
type RowRule = Callable[[LSEParts, Array], tuple[Any, RowCotangents, Array]]


@dataclass(frozen=True)
class Options:
    """The settings of an implementation, which are known at compile time."""

    tiles: Tiles
    target: Target
    dtype: DTypeLike  # of the operands of products
    softcap: float | None = None
    precision: Precision = None
    stats: bool = False  # whether `LSEParts` has `Stats`
