"""Fitting linear models by minibatches: an epoch is one compiled scan, a sweep is its vmap."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array
from jax.typing import ArrayLike

from jaxsoftmax import linear, placement
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.losses import check_labels, weighted_mean

type Loss = Callable[[LinearParams, Array, Array], Array]
"""`loss(params, features[B, D], targets[B, ...]) -> values[B]`, one value per example."""

type Score = Callable[[LinearParams, Array, Array], Array]
"""As `Loss`, but only reported."""

type Metrics = dict[str, Array]
"""Means by name: "loss", and "accuracy" where there is a score."""


class TrainState(NamedTuple):
    """All that one epoch hands to the next; every leaf is an array, so a checkpoint can hold it.

    `key` is the raw data of a random key (`jax.random.key_data`), which gives the order of the
    minibatches; `step` counts updates and `epoch` counts epochs, both from 0.
    """

    params: LinearParams
    opt_state: Any
    key: Array
    step: Array
    epoch: Array


class FitResult(NamedTuple):
    """What `fit` and `sweep` return; of `sweep`, each array has a leading axis of lanes.

    `params` are those after the last epoch, or with patience those of the best epoch; `state` is
    that of the last epoch, None after an interrupt. `history` maps "loss", "accuracy",
    "validation_loss" and "validation_accuracy", as far as they exist, to one number per epoch.
    `epochs` were run; `best_epoch` has the least validation loss (without validation it is the
    last). Epochs count from 1, so that of the best one is `history[name][best_epoch - 1]`.
    """

    params: LinearParams
    state: TrainState | None
    history: dict[str, np.ndarray]
    epochs: int
    best_epoch: int | np.ndarray


class Interrupted(KeyboardInterrupt):
    """An interrupt (Ctrl-C) of `fit` or `sweep`, with what they had so far.

    Args:
        result: None before the first epoch ended; else a `FitResult` with the parameters of the
            best epoch by validation loss, or without validation of the last one that ended. Its
            history ends there too, and it has no state: the epoch under way had taken its buffers.
    """

    def __init__(self, result: FitResult | None) -> None:
        super().__init__("interrupted")
        self.result = result


@dataclass(frozen=True)
class _OnLogits:
    """A value, not a closure: two made of the same function are equal and share compiled code."""

    function: Callable[[Array, Array], Array]

    def __call__(self, params: LinearParams, features: Array, targets: Array) -> Array:
        scores = linear.logits(params, features)
        targets = placement.like_rows(targets, scores, 1)
        if scores.shape[-1] == 1 and targets.ndim == 1:
            targets = targets[:, None]
        return jax.vmap(lambda z, t: jnp.sum(self.function(z, t)))(scores, targets)


def on_logits(function: Callable[[Array, Array], Array]) -> Loss:
    """Make a loss on a linear model's scores out of a loss of one example.

    loss(params, x, t)_i = sum(function(logits(params, x_i), t_i)).

    Args:
        function: of scores `[K]` and one example's target, an integer label `[]`, or `[K]`
            probabilities or labels; for K = 1 a target of rank 0 comes as `[1]`. It returns a
            scalar, or one value per label, which are summed.

    Returns:
        A `Loss`: `(params, features[B, D], targets[B, ...]) -> values[B]`, `function` under vmap.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> loss = training.on_logits(cross_entropy)
        >>> print(loss(linear.init(3, 2), jnp.ones((1, 3)), jnp.array([0])))
        [0.6931472]
    """
    return _OnLogits(function)


def accuracy(params: LinearParams, features: Array, targets: Array) -> Array:
    """Score predictions by the share of an example's labels that they hit.

    Integer targets of rank 1: argmax_k z_k = target, or [z > 0] = target where K = 1; targets
    `[B, K]` of several labels: the mean over k of ([z_k > 0] = target_k).

    Args:
        params: the model, `w: [D, K]`.
        features: `[B, D]`.
        targets: `[B]` or `[B, K]`, integer or bool.

    Returns:
        `[B]` float32 between 0 and 1.

    Raises:
        TypeError: if targets are floats: numbers and probabilities have no accuracy.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import linear, training
        >>> params = linear.LinearParams(w=jnp.eye(2), bias=None)
        >>> x, y = jnp.array([[2.0, 1.0], [2.0, 1.0]]), jnp.array([0, 1])
        >>> print(training.accuracy(params, x, y))
        [1. 0.]
    """
    if jnp.issubdtype(targets.dtype, jnp.floating):
        raise TypeError(f"targets must be integer or bool for accuracy, got {targets.dtype}")
    scores = linear.logits(params, features)
    if targets.ndim == 1 and scores.shape[-1] > 1:
        return (jnp.argmax(scores, axis=-1) == targets).astype(jnp.float32)
    hits = (scores > 0) == targets.reshape(scores.shape).astype(bool)
    return jnp.mean(hits, axis=-1, dtype=jnp.float32)


def weight_decay_mask(params: LinearParams) -> LinearParams:
    """Mark what weight decay acts on, the weights and not the bias: Optax's `mask`.

    Args:
        params: a model or anything of its form.

    Returns:
        `LinearParams(w=True, bias=False)`, with None for a bias that is None.

    Example:
        >>> import optax
        >>> from jaxsoftmax import linear, training
        >>> optimizer = optax.adamw(1e-3, weight_decay=1e-2, mask=training.weight_decay_mask)
        >>> print(training.weight_decay_mask(linear.init(3, 2)))
        LinearParams(w=True, bias=False)
    """
    return LinearParams(w=True, bias=None if params.bias is None else False)  # type: ignore[arg-type]


def init_state(
    params: LinearParams, *, optimizer: optax.GradientTransformation, key: Array
) -> TrainState:
    """Build the state before the first epoch.

    The parameters and the key are copied, because `train_epoch` overwrites the state it is given.

    Args:
        params: the parameters to start from, for instance `linear.init(D, K)`.
        optimizer: any Optax optimizer.
        key: a random key of JAX's default kind; it gives the order of the minibatches.

    Returns:
        A `TrainState`, all arrays.

    Raises:
        ValueError: if the key is not one key of the default kind.

    Example:
        >>> import jax, optax
        >>> from jaxsoftmax import linear, training
        >>> key, sgd = jax.random.key(0), optax.sgd(0.1)
        >>> state = training.init_state(linear.init(3, 2), optimizer=sgd, key=key)
        >>> print(state.step, state.epoch)
        0 0
    """
    zero = jnp.zeros((), jnp.int32)
    state = TrainState(params, optimizer.init(params), _key_data(key), zero, zero)
    return jax.tree.map(jnp.copy, state)


def train_epoch(
    state: TrainState,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    weights: ArrayLike | None = None,
    score: Score | None = accuracy,
) -> tuple[TrainState, Metrics]:
    """Run one epoch: a scan over shuffled minibatches, compiled as one program.

    Each step takes the gradient of sum_i weight_i loss_i / sum_i weight_i over its minibatch. The
    last minibatch of an epoch may hold fewer examples; it is padded with weight 0, so that its
    mean is over the real ones. A batch of all the data is taken in its own order, without a copy.
    `jax.jit`, `jax.vmap` and `jax.lax.scan` may enclose it.

    Args:
        state: of `init_state` or the epoch before. Its buffers are donated: use the new state.
        features: `[N, D]`.
        targets: `[N, ...]`.
        loss: values `[B]` of a minibatch; a static argument, as are optimizer and score.
        optimizer: any Optax optimizer; value, gradient and value function of the minibatch are
            handed to those that ask for them (such as `optax.lbfgs()`).
        batch_size: B, at least 1; more than N is N.
        weights: `[N]`, at least 0; None for ones. Rows of weight 0 must hold finite features.
        score: reported beside the loss, or None. The default is left out for float targets.

    Returns:
        The new state, and the weighted means over the epoch's examples, each under the parameters
        that met it: "loss", and "accuracy" where there is a score. The same state and data give
        the same bits.

    Raises:
        ValueError: if loss or score does not return one value per example.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
        >>> sgd, loss = optax.sgd(1.0), training.on_logits(cross_entropy)
        >>> state = training.init_state(linear.init(3, 2), optimizer=sgd, key=jax.random.key(0))
        >>> state, metrics = training.train_epoch(
        ...     state, x, y, loss=loss, optimizer=sgd, batch_size=2)
        >>> print(state.step, state.epoch, sorted(metrics))
        2 1 ['accuracy', 'loss']
    """
    _check_counts(batch_size=batch_size)
    return _train_epoch(
        state,
        (features, targets, weights),
        loss=loss,
        optimizer=optimizer,
        batch_size=batch_size,
        score=score,
    )


def evaluate(
    params: LinearParams,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Loss,
    weights: ArrayLike | None = None,
    score: Score | None = accuracy,
) -> Metrics:
    """Weighted means of loss and score over all examples, in one batch.

    Args:
        params: the model, `w: [D, K]`.
        features: `[N, D]`.
        targets: `[N, ...]`.
        loss: values `[N]`.
        weights: `[N]`, or None for ones.
        score: as in `train_epoch`.

    Returns:
        "loss", and "accuracy" where there is a score: float scalars.

    Raises:
        ValueError: if loss or score does not return one value per example.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> loss = training.on_logits(cross_entropy)
        >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
        >>> metrics = training.evaluate(linear.init(3, 2), x, y, loss=loss)
        >>> print(metrics["loss"], metrics["accuracy"])
        0.6931472 0.33333334
    """
    return _evaluate(params, (features, targets, weights), loss=loss, score=score)


def fit(
    loss: Loss,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    optimizer: optax.GradientTransformation,
    key: Array,
    epochs: int,
    batch_size: int,
    params: LinearParams | None = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    patience: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    score: Score | None = accuracy,
) -> FitResult:
    """Fit a linear model by minibatches.

    The data go to the device once; each epoch is one call of `train_epoch`, and without callback
    and patience the host waits for nothing before the end. The same key gives the same bits.

    Args:
        loss: `on_logits` of a loss of one example, or any `Loss`.
        features: `[N, D]`, float and finite.
        targets: `[N]` labels or numbers, or `[N, K]`.
        optimizer: any Optax optimizer. One object used again is not compiled again.
        key: a random key, split as `init_key, order_key = jax.random.split(key)`.
        epochs: how many, at least 1.
        batch_size: B, at least 1; at N or above it is full-batch, as `optax.lbfgs()` wants it.
        params: to start from; None for `linear.init(D, K, key=init_key)`, with K of the targets:
            their greatest integer label + 1, their last axis where they have two, else 1 (floats
            and bools). Give `linear.init(D, 1)` for one score on labels 0 and 1.
        weights: `[N]` of the examples, at least 0, some above; None for ones.
        validation: `(features, targets)`, evaluated after every epoch.
        patience: stop when the validation loss has not improved for so many epochs, and return
            the parameters of the best one.
        callback: called after each epoch with a dictionary of its number "epoch", counted from 1,
            and its figures as floats, named as in the history. What it raises ends the fit.
        score: as in `train_epoch`.

    Returns:
        A `FitResult`. Its history of training data holds running means: each example under the
        parameters that met it; that of validation data is taken at the end of the epoch.

    Raises:
        TypeError: if features are not floats.
        ValueError: if shapes do not match, data are empty or not finite, a label is out of range,
            weights are negative or all 0, a count is below 1, or patience has no validation.
        Interrupted: a KeyboardInterrupt, at Ctrl-C, which carries the result so far.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from jaxsoftmax import cross_entropy, training
        >>> x, y = jnp.array([[-2.0], [-1.0], [1.0], [2.0]]), jnp.array([0, 0, 1, 1])
        >>> result = training.fit(
        ...     training.on_logits(cross_entropy), x, y,
        ...     optimizer=optax.sgd(1.0), key=jax.random.key(0), epochs=10, batch_size=2)
        >>> print(result.history["accuracy"][-1], result.params.w.shape)
        1.0 (1, 2)
    """
    _check_counts(epochs=epochs, batch_size=batch_size, patience=patience)
    data = _training_data(features, targets, weights)
    init_key, order_key = jax.random.split(key)
    if params is None:
        params = _init_like(data, key=init_key)
    held_out = _checked(params, data, validation)
    if patience is not None and held_out is None:
        raise ValueError("patience needs validation=(features, targets) to watch, got None")

    x, t, w = data
    figures = {"loss": loss, "score": score}
    batches = {"batch_size": batch_size, "weights": w}
    return _run(
        init_state(params, optimizer=optimizer, key=order_key),
        lambda state: train_epoch(state, x, t, optimizer=optimizer, **batches, **figures),
        held_out and (lambda params: evaluate(params, *held_out, **figures)),
        epochs=epochs,
        patience=patience,
        callback=callback,
    )


def sweep(
    loss: Loss,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    make_optimizer: Callable[[Any], optax.GradientTransformation],
    hyperparams: Any,
    keys: Array,
    epochs: int,
    batch_size: int,
    params: LinearParams | None = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ArrayLike] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    score: Score | None = accuracy,
) -> FitResult:
    """Fit L models at once, one lane for each setting: `fit` under vmap, one compiled program.

    All lanes meet the same minibatches, so each is gathered once, and the scores of all lanes are
    one product of the `[B, D]` features with `[D, L K]` weights.

    Args:
        loss: as in `fit`.
        features: `[N, D]`, float and finite.
        targets: `[N]` or `[N, K]`.
        make_optimizer: from one lane's hyperparameters, which are traced scalars, to an Optax
            optimizer, for instance `lambda h: optax.sgd(h["learning_rate"])`.
        hyperparams: any tree of arrays `[L, ...]`.
        keys: `[L]` random keys. Lane l starts where `fit` with `keys[l]` starts; the order of the
            minibatches is that of `keys[0]`, so that lane 0 repeats that fit to rounding.
        epochs: as in `fit`.
        batch_size: as in `fit`.
        params: `w: [L, D, K]`, `bias: [L, K]` to start from, or None.
        weights: as in `fit`.
        validation: as in `fit`.
        callback: as in `fit`; each figure is a list of L floats.
        score: as in `train_epoch`.

    Returns:
        A `FitResult` with a leading axis of lanes: `params.w: [L, D, K]`, history `[L, epochs]`,
        `best_epoch: [L]`; of the state, key, step and epoch are shared.

    Raises:
        TypeError: as `fit`.
        ValueError: as `fit`, and if hyperparams, keys and params disagree about L.

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
    _check_counts(epochs=epochs, batch_size=batch_size)
    if not isinstance(keys, Array) or jnp.shape(keys)[:1] in ((), (0,)):
        raise ValueError("keys must be an array of [L] random keys with L of at least 1")
    data = _training_data(features, targets, weights)
    split = jax.vmap(jax.random.split)(keys)
    if params is None:
        params = jax.vmap(lambda key: _init_like(data, key=key))(split[:, 0])
    _check_lanes(len(keys), hyperparams, params)
    held_out = _checked(jax.tree.map(lambda leaf: leaf[0], params), data, validation)

    figures = {"loss": loss, "score": score}
    how = {"make_optimizer": make_optimizer, "batch_size": batch_size}
    return _run(
        _init_lanes(params, hyperparams, make_optimizer=make_optimizer, key=split[0, 1]),
        lambda state: _sweep_epoch(state, hyperparams, data, **how, **figures),
        held_out and (lambda params: _evaluate_lanes(params, *held_out, **figures)),
        epochs=epochs,
        callback=callback,
    )


