"""One epoch: a scan over shuffled minibatches, compiled as one program."""

from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax import Array

from jaxsoftmax import placement
from jaxsoftmax.losses import weighted_mean
from jaxsoftmax.sharding import Shards
from jaxsoftmax.training.division import UNDIVIDED, Division, Order, choose_strata
from jaxsoftmax.training.means import mean_over, total_weight, weighted_means
from jaxsoftmax.training.minibatches import scan_minibatches
from jaxsoftmax.training.models import accuracy, named_scores
from jaxsoftmax.training.state import TrainState
from jaxsoftmax.training.strata import run_on_strata, scan_strata
from jaxsoftmax.training.types import Examples, Loss, Metrics, Score, Strata
from jaxsoftmax.training.weights import run_on_valid, with_float_weights
from jaxsoftmax.validation import ArrayLike, check_at_least_one


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
    shards: Shards | None = None,
    order: Order | None = None,
    virtual_shards: int | None = None,
) -> tuple[TrainState, Metrics]:
    """Run one epoch: a scan over shuffled minibatches, compiled as one program.

    Each step takes the gradient of sum_i weight_i loss_i / sum_i weight_i over its minibatch. The
    last minibatch of an epoch may hold fewer examples. It is padded with rows of weight 0, so that
    its mean is over the real examples. A batch of all examples is used in its given order, without
    a copy. The function may be called inside `jax.jit`, `jax.vmap` and `jax.lax.scan`.

    Args:
        state: the state returned by `init_state` or by the previous epoch. Its buffers are
            donated, so use the new state afterwards.
        features: `[N, ...]`, or `[N, D]` for a linear model.
        targets: `[N, ...]`.
        loss: returns values `[B]` for a minibatch. It is a static argument, as are optimizer and
            score: a call with the same objects, or equal ones, is not compiled again.
        optimizer: any Optax optimizer. Those that take the value, the gradient and the value
            function of the minibatch (such as `optax.lbfgs()`) receive them.
        batch_size: B, at least 1; more than N means N.
        weights: `[N]`, or one number for all examples: floats, integers or bools, at least 0 and
            some above 0; None for ones. A row of weight 0 is ignored whatever its features and
            targets hold, including NaN and labels out of range: another row takes its place.
        score: a function that is reported beside the loss, or None. The default is the accuracy
            of the model of an `on_logits` loss, or of `LinearParams`. It is left out for float
            targets, and for a loss and parameters of any other kind.
        shards: the mesh axes over which the rows are sharded, as `Shards(rows="data")`. None reads
            them from the types on an Explicit mesh. On an Auto mesh, whose types do not name them,
            None is the global order, and the compiler divides the work.
        order: "stratified": each shard shuffles its own rows, a minibatch has B / shards rows of
            each, and only sums cross between devices: the gradient and the means. "global": all
            rows are shuffled together, so that the minibatches are those of one device, and the
            rows of each minibatch cross between devices. None is "stratified" where the rows are
            known to be sharded, B is less than N, and the shards divide B, else "global".
        virtual_shards: V, a power of two that is a multiple of the number of shards and divides N
            and B. There are V strata in place of one for each shard, on one device too. Gradients
            and means are summed over them in a fixed order, so that devices of one kind give the
            same bits whatever their number. Each device computes its strata one after another.

    Returns:
        The new state, and the weighted means over the epoch's examples, each evaluated at the
        parameters of its step: "loss", and "accuracy" if there is a score, float32 or float64
        scalars. The same state and data give the same bits.

    Numerics:
        A label out of range and features of NaN make the loss of their example NaN, and then the
        gradient, the parameters and the means, unless its weight is 0. A minibatch whose weights
        are all 0 has the gradient 0, the optimizer takes its step nevertheless, and the means leave
        it out; they are 0 if all weights are.

    Derivatives:
        With respect to the arrays of the state, the features and the weights, in both modes: each
        step takes a gradient, so that the loss needs second derivatives, as those of this library
        have. Reverse mode keeps the carry of every step.

    Raises:
        ValueError: if loss or score does not return one value per example, if there is not one
            weight per example, if batch_size is below 1, if shards name no axes of the mesh, or if
            strata that are asked for do not divide N and B.

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

    Reference:
        Bottou, "Curiously fast convergence of some stochastic gradient descent algorithms" (2009),
        for an order without replacement; Meng et al., "Convergence analysis of distributed
        stochastic gradient descent with shuffling" (2019), for shards that shuffle their own rows.
    """
    check_at_least_one(batch_size=batch_size)
    return jitted_train_epoch(
        state,
        Examples(features, targets, weights),  # type: ignore[arg-type]
        loss=loss,
        optimizer=optimizer,
        batch_size=batch_size,
        score=score,
        division=Division(shards, order, virtual_shards),
        # Minibatches take other rows in place of the ignored ones by themselves.
        replace_ignored=weights is not None and batch_size >= np.shape(features)[0],
    )


