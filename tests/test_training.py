"""Training: every optimizer family, exact minibatches, histories, sweeps, against plain numpy."""

import inspect
import os
import pydoc
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsoftmax
from jaxsoftmax import linear, training
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.training import (
    fit,
    init_state,
    minibatches,
    on_logits,
    sweep,
    sweeping,
    train_epoch,
)
from jaxsoftmax.training.epoch import jitted_train_epoch
from jaxsoftmax.training.evaluation import jitted_evaluate
from jaxsoftmax.training.types import Examples

pytestmark = pytest.mark.usefixtures("unoptimized")

SOFTMAX = on_logits(jaxsoftmax.cross_entropy)
SIGMOID = on_logits(jaxsoftmax.binary_cross_entropy)
KEY = jax.random.key(7)


def classes(size: int = 43, features: int = 5, count: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Noisy labels of a linear rule: learnable, and not separable."""
    rng = np.random.default_rng(size)
    x = rng.normal(size=(size, features)).astype(np.float32)
    scores = x @ rng.normal(size=(features, count)) + 2 * rng.gumbel(size=(size, count))
    return x, scores.argmax(axis=1).astype(np.int32)


def leaves_equal(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(x, y) for x, y in pairs)


def assert_close(a, b, tolerance=1e-5):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance), a, b
    )


# Minibatches


@pytest.mark.parametrize("size", [1, 2, 1000])
def test_shuffling_is_a_permutation(size):
    order = minibatches.permutation(KEY, size)
    np.testing.assert_array_equal(np.sort(order), np.arange(size))
    assert size < 3 or not np.array_equal(order, np.arange(size))


def softmax_sgd_in_numpy(params, x, y, weights, batches, rate):
    """SGD on the weighted mean cross-entropy, in float64, written out."""
    w, bias = np.float64(params.w), np.float64(params.bias)
    x, total, hits = np.float64(x), 0.0, 0.0
    for rows in batches:
        z = x[rows] @ w + bias
        z -= z.max(axis=1, keepdims=True)
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        own = np.arange(len(rows)), y[rows]
        total -= np.sum(weights[rows] * np.log(p[own]))
        hits += np.sum(weights[rows] * (z.argmax(axis=1) == y[rows]))
        p[own] -= 1
        p *= (weights[rows] / weights[rows].sum())[:, None]
        w, bias = w - rate * x[rows].T @ p, bias - rate * p.sum(axis=0)
    return LinearParams(w, bias), total / weights.sum(), hits / weights.sum()


@pytest.mark.parametrize("batch_size", [1, 8, 42, 43, 100])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_is_sgd_written_out(batch_size, weighted):
    x, y = classes()  # 43 is prime: every batch size but 1 leaves a part
    weights = np.random.default_rng(0).uniform(0, 3, 43).astype(np.float32)
    weights = weights if weighted else np.ones(43, np.float32)
    params, rate = linear.init(5, 3, key=KEY, scale=1.0), 0.5
    sgd = optax.sgd(rate)
    state = init_state(params, optimizer=sgd, key=KEY)
    order = np.asarray(minibatches.permutation(jax.random.split(KEY)[0], 43))
    batches = [order[i : i + batch_size] for i in range(0, 43, batch_size)]
    want, loss, accuracy = softmax_sgd_in_numpy(params, x, y, np.float64(weights), batches, rate)

    state, metrics = train_epoch(
        state,
        jnp.asarray(x),
        jnp.asarray(y),
        loss=SOFTMAX,
        optimizer=sgd,
        batch_size=batch_size,
        weights=jnp.asarray(weights) if weighted else None,
    )
    assert_close(state.params, want)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], accuracy, rtol=1e-6)
    assert (state.step, state.epoch) == (len(batches), 1)


def test_a_weight_of_two_is_an_example_twice_and_of_zero_none():
    x, y = classes()
    weights = np.r_[np.zeros(10), np.full(10, 2.0), np.ones(23)]
    rows = np.repeat(np.arange(43), weights.astype(int))
    how = {"optimizer": optax.sgd(0.5), "key": KEY, "epochs": 5, "batch_size": 100}
    start = {"params": linear.init(5, 3)}
    weighted = fit(SOFTMAX, x, y, weights=weights, **how, **start)
    repeated = fit(SOFTMAX, x[rows], y[rows], **how, **start)
    assert_close(weighted.params, repeated.params)
    assert_close(weighted.history, repeated.history)


# Examples that weights say not to count


def ignored_rows():
    """A fifth of the rows without a label, half of these with features that are no numbers."""
    x, y = classes()
    counts = np.arange(43) % 5 > 0
    x = np.where((np.arange(43) % 10 == 0)[:, None], np.nan, x)
    return x, np.where(counts, y, -100), counts


ROWS_WITHOUT_WEIGHT = [("adam", 8), ("adam", 42), ("adam", 43), ("lbfgs", 8), ("lbfgs", 43)]


@pytest.mark.parametrize(("name", "batch_size"), ROWS_WITHOUT_WEIGHT)
def test_rows_without_weight_have_no_say(name, batch_size):
    x, y, counts = ignored_rows()
    optimizer = {"adam": optax.adam(0.1), "lbfgs": OPTIMIZERS["lbfgs"]}[name]
    how = {"optimizer": optimizer, "key": KEY, "epochs": 3, "batch_size": batch_size}
    result = fit(SOFTMAX, x, y, weights=counts, validation=(x, y, counts), **how)
    other = np.where(counts[:, None], x, 0), np.where(counts, y, 0)
    want = fit(SOFTMAX, *other, weights=counts, validation=(*other, counts), **how)
    assert result.params.w.shape == (5, 3)
    assert_close(result.params, want.params)
    assert_close(result.history, want.history)
    if batch_size == 43:
        left = fit(SOFTMAX, x[counts], y[counts], **how | {"epochs": 1})
        assert left.history["loss"][0] == pytest.approx(want.history["loss"][0], rel=1e-6)


@pytest.mark.parametrize("batch_size", [8, 43])
def test_lanes_leave_out_what_does_not_count(batch_size):
    x, y, counts = ignored_rows()
    how = {"make_optimizer": optax.sgd, "hyperparams": RATES, "epochs": 2}
    how |= {"keys": jax.random.split(KEY, 3), "batch_size": batch_size}
    result = sweep(SOFTMAX, x, y, weights=counts, validation=(x, y, counts), **how)
    other = np.where(counts[:, None], x, 0), np.where(counts, y, 0)
    want = sweep(SOFTMAX, *other, weights=counts, validation=(*other, counts), **how)
    assert_close(result.params, want.params)
    assert_close(result.history, want.history)


@pytest.mark.parametrize("batch_size", [8, 43])
def test_an_epoch_and_an_evaluation_leave_out_what_does_not_count(batch_size):
    x, y, counts = ignored_rows()
    how = {"loss": SOFTMAX, "optimizer": OPTIMIZERS["sgd"], "batch_size": batch_size}
    state = init_state(linear.init(5, 3), optimizer=OPTIMIZERS["sgd"], key=KEY)
    state, means = train_epoch(state, x, y, weights=jnp.asarray(y) >= 0, **how)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, means)))

    def mean(params):
        return training.evaluate(params, x, y, loss=SOFTMAX, weights=counts)["loss"]

    value, slope = jax.value_and_grad(mean)(state.params)

    def plain(params):
        return jnp.mean(SOFTMAX(params, jnp.asarray(x[counts]), jnp.asarray(y[counts])))

    assert_close((value, slope), jax.value_and_grad(plain)(state.params))


@pytest.mark.parametrize(
    "given", [np.True_, True, 2, 0.5, np.ones(43, int), np.ones(43, bool), [1.0] * 43]
)
def test_weights_are_bools_integers_or_one_number(given):
    x, y = classes()
    how = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 2, "batch_size": 8}
    result, want = fit(SOFTMAX, x, y, weights=given, **how), fit(SOFTMAX, x, y, **how)
    assert_close(result.params, want.params)
    assert_close(result.history, want.history)
    weighted = training.evaluate(want.params, x, y, loss=SOFTMAX, weights=jnp.asarray(given))
    assert_close(weighted, training.evaluate(want.params, x, y, loss=SOFTMAX))


def test_weights_of_another_shape_are_refused():
    x, y = classes()
    sgd = OPTIMIZERS["sgd"]
    state = init_state(linear.init(5, 3), optimizer=sgd, key=KEY)
    with pytest.raises(ValueError, match=r"weights must have shape \(43,\).*got shape \(43, 1\)"):
        training.evaluate(state.params, x, y, loss=SOFTMAX, weights=np.ones((43, 1)))
    with pytest.raises(ValueError, match=r"weights must have shape \(43,\).*got shape \(1,\)"):
        train_epoch(state, x, y, loss=SOFTMAX, optimizer=sgd, batch_size=8, weights=jnp.ones(1))


def test_classes_are_counted_over_what_counts():
    x, y, counts = ignored_rows()
    y[0] = 70  # does not count
    how = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 1, "batch_size": 8}
    assert fit(SOFTMAX, x, y, weights=counts, **how).params.w.shape == (5, 3)
    y[0], y[1] = -100, 70
    assert fit(SOFTMAX, x, y, weights=counts, **how).params.w.shape == (5, 71)


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint32, jnp.asarray, np.ndarray.tolist])
def test_a_wild_label_asks_for_no_memory(kind):
    """Two billion columns of w: XLA's out of memory says nothing of a label."""
    x, y = classes()
    y = y.astype(np.int64)
    y[7] = 2_000_000_000
    how = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 1, "batch_size": 8}
    message = r"targets\[7\]: label 2000000000 implies 2000000001 classes for 43 examples"
    with pytest.raises(ValueError, match=message):
        fit(SOFTMAX, x, kind(y), **how)
    lanes = {"make_optimizer": optax.sgd, "hyperparams": RATES, "keys": jax.random.split(KEY, 3)}
    with pytest.raises(ValueError, match=message):
        sweep(SOFTMAX, x, kind(y), epochs=1, batch_size=8, **lanes)


