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
from jaxsoftmax.sources import Source
from jaxsoftmax.training.checkpoint import describe_run, open_checkpoints, shapes_of
from jaxsoftmax.training.checks import (
    check_lanes,
    check_loss,
    check_model,
    check_values,
)
from jaxsoftmax.training.data import prepare_examples, prepare_validation
from jaxsoftmax.training.division import UNDIVIDED, Division, Order, choose_strata
from jaxsoftmax.training.epoch import run_epoch
from jaxsoftmax.training.evaluation import jitted_evaluate
from jaxsoftmax.training.loop import Plan, in_one_part, run_epochs
from jaxsoftmax.training.models import accuracy, init_params, is_linear_model
from jaxsoftmax.training.results import FitResult
from jaxsoftmax.training.state import TrainState, init_state
from jaxsoftmax.training.strata import run_on_strata
from jaxsoftmax.training.streaming import (
    add_window,
    check_rows,
    check_source_arguments,
    evaluate_stream,
    jitted_sum_window,
    open_stream,
    run_window,
    shapes_of_stream,
    train_on_stream,
)
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score, Strata
from jaxsoftmax.validation import ArrayLike, check_at_least_one

type MakeOptimizer = Callable[[Any], optax.GradientTransformation]
"""From the hyperparameters of one lane to an optimizer."""


def sweep(
    loss: Loss,
    features: ArrayLike | Source,
    targets: ArrayLike | None = None,
    *,
    make_optimizer: MakeOptimizer,
    hyperparams: Any,
    keys: Array,
    epochs: int,
    batch_size: int,
    params: Any = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ...] | Source | None = None,
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
        features: as in `fit`. All lanes train on a window of a `Source` while the next is read.
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

    Numerics:
        As in `fit`, lane by lane: nothing passes from one lane to another, and one that diverges to
        NaN leaves the others as they are.

    Derivatives:
        None, as `fit`.

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

    Reference:
        Bergstra and Bengio, "Random search for hyper-parameter optimization" (2012), for how to
        draw hyperparameters.
    """
    check_at_least_one(epochs=epochs, batch_size=batch_size)
    check_loss(loss)
    check_values(features=features, targets=targets, weights=weights)
    if not isinstance(keys, Array) or jnp.shape(keys)[:1] in ((), (0,)):
        raise ValueError("keys must be an array of [L] random keys with L of at least 1")
    is_linear = is_linear_model(loss, params)
    checked = prepare_validation(validation, is_linear=is_linear)
    init_keys, order_keys = jnp.unstack(jax.vmap(jax.random.split)(keys), axis=1)
    how: dict[str, Any] = {"loss": loss, "score": score}
    division = Division(shards, order, virtual_shards)
    options = how | {
        "hyperparams": hyperparams,
        "make_optimizer": make_optimizer,
        "batch_size": batch_size,
        "division": division,
    }
    if isinstance(features, Source):
        check_source_arguments(targets, weights, params)
        check_lanes(len(keys), hyperparams=hyperparams, params=params)
        run = _plan_stream(features, params, **options)
    else:
        examples = prepare_examples(features, targets, weights, is_linear=is_linear)
        run = _plan_arrays(examples, params, checked, init_keys=init_keys, **options)
    validate = _validation(checked, shards=shards, batch_size=batch_size, **how)
    settings = describe_run(run.shapes, key=order_keys[0], batch_size=batch_size, division=division)
    with open_checkpoints(
        checkpoint, resume=resume, interval=checkpoint_interval, settings=settings
    ) as checkpoints:
        return run_epochs(
            init_lanes(run.params, hyperparams, make_optimizer=make_optimizer, key=order_keys[0]),
            run.train,
            validate,
            epochs=epochs,
            callback=callback,
            checkpoints=checkpoints,
        )


def _first_lane(params: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf[0], params)


def _plan_arrays(
    examples: Examples,
    params: Any,
    validation: Examples | Source | None,
    *,
    init_keys: Array,
    **options: Any,
) -> Plan:
    if params is None:
        params = jax.vmap(lambda key: init_params(examples, key=key))(init_keys)
    check_lanes(len(init_keys), hyperparams=options["hyperparams"], params=params)
    check_model(options["loss"], _first_lane(params), examples, validation)
    train = partial(jitted_sweep_epoch, examples=examples, **options)
    return Plan(params, in_one_part(train), shapes_of(examples))


def _plan_stream(
    source: Source, params: Any, *, division: Division, batch_size: int, **options: Any
) -> Plan:
    stream = open_stream(source, division, batch_size)
    check = partial(check_rows, options["loss"], _first_lane(params))
    train = partial(
        train_on_stream, stream, check=check, train_window=_train_window_in_lanes, **options
    )
    return Plan(params, train, shapes_of_stream(stream))


def _validation(
    examples: Examples | Source | None, *, shards: Shards | None, batch_size: int, **how: Any
) -> Callable[[Any], Metrics] | None:
    """Return a function from parameters to the validation metrics, or None without validation."""
    if examples is None:
        return None
    if not isinstance(examples, Source):
        return lambda params: _evaluate_lanes(params, examples, **how)

    def validate(params: Any) -> Metrics:
        stream = open_stream(examples, UNDIVIDED._replace(shards=shards), batch_size)
        check = partial(check_rows, how["loss"], _first_lane(params))
        return evaluate_stream(stream, params, check=check, sum_window=_sum_in_lanes, **how)

    return validate


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


@partial(
    jax.jit,
    static_argnames=("loss", "make_optimizer", "score", "strata", "is_last"),
    donate_argnames="state",
)
def _train_window_in_lanes(
    state: TrainState,
    sums: Metrics | None,
    window: Examples,
    *,
    hyperparams: Any,
    make_optimizer: MakeOptimizer,
    strata: Strata | None,
    is_last: bool,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """Train all lanes on a window, as `jitted_train_window` trains one model."""

    def run(window: Examples, state: TrainState, hyperparams: Any) -> tuple[TrainState, Metrics]:
        def run_lane(state: TrainState, lane_hyperparams: Any) -> tuple[TrainState, Metrics]:
            optimizer = make_optimizer(lane_hyperparams)
            return run_window(window, state, optimizer=optimizer, strata=strata, **options)

        return jax.vmap(run_lane, in_axes=(_LANES, 0), out_axes=(_LANES, 0))(state, hyperparams)

    state, new = run_on_strata(run, strata, window, state, hyperparams)
    return add_window(state, sums, new, is_last)


@partial(jax.jit, static_argnames=("loss", "score"))
def _sum_in_lanes(params: Any, window: Examples, **options: Any) -> Metrics:
    """Return the weighted sums of loss and score over a window in all lanes."""
    return jax.vmap(lambda params: jitted_sum_window(params, window, **options))(params)


@partial(jax.jit, static_argnames=("loss", "score"))
def _evaluate_lanes(params: Any, examples: Examples, **options: Any) -> Metrics:
    """Return the metrics of the examples in all lanes."""

    def evaluate_lane(params: Any) -> Metrics:
        return jitted_evaluate(params, examples, replace_ignored=False, **options)

    return jax.vmap(evaluate_lane)(params)
