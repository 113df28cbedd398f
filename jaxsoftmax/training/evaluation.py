"""Weighted means of a loss and a score over examples."""

from functools import partial
from typing import Any

import jax

from jaxsoftmax.sharding import Shards
from jaxsoftmax.sources import Source
from jaxsoftmax.training.division import UNDIVIDED, local_stratum
from jaxsoftmax.training.means import weighted_means
from jaxsoftmax.training.models import accuracy, named_scores
from jaxsoftmax.training.streaming import (
    check_rows,
    check_source_arguments,
    evaluate_stream,
    open_stream,
)
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score
from jaxsoftmax.training.weights import replace_ignored as replace_rows
from jaxsoftmax.training.weights import run_on_valid, with_float_weights
from jaxsoftmax.validation import ArrayLike


def evaluate(
    params: Any,
    features: ArrayLike | Source,
    targets: ArrayLike | None = None,
    *,
    loss: Loss,
    weights: ArrayLike | None = None,
    score: Score | None = accuracy,
    shards: Shards | None = None,
    batch_size: int | None = None,
) -> Metrics:
    """Return the weighted means of loss and score over all examples, computed in one batch.

    Args:
        params: the model's parameters, `w: [D, K]` or any pytree of arrays.
        features: `[N, ...]`, or `[N, D]` for a linear model. Or a `Source`, which is read once, a
            window at a time; targets and weights are its own.
        targets: `[N, ...]`.
        loss: returns values `[N]`.
        weights: as in `train_epoch`.
        score: as in `train_epoch`.
        shards: inside a `jax.shard_map`, the axes over which the rows are sharded: the means are
            then those of the rows of all devices. Elsewhere the compiler divides the work. For a
            source, as in `fit`.
        batch_size: for a source, the number of rows that are evaluated together; None for all of a
            window, and for arrays.

    Returns:
        "loss", and "accuracy" if there is a score: float32 or float64 scalars.

    Numerics:
        A `weighted_mean` of values that are as exact as the loss: 0 for zero total weight, and so
        for no examples; NaN if an example of a weight above 0 has the value NaN, as one with a
        label out of range. A row of weight 0 may hold anything, as in `train_epoch`.

    Derivatives:
        Those of the loss, of any order that it has; of arrays alone, not of a source.

    Raises:
        ValueError: if loss or score does not return one value per example, if there is not one
            weight per example, or if there are targets beside a source, or none for arrays.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> loss = training.on_logits(cross_entropy)
        >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
        >>> metrics = training.evaluate(linear.init(3, 2), x, y, loss=loss)
        >>> print(metrics["loss"], metrics["accuracy"])
        0.6931472 0.33333334

    Reference:
        scikit-learn's `log_loss` and `accuracy_score` with `sample_weight`, for `cross_entropy`.
    """
    if isinstance(features, Source):
        check_source_arguments(targets, weights, params)
        division = UNDIVIDED._replace(shards=shards)
        stream = open_stream(features, division, batch_size)
        check = partial(check_rows, loss, params)
        return evaluate_stream(stream, params, check=check, loss=loss, score=score)
    if targets is None:
        raise ValueError("targets must be given with features that are arrays, got None")
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