def test_many_classes_are_inferred_where_examples_could_show_them():
    x, y = classes(features=1)
    y[0] = 65_535
    how = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 1, "batch_size": 43}
    assert fit(SOFTMAX, x, y, **how).params.w.shape == (1, 65_536)
    y[0] = 65_536
    with pytest.raises(ValueError, match=r"targets\[0\]: label 65536"):
        fit(SOFTMAX, x, y, **how)
    assert fit(SOFTMAX, x, y, params=linear.init(1, 65_537), **how).epochs == 1


# Optimizers

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "schedule": optax.sgd(optax.cosine_decay_schedule(0.5, 100)),
    "adamw": optax.adamw(0.05, weight_decay=0.01, mask=training.weight_decay_mask),
    "clipped": optax.chain(optax.clip_by_global_norm(0.5), optax.rmsprop(0.01)),
    "plateau": optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=3)),
    "injected": optax.inject_hyperparams(optax.adam)(learning_rate=0.05),
    "lbfgs": optax.lbfgs(),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss_and_repeats_its_bits(name):
    x, y = classes()
    # A quasi-Newton step wants the gradient of one function, so all the data.
    batch_size = 43 if name == "lbfgs" else 8

    def run():
        optimizer = OPTIMIZERS[name]
        return fit(SOFTMAX, x, y, optimizer=optimizer, key=KEY, epochs=20, batch_size=batch_size)

    first, second = run(), run()
    assert first.history["loss"][-1] < min(first.history["loss"][0], 0.9 * np.log(3))
    assert first.history["accuracy"][-1] > 0.5
    assert leaves_equal(first.params, second.params)
    assert leaves_equal(first.state, second.state)
    assert leaves_equal(first.history, second.history)


def test_another_key_is_another_order():
    x, y = classes()
    how = {
        "optimizer": OPTIMIZERS["sgd"],
        "epochs": 2,
        "batch_size": 8,
        "params": linear.init(5, 3),
    }
    one, two = (fit(SOFTMAX, x, y, key=jax.random.key(seed), **how) for seed in (1, 2))
    assert not leaves_equal(one.params, two.params)


def test_lbfgs_takes_minibatches_too():
    x, y = classes(size=400)
    lbfgs = OPTIMIZERS["lbfgs"]
    result = fit(SOFTMAX, x, y, optimizer=lbfgs, key=KEY, epochs=2, batch_size=150)
    assert result.history["loss"][-1] < 0.9 * np.log(3)
    assert result.state.step == 6


def test_weight_decay_leaves_the_bias_alone():
    def flat(params, features, targets):
        return jnp.zeros(features.shape[0])

    x, y = classes()
    start = LinearParams(jnp.ones((5, 3)), jnp.ones(3))
    decay = optax.adamw(0.1, weight_decay=1.0, mask=training.weight_decay_mask)
    result = fit(flat, x, y, optimizer=decay, key=KEY, epochs=1, batch_size=43, params=start)
    np.testing.assert_array_equal(result.params.bias, np.ones(3))
    np.testing.assert_allclose(result.params.w, 0.9, rtol=1e-6)
    assert training.weight_decay_mask(LinearParams(start.w, None)) == LinearParams(True, None)


# State: donation, the user's own loop, checkpoints