# One epoch. Data is (features, targets, weights or None).

type Data = tuple[Array, Array, Array | None]


def _epoch(
    state: TrainState,
    data: Data,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    score: Score | None,
) -> tuple[TrainState, Metrics]:
    optimizer = optax.with_extra_args_support(optimizer)
    scores = _reported(score, data[1])
    draw, key = jax.random.split(jax.random.wrap_key_data(state.key))

    def step(carry: Any, batch: tuple[Array, Array, Array]) -> tuple[Any, tuple[Metrics, Array]]:
        params, opt_state = carry
        x, t, weight = batch

        def value_fn(params: LinearParams) -> Array:
            return weighted_mean(_per_example(loss, params, x, t), weights=weight)

        value, grad = jax.value_and_grad(value_fn)(params)
        means = {"loss": value} | {
            name: weighted_mean(_per_example(report, params, x, t), weights=weight)
            for name, report in scores.items()
        }
        updates, opt_state = optimizer.update(
            grad, opt_state, params, value=value, grad=grad, value_fn=value_fn
        )
        carry = _with_data((optax.apply_updates(params, updates), opt_state), data)
        return carry, (means, jnp.sum(weight))

    carry, (means, totals) = _over_batches(
        step,
        _with_data((state.params, state.opt_state), data),
        data,
        batch_size=batch_size,
        key=draw,
    )
    metrics = {name: weighted_mean(mean, weights=totals) for name, mean in means.items()}
    return (
        TrainState(
            params=carry[0],
            opt_state=carry[1],
            key=jax.random.key_data(key),
            step=state.step + totals.shape[0],
            epoch=state.epoch + 1,
        ),
        metrics,
    )


