"""What every implementation of the fused losses is given and gives back.

An implementation is a module with these functions; the sigmoid's have the prefix `binary_`.

    unsupported(head, options) -> str | None              why it cannot run here, or None
    forward(head, options) -> LSEParts                        one pass over the classes
    tangent(head, rows, tangents, options) -> RowTangents
    backward(head, rows, cotangents, wanted, options) -> ModelTangents
                                                          the transpose of `tangent`
    value_and_gradients(head, valid, weights, wanted, options) -> (nll, ModelTangents)

x and w are given in the dtype of the products. Their tangents may be wider, and so may the
gradients that are wanted.

`LSEParts` holds what a row's loss is made of, relative to a maximum that counts as a constant. The
derivative of a row is then two numbers: with e_k = exp(z_k - maximum) for k != y,

    others' = sum_k e_k z_k',    label' = z_y',    and so    z_k' = others' e_k,    z_y' = label'

in the other direction. Nothing in it is a difference of nearly equal numbers, so a confident
example keeps the digits of its small loss and gradient.
"""

from dataclasses import dataclass
from typing import NamedTuple

from jax import Array, lax
from jax.typing import DTypeLike

from jaxsoftmax.kernels.target import Target
from jaxsoftmax.kernels.tiles import Tiles

type Precision = lax.PrecisionLike


class Model(NamedTuple):
    """Features and parameters."""

    x: Array  # [N, D]
    w: Array  # [D, K]
    bias: Array | None  # [K], the dtype of sums


class ModelTangents(NamedTuple):
    """Tangents or gradients of a `Model`: None for what is not asked for."""

    x: Array | None
    w: Array | None
    bias: Array | None


class NeedsGrad(NamedTuple):
    """The dtypes of the gradients that are asked for, and None for the others."""

    x: DTypeLike | None = None
    w: DTypeLike | None = None
    bias: DTypeLike | None = None


class Head(NamedTuple):
    """A linear head and its data: scores z = x w + bias, where they exist, and the truth."""

    x: Array  # [N, D]
    w: Array  # [D, K]
    bias: Array | None  # [K], the dtype of sums
    where: Array | None  # bool [1, K] or [N, K]: which classes exist
    targets: Array  # labels [N], in range; or for the sigmoid targets [N, K]
    pos_weight: Array | None = None  # [1, K], for the sigmoid alone

    @property
    def model(self) -> Model:
        """The part that can be differentiated."""
        return Model(self.x, self.w, self.bias)


class Stats(NamedTuple):
    """What else one pass can tell of each row, `[N]` each."""

    mean: Array  # of the logits that exist
    classes: Array  # how many do
    predicted: Array  # the first k with z_k = maximum


class LSEParts(NamedTuple):
    """What the loss of each row is made of, `[N]` each."""

    maximum: Array  # max_k z_k: a constant to derivatives
    sum_exp_rest: Array  # sum over k != y of exp(z_k - maximum)
    label_logit: Array  # z_y
    stats: Stats | None


class RowTangents(NamedTuple):
    """Tangents or cotangents of `LSEParts`."""

    sum_exp_rest: Array
    label_logit: Array
    mean: Array | None


@dataclass(frozen=True)
class Options:
    """What is known at compile time."""

    tiles: Tiles
    target: Target
    dtype: DTypeLike  # of the operands of products
    softcap: float | None = None
    precision: Precision = None
    stats: bool = False  # whether LSEParts has Stats
