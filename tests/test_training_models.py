"""Training models of the user's own: any pytree of parameters, Equinox and Flax modules."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxsoftmax import cross_entropy, linear, training, weighted_mean
from jaxsoftmax.training import (
    evaluate,
    fit,
    init_state,
    minibatches,
    on_logits,
    sweep,
    train_epoch,
)

pytestmark = pytest.mark.usefixtures("unoptimized")

KEY = jax.random.key(3)
SGD = optax.sgd(0.3, momentum=0.9)
HOW = {"optimizer": SGD, "key": KEY, "epochs": 3, "batch_size": 8}
N, D, K = 43, 5, 3  # 43 is prime: every minibatch size leaves a part


def data(size: int = N) -> tuple[np.ndarray, np.ndarray]:
    """Labels that no linear rule tells apart."""
    rng = np.random.default_rng(size)
    x = rng.normal(size=(size, D)).astype(np.float32)
    return x, (np.sum(x[:, :2] > 0, axis=1)).astype(np.int32)


X, Y = data()


def mlp(params, x):
    return jnp.tanh(x @ params["inner"] + params["shift"]) @ params["outer"]


def mlp_params(key=KEY):
    inner, outer = jax.random.split(key)
    return {
        "inner": jax.random.normal(inner, (D, 7)),
        "shift": jnp.zeros(7),
        "outer": 0.1 * jax.random.normal(outer, (7, K)),
    }


MLP = on_logits(cross_entropy, logits=mlp)


def batches(key, size, batch_size, epochs):
    """The rows of each minibatch of each epoch."""
    key = jax.random.split(key)[1]
    for _ in range(epochs):
        draw, key = jax.random.split(key)
        order = np.asarray(minibatches.permutation(draw, size))
        yield [order[i : i + batch_size] for i in range(0, size, batch_size)]


def optax_loop(model, params, x, y):
    """What people write: Optax's loss, its gradient, an update; loss and accuracy on the way."""

    @jax.jit
    def step(params, state, x, y):
        def mean(params):
            z = model(params, x)
            values = optax.softmax_cross_entropy_with_integer_labels(z, y)
            return values.mean(), (values.sum(), jnp.sum(jnp.argmax(z, -1) == y))

        grads, sums = jax.grad(mean, has_aux=True)(params)
        updates, state = SGD.update(grads, state, params)
        return optax.apply_updates(params, updates), state, sums

    state, history = SGD.init(params), []
    for rows_of_epoch in batches(KEY, len(x), HOW["batch_size"], HOW["epochs"]):
        sums = np.zeros(2)
        for rows in rows_of_epoch:
            params, state, new = step(params, state, x[rows], y[rows])
            sums += np.asarray(new)
        history.append(sums / len(x))
    return params, np.array(history).T


def assert_close(got, want, tolerance=1e-5):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)

    jax.tree.map(close, got, want)


def assert_fit_is(result, params, history):
    assert_close(result.params, params)
    np.testing.assert_allclose(result.history["loss"], history[0], rtol=1e-5)
    np.testing.assert_allclose(result.history["accuracy"], history[1], rtol=1e-6)


# Models


def test_an_mlp_of_arrays_is_the_optax_loop():
    result = fit(MLP, X, Y, params=mlp_params(), **HOW)
    assert_fit_is(result, *optax_loop(mlp, mlp_params(), X, Y))
    assert result.history["loss"][-1] < result.history["loss"][0]


