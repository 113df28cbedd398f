"""Fitting by minibatches: an epoch is one compiled scan, a sweep is its vmap.

The model is linear unless a loss brings scores of its own; its parameters are then any pytree.
"""

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

from jaxsoftmax import linear, placement, validation
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.losses import check_labels, inferred_classes, weighted_mean

type Loss = Callable[[Any, Array, Array], Array]
"""`loss(params, features[B, ...], targets[B, ...]) -> values[B]`, one value per example.

`params` are `LinearParams` or any pytree of floating arrays.
"""

type Score = Callable[[Any, Array, Array], Array]
"""As `Loss`, but only reported."""

type Logits = Callable[[Any, Array], Array]
"""`logits(params, features[B, ...]) -> scores[B, K]`, or `[B, ..., K]`: a model."""

type Metrics = dict[str, Array]
"""Means by name: "loss", and "accuracy" where there is a score."""


class TrainState(NamedTuple):
    """All that one epoch hands to the next; every leaf is an array, so a checkpoint can hold it.

    `key` is the raw data of a random key (`jax.random.key_data`), which gives the order of the
    minibatches; `step` counts updates and `epoch` counts epochs, both from 0.
    """

    params: Any
    opt_state: Any
    key: Array
    step: Array
    epoch: Array


class FitResult(NamedTuple):
    """What `fit` and `sweep` return; of `sweep`, each array has a leading axis of lanes.

    `params`, `LinearParams` or of the form that was given, are those after the last epoch, or with
    patience those of the best epoch; `state` is that of the last epoch, None after an interrupt.
    `history` maps "loss", "accuracy", "validation_loss" and "validation_accuracy", as far as they
    exist, to one number per epoch. `epochs` were run; `best_epoch` has the least validation loss
    (without validation it is the last). Epochs count from 1, so that of the best one is
    `history[name][best_epoch - 1]`. A loss that is not a number is never the least.
    """

    params: Any
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
    logits: Logits

    def __call__(self, params: Any, features: Array, targets: Array) -> Array:
        scores = _scores(self.logits, params, features)
        rank = scores.ndim - 1
        if targets.ndim >= rank:
            targets = placement.like_rows(targets, scores, rank)
        if scores.shape[-1] == 1 and targets.ndim == rank:
            targets = targets[..., None]
        return jax.vmap(lambda z, t: jnp.sum(self.function(z, t)))(scores, targets)


def on_logits(function: Callable[[Array, Array], Array], *, logits: Logits = linear.logits) -> Loss:
    """Make a loss on a model's scores out of a loss of one example.

    loss(params, x, t)_i = sum(function(logits(params, x_i), t_i)).

    Args:
        function: of scores `[K]` and one example's target, an integer label `[]`, or `[K]`
            probabilities or labels; for K = 1 a target of rank 0 comes as `[1]`. It returns a
            scalar, or one value per label, which are summed. Where the scores have more axes, so
            have its arguments: of an image's pixels, scores `[H, W, K]` and labels `[H, W]`.
        logits: the model, `(params, features[B, ...]) -> scores[B, ..., K]`; the default is that
            of `LinearParams`. Its parameters may be any pytree of floating arrays. A module of
            Equinox is `params, static = eqx.partition(model, eqx.is_inexact_array)` and
            `lambda params, x: jax.vmap(eqx.combine(params, static))(x)`; one of Flax is
            `graph, params, rest = nnx.split(model, nnx.Param, ...)` and
            `lambda params, x: nnx.merge(graph, params, rest)(x)`. What a call changes beside the
            parameters (running means, dropout keys) is not carried from step to step.

    Returns:
        A `Loss`: `(params, features[B, ...], targets[B, ...]) -> values[B]`, `function` under
        vmap. Two of the same function and the same model are equal and share compiled code; a
        lambda is the same only as itself, so make it once.

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
        >>> own = training.on_logits(cross_entropy, logits=mlp)
        >>> print(own(params, jnp.ones((1, 3)), jnp.array([0])))
        [0.6931472]
    """
    return _OnLogits(function, logits)