def test_the_state_is_donated_and_what_the_user_gave_is_not():
    x, y = map(jnp.asarray, classes())
    params, adam = linear.init(5, 3), optax.adam(0.1)
    state = init_state(params, optimizer=adam, key=KEY)
    new, _ = train_epoch(state, x, y, loss=SOFTMAX, optimizer=adam, batch_size=8)
    assert state.params.w.is_deleted()
    assert not new.params.w.is_deleted()
    assert not any(leaf.is_deleted() for leaf in (*params, x, y))
    jax.random.split(KEY)


def test_fit_is_a_loop_over_train_epoch():
    x, y = classes()
    adam = optax.adam(0.1)
    result = fit(SOFTMAX, x, y, optimizer=adam, key=KEY, epochs=3, batch_size=8)
    init_key, order_key = jax.random.split(KEY)
    state = init_state(linear.init(5, 3, key=init_key), optimizer=adam, key=order_key)
    losses = []
    for _ in range(3):
        state, metrics = train_epoch(
            state, jnp.asarray(x), jnp.asarray(y), loss=SOFTMAX, optimizer=adam, batch_size=8
        )
        losses.append(metrics["loss"])
    assert leaves_equal(result.state, state)
    np.testing.assert_array_equal(result.history["loss"], losses)


def test_a_loop_of_the_user_compiles_whole():
    """Under an outer jit nothing can ask the host, so an epoch has no round trip."""
    x, y = map(jnp.asarray, classes())
    adam = optax.adam(0.1)
    start = linear.init(5, 3)

    @jax.jit
    def three_epochs(state):
        def body(state, _):
            return train_epoch(state, x, y, loss=SOFTMAX, optimizer=adam, batch_size=8)

        return jax.lax.scan(body, state, None, length=3)

    state, metrics = three_epochs(init_state(start, optimizer=adam, key=KEY))
    apart = init_state(start, optimizer=adam, key=KEY)
    for i in range(3):
        apart, one = train_epoch(apart, x, y, loss=SOFTMAX, optimizer=adam, batch_size=8)
        np.testing.assert_allclose(metrics["loss"][i], one["loss"], rtol=1e-5)
    assert_close(state.params, apart.params)
    np.testing.assert_array_equal(state.key, apart.key)


def test_a_checkpoint_of_numpy_arrays_goes_on_with_the_same_bits(tmp_path):
    x, y = map(jnp.asarray, classes())
    adam = optax.adam(0.1)
    how = {"loss": SOFTMAX, "optimizer": adam, "batch_size": 8}
    state = init_state(linear.init(5, 3), optimizer=adam, key=KEY)
    state, _ = train_epoch(state, x, y, **how)
    leaves, tree = jax.tree.flatten(state)
    np.savez(tmp_path / "state.npz", *leaves)
    with np.load(tmp_path / "state.npz") as saved:
        restored = jax.tree.unflatten(tree, [jnp.asarray(saved[name]) for name in saved.files])
    assert leaves_equal(train_epoch(restored, x, y, **how), train_epoch(state, x, y, **how))


def test_equal_losses_share_compiled_code():
    assert on_logits(jaxsoftmax.cross_entropy) == SOFTMAX
    assert hash(on_logits(jaxsoftmax.cross_entropy)) == hash(SOFTMAX)
    assert on_logits(jaxsoftmax.brier) != SOFTMAX


def test_the_same_objects_are_compiled_once():
    """As the docstring of `fit` has it: a loss, an optimizer, and numbers that change."""
    x, y = classes()
    adam, rates = optax.adam(0.1), jnp.array([0.1, 0.2])
    injected = optax.inject_hyperparams(optax.sgd)(learning_rate=0.1)
    lanes = {"make_optimizer": optax.adam, "keys": jax.random.split(KEY, 2)}
    how = {"epochs": 1, "batch_size": 8}

    def run(seed):
        fit(SOFTMAX, x, y, optimizer=adam, key=jax.random.key(seed), validation=(x, y), **how)
        sweep(SOFTMAX, x, y, hyperparams=seed * rates, **lanes, **how)
        state = init_state(linear.init(5, 3), optimizer=injected, key=KEY)
        state.opt_state.hyperparams["learning_rate"] = jnp.float32(seed)
        batches = {"batch_size": 8, "optimizer": injected}
        state, _ = train_epoch(state, x, y, loss=on_logits(jaxsoftmax.cross_entropy), **batches)
        return state.params.w

    def compiled():
        programs = jitted_train_epoch, jitted_evaluate, sweeping.jitted_sweep_epoch
        return [program._cache_size() for program in programs]

    first = run(1)
    before = compiled()
    assert not np.array_equal(first, run(2))
    assert compiled() == before
    fit(SOFTMAX, x, y, optimizer=optax.adam(0.1), key=KEY, **how)
    assert compiled() != before  # so the docstring warns of it


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["adamw", "lbfgs"])
def test_x64(name, dtype):
    x, y = classes()
    how = {"optimizer": OPTIMIZERS[name], "epochs": 2, "batch_size": 8}
    with jax.enable_x64():
        result = fit(SOFTMAX, x.astype(dtype), y.astype(np.int64), key=KEY, **how)
    assert result.params.w.dtype == dtype
    assert result.history["loss"][1] < result.history["loss"][0]


# History, validation, early stopping, callback


def test_history_is_direct_evaluation():
    x, y = classes()
    held_out = classes(size=29)
    # With a rate of 0 the parameters stand still: the running mean is the mean.
    how = {"optimizer": optax.sgd(0.0), "key": KEY, "batch_size": 8, "validation": held_out}
    params = linear.init(5, 3, key=KEY, scale=1.0)
    weights = np.random.default_rng(0).uniform(0, 3, 43)
    result = fit(SOFTMAX, x, y, epochs=2, params=params, weights=weights, **how)
    for prefix, (features, labels), w in (
        ("", (x, y), weights),
        ("validation_", held_out, np.ones(29)),
    ):
        z = np.float64(features) @ np.float64(params.w) + np.float64(params.bias)
        values = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), labels]
        loss, share = (np.average(v, weights=w) for v in (values, z.argmax(axis=1) == labels))
        np.testing.assert_allclose(result.history[prefix + "loss"], [loss] * 2, rtol=1e-5)
        np.testing.assert_allclose(result.history[prefix + "accuracy"], [share] * 2, rtol=1e-6)
    assert result.epochs == 2
    assert result.best_epoch == 1


def test_validation_is_after_the_epoch():
    x, y = classes()
    sgd = optax.sgd(0.5)
    result = fit(SOFTMAX, x, y, optimizer=sgd, key=KEY, epochs=3, batch_size=8, validation=(x, y))
    after = training.evaluate(result.params, jnp.asarray(x), jnp.asarray(y), loss=SOFTMAX)
    assert result.history["validation_loss"][-1] == pytest.approx(float(after["loss"]), rel=1e-6)
    assert result.history["validation_accuracy"][-1] == pytest.approx(float(after["accuracy"]))


