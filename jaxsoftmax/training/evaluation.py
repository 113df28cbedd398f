"""Weighted means of a loss and a score over examples."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxsoftmax.linear import LinearParams
from jaxsoftmax.sharding import Shards
from jaxsoftmax.training.means import weighted_means
from jaxsoftmax.training.models import LossOnLogits, accuracy
from jaxsoftmax.training.strata import local_stratum
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score
from jaxsoftmax.training.weights import replace_ignored as replace_rows
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
    shards: Shards | None = None,
) -> Metrics:
    """Return the weighted means of loss and score over all examples, computed in one batch.

    Args:
        params: the model's parameters, `w: [D, K]` or any pytree of arrays.
        features: `[N, ...]`, or `[N, D]` for a linear model.
        targets: `[N, ...]`.
        loss: returns values `[N]`.
        weights: as in `train_epoch`.
        score: as in `train_epoch`.
        shards: inside a `jax.shard_map`, the axes over which the rows are sharded: the means are
            then those of the rows of all devices. Elsewhere the compiler divides the work.

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
        shards=shards,
        replace_ignored=weights is not None,
    )


@partial(jax.jit, static_argnames=("loss", "score", "shards", "replace_ignored"))
def jitted_evaluate(
    params: Any,
    examples: Examples,
    *,
    loss: Loss,
    score: Score | None,
    shards: Shards | None = None,
    replace_ignored: bool,
) -> Metrics:
    """Return the metrics of the examples, after a replacement of ignored rows on demand."""
    examples = with_float_weights(examples)
    strata = local_stratum(shards, examples)

    def means(examples: Examples) -> Metrics:
        functions = {"loss": loss} | named_scores(score, loss, params, examples.targets)
        return weighted_means(functions, params, examples, strata)

    if not replace_ignored:
        return means(examples)
    # Devices must not differ in whether they take part in a sum, as branches of a condition would.
    return means(replace_rows(examples)) if strata is not None else run_on_valid(means, examples)


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
