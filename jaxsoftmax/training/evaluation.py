"""Weighted means of a loss and a score over examples."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.linear import LinearParams
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.training.models import LossOnLogits, accuracy
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score
from jaxsoftmax.training.weights import run_on_valid, with_float_weights
from jaxsoftmax.validation import ArrayLike


def evaluate(
    params: Any,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Loss,
    weights: ArrayLike | None = None,
    score: Score | None = accuracy,
) -> Metrics:
    """Return the weighted means of loss and score over all examples, computed in one batch.

    Args:
        params: the model's parameters, `w: [D, K]` or any pytree of arrays.
        features: `[N, ...]`, or `[N, D]` for a linear model.
        targets: `[N, ...]`.
        loss: returns values `[N]`.
        weights: as in `train_epoch`.
        score: as in `train_epoch`.

    Returns:
        "loss", and "accuracy" if there is a score: float scalars.

    Raises:
        ValueError: if loss or score does not return one value per example, or if there is not one
            weight per example.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> loss = training.on_logits(cross_entropy)
        >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
        >>> metrics = training.evaluate(linear.init(3, 2), x, y, loss=loss)
        >>> print(metrics["loss"], metrics["accuracy"])
        0.6931472 0.33333334
    """
    return jitted_evaluate(
        params,
        Examples(features, targets, weights),  # type: ignore[arg-type]
        loss=loss,
        score=score,
        replace_ignored=weights is not None,
    )


@partial(jax.jit, static_argnames=("loss", "score", "replace_ignored"))
def jitted_evaluate(
    params: Any, examples: Examples, *, loss: Loss, score: Score | None, replace_ignored: bool
) -> Metrics:
    """Return the metrics of the examples, after a replacement of ignored rows on demand."""

    def means(examples: Examples) -> Metrics:
        examples = with_float_weights(examples)
        functions = {"loss": loss} | named_scores(score, loss, params, examples.targets)
        return weighted_means(functions, params, examples)

    return run_on_valid(means, examples) if replace_ignored else means(examples)


def weighted_means(functions: dict[str, Loss], params: Any, examples: Examples) -> Metrics:
    """Return the weighted mean over the examples of each function."""
    return {
        name: weighted_mean(
            values_per_example(function, params, examples), weights=examples.weights
        )
        for name, function in functions.items()
    }


def values_per_example(function: Loss, params: Any, examples: Examples) -> Array:
    """Return a loss or score of each example, after a check of its shape."""
    x, targets, _ = examples
    values = function(params, x, targets)
    if values.shape != x.shape[:1]:
        raise ValueError(
            f"loss and score must return one value per example, {x.shape[:1]}, got {values.shape}"
        )
    return values


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