_train_epoch = jax.jit(
    _epoch,
    static_argnames=("loss", "optimizer", "batch_size", "score"),
    donate_argnames="state",
)


@partial(jax.jit, static_argnames=("loss", "score"))
def _evaluate(params: LinearParams, data: Data, *, loss: Loss, score: Score | None) -> Metrics:
    features, targets, weights = data
    reports = {"loss": loss} | _reported(score, targets)
    return {
        name: weighted_mean(_per_example(report, params, features, targets), weights=weights)
        for name, report in reports.items()
    }


def _with_data(carry: Any, data: Data) -> Any:
    """The carry on the mesh of the data, and varying over the axes of a shard_map as they do.

    A model that every device of a shard_map is handed becomes each device's own: it is fitted to
    that device's data.
    """
    carry, _ = placement.join(carry, data)
    return jax.tree.map(lambda a: placement.resharded(a, data[0], *placement.spec(a)), carry)


def _over_batches(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    data: Data,
    *,
    batch_size: int,
    key: Array,
) -> tuple[Any, Any]:
    """Scan `step` over shuffled minibatches (x, t, weight); all the data at once as they lie."""
    features, targets, weights = data
    size = features.shape[0]
    weights = jnp.ones(size, jnp.float32) if weights is None else weights
    if batch_size >= size:
        carry, out = step(carry, (features, targets, weights))
        return carry, jax.tree.map(lambda leaf: leaf[None], out)

    steps = -(-size // batch_size)
    padding = steps * batch_size - size
    order = _shuffled(key, size)
    rows = jnp.concatenate([order, order[:padding]]).reshape(steps, batch_size)
    # Not all of weights' rows: the padding's are 0.
    weight = placement.replicated(weights)[order]
    weight = jnp.pad(weight, (0, padding)).reshape(steps, batch_size)
    axes = placement.row_axes(features, batch_size)

    def taken(a: Array, rows: Array) -> Array:
        return placement.taken(a, rows, features, axes, mode="promise_in_bounds")

    def gathered(carry: Any, batch: tuple[Array, Array]) -> tuple[Any, Any]:
        rows, weight = batch
        weight = placement.shared(weight, features, axes)
        return step(carry, (taken(features, rows), taken(targets, rows), weight))

    return jax.lax.scan(gathered, carry, (rows, weight))


def _shuffled(key: Array, size: int) -> Array:
    """Return 0 .. size - 1 in random order by one sort.

    `jax.random.permutation` sorts twice or more to part equal draws, at twice the time. Here the
    size^2 / 2^33 pairs that draw the same 32 bits (0.4 of 60,000 examples) keep their order.
    """
    draws = jax.random.bits(key, (size,), jnp.uint32)
    return jax.lax.sort((draws, jnp.arange(size, dtype=jnp.int32)), num_keys=1)[1]


def _reported(score: Score | None, targets: Array) -> dict[str, Score]:
    """Return the score by its name in the metrics, in floats; none where accuracy means nothing."""
    if score is None or (score is accuracy and jnp.issubdtype(targets.dtype, jnp.floating)):
        return {}

    def in_floats(params: LinearParams, features: Array, targets: Array) -> Array:
        values = score(params, features, targets)
        return values.astype(jnp.promote_types(values.dtype, jnp.float32))

    return {"accuracy": in_floats}


def _per_example(report: Loss, params: LinearParams, features: Array, targets: Array) -> Array:
    values = report(params, features, targets)
    if values.shape != features.shape[:1]:
        raise ValueError(
            f"loss and score must return one value per example, {features.shape[:1]}, "
            f"got {values.shape}"
        )
    return values


# Lanes. Parameters and optimizer state have a leading axis; the order of the minibatches is shared.

_LANES = TrainState(params=0, opt_state=0, key=None, step=None, epoch=None)  # type: ignore[arg-type]


def _init_lanes(
    params: LinearParams,
    hyperparams: Any,
    *,
    make_optimizer: Callable[[Any], optax.GradientTransformation],
    key: Array,
) -> TrainState:
    def lane(params: LinearParams, hyper: Any) -> TrainState:
        return init_state(params, optimizer=make_optimizer(hyper), key=key)

    return jax.vmap(lane, out_axes=_LANES)(params, hyperparams)


@partial(
    jax.jit,
    static_argnames=("loss", "make_optimizer", "batch_size", "score"),
    donate_argnames="state",
)
def _sweep_epoch(
    state: TrainState,
    hyperparams: Any,
    data: Data,
    *,
    make_optimizer: Callable[[Any], optax.GradientTransformation],
    **how: Any,
) -> tuple[TrainState, Metrics]:
    def lane(state: TrainState, hyper: Any) -> tuple[TrainState, Metrics]:
        return _epoch(state, data, optimizer=make_optimizer(hyper), **how)

    return jax.vmap(lane, in_axes=(_LANES, 0), out_axes=(_LANES, 0))(state, hyperparams)


@partial(jax.jit, static_argnames=("loss", "score"))
def _evaluate_lanes(params: LinearParams, features: Array, targets: Array, **how: Any) -> Metrics:
    return jax.vmap(lambda params: evaluate(params, features, targets, **how))(params)


# The loop over epochs, on the host.


def _run(
    state: TrainState,
    epoch: Callable[[TrainState], tuple[TrainState, Metrics]],
    validate: Callable[[LinearParams], Metrics] | None,
    *,
    epochs: int,
    patience: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
) -> FitResult:
    history: list[Metrics] = []
    finished: tuple[int, _Kept | None] = 0, None  # one name, so that no interrupt parts the two
    improved, least = 0, np.inf
    try:
        for number in range(1, epochs + 1):
            state, metrics = epoch(state)
            if validate is not None:
                held_out = validate(state.params)
                metrics = metrics | {f"validation_{name}": held_out[name] for name in held_out}
            history.append(metrics)
            latest = _Kept(jnp.asarray(metrics.get("validation_loss", jnp.inf)), state.params)
            finished = number, _better(finished[1] or _nothing_yet(latest), latest)
            if callback is not None:
                figures = {name: np.asarray(value).tolist() for name, value in metrics.items()}
                callback({"epoch": number} | figures)
            if patience is not None:
                if metrics["validation_loss"] < least:
                    improved, least = number, float(metrics["validation_loss"])
                elif number - improved >= patience:
                    break
    except KeyboardInterrupt as interrupt:
        ended, best = finished
        result = None if best is None else _result(best.params, None, history[:ended])
        raise Interrupted(result) from interrupt

    assert finished[1] is not None
    # A copy of the last parameters outlives the state, which its next epoch would take.
    params = jax.tree.map(jnp.copy, state.params) if patience is None else finished[1].params
    return _result(params, state, history)


class _Kept(NamedTuple):
    """Parameters and their validation loss, infinite while there is none."""

    loss: Array
    params: LinearParams


def _nothing_yet(like: _Kept) -> _Kept:
    return like._replace(loss=jnp.full_like(like.loss, jnp.inf))


@jax.jit
def _better(old: _Kept, new: _Kept) -> _Kept:
    """The one of less loss in each lane, or the newer while there was none, as a copy.

    It all stays on the device, so that the host need not wait for each epoch's loss.
    """

    def choose(chosen: Array, new: Array, old: Array) -> Array:
        return jnp.where(chosen.reshape(chosen.shape + (1,) * (new.ndim - chosen.ndim)), new, old)

    less = new.loss < old.loss
    params = jax.tree.map(partial(choose, less | jnp.isinf(old.loss)), new.params, old.params)
    return _Kept(choose(less, new.loss, old.loss), params)


def _result(params: LinearParams, state: TrainState | None, history: list[Metrics]) -> FitResult:
    table = _stacked(history)
    return FitResult(params, state, table, epochs=len(history), best_epoch=_best_epoch(table))


def _stacked(history: list[Metrics]) -> dict[str, np.ndarray]:
    """Return each figure's epochs as the last axis; here the host waits for the device."""
    rows = jax.device_get(history)
    return {name: np.stack([row[name] for row in rows], axis=-1) for name in rows[0]}


def _best_epoch(history: dict[str, np.ndarray]) -> int | np.ndarray:
    """Return the first epoch with the least validation loss; the last where none is a number."""
    losses = history.get("validation_loss")
    if losses is None:
        losses = np.full_like(history["loss"], np.nan)
    losses = np.where(np.isnan(losses), np.inf, losses)
    last = losses.shape[-1] - 1
    best = 1 + np.where(np.isinf(losses).all(-1), last, losses.argmin(-1))
    return int(best) if best.ndim == 0 else best


# Checks, all before the first epoch.


def _key_data(key: Array) -> Array:
    data = key
    if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        data = jax.random.key_data(key)
    like = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    if data.shape != like.shape or data.dtype != like.dtype:
        raise ValueError(
            f"key must be one random key of the default kind ({like.dtype}{list(like.shape)}), "
            f"got {key.dtype}{list(key.shape)}"
        )
    return data


def _check_counts(**counts: int | None) -> None:
    for name, count in counts.items():
        if count is not None and count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")


def _check_lanes(lanes: int, hyperparams: Any, params: LinearParams) -> None:
    for name, tree in (("hyperparams", hyperparams), ("params", params)):
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf)[:1] != (lanes,):
                raise ValueError(
                    f"{name} must have a leading axis of {lanes} lanes, as keys has, "
                    f"got shape {jnp.shape(leaf)}"
                )


