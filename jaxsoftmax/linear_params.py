"""The parameters of a linear model, which a small fit has without JAX."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jax

type Array = jax.Array  # whose value is looked up where it is asked for


class LinearParams(NamedTuple):
    """Weights `w: [D, K]` and `bias: [K]`, or None for a model without a bias.

    A `LinearParams` of booleans selects parameters for an Optax mask, for instance
    `LinearParams(w=True, bias=False)` for weight decay that does not apply to the bias.
    """

    w: Array
    bias: Array | None
