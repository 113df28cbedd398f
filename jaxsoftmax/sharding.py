"""`Shards`: the names of the mesh axes over which arrays are sharded."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jaxsoftmax import validation


class Shards(NamedTuple):
    r"""The mesh axes over which the rows of a batch, its examples, and the classes are sharded.

    With the classes divided into shards K_1, ..., K_m, the sum of a softmax is

        sum_k exp(z_k - max z) = sum_j sum_{k in K_j} exp(z_k - max z),  max z = max_j max_{K_j} z,

    so only a maximum and a sum per example cross between devices, never logits.

    An axis is named as in `jax.sharding.Mesh`. Inside a `jax.shard_map` over that axis, arrays are
    the local parts, and sums go over the axis by its name. Elsewhere arrays are whole, and the mesh
    is theirs, or the one of `jax.set_mesh`. Labels are numbers of all classes in both cases.
    Derivatives inside a `shard_map` need its `check_vma=True`, the default: without it, JAX
    multiplies the derivative of a sum over devices by their number.

    Attributes:
        rows: the name of an axis, or a tuple of names from the slowest to the fastest; None if rows
            are not sharded.
        classes: the same for the classes.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import PartitionSpec as P
        >>> from jaxsoftmax import Shards, cross_entropy
        >>> shards = Shards(classes="model")
        >>> with jax.set_mesh(jax.make_mesh((jax.device_count(),), ("model",))):
        ...     logits = jax.device_put(jnp.zeros((2, 1024)), P(None, "model"))
        ...     print(cross_entropy(logits, jnp.array([0, 1023]), shards=shards))
        [6.931472 6.931472]
    """

    rows: str | tuple[str, ...] | None = None
    classes: str | tuple[str, ...] | None = None


def pad_classes(x: Array, *, multiple: int, axis: int = -1, value: float = -jnp.inf) -> Array:
    r"""Return x with masked classes at the end, so that `multiple` divides the number of classes.

    A class whose logit is -inf has probability 0 and no gradient, so that losses, links and the
    gradients of the other classes are those without it.

    Args:
        x: logits `[..., K]`, or the bias `[K]` or weights `[D, K]` of a linear model; with another
            value than -inf also integers or bools, such as targets and `where`.
        multiple: the number of shards of the classes, or a multiple of it.
        axis: the class axis.
        value: of the new entries: -inf masks a class in logits and in a bias. Weights take 0, with
            a bias of -inf, and a mask `where` takes False.

    Returns:
        `[..., K + extra]`, in the dtype of x; x itself if nothing is missing.

    Numerics:
        Exact: entries are copied, and none is computed. Padding makes a gradient no less exact, but
        for another number of classes the terms of a sum are added in another order.

    Derivatives:
        Of any order, in both modes: the transpose drops the new entries.

    Raises:
        TypeError: `multiple` is not an integer, or x not floats where the value is -inf.
        ValueError: `multiple` is less than 1, or `axis` is not an axis of x.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import pad_classes
        >>> print(pad_classes(jnp.array([1.0, 2.0, 3.0]), multiple=4))
        [  1.   2.   3. -inf]
        >>> w, bias = jnp.ones((2, 3)), jnp.zeros(3)
        >>> print(pad_classes(w, multiple=4, value=0.0).shape, pad_classes(bias, multiple=4))
        (2, 4) [  0.   0.   0. -inf]

    Reference:
        Shoeybi et al., "Megatron-LM" (arXiv 1909.08053), which pads its vocabulary so.
    """
    validation.check_at_least_one(multiple=multiple)
    # Integers and bools have no -inf.
    x = validation.as_floats(x, "x") if math.isinf(value) else validation.as_numbers(x, "x")
    axis = validation.normalize_axis(x, axis)
    extra = -x.shape[axis] % multiple
    widths = [(0, extra if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths, constant_values=value) if extra else x