def _training_data(features: ArrayLike, targets: ArrayLike, weights: ArrayLike | None) -> Data:
    x, t = _examples(features, targets)
    if weights is None:
        return x, t, None
    w = jnp.asarray(weights)
    if w.shape != x.shape[:1]:
        raise ValueError(f"weights must have shape {x.shape[:1]}, as features, got {w.shape}")
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    if not bool(jnp.all((w >= 0) & jnp.isfinite(w)) & jnp.any(w > 0)):
        raise ValueError("weights must be finite, at least 0, and some above 0")
    return x, t, w


def _examples(features: ArrayLike, targets: ArrayLike, of: str = "") -> tuple[Array, Array]:
    if isinstance(targets, np.ndarray) and targets.dtype.kind in "iu":
        # Before 64 bits become 32, which would wrap 2^32 to the class 0.
        check_labels(targets, 2**31 - 1)
    # device_put borrows a NumPy array that is aligned, where asarray would copy large data.
    x = jax.device_put(features) if isinstance(features, np.ndarray) else jnp.asarray(features)
    t = jnp.asarray(targets)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{of}features must be floats, got {x.dtype}; convert and scale them")
    if x.ndim != 2 or 0 in x.shape:
        raise ValueError(f"{of}features must be [N, D] and not empty, got shape {x.shape}")
    if t.ndim not in (1, 2) or t.shape[0] != x.shape[0]:
        raise ValueError(
            f"{of}targets must be [N] or [N, K] with N = {x.shape[0]}, as {of}features, "
            f"got shape {t.shape}"
        )
    for name, a in ((f"{of}features", x), (f"{of}targets", t)):
        if jnp.issubdtype(a.dtype, jnp.floating) and not bool(jnp.all(jnp.isfinite(a))):
            bad = np.argwhere(~np.isfinite(np.asarray(a)))[0].tolist()
            raise ValueError(f"{name} must be finite, got {a[tuple(bad)]} at {bad}")
    return x, t


def _init_like(data: Data, *, key: Array) -> LinearParams:
    """Initial parameters for the classes that the targets show, in at least float32."""
    x, t, _ = data
    if t.ndim == 2:
        num_classes = t.shape[1]
    elif jnp.issubdtype(t.dtype, jnp.integer):
        num_classes = max(1, int(t.max()) + 1)
    else:
        num_classes = 1
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return linear.init(x.shape[1], num_classes, key=key, dtype=dtype)


def _checked(
    params: LinearParams, data: Data, validation: tuple[ArrayLike, ArrayLike] | None
) -> tuple[Array, Array] | None:
    """Check that parameters, data and validation data agree; return the latter on the device."""
    held_out = None if validation is None else _examples(*validation, of="validation ")
    features, num_classes = params.w.shape
    for of, pair in (("", data[:2]), ("validation ", held_out)):
        if pair is None:
            continue
        x, t = pair
        if x.shape[1] != features:
            raise ValueError(
                f"{of}features must have {features} columns, as w has rows, got {x.shape[1]}"
            )
        if t.ndim == 1 and jnp.issubdtype(t.dtype, jnp.integer):
            check_labels(t, max(2, num_classes))  # one score tells two classes apart
    return held_out
