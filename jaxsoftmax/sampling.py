"""Sampled classes: a head of very many classes, of which a step computes some.

This is not the softmax: the loss is that of the labels' classes and of a random part of the others,
whose exponentials are weighted so that their sum is right on average.
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxsoftmax import calls, placement, validation
from jaxsoftmax.validation import ArrayLike


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("classes", "labels", "bias"),
    meta_fields=("num_classes", "groups"),
)
@dataclass(frozen=True)
class SampledClasses:
    """Classes for one step, and the labels in terms of them.

    Attributes:
        classes: int32 `[S]`, all different; the labels' classes come first in each group.
        labels: int32 `[N]`, the positions of the labels in `classes`, and -1 for a label that is
            out of range or was left out, whose loss is NaN.
        bias: float32 `[S]`, -log of the probability with which each class was drawn.
        num_classes: K, of which they are S.
        groups: the number of equal parts of the K classes that have equally many of the S.
    """

    classes: Array
    labels: Array
    bias: Array
    num_classes: int
    groups: int

    def take(self, array: Array, *, axis: int = -1) -> Array:
        """Return the entries of the sampled classes along the class axis, as of w and bias.

        If an Explicit mesh shards that axis, each device takes its own classes, and nothing crosses
        between devices.

        Raises:
            ValueError: if the axis has not all K classes, or if an Explicit mesh shards it and the
                number of groups is not a multiple of the number of shards.
        """
        axis = axis % array.ndim
        if array.shape[axis] != self.num_classes:
            expected = f"expected {self.num_classes} classes along axis {axis}"
            raise ValueError(f"array: {expected}, got shape {array.shape}")
        spec = placement.partition_spec(array)
        if spec[axis] is None:
            return jnp.take(array, self.classes, axis, mode="clip")
        shards = placement.count_shards(placement.axis_names(spec[axis]), array)
        if self.groups % shards:
            raise ValueError(
                f"groups: expected a multiple of the {shards} shards of the classes, "
                f"got {self.groups}"
            )
        out_specs = PartitionSpec(*spec)
        classes = placement.reshard(self.classes, array, spec[axis])

        def take(array: Array, classes: Array) -> Array:
            size = array.shape[axis]
            local = classes - lax.axis_index(placement.axis_names(spec[axis])) * size
            return jnp.take(array, local, axis, mode="clip")

        mesh = placement.mesh_of(array)
        in_specs = out_specs, PartitionSpec(spec[axis])
        return jax.shard_map(take, mesh=mesh, in_specs=in_specs, out_specs=out_specs)(
            array, classes
        )


@calls.compiled("num_classes", "count", "groups")
def sample_classes(
    labels: ArrayLike, num_classes: int, *, count: int, key: Array, groups: int = 1
) -> SampledClasses:
    r"""Return the labels' classes and random others, `count` in all, for one step of training.

    With the bias of the sample, -log q, the sampled sum of exponentials is right on average:

        E sum_{k in S} exp(z_k - log q_k) = sum_k exp(z_k),

    where q_k is 1 for the labels' classes and (S - P) / (K - P) for the others, P being the number
    of the labels' classes. The loss is the logarithm of the sum, so that it and its gradient are
    those of the softmax only in the limit of many classes; for S = K they are equal.

    Args:
        labels: integers, `[N]`.
        num_classes: K.
        count: S, at most K; larger than the number of different labels, or some are left out.
        key: a random key, another one for each step.
        groups: the number of equal parts of the classes, of each of which `count / groups` are
            taken. With the number of class shards, each device takes its own classes.

    Returns:
        `SampledClasses`, for `linear_cross_entropy(x, sample.take(w), sample.labels,
        bias=sample.take(bias) + sample.bias)`.

    Numerics:
        Everything is an integer but the bias, log(K - P) - log(S - P) in float32, with the K, S
        and P of each group. A label out of range draws no class, and its loss is NaN.

    Derivatives:
        None: labels and classes are integers. Those of the loss go through `take`, whose transpose
        adds the gradients of the sampled classes to those of all.

    Raises:
        TypeError: if the labels or the numbers are not integers.
        ValueError: if count is not from 1 to K, or groups do not divide count and K.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from jaxsoftmax import sample_classes
        >>> sample = sample_classes(
        ...     jnp.array([7, 2, 7]), 1000, count=100, key=jax.random.key(0))
        >>> sample.classes.shape, sample.take(jnp.zeros((16, 1000))).shape
        ((100,), (16, 100))
        >>> print(sample.classes[sample.labels])
        [7 2 7]

    Reference:
        Bengio and Senecal, IEEE Transactions on Neural Networks 19 (2008), for the weights; An et
        al., "Partial FC" (arXiv 2010.05222), for sampling on each device.
    """
    labels = placement.replicate(validation.as_array(labels, "labels"))
    _check_sample(labels, num_classes, count, groups)
    in_range = (labels >= 0) & (labels < num_classes)
    is_positive = jnp.zeros(num_classes, bool)
    is_positive = is_positive.at[jnp.where(in_range, labels, num_classes)].set(True, mode="drop")
    classes, bias = _draw(is_positive.reshape(groups, -1), count // groups, key)
    positions = jnp.full(num_classes, -1, jnp.int32)
    positions = positions.at[classes].set(jnp.arange(count, dtype=jnp.int32))
    found = jnp.where(in_range, positions[jnp.where(in_range, labels, 0)], -1)
    return SampledClasses(classes, found, bias, num_classes, groups)


def _check_sample(labels: Array, num_classes: int, count: int, groups: int) -> None:
    if not jnp.issubdtype(labels.dtype, jnp.integer) or labels.ndim != 1:
        raise TypeError(
            f"labels: expected integers of shape [N], got {labels.dtype}{list(labels.shape)}"
        )
    validation.check_at_least_one(num_classes=num_classes, count=count, groups=groups)
    if count > num_classes:
        raise ValueError(f"count: expected at most {num_classes} classes, got {count}")
    if count % groups or num_classes % groups:
        raise ValueError(
            f"groups must divide count = {count} and num_classes = {num_classes}, got {groups}"
        )


def _draw(is_positive: Array, count: int, key: Array) -> tuple[Array, Array]:
    """Return `count` classes of each group, `[groups, K / groups]`, and -log of their q."""
    groups, size = is_positive.shape
    draws = jnp.where(is_positive, 2, jax.random.uniform(key, is_positive.shape))
    _, own = lax.top_k(draws, count)  # the labels' classes first
    classes = own.astype(jnp.int32) + jnp.arange(groups, dtype=jnp.int32)[:, None] * size
    positives = jnp.sum(is_positive, axis=1, keepdims=True)
    others, drawn = ((n - positives).astype(jnp.float32) for n in (size, count))
    bias = jnp.where(jnp.take_along_axis(is_positive, own, 1), 0, jnp.log(others) - jnp.log(drawn))
    return classes.reshape(-1), bias.reshape(-1)
