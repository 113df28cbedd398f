"""`sweep`: the training of many models at once, one lane for each.

Parameters and optimizer state have a leading axis of lanes; all lanes share the minibatches.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jaxsoftmax.sharding import Shards
from jaxsoftmax.training.checkpoint import describe_run, open_checkpoints, shapes_of
from jaxsoftmax.training.checks import check_at_least_one, check_lanes, check_model
from jaxsoftmax.training.data import prepare_examples, prepare_validation
from jaxsoftmax.training.division import UNDIVIDED, Division, Order, choose_strata
from jaxsoftmax.training.epoch import run_epoch
from jaxsoftmax.training.evaluation import jitted_evaluate
from jaxsoftmax.training.loop import in_one_part, run_epochs
from jaxsoftmax.training.models import accuracy, init_params, is_linear_model
from jaxsoftmax.training.results import FitResult
from jaxsoftmax.training.state import TrainState, init_state
from jaxsoftmax.training.strata import run_on_strata
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score
from jaxsoftmax.validation import ArrayLike

type MakeOptimizer = Callable[[Any], optax.GradientTransformation]
"""From the hyperparameters of one lane to an optimizer."""


def sweep(
    loss: Loss,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    make_optimizer: MakeOptimizer,
    hyperparams: Any,
    keys: Array,
    epochs: int,
    batch_size: int,
    params: Any = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ...] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    score: Score | None = accuracy,
    shards: Shards | None = None,
    order: Order | None = None,
    virtual_shards: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    checkpoint_interval: float = 60.0,
) -> FitResult:
    """Fit L models at once, one lane per setting: `fit` under vmap, as one compiled program.

    All lanes use the same minibatches, so that each is gathered once, and the scores of all lanes
    are one product of the `[B, D]` features with `[D, L K]` weights.

    Args:
        loss: as in `fit`.
        features: as in `fit`.
        targets: as in `fit`.
        make_optimizer: from one lane's hyperparameters, which are traced scalars, to an Optax
            optimizer, for instance `lambda h: optax.sgd(h["learning_rate"])`. The same object is
            not compiled again for other hyperparameters.
        hyperparams: any pytree of arrays `[L, ...]`.
        keys: `[L]` random keys. Lane l starts where `fit` with `keys[l]` starts. The order of the
            minibatches is that of `keys[0]`, so that lane 0 agrees with that fit up to rounding.
        epochs: as in `fit`.
        batch_size: as in `fit`.
        params: the initial `w: [L, D, K]` and `bias: [L, K]`, or None. For a model of your own,
            each array has a leading axis of lanes, as in the result of `jax.vmap(init)(keys)`.
        weights: as in `fit`.
        validation: as in `fit`.
        callback: as in `fit`; each metric is a list of L floats.
        score: as in `train_epoch`.
        shards: as in `train_epoch`.
        order: as in `train_epoch`.
        virtual_shards: as in `train_epoch`.
        checkpoint: as in `fit`.
        resume: as in `fit`.
        checkpoint_interval: as in `fit`.

    Returns:
        A `FitResult` with a leading axis of lanes: `params.w: [L, D, K]`, history `[L, epochs]`,
        `best_epoch: [L]`. The key, step and epoch of the state are shared.

    Raises:
        TypeError: as `fit`.
        ValueError: as `fit`, and if hyperparams, keys and params disagree about L.
        Interrupted: as `fit`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxsoftmax import cross_entropy, training
        >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
        >>> result = training.sweep(
        ...     training.on_logits(cross_entropy), x, y,
        ...     make_optimizer=optax.sgd, hyperparams=jnp.array([0.1, 1.0, 10.0]),
        ...     keys=jax.random.split(jax.random.key(0), 3), epochs=10, batch_size=2)
        >>> print(result.params.w.shape, result.history["loss"].shape)
        (3, 1, 2) (3, 10)
    """
    check_at_least_one(epochs=epochs, batch_size=batch_size)
    if not isinstance(keys, Array) or jnp.shape(keys)[:1] in ((), (0,)):
        raise ValueError("keys must be an array of [L] random keys with L of at least 1")
    is_linear = is_linear_model(loss, params)
    examples = prepare_examples(features, targets, weights, is_linear=is_linear)
    validation_examples = prepare_validation(validation, is_linear=is_linear)
    init_keys, order_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    if params is None:
        params = jax.vmap(lambda key: init_params(examples, key=key))(init_keys)
    check_lanes(len(keys), hyperparams=hyperparams, params=params)
    check_model(loss, jax.tree.map(lambda leaf: leaf[0], params), examples, validation_examples)
    options: dict[str, Any] = {"loss": loss, "score": score}
    division = Division(shards, order, virtual_shards)

    def train(state: TrainState) -> tuple[TrainState, Metrics]:
        return jitted_sweep_epoch(
            state,
            hyperparams,
            examples,
            make_optimizer=make_optimizer,
            batch_size=batch_size,
            division=division,
            **options,
        )

    def validate(params: Any) -> Metrics:
        return _evaluate_lanes(params, validation_examples, **options)

    settings = describe_run(
        shapes_of(examples), key=order_keys[0], batch_size=batch_size, division=division
    )
    with open_checkpoints(
        checkpoint, resume=resume, interval=checkpoint_interval, settings=settings
    ) as checkpoints:
        return run_epochs(
            init_lanes(params, hyperparams, make_optimizer=make_optimizer, key=order_keys[0]),
            in_one_part(train),
            None if validation_examples is None else validate,
            epochs=epochs,
            callback=callback,
            checkpoints=checkpoints,
        )


# The axes of a state under vmap.
_LANES = TrainState(params=0, opt_state=0, key=None, step=None, epoch=None)  # type: ignore[arg-type]


def init_lanes(
    params: Any, hyperparams: Any, *, make_optimizer: MakeOptimizer, key: Array
) -> TrainState:
    """Return the state of all lanes before the first epoch."""

    def init_lane(params: Any, lane_hyperparams: Any) -> TrainState:
        return init_state(params, optimizer=make_optimizer(lane_hyperparams), key=key)

    return jax.vmap(init_lane, out_axes=_LANES)(params, hyperparams)


@partial(
    jax.jit,
    static_argnames=("loss", "make_optimizer", "batch_size", "score", "division"),
    donate_argnames="state",
)
def jitted_sweep_epoch(
    state: TrainState,
    hyperparams: Any,
    examples: Examples,
    *,
    make_optimizer: MakeOptimizer,
    batch_size: int,
    division: Division = UNDIVIDED,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """Run one epoch in all lanes, on the devices that hold the rows."""
    strata = choose_strata(division, examples, batch_size)

    def run(examples: Examples, state: TrainState, hyperparams: Any) -> tuple[TrainState, Metrics]:
        def run_lane(state: TrainState, lane_hyperparams: Any) -> tuple[TrainState, Metrics]:
            optimizer = make_optimizer(lane_hyperparams)
            how = {"optimizer": optimizer, "batch_size": batch_size, "strata": strata}
            return run_epoch(state, examples, **how, **options)

        return jax.vmap(run_lane, in_axes=(_LANES, 0), out_axes=(_LANES, 0))(state, hyperparams)

    return run_on_strata(run, strata, examples, state, hyperparams)


@partial(jax.jit, static_argnames=("loss", "score"))
def _evaluate_lanes(params: Any, examples: Examples, **options: Any) -> Metrics:
    """Return the metrics of the examples in all lanes."""

    def evaluate_lane(params: Any) -> Metrics:
        return jitted_evaluate(params, examples, replace_ignored=False, **options)

    return jax.vmap(evaluate_lane)(params)
