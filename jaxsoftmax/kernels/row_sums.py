"""The two weighted sums of an implementation whose forward pass keeps what gives the gradient.

The sum of the losses and the sum of a loss of the rows differ in a `RowRule` alone: what it makes
of the parts of a row, the numbers that are returned and the cotangents. An implementation has one
function for both.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

from jaxsoftmax import validation
from jaxsoftmax.kernels import primitives, xla_chunked
from jaxsoftmax.kernels.row_losses import RowLoss, RowTerms
from jaxsoftmax.kernels.types import Head, LSEParts, ModelCotangents, NeedsGrad, Options, RowRule
from jaxsoftmax.linear_map import with_derivatives_of


class RowSum(NamedTuple):
    """A weighted sum over rows, and what an implementation must know of it beforehand."""

    rule: RowRule
    zeros: Any  # of all rows, in place of the numbers that the rule returns
    uses_mean: bool  # whether the mean logit of a row has a cotangent


# From the sum, the head, which rows are valid, the weights, the gradients that are needed and the
# options to the numbers of each row and the gradients.
type SumRows = Callable[
    [RowSum, Head, Array | None, Array, NeedsGrad, Options], tuple[Any, ModelCotangents]
]


def weighted_sums(
    forward: Callable[[Head, Options], LSEParts], sum_rows: SumRows
) -> tuple[Callable, Callable]:
    """Return `value_and_gradients` and `rows_and_gradients`, as `types` describes them.

    Where no gradient is needed, they run the forward pass alone.
    """

    @with_derivatives_of(xla_chunked.value_and_gradients)
    def value_and_gradients(
        head: Head, valid: Array | None, weights: Array, needs_grad: NeedsGrad, options: Options
    ) -> tuple[Array, ModelCotangents]:
        """Return the loss of each row, 0 where not valid, and the gradients of the weighted sum."""
        if not any(needs_grad):
            nll = primitives.valid_row_losses(forward, head, valid, options)
            return nll, ModelCotangents(None, None, None)
        losses = RowSum(primitives.nll_cotangents, xla_chunked.row_zeros(head), False)
        nll, found = sum_rows(losses, head, valid, weights, needs_grad, options)
        return validation.zero_ignored(nll, valid), found

    @with_derivatives_of(xla_chunked.rows_and_gradients, options=3)
    def rows_and_gradients(
        head: Head,
        weights: Array,
        constants: tuple[Array, ...],
        function: Callable,
        needs_grad: NeedsGrad,
        options: Options,
    ) -> tuple[RowTerms, ModelCotangents]:
        """Return the terms of each row, and the gradients of the sum of a function of them."""
        if not any(needs_grad):
            return RowTerms.of(forward(head, options)), ModelCotangents(None, None, None)
        loss, zero = RowLoss(function, constants), xla_chunked.row_zeros(head)
        terms = RowSum(loss.part_cotangents, RowTerms.zeros(zero), loss.uses_mean(zero))
        return sum_rows(terms, head, None, weights, needs_grad, options)

    return value_and_gradients, rows_and_gradients