@partial(
    jax.jit,
    static_argnames=("loss", "optimizer", "batch_size", "score", "division", "replace_ignored"),
    donate_argnames="state",
)
def jitted_train_epoch(
    state: TrainState,
    examples: Examples,
    *,
    batch_size: int,
    division: Division = UNDIVIDED,
    replace_ignored: bool,
    **options: Any,
) -> tuple[TrainState, Metrics]:
    """Run one epoch on the devices that hold the rows, after a replacement of ignored ones."""
    examples = with_float_weights(examples)
    strata = choose_strata(division, examples, batch_size)

    def run(examples: Examples, state: TrainState = state) -> tuple[TrainState, Metrics]:
        return run_epoch(state, examples, batch_size=batch_size, strata=strata, **options)

    if strata is not None:
        return run_on_strata(run, strata, examples, state)
    return run_on_valid(run, examples) if replace_ignored else run(examples)


def run_epoch(
    state: TrainState,
    examples: Examples,
    *,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    batch_size: int,
    score: Score | None,
    strata: Strata | None,
) -> tuple[TrainState, Metrics]:
    """Run one epoch; the traced body of `train_epoch` and of one lane of `sweep`."""
    update = partial(
        take_step,
        loss=loss,
        scores=named_scores(score, loss, state.params, examples.targets),
        optimizer=optax.with_extra_args_support(optimizer),
        strata=strata,
    )

    def place(carry: _Carry) -> _Carry:
        return carry if strata is not None and strata.is_local else place_like(carry, examples)

    def step(carry: _Carry, batch: Examples) -> tuple[_Carry, tuple[Metrics, Array]]:
        carry, out = update(carry, batch)
        return place(carry), out

    scan = partial(scan_minibatches, batch_size=batch_size)
    if strata is not None:
        scan = partial(scan_strata, strata=strata)
    order_key, next_key = jax.random.split(jax.random.wrap_key_data(state.key))
    (params, opt_state), (means, totals) = scan(
        step, place((state.params, state.opt_state)), examples, key=order_key
    )
    new_state = TrainState(
        params=params,
        opt_state=opt_state,
        key=jax.random.key_data(next_key),
        step=state.step + totals.shape[0],
        epoch=state.epoch + 1,
    )
    return new_state, {name: weighted_mean(mean, weights=totals) for name, mean in means.items()}


type _Carry = tuple[Any, Any]  # parameters, optimizer state


def take_step(
    carry: _Carry,
    batch: Examples,
    *,
    loss: Loss,
    scores: dict[str, Score],
    optimizer: optax.GradientTransformationExtraArgs,
    strata: Strata | None,
) -> tuple[_Carry, tuple[Metrics, Array]]:
    """Return the carry after one update, the minibatch's means, and its total weight."""
    params, opt_state = carry

    def mean_loss(params: Any) -> Array:
        return mean_over(loss, params, batch, strata)

    value, grad = jax.value_and_grad(mean_loss)(params)
    means = {"loss": value} | weighted_means(scores, params, batch, strata)
    updates, opt_state = optimizer.update(
        grad, opt_state, params, value=value, grad=grad, value_fn=mean_loss
    )
    return (optax.apply_updates(params, updates), opt_state), (means, total_weight(batch, strata))


def place_like(carry: _Carry, examples: Examples) -> _Carry:
    """Return the carry on the mesh of the examples, varying over the same axes of a shard_map.

    A model that is replicated in a shard_map becomes one model per device, because each device fits
    it to its own examples.
    """
    carry, _ = placement.match_varying_axes(carry, examples)
    return jax.tree.map(
        lambda a: placement.reshard(a, examples.features, *placement.partition_spec(a)), carry
    )
