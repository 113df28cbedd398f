"""`fit`: the training of one model."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax import Array

from jaxsoftmax.sharding import Shards
from jaxsoftmax.sources import Source
from jaxsoftmax.training.checkpoint import describe_run, open_checkpoints, shapes_of
from jaxsoftmax.training.checks import (
    check_key,
    check_loss,
    check_model,
    check_optimizer,
    check_patience,
    check_values,
)
from jaxsoftmax.training.data import prepare_examples, prepare_validation
from jaxsoftmax.training.division import Division, Order
from jaxsoftmax.training.epoch import jitted_train_epoch
from jaxsoftmax.training.evaluation import evaluate, jitted_evaluate
from jaxsoftmax.training.loop import Plan, in_one_part, run_epochs
from jaxsoftmax.training.models import accuracy, init_params, is_linear_model
from jaxsoftmax.training.results import FitResult
from jaxsoftmax.training.state import init_state
from jaxsoftmax.training.streaming import (
    check_rows,
    check_source_arguments,
    open_stream,
    shapes_of_stream,
    train_on_stream,
)
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score
from jaxsoftmax.validation import ArrayLike, check_at_least_one


def fit(
    loss: Loss,
    features: ArrayLike | Source,
    targets: ArrayLike | None = None,
    *,
    optimizer: optax.GradientTransformation,
    key: Array,
    epochs: int,
    batch_size: int,
    params: Any = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ...] | Source | None = None,
    patience: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    score: Score | None = accuracy,
    shards: Shards | None = None,
    order: Order | None = None,
    virtual_shards: int | None = None,
    checkpoint: str | Path | None = None,
    resume: bool = False,
    checkpoint_interval: float = 60.0,
) -> FitResult:
    """Fit a linear model, or one of your own, by minibatches.

    The data are transferred to the device once, and each epoch is one call of `train_epoch`.
    Without callback and patience, the host waits for nothing before the end. The same key gives
    the same bits.

    Compiled programs are cached by loss and optimizer. Create each once and pass the same object to
    every fit: two `optax.sgd(0.1)` are two programs, and so are two lambdas in `on_logits`. A
    number that changes from fit to fit is a hyperparameter of `sweep`. In your own loop over
    `train_epoch` it is an entry of `state.opt_state.hyperparams`, where
    `optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)` puts it.

    Args:
        loss: `on_logits` of a loss of one example, with `logits=` for a model of your own, or any
            `Loss`.
        features: `[N, D]`, float and finite; for a model of your own `[N, ...]` of any dtype. Or a
            `Source`, such as `ParquetSource`, for data larger than memory: targets and weights are
            its own, `params` are given, and a window of its rows is in memory and is shuffled. On
            several devices or processes `shards` are given, and each process reads its own rows.
        targets: `[N]` labels (integers) or numbers (floats), or `[N, K]`; for a model of your own
            `[N, ...]`. Only labels of rank 1 must be in range: some pixels may be left out.
        optimizer: any Optax optimizer. The same object is compiled once.
        key: a random key, split as `init_key, order_key = jax.random.split(key)`.
        epochs: the number of epochs, at least 1.
        batch_size: B, at least 1; N or more is full-batch training, which `optax.lbfgs()` needs.
        params: the initial parameters; None for `linear.init(D, K, key=init_key)`, with K from the
            targets: their largest integer label + 1, their last axis if they have two axes, else 1
            (floats and bools). Pass `linear.init(D, 1)` for one score and labels 0 and 1. The
            parameters of a model of your own are a pytree of floating arrays, which must be given.
        weights: `[N]`, or one number for all examples: at least 0, some above; None for ones. Rows
            of weight 0 may hold anything, so that `weights=labels >= 0` ignores labels of -100.
        validation: `(features, targets)` or `(features, targets, weights)`, evaluated after every
            epoch, in one batch. Or a `Source`, whose rows are read again after every epoch.
        patience: stop when the validation loss has not improved for this number of epochs, and
            return the parameters of the best epoch. A loss of NaN is no improvement.
        callback: called after each epoch with a dictionary of its number "epoch", counted from 1,
            and its metrics as floats, named as in the history. An exception that it raises ends
            the fit.
        score: as in `train_epoch`.
        shards: as in `train_epoch`.
        order: as in `train_epoch`.
        virtual_shards: as in `train_epoch`.
        checkpoint: a folder for checkpoints (Orbax; `pip install 'jaxsoftmax[scale]'`), written
            after an epoch in the background, and after the last one. On several processes it is
            a folder that all of them see.
        resume: continue the run whose checkpoints the folder holds, or start it. The arguments are
            those of that run, on any number of devices; only `epochs` may be larger. On as many
            devices of the same kind, the result has the bits of an uninterrupted run; with
            `virtual_shards`, on any number.
        checkpoint_interval: the least number of seconds between two checkpoints. If the process is
            killed, what was computed since the newest one is lost.

    Returns:
        A `FitResult`. The training metrics in its history are running means, in which each example
        is evaluated at the parameters of its step; the validation metrics are evaluated at the end
        of the epoch. Parameters that `fit` makes are float32, or float64 as the features; your own
        keep their dtypes.

    Numerics:
        Each loss is as exact as the function in `on_logits`. Data are finite, so that a loss of NaN
        or infinity means that the fit diverged: it is no error, the history shows it, and a
        callback may end the fit. With validation the best epoch is then one of finite loss, or the
        last one if there is none. A minibatch whose weights are all 0 has the gradient 0, and the
        optimizer takes its step nevertheless.

    Derivatives:
        None: data must have values, and the loop runs on the host. `train_epoch` has derivatives.

    Raises:
        TypeError: if the features of a linear model, or parameters of your own, are not floats, the
            data are traced, the loss is one of logits without `on_logits`, or the optimizer, the
            key or a number is something else.
        ValueError: if shapes do not match, data are empty or not finite, a label is out of range,
            or too large for every class up to it to occur among so few examples, weights are
            negative or all 0, an argument that counts is below 1, there is patience without
            validation, a model of your own without params, or a checkpoint folder of another run,
            or of this one without resume.
        ModuleNotFoundError: if there is a checkpoint folder and Orbax is not installed.
        Interrupted: a KeyboardInterrupt, at Ctrl-C, which carries the result up to that point.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxsoftmax import cross_entropy, training
        >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
        >>> result = training.fit(
        ...     training.on_logits(cross_entropy), x, y,
        ...     optimizer=optax.sgd(1.0), key=jax.random.key(0), epochs=10, batch_size=2)
        >>> print(result.history["accuracy"][-1], result.params.w.shape)
        1.0 (1, 2)

        A model of your own:

        >>> def mlp(params, x):
        ...     return jnp.tanh(x @ params["inner"]) @ params["outer"]
        >>> params = {"inner": jnp.ones((1, 4)), "outer": jnp.zeros((4, 2))}
        >>> result = training.fit(
        ...     training.on_logits(cross_entropy, logits=mlp), x, y, params=params,
        ...     optimizer=optax.sgd(1.0), key=jax.random.key(0), epochs=10, batch_size=2)
        >>> print(result.history["accuracy"][-1])
        1.0

    Reference:
        Bottou, Curtis and Nocedal, "Optimization methods for large-scale machine learning" (2018);
        Prechelt, "Early stopping - but when?" (1998), for patience.
    """
    check_at_least_one(epochs=epochs, batch_size=batch_size)
    check_loss(loss)
    check_optimizer(optimizer)
    check_key(key)
    check_values(features=features, targets=targets, weights=weights)
    check_patience(patience, validation)
    is_linear = is_linear_model(loss, params)
    checked = prepare_validation(validation, is_linear=is_linear)
    init_key, order_key = jax.random.split(key)
    how: dict[str, Any] = {"loss": loss, "score": score}
    division = Division(shards, order, virtual_shards)
    options = how | {"optimizer": optimizer, "batch_size": batch_size, "division": division}
    if isinstance(features, Source):
        check_source_arguments(targets, weights, params)
        run = _plan_stream(features, params, **options)
    else:
        examples = prepare_examples(features, targets, weights, is_linear=is_linear)
        run = _plan_arrays(examples, params, checked, init_key=init_key, **options)
    validate = _validation(checked, shards=shards, batch_size=batch_size, **how)
    settings = describe_run(run.shapes, key=order_key, batch_size=batch_size, division=division)
    with open_checkpoints(
        checkpoint, resume=resume, interval=checkpoint_interval, settings=settings
    ) as checkpoints:
        return run_epochs(
            init_state(run.params, optimizer=optimizer, key=order_key),
            run.train,
            validate,
            epochs=epochs,
            patience=patience,
            callback=callback,
            checkpoints=checkpoints,
        )


def _validation(
    examples: Examples | Source | None, *, shards: Shards | None, batch_size: int, **how: Any
) -> Callable[[Any], Metrics] | None:
    """Return a function from parameters to the validation metrics, or None without validation."""
    if examples is None:
        return None
    if not isinstance(examples, Source):
        # prepare_validation has already replaced the ignored rows.
        return lambda params: jitted_evaluate(params, examples, replace_ignored=False, **how)
    return lambda params: evaluate(params, examples, shards=shards, batch_size=batch_size, **how)


def _plan_arrays(
    examples: Examples,
    params: Any,
    validation: Examples | Source | None,
    *,
    init_key: Array,
    **options: Any,
) -> Plan:
    params = init_params(examples, key=init_key) if params is None else params
    check_model(options["loss"], params, examples, validation)
    # prepare_examples has already replaced the ignored rows.
    train = partial(jitted_train_epoch, examples=examples, replace_ignored=False, **options)
    return Plan(params, in_one_part(train), shapes_of(examples))


def _plan_stream(
    source: Source, params: Any, *, division: Division, batch_size: int, **options: Any
) -> Plan:
    stream = open_stream(source, division, batch_size)
    check = partial(check_rows, options["loss"], params)
    train = partial(train_on_stream, stream, check=check, **options)
    return Plan(params, train, shapes_of_stream(stream))
