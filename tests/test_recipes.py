"""What the command line's names stand for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoftmax import data, linear, recipes
from jaxsoftmax.linear import LinearParams
from jaxsoftmax.recipes import LossName, OptimizerName, Settings

SCORES = np.array([0.5, -1.0, 2.0])
LABEL = 1


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (LossName.softmax, np.log(np.exp(SCORES).sum()) - SCORES[1]),
        (LossName.sigmoid, -np.log(_sigmoid(SCORES * [-1, 1, -1])).sum()),
        (LossName.squared_error, 0.5**2 + 2.0**2 + 2.0**2),
        (LossName.hinge, 1 + 2.0 - -1.0),
    ],
)
def test_losses(name: LossName, expected: float) -> None:
    params = LinearParams(w=jnp.asarray(SCORES, jnp.float32)[None], bias=None)
    value = recipes.make_loss(name)(params, jnp.ones((1, 1)), jnp.array([LABEL]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


@pytest.mark.parametrize("name", [name for name in OptimizerName if name != "lbfgs"])
def test_decay_leaves_the_bias_and_the_rate_falls_to_zero(name: OptimizerName) -> None:
    settings = Settings(epochs=2, batch_size=3, learning_rate=0.1, weight_decay=0.5)
    optimizer = recipes.make_optimizer(name, settings, num_examples=7)
    params = LinearParams(w=jnp.ones((2, 2)), bias=jnp.ones(2))
    state, still = optimizer.init(params), jax.tree.map(jnp.zeros_like, params)
    updates = []
    for _ in range(7):
        update, state = optimizer.update(still, state, params)
        updates.append(update)
        np.testing.assert_array_equal(update.bias, 0)
    assert float(jnp.max(updates[0].w)) < 0
    np.testing.assert_array_equal(updates[6].w, 0)  # 2 epochs of 3 minibatches are over
    assert float(jnp.max(updates[5].w)) < 0


def test_adamw_decays_apart_from_the_gradient() -> None:
    settings = Settings(epochs=1, batch_size=1, learning_rate=0.1, weight_decay=0.5)
    optimizer = recipes.make_optimizer(OptimizerName.adamw, settings, num_examples=1)
    params = LinearParams(w=jnp.full((1, 2), 3.0), bias=None)
    update, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(update.w, -0.1 * 0.5 * 3.0, rtol=1e-6)


@pytest.mark.parametrize("change", [{"learning_rate": 0.1}, {"weight_decay": 0.1}])
def test_lbfgs_refuses_what_it_has_no_use_for(change: dict[str, float]) -> None:
    settings = recipes.default_settings(data.load("digits"), OptimizerName.lbfgs, LossName.softmax)
    assert isinstance(
        recipes.make_optimizer(OptimizerName.lbfgs, settings, num_examples=9),
        optax.GradientTransformationExtraArgs,
    )
    with pytest.raises(ValueError, match="lbfgs finds its own steps"):
        recipes.make_optimizer(OptimizerName.lbfgs, replace(settings, **change), num_examples=9)


def test_every_data_set_has_settings() -> None:
    assert set(recipes.DEFAULTS) == set(data.names())


@pytest.mark.parametrize("name", [LossName.softmax, LossName.sigmoid, LossName.squared_error])
def test_default_step_of_sgd_descends(name: LossName) -> None:
    digits = data.load("digits")
    rate = recipes.default_settings(digits, OptimizerName.sgd, name).learning_rate
    assert rate is not None
    loss = recipes.make_loss(name)

    @jax.value_and_grad
    def mean(params: LinearParams) -> jax.Array:
        return jnp.mean(loss(params, *map(jnp.asarray, digits.train)))

    params = linear.init(64, 10, key=jax.random.key(0))
    values = []
    for _ in range(20):
        value, gradient = mean(params)
        values.append(float(value))
        params = jax.tree.map(lambda p, g: p - rate * g, params, gradient)
    assert np.all(np.diff(values) < 0)


def test_default_step_of_sgd_is_near_the_longest_stable_one() -> None:
    """Of squared error, whose Hessian is 2 E[x x'] everywhere: twice the step would be past it."""
    digits = data.load("digits")
    rate = recipes.default_settings(digits, OptimizerName.sgd, LossName.squared_error).learning_rate
    with_bias = np.pad(digits.train.features, ((0, 0), (0, 1)), constant_values=1).astype(float)
    steepest = np.linalg.eigvalsh(2 * with_bias.T @ with_bias / len(with_bias))[-1]
    assert rate is not None
    assert 0.5 * 2 / steepest < rate < 2 / steepest
