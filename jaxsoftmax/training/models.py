"""Models: losses and accuracy of a function to logits, and the parameters it starts from."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxsoftmax import linear, placement, validation
from jaxsoftmax.host_arrays import inferred_classes
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.training.data import valid_rows
from jaxsoftmax.training.types import Examples, Logits, Loss, Score


@dataclass(frozen=True)
class LossOnLogits:
    """A loss on a model's logits.

    It is a value and not a closure: two of the same function and the same model are equal and share
    compiled code.
    """

    function: Callable[[Array, Array], Array]
    logits: Logits

    def __call__(self, params: Any, features: Array, targets: Array) -> Array:
        """Return one value per example."""
        z = model_logits(self.logits, params, features)
        rank = z.ndim - 1
        if targets.ndim >= rank:
            targets = placement.shard_like_rows(targets, z, rank)
        if z.shape[-1] == 1 and targets.ndim == rank:
            targets = targets[..., None]
        return jax.vmap(lambda z, t: jnp.sum(self.function(z, t)))(z, targets)


def on_logits(function: Callable[[Array, Array], Array], *, logits: Logits = linear.logits) -> Loss:
    """Return the loss on a model's logits that applies a function to each example.

    loss(params, x, t)_i = sum(function(logits(params, x_i), t_i)).

    Args:
        function: a loss of one example's scores `[K]` and its target, which is an integer label
            `[]`, or probabilities or labels `[K]`. For K = 1 a target of rank 0 is passed as
            `[1]`. It returns a scalar, or one value per label, which are summed. If the scores
            have more axes, so do its arguments: for the pixels of an image, scores `[H, W, K]`
            and labels `[H, W]`.
        logits: the model, `(params, features[B, ...]) -> scores[B, ..., K]`; the default is the
            one of `LinearParams`. Its parameters may be any pytree of floating arrays. An Equinox
            module is trained with `params, static = eqx.partition(model, eqx.is_inexact_array)`
            and `lambda params, x: jax.vmap(eqx.combine(params, static))(x)`; a Flax module with
            `graph, params, rest = nnx.split(model, nnx.Param, ...)` and
            `lambda params, x: nnx.merge(graph, params, rest)(x)`. State other than the parameters
            that a call changes (running means, dropout keys) is not carried from step to step.

    Returns:
        A `Loss`, `(params, features[B, ...], targets[B, ...]) -> values[B]`: `function` under
        vmap. Two losses of the same function and the same model are equal and share compiled
        code. A lambda is equal only to itself, so create it once. The dtype of the values is that
        of `function`: float32 or float64 for the losses of this library, also from bfloat16 scores.

    Numerics:
        As exact as `function` at the model's scores. An example is by itself: a label out of range,
        or scores of NaN, make its value NaN and no other.

    Derivatives:
        Those of `function` and of the model, by automatic differentiation, of any order that both
        have.

    Raises:
        ValueError: when called, if the model does not return scores `[B, ..., K]`.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> loss = training.on_logits(cross_entropy)
        >>> print(loss(linear.init(3, 2), jnp.ones((1, 3)), jnp.array([0])))
        [0.6931472]
        >>> def mlp(params, x):
        ...     return jnp.tanh(x @ params["inner"]) @ params["outer"]
        >>> params = {"inner": jnp.ones((3, 4)), "outer": jnp.zeros((4, 2))}
        >>> mlp_loss = training.on_logits(cross_entropy, logits=mlp)
        >>> print(mlp_loss(params, jnp.ones((1, 3)), jnp.array([0])))
        [0.6931472]

    Reference:
        Optax's losses, functions of logits and labels as these are, and `jax.vmap`.
    """
    return LossOnLogits(function, logits)


def accuracy(
    params: Any, features: Array, targets: Array, *, logits: Logits = linear.logits
) -> Array:
    """Return the fraction of each example's labels that are predicted correctly.

    For integer targets of rank 1 that is [argmax_k z_k = target], or [[z > 0] = target] if K = 1.
    For targets `[B, K]` of several labels it is the mean over k of [[z_k > 0] = target_k]. For
    scores `[B, ..., K]` and targets `[B, ...]` it is the fraction of the labels from 0 to K - 1
    that are predicted correctly, and 0 for an example without such labels; other labels, such as
    255 for pixels, are left out.

    Args:
        params: the model's parameters, with `w: [D, K]` for the default model.
        features: `[B, ...]`, or `[B, D]` for the default model.
        targets: `[B]`, `[B, K]` or `[B, ...]`, integer or bool.
        logits: the model, as in `on_logits`. `fit`, `sweep`, `train_epoch` and `evaluate` use the
            model of their loss.

    Returns:
        `[B]` float32 between 0 and 1.

    Numerics:
        Of equal scores the class of lower index is the prediction, and a score of 0 alone predicts
        0. `argmax` takes NaN for the largest score: the first class with one is the prediction.

    Derivatives:
        Zero almost everywhere: the value is a step function of the scores.

    Raises:
        TypeError: if targets are floats: numbers and probabilities have no accuracy.
        ValueError: if the model does not return scores `[B, ..., K]`, or if targets do not have
            their shape, with or without K.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear, training
        >>> params = linear.LinearParams(w=jnp.eye(2), bias=None)
        >>> x, y = jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])
        >>> print(training.accuracy(params, x, y))
        [1. 0.]

    Reference:
        scikit-learn's `accuracy_score`, of one example each.
    """
    if jnp.issubdtype(targets.dtype, jnp.floating):
        raise TypeError(f"targets must be integer or bool for accuracy, got {targets.dtype}")
    z = model_logits(logits, params, features)
    if targets.shape not in (z.shape, z.shape[:-1]):
        raise ValueError(
            f"targets must have shape {z.shape[:-1]} or {z.shape} for accuracy, "
            f"got {targets.shape}; pass another score, or None"
        )
    if targets.ndim < z.ndim and z.shape[-1] > 1:
        is_correct = jnp.argmax(z, axis=-1) == targets
        in_range = (targets >= 0) & (targets < z.shape[-1])
    else:
        is_correct = (z > 0) == targets.reshape(z.shape).astype(bool)
        in_range = jnp.ones_like(is_correct)
    if is_correct.ndim == 1:
        return is_correct.astype(jnp.float32)
    label_axes = tuple(range(1, is_correct.ndim))
    fraction = jnp.sum(is_correct, label_axes) / jnp.maximum(jnp.sum(in_range, label_axes), 1)
    return fraction.astype(jnp.float32)


def model_logits(logits: Logits, params: Any, features: Array) -> Array:
    """Return a model's scores, after a check of their shape."""
    scores = logits(params, features)
    if scores.ndim < 2 or scores.shape[0] != features.shape[0]:
        raise ValueError(
            f"logits must return scores [B, ..., K] for {features.shape[0]} examples, "
            f"got shape {scores.shape}"
        )
    return scores