def test_early_stopping_returns_the_best():
    rng = np.random.default_rng(3)
    # More features than examples and pure noise for labels: it can only overfit.
    x, held_x = (rng.normal(size=(20, 50)).astype(np.float32) for _ in range(2))
    y, held_y = (rng.integers(0, 3, 20) for _ in range(2))
    how = {"optimizer": optax.sgd(0.05), "key": KEY, "epochs": 200, "batch_size": 5}
    held_out = {"validation": (held_x, held_y)}
    result = fit(SOFTMAX, x, y, patience=4, **how, **held_out)
    losses = result.history["validation_loss"]
    assert result.epochs == len(losses) == result.best_epoch + 4 < 200
    assert result.best_epoch == 1 + losses.argmin()
    best = training.evaluate(result.params, jnp.asarray(held_x), jnp.asarray(held_y), loss=SOFTMAX)
    assert float(best["loss"]) == pytest.approx(losses.min(), rel=1e-6)
    assert not leaves_equal(result.params, result.state.params)
    # Without patience: all epochs, the last parameters, and the best epoch still named.
    all_of_it = fit(SOFTMAX, x, y, **how, **held_out)
    assert all_of_it.epochs == 200
    assert leaves_equal(all_of_it.params, all_of_it.state.params)
    assert all_of_it.best_epoch == 1 + all_of_it.history["validation_loss"].argmin()


def test_a_diverging_fit_stops_and_says_nan():
    x, y = classes()
    held_out = {"validation": (x, y), "patience": 2}
    how = {"key": KEY, "epochs": 50, "batch_size": 8}
    square = on_logits(jaxsoftmax.squared_error)
    result = fit(square, x, y, optimizer=optax.sgd(1e30), **how, **held_out)
    assert result.epochs == 2
    assert not np.isfinite(result.history["validation_loss"]).any()


def validated(values, *, lanes=None, **how):
    """A fit whose parameter w counts epochs, and whose validation loss after epoch i is values[i].

    Of several lanes each starts at another multiple of ten, and has its own ten values.
    """
    table = jnp.full(100, jnp.inf).at[1 : 1 + len(values)].set(jnp.array(values, jnp.float32))
    if lanes is not None:
        table = jnp.concatenate([table[:10].at[1 : 1 + len(v)].set(jnp.array(v)) for v in lanes])

    def loss(params, x, t):
        held_out = table[jnp.round(params["w"]).astype(int)]
        return jnp.where(x[:, 0] > 0, held_out, -params["w"])

    zero, one, labels = np.zeros((2, 1), np.float32), np.ones((2, 1), np.float32), np.zeros(2, int)
    how |= {"batch_size": 2, "validation": (one, labels), "score": None}
    if lanes is None:
        start = {"w": jnp.float32(0)}
        how |= {"optimizer": optax.sgd(1.0), "key": KEY, "params": start}
        return fit(loss, zero, labels, **how)
    start = {"w": 10 * jnp.arange(len(lanes), dtype=jnp.float32)}
    how |= {"make_optimizer": optax.sgd, "hyperparams": jnp.ones(len(lanes)), "params": start}
    return sweep(loss, zero, labels, keys=jax.random.split(KEY, len(lanes)), **how)


NAN, INF = np.nan, np.inf
SEQUENCES = [
    ([3, 2, 4], 2),
    ([NAN, 3, NAN, 2, NAN], 4),
    ([NAN, INF, 3, INF, NAN], 3),
    ([3, NAN, NAN, NAN], 1),
    ([2, 2, NAN, 2], 1),
    ([-INF, NAN, 1], 1),
    ([1, -INF, NAN], 2),
    ([NAN, NAN, NAN], 3),
    ([NAN, INF, NAN], 3),
]


@pytest.mark.parametrize(("values", "best"), SEQUENCES)
def test_what_is_not_a_number_never_wins(values, best):
    result = validated(values, epochs=len(values), patience=len(values))
    np.testing.assert_array_equal(result.history["validation_loss"], np.float32(values))
    assert result.best_epoch == best
    assert float(result.params["w"]) == best


def test_what_is_not_a_number_is_no_improvement():
    result = validated([3, NAN, NAN, 1], epochs=4, patience=2)
    assert (result.epochs, result.best_epoch, float(result.params["w"])) == (3, 1, 1)
    result = validated([NAN, NAN, 1], epochs=3, patience=2)
    assert (result.epochs, result.best_epoch, float(result.params["w"])) == (2, 2, 2)


def test_in_each_lane_what_is_not_a_number_never_wins():
    lanes = [(values + [5] * 5)[:5] for values, _ in SEQUENCES[:7]]
    bests = np.array([best for _, best in SEQUENCES[:7]])
    with pytest.raises(training.Interrupted) as caught:
        validated([], lanes=lanes, epochs=9, callback=interrupt_after(5))
    result = caught.value.result
    np.testing.assert_array_equal(result.best_epoch, bests)
    np.testing.assert_array_equal(result.params["w"], 10 * np.arange(7) + bests)


def test_callback_sees_each_epoch_in_floats():
    x, y = classes()
    seen = []
    result = fit(
        SOFTMAX,
        x,
        y,
        optimizer=optax.sgd(0.1),
        key=KEY,
        epochs=3,
        batch_size=8,
        validation=(x, y),
        callback=seen.append,
    )
    assert [metrics.pop("epoch") for metrics in seen] == [1, 2, 3]
    assert set(seen[0]) == {"loss", "accuracy", "validation_loss", "validation_accuracy"}
    for name, values in result.history.items():
        assert all(type(metrics[name]) is float for metrics in seen)
        np.testing.assert_array_equal([metrics[name] for metrics in seen], np.float64(values))


def test_what_a_callback_raises_ends_the_fit():
    x, y = classes()
    seen = []

    def fail(metrics):
        seen.append(metrics["epoch"])
        if len(seen) == 2:
            raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError, match="diverged"):
        fit(SOFTMAX, x, y, **NINE_EPOCHS, callback=fail)
    assert seen == [1, 2]


# Interrupts. That of a process, by a real signal, is in test_cli.

NINE_EPOCHS = {"optimizer": optax.sgd(0.1), "key": KEY, "epochs": 9, "batch_size": 8}


def interrupt_after(epoch):
    def callback(metrics):
        if metrics["epoch"] == epoch:
            raise KeyboardInterrupt

    return callback


def test_an_interrupt_keeps_the_last_finished_epoch():
    x, y = classes()
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(SOFTMAX, x, y, **NINE_EPOCHS, callback=interrupt_after(4))
    assert type(caught.value) is training.Interrupted
    result = caught.value.result
    four = fit(SOFTMAX, x, y, **NINE_EPOCHS | {"epochs": 4})
    assert leaves_equal(result.params, four.params)
    assert leaves_equal(result.history, four.history)
    assert (result.epochs, result.best_epoch, result.state) == (4, 4, None)


