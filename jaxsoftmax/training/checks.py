"""Checks of arguments against each other, all before the first epoch."""

import inspect
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.losses import check_labels
from jaxsoftmax.sources import Source
from jaxsoftmax.training.data import valid_rows
from jaxsoftmax.training.models import LossOnLogits, is_linear_model, model_logits
from jaxsoftmax.training.types import Examples, Loss
from jaxsoftmax.validation import check_at_least_one


def check_loss(loss: Any) -> None:
    """Raise a TypeError for a loss of logits, which `on_logits` turns into one of parameters."""
    try:
        first = next(iter(inspect.signature(loss).parameters), None)
    except (TypeError, ValueError):  # not a function, or one that has no signature
        first = None
    if not callable(loss) or first == "logits":
        name = getattr(loss, "__name__", repr(loss))
        raise TypeError(
            "loss must be a function of parameters, features and targets, such as "
            f"on_logits(cross_entropy), got {name}"
        )


def check_optimizer(optimizer: Any) -> None:
    """Raise a TypeError for what is not an optimizer, such as `optax.adam` without a rate."""
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        name = getattr(optimizer, "__name__", repr(optimizer))
        raise TypeError(f"optimizer must be one of Optax, such as optax.adam(1e-3), got {name}")


def check_key(key: Any) -> None:
    """Raise a TypeError for what is not a random key, such as a seed."""
    if not hasattr(key, "dtype"):
        raise TypeError(f"key must be a random key, such as jax.random.key(0), got {key!r}")


def check_patience(patience: int | None, validation: object) -> None:
    """Raise a ValueError for patience below 1, or without validation."""
    if patience is None:
        return
    check_at_least_one(patience=patience)
    if validation is None:
        raise ValueError("patience needs validation=(features, targets), got None")


def check_values(**arrays: Any) -> None:
    """Raise a TypeError that names the first array without values, inside a transformation."""
    for name, array in arrays.items():
        if isinstance(array, jax.core.Tracer):
            raise TypeError(
                f"{name} must be an array with values, got a tracer; call train_epoch inside jit"
            )


def check_lanes(lanes: int, **trees: Any) -> None:
    """Raise a ValueError that names a tree whose arrays do not all have an axis of lanes."""
    for name, tree in trees.items():
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf)[:1] != (lanes,):
                raise ValueError(
                    f"{name} must have a leading axis of {lanes} lanes, as keys has, "
                    f"got shape {jnp.shape(leaf)}"
                )


def check_model(
    loss: Loss, params: Any, examples: Examples, validation_examples: Examples | Source | None
) -> None:
    """Check that parameters and data agree; only the shapes of scores are computed.

    The rows of a source are checked when they are read.
    """
    _check_params(params)
    for prefix, data in (("", examples), ("validation ", validation_examples)):
        if data is None or isinstance(data, Source):
            continue
        x, targets, _ = data
        classes = num_classes(loss, params, x, prefix=prefix)
        if classes and targets.ndim == 1 and jnp.issubdtype(targets.dtype, jnp.integer):
            # One score separates two classes.
            num_labels = max(2, classes)
            valid = None if data.weights is None else valid_rows(data)
            check_labels(targets, num_labels, valid=valid, name=f"{prefix}targets")


def _check_params(params: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(params):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"params must be floating arrays, got {getattr(leaf, 'dtype', type(leaf))} at "
                f"params{jax.tree_util.keystr(path)}; split off what is not trained"
            )


def num_classes(
    loss: Loss, params: Any, x: Array | jax.ShapeDtypeStruct, *, prefix: str
) -> int | None:
    """Return K, or None for a loss of the user's own, which does not show its scores."""
    if is_linear_model(loss, params):
        num_features, count = params.w.shape
        if x.shape[1] != num_features:
            raise ValueError(
                f"{prefix}features must have {num_features} columns, as w has rows, "
                f"got {x.shape[1]}"
            )
        return count
    if isinstance(loss, LossOnLogits):
        return jax.eval_shape(partial(model_logits, loss.logits), params, x).shape[-1]
    return None