def weight_decay_mask(params: Any) -> Any:
    """Return which parameters weight decay applies to: Optax's `mask`, weights without biases.

    Args:
        params: the parameters of a linear model, or any pytree of arrays.

    Returns:
        `LinearParams(w=True, bias=False)`, with None for a bias that is None. For another pytree,
        True for arrays with two or more axes, as the weights of products have and biases do not.

    Numerics:
        The number of axes decides, never a value.

    Derivatives:
        None: the result is Python's bools.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxsoftmax import linear, training
        >>> optimizer = optax.adamw(1e-3, weight_decay=1e-2, mask=training.weight_decay_mask)
        >>> print(training.weight_decay_mask(linear.init(3, 2)))
        LinearParams(w=True, bias=False)
        >>> training.weight_decay_mask({"inner": jnp.ones((3, 4)), "shift": jnp.ones(4)})
        {'inner': True, 'shift': False}

    Reference:
        Loshchilov and Hutter, "Decoupled weight decay regularization" (2019).
    """
    return jax.tree.map(lambda a: jnp.ndim(a) > 1, params)


def is_linear_model(loss: Loss, params: Any) -> bool:
    """Return whether the model is x w + bias; any other model must be given its parameters."""
    logits = loss.logits if isinstance(loss, LossOnLogits) else linear.logits
    is_linear = getattr(logits, "func", logits) is linear.logits  # a partial sets its dtype
    if params is None and not is_linear:
        raise ValueError("params must be given for a model of your own, got None")
    return is_linear and (params is None or isinstance(params, LinearParams))


def init_params(examples: Examples, *, key: Array) -> LinearParams:
    """Return initial parameters for the classes found in the targets, in at least float32."""
    x, targets, _ = examples
    if targets.ndim == 2:
        num_classes = targets.shape[1]
    elif jnp.issubdtype(targets.dtype, jnp.integer):
        labels = np.where(valid_rows(examples), validation.to_host(targets), 0)
        num_classes = inferred_classes(labels, "targets")
    else:
        num_classes = 1
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return linear.init(x.shape[1], num_classes, key=key, dtype=dtype)


def named_scores(score: Score | None, loss: Loss, params: Any, targets: Array) -> dict[str, Score]:
    """Return the score under its name in the metrics, with float values.

    There is none if the score is the default and the targets or the model have no accuracy.
    """
    chosen = _model_accuracy(loss, params, targets) if score is accuracy else score
    if chosen is None:
        return {}

    def float_score(params: Any, features: Array, targets: Array) -> Array:
        values = chosen(params, features, targets)
        return values.astype(jnp.promote_types(values.dtype, jnp.float32))

    return {"accuracy": float_score}


def _model_accuracy(loss: Loss, params: Any, targets: Array) -> Score | None:
    """Return the accuracy of the loss's model, or None where it is not defined."""
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return None
    if isinstance(loss, LossOnLogits):
        return partial(accuracy, logits=loss.logits)
    return accuracy if isinstance(params, LinearParams) else None