def test_an_interrupt_keeps_the_best_epoch_by_validation_loss():
    x, y = classes()
    wrong = x, (y + 1) % 3  # what is learned makes it worse, after what chance the start gives
    with pytest.raises(training.Interrupted) as caught:
        fit(SOFTMAX, x, y, **NINE_EPOCHS, validation=wrong, callback=interrupt_after(4))
    result = caught.value.result
    assert result.epochs == len(result.history["validation_loss"]) == 4
    assert result.best_epoch == 1 + result.history["validation_loss"].argmin() < 4
    best = fit(SOFTMAX, x, y, **NINE_EPOCHS | {"epochs": result.best_epoch})
    assert leaves_equal(result.params, best.params)


def test_an_interrupt_of_a_sweep_keeps_the_best_of_each_lane():
    x, y = classes()
    how = {
        "make_optimizer": optax.sgd,
        "hyperparams": jnp.array([0.01, 30.0]),
        "keys": jax.random.split(KEY, 2),
        "batch_size": 8,
        "validation": classes(size=44),
    }
    with pytest.raises(training.Interrupted) as caught:
        sweep(SOFTMAX, x, y, epochs=9, **how, callback=interrupt_after(5))
    result = caught.value.result
    losses = result.history["validation_loss"]
    assert losses.shape == (2, 5)
    np.testing.assert_array_equal(result.best_epoch, 1 + losses.argmin(axis=1))
    assert result.best_epoch[0] != result.best_epoch[1]
    for lane, best in enumerate(result.best_epoch):
        there = sweep(SOFTMAX, x, y, epochs=int(best), **how)
        np.testing.assert_array_equal(result.params.w[lane], there.params.w[lane])
        np.testing.assert_array_equal(result.params.bias[lane], there.params.bias[lane])


def test_an_interrupt_before_the_first_epoch_ends_keeps_nothing():
    x, y = classes()

    def loss(params, features, targets):  # is traced before the first epoch
        raise KeyboardInterrupt

    with pytest.raises(training.Interrupted) as caught:
        fit(loss, x, y, **NINE_EPOCHS)
    assert caught.value.result is None


def test_an_interrupt_while_validation_is_no_number_keeps_the_latest():
    x, y = classes()

    def loss(params, features, targets):  # not a number on the validation data, which have 7 rows
        values = SOFTMAX(params, features, targets)
        return values * jnp.nan if len(features) == 7 else values

    held_out = x[:7], y[:7]
    with pytest.raises(training.Interrupted) as caught:
        fit(loss, x, y, **NINE_EPOCHS, validation=held_out, callback=interrupt_after(3))
    assert leaves_equal(
        caught.value.result.params, fit(loss, x, y, **NINE_EPOCHS | {"epochs": 3}).params
    )


# Heads: what converges, and where to

LBFGS = optax.lbfgs()


def to_the_optimum(loss, x, y, **how):
    return fit(loss, x, y, optimizer=LBFGS, key=KEY, epochs=200, batch_size=len(x), **how)


def largest_gradient(loss, params, x, y) -> float:
    def mean(params):
        return jnp.mean(loss(params, jnp.asarray(x), jnp.asarray(y)))

    return max(float(jnp.max(abs(leaf))) for leaf in jax.tree.leaves(jax.grad(mean)(params)))


def test_softmax_reaches_scikit_learns_objective():
    linear_model = pytest.importorskip("sklearn.linear_model")
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_digits(return_X_y=True)
    x, y = (x[:500] / 16).astype(np.float32), y[:500]
    alpha = 1e-3
    theirs = linear_model.LogisticRegression(C=1 / (alpha * len(x)), tol=1e-7, max_iter=1000)
    theirs.fit(np.float64(x), y)

    def penalised(params, features, targets):
        return SOFTMAX(params, features, targets) + alpha / 2 * jnp.sum(params.w**2)

    ours = to_the_optimum(penalised, x, y, params=linear.init(64, 10)).params

    def objective(w, bias):
        z = np.float64(x) @ np.float64(w) + np.float64(bias)
        values = np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(z)), y]
        return values.mean() + alpha / 2 * np.sum(np.float64(w) ** 2)

    assert objective(*ours) <= objective(theirs.coef_.T, theirs.intercept_) * (1 + 1e-6)


def test_sigmoid_on_one_score():
    x, y = classes(count=2)
    result = to_the_optimum(SIGMOID, x, y, params=linear.init(5, 1))
    assert largest_gradient(SIGMOID, result.params, x, y) < 1e-4
    assert result.history["loss"][-1] < 0.8 * np.log(2)
    predicted = (x @ np.asarray(result.params.w))[:, 0] + np.asarray(result.params.bias) > 0
    assert result.history["accuracy"][-1] == pytest.approx(np.mean(predicted == y), abs=0.03)
    # Two classes of softmax have the same optimum: the difference of their scores.
    two = to_the_optimum(SOFTMAX, x, y, params=linear.init(5, 2)).params
    np.testing.assert_allclose(two.w[:, 1] - two.w[:, 0], result.params.w[:, 0], atol=5e-3)
    # Booleans infer one score by themselves.
    how = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 1, "batch_size": 43}
    assert fit(SIGMOID, x, y == 1, **how).params.w.shape == (5, 1)


def test_sigmoid_on_many_labels_is_one_model_per_label():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 4)).astype(np.float32)
    y = (x @ rng.normal(size=(4, 3)) + rng.logistic(size=(60, 3)) > 0).astype(np.int32)
    together = to_the_optimum(SIGMOID, x, y)
    assert together.params.w.shape == (4, 3)
    assert largest_gradient(SIGMOID, together.params, x, y) < 1e-4
    for k in range(3):
        alone = to_the_optimum(SIGMOID, x, y[:, k], params=linear.init(4, 1)).params
        np.testing.assert_allclose(together.params.w[:, k], alone.w[:, 0], atol=5e-3)
    hits = np.mean((np.asarray(linear.logits(together.params, x)) > 0) == y)
    assert together.history["accuracy"][-1] == pytest.approx(hits, abs=1e-6)


@pytest.mark.parametrize("targets", ["numbers", "vectors", "labels"])
def test_squared_error_is_least_squares(targets):
    x, y = classes()
    t = {
        "numbers": np.float32(y + x[:, 0]),
        "vectors": np.random.default_rng(0).normal(size=(43, 3)).astype(np.float32),
        "labels": y,
    }[targets]
    square = on_logits(jaxsoftmax.squared_error)
    result = to_the_optimum(square, x, t)
    design = np.c_[np.float64(x), np.ones(43)]
    right = np.eye(3)[y] if targets == "labels" else t.reshape(43, -1)
    want = np.linalg.lstsq(design, right, rcond=None)[0]
    np.testing.assert_allclose(result.params.w, want[:-1], atol=1e-4)
    np.testing.assert_allclose(result.params.bias, want[-1], atol=1e-4)
    assert ("accuracy" in result.history) == (targets == "labels")


