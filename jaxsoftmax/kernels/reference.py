"""The dense definition that the implementations are tested against: all logits, then the losses."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxsoftmax import links, losses
from jaxsoftmax.kernels import primitives
from jaxsoftmax.kernels.types import Head, Options


def logits(head: Head, options: Options) -> Array:
    """Return z = x w + bias, capped, and -inf where a class does not exist: `[N, K]`."""
    z = _product(head.x, head.w, options)
    if head.bias is not None:
        z = z + head.bias[None, :]
    return primitives.mask_and_cap(z, head.where, options.softcap)[0]


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _product(x: Array, w: Array, options: Options) -> Array:
    x, w = (a.astype(options.dtype) for a in (x, w))
    return primitives.dot(x, w, (1, 0), options.precision)


@_product.defjvp
def _product_jvp(options: Options, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    """Do not cast tangents to fewer bits: the transpose would round gradients to them."""
    x, w = (a.astype(options.dtype) for a in primals)
    dx, dw = primitives.widen(tangents, options.dtype)
    terms = (primitives.dot(a, b, (1, 0), options.precision) for a, b in ((dx, w), (x, dw)))
    return _product(*primals, options), sum(terms)


def softmax_losses(head: Head, options: Options) -> tuple[Array, Array, Array | None, Array | None]:
    """Return nll, lse and, with stats, the mean logit and the predicted class, `[N]` each."""
    z = logits(head, options)
    nll, lse = losses.cross_entropy(z, head.targets), links.logsumexp(z)
    if not options.stats:
        return nll, lse, None, None
    exists = z != -jnp.inf
    classes = jnp.sum(exists, 1, dtype=z.dtype)
    mean = jnp.sum(jnp.where(exists, z, 0), 1) / jnp.maximum(classes, 1)
    return nll, lse, mean, jnp.argmax(z, 1).astype(jnp.int32)


def sigmoid_losses(head: Head, options: Options) -> Array:
    """Return the sum of each row's sigmoid cross-entropies over the labels that exist, `[N]`."""
    z = logits(head, options)
    exists = None if head.where is None else jnp.broadcast_to(head.where, z.shape)
    values = losses.binary_cross_entropy(
        z, lax.stop_gradient(head.targets), pos_weight=head.pos_weight, valid=exists
    )
    return jnp.sum(values, 1)