def accuracy(
    params: Any, features: Array, targets: Array, *, logits: Logits = linear.logits
) -> Array:
    """Score predictions by the share of an example's labels that they hit.

    Integer targets of rank 1: argmax_k z_k = target, or [z > 0] = target where K = 1; targets
    `[B, K]` of several labels: the mean over k of ([z_k > 0] = target_k). Where scores are
    `[B, ..., K]` and targets `[B, ...]` it is the share of the labels from 0 to K - 1 that are
    hit, and 0 where an example has none: others, such as 255 of pixels, are left out.

    Args:
        params: the model's, `w: [D, K]` of the default one.
        features: `[B, ...]`, `[B, D]` of the default model.
        targets: `[B]`, `[B, K]` or `[B, ...]`, integer or bool.
        logits: the model, as of `on_logits`. `fit` and its like take that of their loss.

    Returns:
        `[B]` float32 between 0 and 1.

    Raises:
        TypeError: if targets are floats: numbers and probabilities have no accuracy.
        ValueError: if the model does not return scores `[B, ..., K]`, or targets are not of
            their shape, with or without K.

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
    z = _scores(logits, params, features)
    if targets.shape not in (z.shape, z.shape[:-1]):
        raise ValueError(
            f"targets must have shape {z.shape[:-1]} or {z.shape} for accuracy, "
            f"got {targets.shape}; give another score, or None"
        )
    if targets.ndim < z.ndim and z.shape[-1] > 1:
        hits = jnp.argmax(z, axis=-1) == targets
        known = (targets >= 0) & (targets < z.shape[-1])
    else:
        hits = (z > 0) == targets.reshape(z.shape).astype(bool)
        known = jnp.ones_like(hits)
    if hits.ndim == 1:
        return hits.astype(jnp.float32)
    within = tuple(range(1, hits.ndim))
    share = jnp.sum(hits, within) / jnp.maximum(jnp.sum(known, within), 1)
    return share.astype(jnp.float32)


def _scores(logits: Logits, params: Any, features: Array) -> Array:
    scores = logits(params, features)
    if scores.ndim < 2 or scores.shape[0] != features.shape[0]:
        raise ValueError(
            f"logits must return scores [B, ..., K] for {features.shape[0]} examples, "
            f"got shape {scores.shape}"
        )
    return scores


def weight_decay_mask(params: Any) -> Any:
    """Mark what weight decay acts on, the weights and not the bias: Optax's `mask`.

    Args:
        params: a linear model, or any pytree of arrays.

    Returns:
        `LinearParams(w=True, bias=False)`, with None for a bias that is None; of another pytree,
        which of its arrays have two axes or more, as products' weights have and biases have not.

    Example:
        >>> import jax.numpy as jnp, optax
        >>> from jaxsoftmax import linear, training
        >>> optimizer = optax.adamw(1e-3, weight_decay=1e-2, mask=training.weight_decay_mask)
        >>> print(training.weight_decay_mask(linear.init(3, 2)))
        LinearParams(w=True, bias=False)
        >>> training.weight_decay_mask({"inner": jnp.ones((3, 4)), "shift": jnp.ones(4)})
        {'inner': True, 'shift': False}
    """
    return jax.tree.map(lambda a: jnp.ndim(a) > 1, params)


def init_state(params: Any, *, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """Build the state before the first epoch.

    The parameters and the key are copied, because `train_epoch` overwrites the state it is given.

    Args:
        params: the parameters to start from, for instance `linear.init(D, K)`, or any pytree of
            floating arrays.
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
        features: `[N, ...]`, `[N, D]` of a linear model.
        targets: `[N, ...]`.
        loss: values `[B]` of a minibatch; a static argument, as are optimizer and score: the same
            objects again, or equal ones, are not compiled again.
        optimizer: any Optax optimizer; value, gradient and value function of the minibatch are
            handed to those that ask for them (such as `optax.lbfgs()`).
        batch_size: B, at least 1; more than N is N.
        weights: `[N]`, or one number for all: floats, integers or bools, at least 0 and some
            above; None for ones. A row of weight 0 has no say whatever its features and targets
            hold, NaN and labels out of range included: another stands in for it.
        score: reported beside the loss, or None. The default takes the scores of a loss of
            `on_logits`, or those of `LinearParams`; it is left out for float targets, and where
            neither is given.

    Returns:
        The new state, and the weighted means over the epoch's examples, each under the parameters
        that met it: "loss", and "accuracy" where there is a score. The same state and data give
        the same bits.

    Raises:
        ValueError: if loss or score does not return one value per example, if weights are not one
            for each, or if batch_size is below 1.

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
        clean=weights is None or batch_size < np.shape(features)[0],
    )