@pytest.mark.parametrize("head", ["hinge", "multiclass_hinge"])
def test_hinge_separates_what_can_be(head):
    rng = np.random.default_rng(0)
    y = np.repeat([0, 1], 20)
    x = (rng.normal(size=(40, 3)) * 0.2 + 3 * y[:, None]).astype(np.float32)
    count = 1 if head == "hinge" else 2
    result = fit(
        on_logits(getattr(jaxsoftmax, head)),
        x,
        y,
        optimizer=optax.sgd(0.1),
        key=KEY,
        epochs=200,
        batch_size=8,
        params=linear.init(3, count),
    )
    assert result.history["accuracy"][-1] == 1
    assert result.history["loss"][-1] < 0.05


def test_soft_targets_and_losses_of_the_users_own():
    x, y = classes()
    soft = np.eye(3, dtype=np.float32)[y] * 0.9 + 0.1 / 3
    smooth = to_the_optimum(on_logits(jaxsoftmax.soft_cross_entropy), x, soft)
    assert "accuracy" not in smooth.history

    def smoothed(z, label):
        uniform = jaxsoftmax.logsumexp(z) - jnp.mean(z)
        return 0.9 * jaxsoftmax.cross_entropy(z, label) + 0.1 * uniform

    composed = to_the_optimum(on_logits(smoothed), x, y)
    assert smooth.history["loss"][-1] == pytest.approx(composed.history["loss"][-1], rel=1e-5)


def test_a_loss_of_features_and_a_score_fit_the_same_slots():
    def fused(params, features, targets):
        return jaxsoftmax.cross_entropy(features @ params.w + params.bias, targets)

    def distance(params, features, targets):
        return jnp.abs(jnp.argmax(features @ params.w + params.bias, axis=-1) - targets)

    x, y = classes()
    how = {"optimizer": optax.sgd(0.1), "key": KEY, "epochs": 3, "batch_size": 8}
    one, two = fit(fused, x, y, score=distance, **how), fit(SOFTMAX, x, y, score=None, **how)
    assert_close(one.params, two.params)
    assert set(two.history) == {"loss"}
    assert 0 < one.history["accuracy"][-1] < 1


def test_products_in_bfloat16_train_a_model_in_float32():
    x, y = classes()
    mixed = on_logits(jaxsoftmax.cross_entropy, logits=partial(linear.logits, dtype=jnp.bfloat16))
    how = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 5, "batch_size": 8}
    result, plain = fit(mixed, x.astype(jnp.bfloat16), y, **how), fit(SOFTMAX, x, y, **how)
    assert result.params.w.dtype == jnp.float32
    assert set(result.history) == {"loss", "accuracy"}
    np.testing.assert_allclose(result.params.w, plain.params.w, rtol=0, atol=5e-3)
    assert not np.array_equal(result.params.w, plain.params.w)


# Sweeps

RATES = np.float32([0.05, 0.2, 0.8])
DECAYS = np.float32([0.0, 0.1, 0.01])


def decayed(h):
    return optax.adamw(h["rate"], weight_decay=h["decay"], mask=training.weight_decay_mask, b1=0.8)


@pytest.mark.parametrize("batch_size", [8, 43])
def test_lanes_are_fits(batch_size):
    x, y = classes()
    held_out, keys = classes(size=29), jax.random.split(KEY, 3)
    how = {"epochs": 4, "batch_size": batch_size}
    lanes = sweep(
        SOFTMAX,
        x,
        y,
        make_optimizer=decayed,
        hyperparams={"rate": RATES, "decay": DECAYS},
        keys=keys,
        validation=held_out,
        **how,
    )
    assert lanes.params.w.shape == (3, 5, 3)
    assert lanes.history["loss"].shape == (3, 4)
    assert lanes.epochs == 4
    order = jax.random.split(keys[0])[1]
    for i in range(3):
        optimizer = decayed({"rate": float(RATES[i]), "decay": float(DECAYS[i])})
        start = linear.init(5, 3, key=jax.random.split(keys[i])[0])
        state = init_state(start, optimizer=optimizer, key=order)
        for epoch in range(4):
            state, metrics = train_epoch(
                state,
                jnp.asarray(x),
                jnp.asarray(y),
                loss=SOFTMAX,
                optimizer=optimizer,
                batch_size=batch_size,
            )
            loss = lanes.history["loss"][i, epoch]
            assert loss == pytest.approx(float(metrics["loss"]), rel=1e-4)
        assert_close(jax.tree.map(lambda leaf, i=i: leaf[i], lanes.params), state.params, 1e-4)
        if i == 0 or batch_size == 43:  # then the order is that of keys[0], or does not matter
            alone = fit(SOFTMAX, x, y, optimizer=optimizer, key=keys[i], validation=held_out, **how)
            for name, values in alone.history.items():
                np.testing.assert_allclose(lanes.history[name][i], values, rtol=1e-4)
            assert lanes.best_epoch[i] == alone.best_epoch


def test_a_sweep_of_line_searches_and_of_given_starts():
    x, y = classes()
    start = jax.vmap(lambda key: linear.init(5, 3, key=key))(jax.random.split(KEY, 2))
    seen = []
    lanes = sweep(
        SOFTMAX,
        x,
        y,
        make_optimizer=lambda scale: optax.chain(optax.scale(scale), optax.lbfgs()),
        hyperparams=jnp.ones(2),
        keys=jax.random.split(KEY, 2),
        epochs=60,
        batch_size=43,
        params=start,
        callback=seen.append,
    )
    np.testing.assert_allclose(lanes.history["loss"][0, -1], lanes.history["loss"][1, -1], 1e-5)
    assert not start.w.is_deleted()
    assert seen[-1]["epoch"] == 60
    assert seen[-1]["loss"] == lanes.history["loss"][:, -1].tolist()


