"""The parameters of a linear model, which a small fit has without JAX."""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import jax

type Array = jax.Array  # whose value is looked up where it is asked for


class LinearParams(NamedTuple):
    """Weights `w: [D, K]` and `bias: [K]`, or None for a model without a bias.

    A `LinearParams` of booleans selects parameters for an Optax mask, for instance
    `LinearParams(w=True, bias=False)` for weight decay that does not apply to the bias.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import LinearParams
        >>> params = LinearParams(w=jnp.eye(2), bias=jnp.array([1.0, 0.0]))
        >>> print(jnp.array([2.0, 3.0]) @ params.w + params.bias)
        [3. 3.]
    """

    w: Array
    bias: Array | None