def evaluate(
    params: Any,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    loss: Loss,
    weights: ArrayLike | None = None,
    score: Score | None = accuracy,
) -> Metrics:
    """Weighted means of loss and score over all examples, in one batch.

    Args:
        params: the model, `w: [D, K]` or any pytree of arrays.
        features: `[N, ...]`, `[N, D]` of a linear model.
        targets: `[N, ...]`.
        loss: values `[N]`.
        weights: as in `train_epoch`.
        score: as in `train_epoch`.

    Returns:
        "loss", and "accuracy" where there is a score: float scalars.

    Raises:
        ValueError: if loss or score does not return one value per example, or if weights are not
            one for each.

    Example:
        >>> import jax.numpy as jnp
        >>> from jaxsoftmax import cross_entropy, linear, training
        >>> loss = training.on_logits(cross_entropy)
        >>> x, y = jnp.eye(3), jnp.array([0, 1, 1])
        >>> metrics = training.evaluate(linear.init(3, 2), x, y, loss=loss)
        >>> print(metrics["loss"], metrics["accuracy"])
        0.6931472 0.33333334
    """
    clean = weights is None
    return _evaluate(params, (features, targets, weights), loss=loss, score=score, clean=clean)


def fit(
    loss: Loss,
    features: ArrayLike,
    targets: ArrayLike,
    *,
    optimizer: optax.GradientTransformation,
    key: Array,
    epochs: int,
    batch_size: int,
    params: Any = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ...] | None = None,
    patience: int | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    score: Score | None = accuracy,
) -> FitResult:
    """Fit a linear model, or one of your own, by minibatches.

    The data go to the device once; each epoch is one call of `train_epoch`, and without callback
    and patience the host waits for nothing before the end. The same key gives the same bits.

    Compiled programs are kept by loss and optimizer. Make each once and hand the same object to
    every fit: two `optax.sgd(0.1)` are two programs, and so are a lambda in `on_logits` and the
    next one. A number that changes from fit to fit is a hyperparameter of `sweep`; in a loop of
    your own over `train_epoch` it is an entry of `state.opt_state.hyperparams`, where
    `optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)` puts it.

    Args:
        loss: `on_logits` of a loss of one example, with `logits=` for a model of your own, or any
            `Loss`.
        features: `[N, D]`, float and finite; of a model of your own `[N, ...]` of any dtype.
        targets: `[N]` labels (integers) or numbers (floats), or `[N, K]`; of a model of your own
            `[N, ...]`. Only labels of rank 1 must be in range: of pixels some may be left out.
        optimizer: any Optax optimizer. One object used again is not compiled again.
        key: a random key, split as `init_key, order_key = jax.random.split(key)`.
        epochs: how many, at least 1.
        batch_size: B, at least 1; at N or above it is full-batch, as `optax.lbfgs()` wants it.
        params: to start from; None for `linear.init(D, K, key=init_key)`, with K of the targets:
            their greatest integer label + 1, their last axis where they have two, else 1 (floats
            and bools). Give `linear.init(D, 1)` for one score on labels 0 and 1. A model of your
            own starts from a pytree of floating arrays, which must be given.
        weights: `[N]` of the examples, or one number: at least 0, some above; None for ones. What
            has weight 0 may hold anything, so that `weights=labels >= 0` ignores labels of -100.
        validation: `(features, targets)` or `(features, targets, weights)`, evaluated after every
            epoch, in one batch.
        patience: stop when the validation loss has not improved for so many epochs, and return
            the parameters of the best one. A loss that is not a number is no improvement.
        callback: called after each epoch with a dictionary of its number "epoch", counted from 1,
            and its figures as floats, named as in the history. What it raises ends the fit.
        score: as in `train_epoch`.

    Returns:
        A `FitResult`. Its history of training data holds running means: each example under the
        parameters that met it; that of validation data is taken at the end of the epoch.

    Raises:
        TypeError: if features of a linear model are not floats, or parameters of your own are not.
        ValueError: if shapes do not match, data are empty or not finite, a label is out of range
            or too great for so few examples to show every class up to it, weights are negative
            or all 0, a count is below 1, patience has no validation, or a model of your own has
            no params.
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

        A model of your own:

        >>> def mlp(params, x):
        ...     return jnp.tanh(x @ params["inner"]) @ params["outer"]
        >>> params = {"inner": jnp.ones((1, 4)), "outer": jnp.zeros((4, 2))}
        >>> result = training.fit(
        ...     training.on_logits(cross_entropy, logits=mlp), x, y, params=params,
        ...     optimizer=optax.sgd(1.0), key=jax.random.key(0), epochs=10, batch_size=2)
        >>> print(result.history["accuracy"][-1])
        1.0
    """
    _check_counts(epochs=epochs, batch_size=batch_size, patience=patience)
    is_linear = _is_linear(loss, params)
    data = _examples(features, targets, weights, is_linear=is_linear)
    init_key, order_key = jax.random.split(key)
    if params is None:
        params = _init_like(data, key=init_key)
    held_out = _held_out(validation, is_linear=is_linear)
    _check_model(loss, params, data, held_out)
    if patience is not None and held_out is None:
        raise ValueError("patience needs validation=(features, targets) to watch, got None")

    figures: dict[str, Any] = {"loss": loss, "score": score}
    how = {"optimizer": optimizer, "batch_size": batch_size, "clean": True}
    return _run(
        init_state(params, optimizer=optimizer, key=order_key),
        lambda state: _train_epoch(state, data, **how, **figures),
        held_out and (lambda params: _evaluate(params, held_out, clean=True, **figures)),
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
    params: Any = None,
    weights: ArrayLike | None = None,
    validation: tuple[ArrayLike, ...] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    score: Score | None = accuracy,
) -> FitResult:
    """Fit L models at once, one lane for each setting: `fit` under vmap, one compiled program.

    All lanes meet the same minibatches, so each is gathered once, and the scores of all lanes are
    one product of the `[B, D]` features with `[D, L K]` weights.

    Args:
        loss: as in `fit`.
        features: as in `fit`.
        targets: as in `fit`.
        make_optimizer: from one lane's hyperparameters, which are traced scalars, to an Optax
            optimizer, for instance `lambda h: optax.sgd(h["learning_rate"])`. Made once, and used
            again with other hyperparameters, it is not compiled again.
        hyperparams: any tree of arrays `[L, ...]`.
        keys: `[L]` random keys. Lane l starts where `fit` with `keys[l]` starts; the order of the
            minibatches is that of `keys[0]`, so that lane 0 repeats that fit to rounding.
        epochs: as in `fit`.
        batch_size: as in `fit`.
        params: `w: [L, D, K]`, `bias: [L, K]` to start from, or None; of a model of your own each
            array has a leading axis of lanes, as `jax.vmap(init)(keys)` gives it.
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
    is_linear = _is_linear(loss, params)
    data = _examples(features, targets, weights, is_linear=is_linear)
    split = jax.vmap(jax.random.split)(keys)
    if params is None:
        params = jax.vmap(lambda key: _init_like(data, key=key))(split[:, 0])
    _check_lanes(len(keys), hyperparams, params)
    held_out = _held_out(validation, is_linear=is_linear)
    _check_model(loss, jax.tree.map(lambda leaf: leaf[0], params), data, held_out)

    figures: dict[str, Any] = {"loss": loss, "score": score}
    how = {"make_optimizer": make_optimizer, "batch_size": batch_size}
    return _run(
        _init_lanes(params, hyperparams, make_optimizer=make_optimizer, key=split[0, 1]),
        lambda state: _sweep_epoch(state, hyperparams, data, **how, **figures),
        held_out and (lambda params: _evaluate_lanes(params, held_out, **figures)),
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
    data = _weighted(data)
    scores = _reported(score, loss, state.params, data[1])
    draw, key = jax.random.split(jax.random.wrap_key_data(state.key))

    def step(carry: Any, batch: tuple[Array, Array, Array]) -> tuple[Any, tuple[Metrics, Array]]:
        params, opt_state = carry
        x, t, weight = batch

        def value_fn(params: Any) -> Array:
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


@partial(
    jax.jit,
    static_argnames=("loss", "optimizer", "batch_size", "score", "clean"),
    donate_argnames="state",
)
def _train_epoch(
    state: TrainState, data: Data, *, clean: bool, **how: Any
) -> tuple[TrainState, Metrics]:
    """One epoch; data are clean if no row without weight holds what could do harm.

    So are those that `fit` has looked at, and minibatches, which take such rows from elsewhere.
    """

    def run(data: Data) -> tuple[TrainState, Metrics]:
        return _epoch(state, data, **how)

    return run(data) if clean else _cleaned(run, data)


@partial(jax.jit, static_argnames=("loss", "score", "clean"))
def _evaluate(params: Any, data: Data, *, loss: Loss, score: Score | None, clean: bool) -> Metrics:
    def means(data: Data) -> Metrics:
        features, targets, weights = _weighted(data)
        reports = {"loss": loss} | _reported(score, loss, params, targets)
        return {
            name: weighted_mean(_per_example(report, params, features, targets), weights=weights)
            for name, report in reports.items()
        }

    return means(data) if clean else _cleaned(means, data)


def _cleaned[T](run: Callable[[Data], T], data: Data) -> T:
    """Return run(data), after a copy of the data where some rows do not count."""
    data = _weighted(data)
    assert data[2] is not None
    everything = jnp.all(data[2] != 0)
    return jax.lax.cond(everything, run, lambda data: run(_counting(data)), data)


def _weighted(data: Data) -> Data:
    """The data with weights as floats `[N]`, out of bools, integers or one number."""
    features, targets, weights = data
    if weights is None:
        return data
    return features, targets, _as_weights(weights, features.shape[:1])


def _as_weights(weights: ArrayLike, shape: tuple[int, ...], of: str = "") -> Array:
    w = validation.numbers(weights, f"{of}weights")
    if w.shape not in ((), shape):
        raise ValueError(
            f"{of}weights must have shape {shape}, as {of}features, or be one number, "
            f"got shape {w.shape}"
        )
    return jnp.broadcast_to(w.astype(jnp.promote_types(w.dtype, jnp.float32)), shape)


@jax.jit
def _counting(data: Data) -> Data:
    """The data with the first row that counts in the place of each that does not.

    A weight of 0 comes too late for a NaN: in the gradient they meet as 0 NaN. And a row of zeros
    is no row of the data: a norm has no gradient there.
    """
    features, targets, weights = data
    assert weights is not None

    def standing_in(a: Array) -> Array:
        counts = placement.shared(weights != 0, a, placement.spec(a)[0])
        first = _first_counting(weights)[None]
        row = placement.taken(a, first, a, None, mode="promise_in_bounds")
        return jnp.where(counts.reshape(-1, *(1,) * (a.ndim - 1)), a, row)

    return standing_in(features), standing_in(targets), weights


def _first_counting(weights: Array) -> Array:
    return jnp.argmax(placement.replicated(weights) != 0)


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
    features, targets, given = data
    size = features.shape[0]
    weights = jnp.ones(size, jnp.float32) if given is None else given
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
    if given is not None:
        rows = jnp.where(weight != 0, rows, _first_counting(given))  # see _counting
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


def _reported(score: Score | None, loss: Loss, params: Any, targets: Array) -> dict[str, Score]:
    """Return the score by its name in the metrics, in floats; none where accuracy means nothing."""
    of_loss = _accuracy_of(loss, params, targets) if score is accuracy else score
    if of_loss is None:
        return {}

    def in_floats(params: Any, features: Array, targets: Array) -> Array:
        values = of_loss(params, features, targets)
        return values.astype(jnp.promote_types(values.dtype, jnp.float32))

    return {"accuracy": in_floats}


def _accuracy_of(loss: Loss, params: Any, targets: Array) -> Score | None:
    if jnp.issubdtype(targets.dtype, jnp.floating):
        return None
    if isinstance(loss, _OnLogits):
        return partial(accuracy, logits=loss.logits)
    return accuracy if isinstance(params, LinearParams) else None


def _per_example(report: Loss, params: Any, features: Array, targets: Array) -> Array:
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
    params: Any,
    hyperparams: Any,
    *,
    make_optimizer: Callable[[Any], optax.GradientTransformation],
    key: Array,
) -> TrainState:
    def lane(params: Any, hyper: Any) -> TrainState:
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
def _evaluate_lanes(params: Any, data: Data, **how: Any) -> Metrics:
    return jax.vmap(lambda params: _evaluate(params, data, clean=True, **how))(params)


# The loop over epochs, on the host.


def _run(
    state: TrainState,
    epoch: Callable[[TrainState], tuple[TrainState, Metrics]],
    validate: Callable[[Any], Metrics] | None,
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
    params: Any


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
    params = jax.tree.map(partial(choose, less | jnp.isposinf(old.loss)), new.params, old.params)
    return _Kept(choose(less, new.loss, old.loss), params)


def _result(params: Any, state: TrainState | None, history: list[Metrics]) -> FitResult:
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
    best = 1 + np.where(np.isposinf(losses).all(-1), last, losses.argmin(-1))
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


def _check_lanes(lanes: int, hyperparams: Any, params: Any) -> None:
    for name, tree in (("hyperparams", hyperparams), ("params", params)):
        for leaf in jax.tree.leaves(tree):
            if jnp.shape(leaf)[:1] != (lanes,):
                raise ValueError(
                    f"{name} must have a leading axis of {lanes} lanes, as keys has, "
                    f"got shape {jnp.shape(leaf)}"
                )


def _is_linear(loss: Loss, params: Any) -> bool:
    """Whether the model is x w + bias; one of the user's own must bring its parameters."""
    logits = loss.logits if isinstance(loss, _OnLogits) else linear.logits
    is_linear = getattr(logits, "func", logits) is linear.logits  # a partial has its options
    if params is None and not is_linear:
        raise ValueError("params must be given for a model of your own, got None")
    return is_linear and (params is None or isinstance(params, LinearParams))