def equations(jaxpr):
    """Every equation of a jaxpr, those of its inner jaxprs too."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def test_all_lanes_read_one_minibatch_by_one_wide_product():
    """6 lanes, 7 rows, 11 features, 5 classes: the numbers tell the axes apart."""
    x, y = classes(size=40, features=11, count=5)
    x, y, rates = jnp.asarray(x), jnp.asarray(y), jnp.ones(6)
    params = jax.vmap(lambda key: linear.init(11, 5, key=key))(jax.random.split(KEY, 6))
    state = sweeping.init_lanes(params, rates, make_optimizer=optax.sgd, key=KEY)
    traced = sweeping.jitted_sweep_epoch.trace(
        state,
        rates,
        Examples(x, y, None),
        loss=SOFTMAX,
        make_optimizer=optax.sgd,
        batch_size=7,
        score=training.accuracy,
    )
    found = list(equations(traced.jaxpr.jaxpr))
    gathered = [e.outvars[0].aval.shape for e in found if e.primitive.name == "gather"]
    assert (7, 11) in gathered
    assert not any(6 in shape and 11 in shape for shape in gathered)
    products = [e for e in found if e.primitive.name == "dot_general" and 11 in sum_shapes(e)]
    assert len(products) >= 2  # scores and gradient
    assert all(e.params["dimension_numbers"][1] == ((), ()) for e in products)

    compiled = traced.lower().compile().as_text()
    assert not re.search(r"f32\[(6,7,11|7,6,11|6,1,7,11)\]", compiled)
    if jax.default_backend() == "cpu":
        assert re.search(r"f32\[30,7\]\S* (dot|fusion|custom-call|bitcast)\(", compiled)


def sum_shapes(equation) -> tuple[int, ...]:
    return sum((v.aval.shape for v in (*equation.invars, *equation.outvars)), ())


def test_scores_of_an_epoch_are_computed_once():
    """Loss and accuracy ask for the same product; the compiled epoch has it once, and dz^T x."""
    x, y = map(jnp.asarray, classes(size=40, features=11, count=5))
    state = init_state(linear.init(11, 5), optimizer=optax.sgd(0.1), key=KEY)
    compiled = jitted_train_epoch.lower(
        state,
        Examples(x, y, None),
        loss=SOFTMAX,
        optimizer=OPTIMIZERS["sgd"],
        batch_size=7,
        score=training.accuracy,
        replace_ignored=False,
    ).compile()
    assert len(re.findall(r" dot\(", compiled.as_text())) == 2


# Errors

GOOD = {"optimizer": OPTIMIZERS["sgd"], "key": KEY, "epochs": 1, "batch_size": 8}
X, Y = classes()


def with_entry(array, value):
    changed = array.copy()
    changed.flat[0] = value
    return changed


@pytest.mark.parametrize(
    ("features", "targets", "changes", "error", "message"),
    [
        (X, Y[:-1], {}, ValueError, r"targets must be \[N\] or \[N, K\] with N = 43"),
        (X[0], Y, {}, ValueError, r"features must be \[N, D\] and not empty, got shape \(5,\)"),
        (X[:0], Y[:0], {}, ValueError, "not empty"),
        (X[:, :0], Y, {}, ValueError, "not empty"),
        (X.astype(int), Y, {}, TypeError, "features must be floats, got int"),
        (with_entry(X, np.nan), Y, {}, ValueError, r"features must be finite, got nan at \[0, 0\]"),
        (X, with_entry(Y * 1.0, np.inf), {}, ValueError, "targets must be finite, got inf"),
        (X, with_entry(Y, -1), {}, ValueError, "label"),
        (X, Y, {"params": linear.init(5, 2)}, ValueError, "label"),
        (X, Y, {"params": linear.init(4, 3)}, ValueError, "features must have 4 columns"),
        (X, Y, {"batch_size": 0}, ValueError, "batch_size: expected at least 1, got 0"),
        (X, Y, {"epochs": 0}, ValueError, "epochs: expected at least 1, got 0"),
        (X, Y, {"patience": 0}, ValueError, "patience: expected at least 1, got 0"),
        (X, Y, {"patience": 1}, ValueError, "patience needs validation"),
        (X, Y, {"weights": np.ones(3)}, ValueError, r"weights must have shape \(43,\)"),
        (X, Y, {"weights": np.ones((43, 1))}, ValueError, r"got shape \(43, 1\)"),
        (
            X,
            with_entry(Y, 9),
            {"params": linear.init(5, 3)},
            ValueError,
            r"targets\[0\].*0 to 2.*9",
        ),
        (X, Y, {"validation": (X, Y, -np.ones(43))}, ValueError, "validation weights must be"),
        (X, Y, {"validation": (X,)}, ValueError, r"validation must be \(features, targets\) or"),
        (X, Y, {"validation": {"x": X, "y": Y}}, ValueError, "got dict of length 2"),
        (X, np.where(Y, 2**40, 0)[:, None], {}, ValueError, r"targets must fit int32, got 10995"),
        (X, Y, {"weights": -np.ones(43)}, ValueError, "weights must be finite, at least 0"),
        (X, Y, {"weights": np.zeros(43)}, ValueError, "some above 0"),
        (
            X,
            Y,
            {"validation": (X[:, :4], Y)},
            ValueError,
            "validation features must have 5 columns",
        ),
        (X, Y, {"validation": (X, Y[:3])}, ValueError, "validation targets must be"),
        (X, Y, {"validation": (X, Y + 1)}, ValueError, "label"),
        (X, Y, {"key": jax.random.split(KEY, 2)}, ValueError, "key"),
        (X, Y, {"key": 0}, TypeError, r"key must be a random key.* got 0"),
        (X, Y, {"epochs": 1.5}, TypeError, "epochs: expected an integer, got 1.5"),
        (X, Y, {"batch_size": "8"}, TypeError, "batch_size: expected an integer, got '8'"),
        (X, Y, {"optimizer": optax.sgd}, TypeError, "optimizer must be one of Optax.* got sgd"),
    ],
)
def test_errors_name_what_is_wrong(features, targets, changes, error, message):
    with pytest.raises(error, match=message):
        fit(SOFTMAX, features, targets, **(GOOD | changes))


def test_a_loss_that_averages_is_refused():
    def averaged(params, features, targets):
        return jnp.mean(SOFTMAX(params, features, targets))

    with pytest.raises(ValueError, match="one value per example"):
        fit(averaged, X, Y, **GOOD)


@pytest.mark.parametrize("loss", [jaxsoftmax.cross_entropy, optax.softmax_cross_entropy, None])
def test_a_loss_of_logits_is_refused_with_what_makes_it_one_of_parameters(loss):
    with pytest.raises(TypeError, match=r"loss must be .*on_logits\(cross_entropy\), got"):
        fit(loss, X, Y, **GOOD)
    with pytest.raises(TypeError, match="loss must be"):
        sweep(loss, X, Y, make_optimizer=optax.sgd, hyperparams=jnp.ones(1), keys=KEY[None],
              epochs=1, batch_size=8)  # fmt: skip


def test_data_without_values_are_refused():
    for name in ("features", "targets"):
        data = {"features": X, "targets": Y}
        with pytest.raises(TypeError, match=f"{name} must be an array with values.*train_epoch"):
            jax.jit(lambda a, n=name, d=data: fit(SOFTMAX, **(d | {n: a}), **GOOD))(data[name])


def test_lanes_that_disagree_are_refused():
    how = {"make_optimizer": optax.sgd, "epochs": 1, "batch_size": 8}
    keys = jax.random.split(KEY, 3)
    with pytest.raises(ValueError, match="hyperparams must have a leading axis of 3 lanes"):
        sweep(SOFTMAX, X, Y, hyperparams=jnp.ones(2), keys=keys, **how)
    with pytest.raises(ValueError, match="params must have a leading axis of 3 lanes"):
        sweep(SOFTMAX, X, Y, hyperparams=jnp.ones(3), keys=keys, params=linear.init(5, 3), **how)


def test_accuracy_of_numbers_is_refused():
    with pytest.raises(TypeError, match="targets must be integer or bool"):
        training.accuracy(linear.init(5, 1), jnp.asarray(X), jnp.ones(43))


def test_labels_of_64_bits_do_not_wrap():
    x, y = classes()
    labels = np.where(y == 0, 2**32, y.astype(np.int64))
    with pytest.raises(ValueError, match=str(2**32)):
        fit(SOFTMAX, x, labels, optimizer=optax.sgd(0.1), key=KEY, epochs=1, batch_size=8)


def test_one_score_refuses_a_third_class():
    x, y = classes()
    how = {"optimizer": optax.sgd(0.1), "key": KEY, "epochs": 1, "batch_size": 8}
    with pytest.raises(ValueError, match="from 0 to 1"):
        fit(SIGMOID, x, y, params=linear.init(5, 1), **how)


def test_the_result_outlives_its_state():
    x, y = classes()
    how = {"optimizer": optax.sgd(0.1), "batch_size": 8}
    result = fit(SOFTMAX, x, y, key=KEY, epochs=1, **how)
    kept = np.array(result.params.w)
    train_epoch(result.state, jnp.asarray(x), jnp.asarray(y), loss=SOFTMAX, **how)
    np.testing.assert_array_equal(result.params.w, kept)


def test_sweep_and_epoch_name_what_is_missing():
    x, y = classes()
    how = {"make_optimizer": optax.sgd, "hyperparams": jnp.ones(1), "epochs": 1, "batch_size": 8}
    with pytest.raises(ValueError, match="keys must be an array"):
        sweep(SOFTMAX, x, y, keys=[KEY], **how)
    sgd = optax.sgd(0.1)
    state = init_state(linear.init(5, 3), optimizer=sgd, key=KEY)
    with pytest.raises(ValueError, match="batch_size: expected at least 1"):
        train_epoch(state, x, y, loss=SOFTMAX, optimizer=sgd, batch_size=0)


# What type checkers, completion and help() see


@pytest.mark.parametrize("function", [train_epoch, training.evaluate, fit, sweep, init_state])
def test_public_functions_are_functions(function):
    """Not jitted objects, whose every keyword a type checker lets pass."""
    assert inspect.isfunction(function)
    shown = pydoc.render_doc(function, renderer=pydoc.plaintext)
    assert f"{function.__name__}(" in shown
    assert "Args:" in shown
    with pytest.raises(TypeError, match="unexpected keyword argument 'bath_size'"):
        function(None, None, None, bath_size=8)


CALL = """
import jax, jax.numpy as jnp, optax
from jaxsoftmax import cross_entropy, linear, training