def test_an_equinox_module_is_its_own_loop():
    model = eqx.nn.MLP(D, K, width_size=7, depth=1, key=KEY)
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def logits(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    result = fit(on_logits(cross_entropy, logits=logits), X, Y, params=params, **HOW)

    @eqx.filter_jit
    def step(model, state, x, y):
        def mean(model):
            z = jax.vmap(model)(x)
            return optax.softmax_cross_entropy_with_integer_labels(z, y).mean()

        grads = eqx.filter_grad(mean)(model)
        updates, state = SGD.update(grads, state, eqx.filter(model, eqx.is_inexact_array))
        return eqx.apply_updates(model, updates), state

    state = SGD.init(params)
    for rows_of_epoch in batches(KEY, N, 8, 3):
        for rows in rows_of_epoch:
            model, state = step(model, state, X[rows], Y[rows])
    assert_close(result.params, eqx.filter(model, eqx.is_inexact_array))
    trained = eqx.combine(result.params, static)
    assert_close(jax.vmap(trained)(X), jax.vmap(model)(X))
    hits = np.mean(np.argmax(np.asarray(jax.vmap(trained)(X)), -1) == Y)
    means = evaluate(result.params, X, Y, loss=on_logits(cross_entropy, logits=logits))
    assert float(means["accuracy"]) == pytest.approx(hits, rel=1e-6)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(D, 7, rngs=rngs)
        self.outer = nnx.Linear(7, K, rngs=rngs)
        self.scale = nnx.Variable(jnp.float32(0.5))  # a variable that is no parameter

    def __call__(self, x):
        return self.outer(jnp.tanh(self.scale[...] * self.inner(x)))


def test_a_flax_module_is_its_own_loop():
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def logits(params, x):
        return nnx.merge(graph, params, rest)(x)

    result = fit(on_logits(cross_entropy, logits=logits), X, Y, params=params, **HOW)

    model = Net(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, SGD, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, x, y):
        def mean(model):
            return optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

        optimizer.update(model, nnx.grad(mean)(model))

    for rows_of_epoch in batches(KEY, N, 8, 3):
        for rows in rows_of_epoch:
            step(model, optimizer, X[rows], Y[rows])
    assert_close(nnx.to_pure_dict(result.params), nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    assert_close(nnx.merge(graph, result.params, rest)(X), model(X))
    assert set(result.history) == {"loss", "accuracy"}


def test_lanes_of_a_sweep_are_fits():
    rates, keys = jnp.array([0.1, 0.5]), jax.random.split(KEY, 2)
    how = {"epochs": 3, "batch_size": N, "validation": data(29)}
    starts = jax.vmap(mlp_params)(keys)
    lanes = sweep(
        MLP, X, Y, make_optimizer=optax.sgd, hyperparams=rates, keys=keys, params=starts, **how
    )
    for i, rate in enumerate(rates):
        alone = fit(
            MLP, X, Y, optimizer=optax.sgd(rate), key=keys[i], params=mlp_params(keys[i]), **how
        )
        assert_close(jax.tree.map(lambda a, i=i: a[i], lanes.params), alone.params)
        for name, values in alone.history.items():
            np.testing.assert_allclose(lanes.history[name][i], values, rtol=1e-5)


def test_the_users_loop_and_early_stopping():
    """`train_epoch` and `evaluate` are what `fit` runs, for any pytree too."""
    state = init_state(mlp_params(), optimizer=SGD, key=jax.random.split(KEY)[1])
    held = data(29)
    losses = []
    for _ in range(3):
        state, means = train_epoch(state, X, Y, loss=MLP, optimizer=SGD, batch_size=8)
        losses.append(evaluate(state.params, *held, loss=MLP)["loss"])
    result = fit(MLP, X, Y, params=mlp_params(), validation=held, patience=3, **HOW)
    np.testing.assert_array_equal(result.history["validation_loss"], losses)
    assert float(means["accuracy"]) == result.history["accuracy"][-1]
    best = evaluate(result.params, *held, loss=MLP)["loss"]
    assert best == result.history["validation_loss"].min()


# Features and targets of any form


def test_pixels_some_of_which_have_no_label():
    """Images of integers, scores `[B, H, W, K]`, and labels of which 255 does not count."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 4, 6), dtype=np.uint8)
    labels = (images // 86).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.3] = 255
    labels[0] = 255  # an image without a label

    def logits(params, x):
        return (x[..., None] / 255.0) * params["w"] + params["b"]

    def mean_of_pixels(z, t):
        known = t < K
        return weighted_mean(cross_entropy(z, t, valid=known), valid=known)

    loss = on_logits(mean_of_pixels, logits=logits)
    params = {"w": jnp.array([-1.0, 0.0, 1.0]), "b": jnp.array([0.5, 0.123, -0.5])}
    still = HOW | {"optimizer": optax.sgd(0.0), "epochs": 1}
    result = fit(loss, images, labels, params=params, **still)
    z = images[..., None] / 255 * np.float64(params["w"]) + np.float64(params["b"])
    known = labels < K
    own = np.take_along_axis(z, np.where(known, labels, 0)[..., None], -1)[..., 0]
    values = np.where(known, np.log(np.exp(z).sum(-1)) - own, 0)
    counts = np.maximum(known.sum((1, 2)), 1)
    loss_by_hand = np.mean(values.sum((1, 2)) / counts)
    hits = np.mean((z.argmax(-1) == labels).sum((1, 2)) / counts)
    assert result.history["loss"][0] == pytest.approx(loss_by_hand, rel=1e-5)
    assert result.history["accuracy"][0] == pytest.approx(hits, rel=1e-6)
    moved = fit(loss, images, labels, params=params, **HOW)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(moved.params))
    assert moved.history["loss"][-1] < loss_by_hand


@pytest.mark.parametrize("form", ["tokens", "one number"])
def test_features_of_other_forms(form):
    x = {"tokens": np.int64(np.abs(X) * 9) % 10, "one number": X[:, 0]}[form]

    def logits(params, x):
        scores = params[x].mean(1) if form == "tokens" else jnp.tanh(x[:, None] * params[0])
        return scores @ params[:K].T

    params = jax.random.normal(KEY, (10, K))
    result = fit(on_logits(cross_entropy, logits=logits), x, Y, params=params, **HOW)
    assert_fit_is(result, *optax_loop(logits, params, jnp.asarray(x), Y))


def test_one_score_of_two_classes():
    def logits(params, x):
        return mlp(params, x)[:, :1]

    def loss(z, t):
        return optax.sigmoid_binary_cross_entropy(z, t)

    result = fit(on_logits(loss, logits=logits), X, Y // 2, params=mlp_params(), **HOW)
    hits = (np.asarray(mlp(result.params, X))[:, 0] > 0) == Y // 2
    means = evaluate(result.params, X, Y // 2, loss=on_logits(loss, logits=logits))
    assert float(means["accuracy"]) == pytest.approx(np.mean(hits), rel=1e-6)


def test_a_loss_of_the_users_own_has_no_accuracy_by_itself():
    def loss(params, x, t):
        return cross_entropy(mlp(params, x), t)

    def score(params, x, t):
        return training.accuracy(params, x, t, logits=mlp)

    whole = fit(loss, X, Y, params=mlp_params(), **HOW)
    assert set(whole.history) == {"loss"}
    scored = fit(loss, X, Y, params=mlp_params(), score=score, **HOW)
    made = fit(MLP, X, Y, params=mlp_params(), **HOW)
    assert_close(scored.history, made.history)
    # A loss of its own on a linear model has the linear model's.
    plain = fit(lambda p, x, t: cross_entropy(linear.logits(p, x), t), X, Y, **HOW)
    assert set(plain.history) == {"loss", "accuracy"}


def test_weight_decay_of_any_pytree():
    params = mlp_params() | {"shift": jnp.ones(7)}
    assert training.weight_decay_mask(params) == {"inner": True, "shift": False, "outer": True}
    decay = optax.adamw(0.1, weight_decay=1.0, mask=training.weight_decay_mask)

    def flat(params, x, t):
        return jnp.zeros(x.shape[0])

    result = fit(flat, X, Y, params=params, **HOW | {"optimizer": decay, "batch_size": N})
    np.testing.assert_array_equal(result.params["shift"], np.ones(7))
    np.testing.assert_allclose(result.params["inner"], 0.9**3 * params["inner"], rtol=1e-5)
    _, state, _ = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)
    mask = nnx.to_pure_dict(training.weight_decay_mask(state))
    assert mask["inner"] == {"kernel": True, "bias": False}


# Rows that do not count


@pytest.mark.parametrize("batch_size", [8, N])
def test_rows_without_weight_have_no_say(batch_size):
    """A norm has no gradient at a row of zeros, so another row of the data must stand in."""
    ignored = np.arange(N) % 5 == 0
    x, y = np.where(ignored[:, None], np.nan, X), np.where(ignored, -100, Y)
    other = np.where(ignored[:, None], np.float32(1), X), np.where(ignored, 0, Y)

    def logits(params, x):
        return mlp(params, x / jnp.linalg.norm(x, axis=-1, keepdims=True))

    loss = on_logits(cross_entropy, logits=logits)
    how = HOW | {"batch_size": batch_size, "params": mlp_params(), "weights": ~ignored}
    result = fit(loss, x, y, validation=(x, y, ~ignored), **how)
    want = fit(loss, *other, validation=(*other, ~ignored), **how)
    assert_close(result.params, want.params)
    assert_close(result.history, want.history)
    assert np.isfinite(result.history["validation_loss"]).all()


# Errors


def bad(mutate):
    """The data with one entry changed."""
    x, y = X.copy(), Y.copy()
    mutate(x, y)
    return x, y


PARAMS = mlp_params()


@pytest.mark.parametrize(
    ("examples", "changes", "error", "message"),
    [
        ((X, Y), {"params": None}, ValueError, "params must be given for a model of your own"),
        (
            (X, Y),
            {"params": PARAMS | {"count": jnp.zeros(3, int)}},
            TypeError,
            r"floating arrays, got int32 at params\['count'\]",
        ),
        ((X, Y), {"params": PARAMS | {"f": jnp.tanh}}, TypeError, r"params\['f'\]"),
        ((X, Y[:-1]), {}, ValueError, r"targets must be \[N, ...\] with N = 43"),
        ((X[:0], Y[:0]), {}, ValueError, r"features must be \[N, ...\] and not empty"),
        ((np.float32(1), Y), {}, ValueError, r"features must be \[N, ...\]"),
        (bad(lambda x, y: x.put(7, np.nan)), {}, ValueError, r"finite, got nan at \[1, 2\]"),
        (bad(lambda x, y: y.put(7, 3)), {}, ValueError, r"targets\[7\].*from 0 to 2, got 3"),
        (bad(lambda x, y: y.put(7, -100)), {}, ValueError, r"targets\[7\].*got -100"),
        ((X, Y), {"validation": (X, Y + 1)}, ValueError, r"validation targets\["),
        ((X, Y), {"validation": (X, Y[:3])}, ValueError, "validation targets must be"),
        ((np.full((N, D), 2**32), Y), {}, ValueError, "features must fit int32, got 4294967296"),
    ],
)
def test_errors_before_the_first_epoch(examples, changes, error, message):
    with pytest.raises(error, match=message):
        fit(MLP, *examples, **{"params": PARAMS, "callback": pytest.fail} | HOW | changes)


def test_a_model_without_scores_for_each_example():
    for logits in (lambda p, x: mlp(p, x)[:, 0], lambda p, x: mlp(p, x)[:5]):
        loss = on_logits(cross_entropy, logits=logits)
        with pytest.raises(ValueError, match=r"logits must return scores \[B, ..., K\] for 43"):
            fit(loss, X, Y, params=PARAMS, **HOW)
        with pytest.raises(ValueError, match="logits must return scores"):
            evaluate(PARAMS, X, Y, loss=loss)


def test_targets_that_have_no_accuracy():
    loss = on_logits(lambda z, t: jnp.sum(z[:2] * t), logits=mlp)
    two = np.ones((N, 2), int)
    with pytest.raises(ValueError, match=r"targets must have shape \(8,\) or \(8, 3\) for acc"):
        fit(loss, X, two, params=PARAMS, **HOW)
    assert set(fit(loss, X, two, params=PARAMS, score=None, **HOW).history) == {"loss"}


def test_a_sweep_needs_lanes_of_parameters():
    how = {"make_optimizer": optax.sgd, "hyperparams": jnp.ones(2), "epochs": 1, "batch_size": 8}
    how["keys"] = jax.random.split(KEY, 2)
    with pytest.raises(ValueError, match="params must be given for a model of your own"):
        sweep(MLP, X, Y, **how)
    with pytest.raises(ValueError, match="params must have a leading axis of 2 lanes"):
        sweep(MLP, X, Y, params=PARAMS, **how)