def _held_out(validation: tuple[ArrayLike, ...] | None, *, is_linear: bool) -> Data | None:
    if validation is None:
        return None
    if not isinstance(validation, tuple | list) or len(validation) not in (2, 3):
        raise ValueError(
            "validation must be (features, targets) or (features, targets, weights), "
            f"got {type(validation).__name__} of length {len(validation)}"
        )
    features, targets, *rest = validation
    weights = rest[0] if rest else None
    return _examples(features, targets, weights, of="validation ", is_linear=is_linear)


def _examples(
    features: ArrayLike,
    targets: ArrayLike,
    weights: ArrayLike | None,
    *,
    of: str = "",
    is_linear: bool,
) -> Data:
    """Return the data on the device, clean, and checked by themselves: shapes, numbers, weights."""
    # device_put borrows a NumPy array that is aligned, where asarray would copy large data.
    x = jax.device_put(features) if isinstance(features, np.ndarray) else jnp.asarray(features)
    _check_shapes(x, np.shape(targets), of=of, is_linear=is_linear)
    w = None if weights is None else _as_weights(weights, x.shape[:1], of)
    if w is not None and not bool(jnp.all((w >= 0) & jnp.isfinite(w)) & jnp.any(w > 0)):
        raise ValueError(f"{of}weights must be finite, at least 0, and some above 0")
    data: Data = x, jnp.asarray(targets), w
    counts = _counts(data)
    for name, given, a in (("features", features, x), ("targets", targets, data[1])):
        _check_finite(a, counts, f"{of}{name}")
        _check_integers(a, given, counts, f"{of}{name}")
    return data if counts.all() else _counting(data)