loss, sgd = training.on_logits(cross_entropy), optax.sgd(0.1)
state = training.init_state(linear.init(3, 2), optimizer=sgd, key=jax.random.key(0))
x, y = jnp.eye(3), jnp.zeros(3, int)
state, means = training.train_epoch(state, x, y, loss=loss, optimizer=sgd, batch_size=2)
means = training.evaluate(state.params, x, y, loss=loss, weights=y >= 0)
"""


def test_a_type_checker_refuses_a_misspelled_keyword(tmp_path):
    wrong = CALL.replace("weights=", "weight=").replace("batch_size=", "bath_size=")
    (tmp_path / "right.py").write_text(CALL)
    (tmp_path / "wrong.py").write_text(wrong)
    command = [sys.executable, "-m", "mypy", "--config-file=", "--follow-imports=silent"]
    # Of what is installed nothing is read, which would take ten times as long.
    command += ["--no-site-packages", "--ignore-missing-imports"]
    command += ["--cache-dir", str(tmp_path / "cache")]
    source = os.environ | {"MYPYPATH": str(Path(jaxsoftmax.__file__).parent.parent)}

    def checked(name):
        path = str(tmp_path / name)
        return subprocess.run([*command, path], capture_output=True, text=True, env=source)

    assert checked("right.py").returncode == 0
    said = checked("wrong.py").stdout
    assert 'Unexpected keyword argument "bath_size" for "train_epoch"' in said
    assert 'Unexpected keyword argument "weight" for "evaluate"' in said


def test_a_state_has_an_optimizer_and_a_key() -> None:
    with pytest.raises(TypeError, match=r"optimizer must be one of Optax.* got sgd"):
        init_state(linear.init(3, 2), optimizer=optax.sgd, key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"key must be a random key.* got 0"):
        init_state(linear.init(3, 2), optimizer=optax.sgd(0.1), key=0)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ({"order": "shuffled"}, 'order must be "stratified", "global" or None, got'),
        ({"order": "stratified"}, "needs sharded rows: an Explicit mesh or shards="),
        ({"virtual_shards": 3}, "virtual_shards must be a power of two, got 3"),
        ({"virtual_shards": 0}, "virtual_shards: expected at least 1, got 0"),
        ({"virtual_shards": 2.0}, "virtual_shards: expected an integer, got 2.0"),
        ({"shards": "data"}, r"shards must be Shards\(rows=...\), got 'data'"),
        ({"shards": jaxsoftmax.Shards(classes="model")}, "shards must name a mesh axis of rows"),
        ({"virtual_shards": 2, "order": "global"}, 'virtual_shards needs order="stratified"'),
        ({"virtual_shards": 8}, "features must have a number of rows that 8 shards divide, got 12"),
        ({"virtual_shards": 4}, "batch_size must have a number of rows that 4 shards .*, got 6"),
        (
            {"shards": jaxsoftmax.Shards(rows="data")},
            r"shards must name axes of the mesh, \(\), got 'data'",
        ),
    ],
)
def test_strata_that_do_not_exist(division: dict, message: str) -> None:
    x, y = np.ones((12, 2), np.float32), np.arange(12, dtype=np.int32) % 3
    how = {"optimizer": optax.sgd(0.1), "key": jax.random.key(0), "epochs": 1, "batch_size": 6}
    with pytest.raises((TypeError, ValueError), match=message):
        training.fit(training.on_logits(jaxsoftmax.cross_entropy), x, y, **how, **division)
