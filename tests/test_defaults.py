"""What the command line's names stand for."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxsoftmax import linear
from jaxsoftmax.app import data, defaults
from jaxsoftmax.app.data.dataset import Dataset, Schema, Split, Task
from jaxsoftmax.app.defaults import LossName, OptimizerName, Settings
from jaxsoftmax.linear import LinearParams

SCORES = np.array([0.5, -1.0, 2.0])
LABEL = 1


def schema(task: Task, count: int) -> Schema:
    return Schema(task, tuple(map(str, range(count))), shape=(4,))


THREE = schema(Task.classes, 3)


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
    value = defaults.make_loss(name, THREE)(params, jnp.ones((1, 1)), jnp.array([LABEL]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "name", "target", "expected"),
    [
        (Task.labels, "sigmoid", [True, False, True], -np.log(_sigmoid(SCORES * [1, -1, 1])).sum()),
        (Task.labels, "hinge", [True, False, True], 0.5),
        (Task.numbers, "squared_error", [1.0, 0.0, 0.0], 0.25 + 1 + 4),
    ],
)
def test_losses_of_labels_and_numbers(
    task: Task, name: str, target: list[float], expected: float
) -> None:
    params = LinearParams(w=jnp.asarray(SCORES, jnp.float32)[None], bias=None)
    loss = defaults.make_loss(LossName(name), schema(task, 3))
    value = loss(params, jnp.ones((1, 1)), jnp.array([target]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "name", "target", "expected"),
    [
        (Task.classes, "sigmoid", 1, -np.log(_sigmoid(0.5))),
        (Task.classes, "sigmoid", 0, -np.log(_sigmoid(-0.5))),
        (Task.numbers, "squared_error", 2.5, 4.0),
    ],
)
def test_losses_of_one_score(task: Task, name: str, target: float, expected: float) -> None:
    params = LinearParams(w=jnp.array([[0.5]]), bias=None)
    loss = defaults.make_loss(LossName(name), schema(task, 2 if task is Task.classes else 1))
    value = loss(params, jnp.ones((1, 1)), jnp.array([target]))
    np.testing.assert_allclose(value, [expected], rtol=1e-6)


@pytest.mark.parametrize(
    ("task", "name", "meant"),
    [
        (Task.labels, "softmax", "sigmoid or hinge for a task of labels"),
        (Task.numbers, "hinge", "squared_error for a task of numbers"),
    ],
)
def test_losses_that_do_not_suit(task: Task, name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"loss must be {meant}, got {name}"):
        defaults.make_loss(LossName(name), schema(task, 3))


@pytest.mark.parametrize(
    ("task", "count", "loss", "scores"),
    [
        (Task.classes, 2, "sigmoid", 1),
        (Task.classes, 3, "softmax", 3),
        (Task.labels, 2, "sigmoid", 2),
        (Task.numbers, 1, "squared_error", 1),
    ],
)
def test_what_a_task_begins_with(task: Task, count: int, loss: str, scores: int) -> None:
    assert defaults.default_loss(schema(task, count)) == loss
    assert defaults.num_scores(schema(task, count), LossName(loss)) == scores
    assert defaults.num_scores(schema(task, count), LossName.hinge) == count


@pytest.mark.parametrize("name", [name for name in OptimizerName if name != "lbfgs"])
def test_decay_leaves_the_bias_and_the_rate_falls_to_zero(name: OptimizerName) -> None:
    settings = Settings(epochs=2, batch_size=3, learning_rate=0.1, weight_decay=0.5)
    optimizer = defaults.make_optimizer(name, settings, num_examples=7)
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
    optimizer = defaults.make_optimizer(OptimizerName.adamw, settings, num_examples=1)
    params = LinearParams(w=jnp.full((1, 2), 3.0), bias=None)
    update, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    np.testing.assert_allclose(update.w, -0.1 * 0.5 * 3.0, rtol=1e-6)


@pytest.mark.parametrize("change", [{"learning_rate": 0.1}, {"weight_decay": 0.1}])
def test_lbfgs_refuses_what_it_has_no_use_for(change: dict[str, float]) -> None:
    settings = defaults.default_settings(data.load("digits"), OptimizerName.lbfgs, LossName.softmax)
    assert isinstance(
        defaults.make_optimizer(OptimizerName.lbfgs, settings, num_examples=9),
        optax.GradientTransformationExtraArgs,
    )
    with pytest.raises(ValueError, match="lbfgs finds its own steps"):
        defaults.make_optimizer(OptimizerName.lbfgs, replace(settings, **change), num_examples=9)


def test_every_known_data_set_has_settings() -> None:
    assert set(defaults.KNOWN_SETTINGS) == set(data.names())


def of_size(size: int, name: str = "mine", spread: float | None = None, **of_schema) -> Dataset:
    """Training data of some size: classes, or numbers of some spread."""
    task = Task.classes if spread is None else Task.numbers
    targets = np.arange(size) % 2 * np.float32(2 * (spread or 0.5))
    empty = Split(np.zeros((0, 4), np.float32), targets[:0], targets[:0])
    train = Split(np.ones((size, 4), np.float32), targets, np.arange(size))
    about = replace(schema(task, 2 if spread is None else 1), **of_schema)
    return Dataset(name, train, empty, empty, about, "made")


@pytest.mark.parametrize(
    ("size", "epochs", "batch_size"),
    [(3, 500, 32), (100, 500, 32), (1_600, 60, 32), (7_608, 50, 128), (700_000, 5, 1024)],
)
def test_settings_of_other_data(size: int, epochs: int, batch_size: int) -> None:
    begin = defaults.default_settings(of_size(size), OptimizerName.adamw, LossName.sigmoid)
    assert begin == Settings(epochs, batch_size, learning_rate=0.02, weight_decay=0.03)


def test_settings_of_a_file_that_is_called_like_a_known_data_set() -> None:
    file = of_size(100, name="digits")
    begin = defaults.default_settings(file, OptimizerName.adamw, LossName.sigmoid)
    assert begin == defaults.default_settings(of_size(100), OptimizerName.adamw, LossName.sigmoid)
    assert begin != defaults.KNOWN_SETTINGS["digits"]


def test_steps_towards_numbers_are_as_long_as_their_spread() -> None:
    begin = defaults.default_settings(
        of_size(100, spread=50), OptimizerName.adamw, LossName.squared_error
    )
    assert begin.learning_rate == pytest.approx(0.02 * 50)


def test_scale_ratio() -> None:
    x = np.random.default_rng(0).normal(size=(1000, 3)) * [1, 300, 0]
    assert defaults.scale_ratio(x) == pytest.approx(300, rel=0.1)
    assert defaults.scale_ratio(np.ones((5, 2))) == 1, "nothing varies"


@pytest.mark.parametrize("name", [LossName.softmax, LossName.sigmoid, LossName.squared_error])
def test_default_step_of_sgd_descends(name: LossName) -> None:
    digits = data.load("digits")
    rate = defaults.default_settings(digits, OptimizerName.sgd, name).learning_rate
    assert rate is not None
    loss = defaults.make_loss(name, digits.schema)

    @jax.value_and_grad
    def mean(params: LinearParams) -> jax.Array:
        return jnp.mean(loss(params, *map(jnp.asarray, digits.train[:2])))

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
    rate = defaults.default_settings(
        digits, OptimizerName.sgd, LossName.squared_error
    ).learning_rate
    with_bias = np.pad(digits.train.features, ((0, 0), (0, 1)), constant_values=1).astype(float)
    steepest = np.linalg.eigvalsh(2 * with_bias.T @ with_bias / len(with_bias))[-1]
    assert rate is not None
    assert 0.5 * 2 / steepest < rate < 2 / steepest