def _counts(data: Data) -> np.ndarray:
    """Return which examples count, on the host."""
    x, _, w = data
    return np.ones(x.shape[0], bool) if w is None else validation.on_host(w > 0)


def _check_shapes(x: Array, targets: tuple[int, ...], *, of: str, is_linear: bool) -> None:
    if is_linear and not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{of}features must be floats, got {x.dtype}; convert and scale them")
    if 0 in x.shape or (x.ndim != 2 if is_linear else x.ndim < 1):
        form = "[N, D]" if is_linear else "[N, ...]"
        raise ValueError(f"{of}features must be {form} and not empty, got shape {x.shape}")
    if targets[:1] != x.shape[:1] or (is_linear and len(targets) > 2):
        form = "[N] or [N, K]" if is_linear else "[N, ...]"
        raise ValueError(
            f"{of}targets must be {form} with N = {x.shape[0]}, as {of}features, "
            f"got shape {targets}"
        )


def _check_finite(a: Array, counts: np.ndarray, name: str) -> None:
    if not jnp.issubdtype(a.dtype, jnp.inexact):
        return
    bad = counts & ~validation.on_host(jnp.all(jnp.isfinite(a), axis=tuple(range(1, a.ndim))))
    if bad.any():
        first = int(bad.argmax())
        row = validation.on_host(a[first])
        at = np.argwhere(~np.isfinite(row))[0].tolist()
        raise ValueError(f"{name} must be finite, got {row[tuple(at)]} at {[first, *at]}")


def _check_integers(a: Array, given: ArrayLike, counts: np.ndarray, name: str) -> None:
    """Refuse integers of 64 bits that 32 would change: 2^32 to the class 0."""
    given = np.asarray(given) if not isinstance(given, Array) else np.empty(0)
    if given.dtype.kind not in "iu" or given.dtype.itemsize <= a.dtype.itemsize:
        return
    bad = np.asarray(a) != given
    bad[~counts] = False
    if bad.any():
        at = np.argwhere(bad)[0].tolist()
        raise ValueError(f"{name} must fit {a.dtype}, got {given[tuple(at)]} at {at}")


def _init_like(data: Data, *, key: Array) -> LinearParams:
    """Initial parameters for the classes that the targets show, in at least float32."""
    x, t, _ = data
    if t.ndim == 2:
        num_classes = t.shape[1]
    elif jnp.issubdtype(t.dtype, jnp.integer):
        labels = np.where(_counts(data), validation.on_host(t), 0)
        num_classes = inferred_classes(labels, "targets")
    else:
        num_classes = 1
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return linear.init(x.shape[1], num_classes, key=key, dtype=dtype)


def _check_model(loss: Loss, params: Any, data: Data, held_out: Data | None) -> None:
    """Check that parameters, data and validation data agree, by the shapes of scores alone."""
    _check_params(params)
    for of, examples in (("", data), ("validation ", held_out)):
        if examples is None:
            continue
        x, t, _ = examples
        num_classes = _num_classes(loss, params, x, of=of)
        if num_classes and t.ndim == 1 and jnp.issubdtype(t.dtype, jnp.integer):
            # One score tells two classes apart.
            check_labels(t, max(2, num_classes), valid=_counts(examples), name=f"{of}targets")


def _check_params(params: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(params):
        if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(
                f"params must be floating arrays, got {getattr(leaf, 'dtype', type(leaf))} at "
                f"params{jax.tree_util.keystr(path)}; split off what is not trained"
            )


def _num_classes(loss: Loss, params: Any, x: Array, *, of: str) -> int | None:
    """Return K, or None where a loss of the user's own does not show its scores."""
    if _is_linear(loss, params):
        features, num_classes = params.w.shape
        if x.shape[1] != features:
            raise ValueError(
                f"{of}features must have {features} columns, as w has rows, got {x.shape[1]}"
            )
        return num_classes
    if isinstance(loss, _OnLogits):
        return jax.eval_shape(partial(_scores, loss.logits), params, x).shape[-1]
    return None
