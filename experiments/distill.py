"""Distillation: a small student learns a teacher's probabilities, at several temperatures, to copy.

Command: `python experiments/distill.py`, seconds. The teacher is a network trained on all labeled
digits. The student, a narrow network, sees few labels and the teacher's probabilities for all
digits; without the teacher it has those few labels alone. Ignored examples have the label -1.
`jax.vmap` trains the student at every temperature and share of the teacher at once.
"""

from collections.abc import Callable
from itertools import pairwise

import jax
import jax.numpy as jnp
import optax

from jaxsoftmax import cross_entropy, kl_divergence, mean_cross_entropy, softmax, weighted_mean
from jaxsoftmax.app import data

type Params = list[jax.Array]

LABELED, STEPS = 60, 300


def make(key: jax.Array, *sizes: int) -> Params:
    """Draw the matrices of a network without biases."""
    keys = jax.random.split(key, len(sizes) - 1)
    draw = jax.nn.initializers.he_normal()
    return [draw(k, shape) for k, shape in zip(keys, pairwise(sizes), strict=True)]


def logits(params: Params, x: jax.Array) -> jax.Array:
    """Return the scores of a network of one hidden layer."""
    return jax.nn.relu(x @ params[0]) @ params[1]


def distillation_loss(
    z: jax.Array, teacher: jax.Array, labels: jax.Array, *, temperature: jax.Array, share: jax.Array
) -> jax.Array:
    """Return Hinton's loss: share T^2 KL(teacher || student), both at T, + (1 - share) labels.

    T^2 keeps the gradient's size the same at every temperature.
    """
    targets = softmax(teacher / temperature)
    soft = temperature**2 * kl_divergence(z / temperature, targets)
    valid = labels >= 0
    hard = weighted_mean(cross_entropy(z, labels, valid=valid), valid=valid)
    return share * soft.mean() + (1 - share) * hard


def train(params: Params, loss: Callable) -> Params:
    """Minimize a function of the parameters by Adam, as one compiled scan."""
    optimizer = optax.adam(5e-3)

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    return jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)[0][0]


def main() -> None:
    """Train the teacher, then all students."""
    digits = data.load("digits")
    x, labels = jnp.asarray(digits.train.features), jnp.asarray(digits.train.targets)
    test_x, test_labels = digits.test.features, digits.test.targets

    @jax.jit
    def teach(params: Params) -> Params:
        return train(params, lambda p: mean_cross_entropy(logits(p, x), labels))

    teacher = logits(teach(make(jax.random.key(0), x.shape[1], 256, 10)), x)
    few = jnp.where(jnp.arange(len(labels)) < LABELED, labels, -1)
    start = make(jax.random.key(1), x.shape[1], 16, 10)

    @jax.jit
    @jax.vmap
    def student_accuracy(temperature: jax.Array, share: jax.Array) -> jax.Array:
        def loss(params: Params) -> jax.Array:
            z = logits(params, x)
            return distillation_loss(z, teacher, few, temperature=temperature, share=share)

        return (logits(train(start, loss), test_x).argmax(-1) == test_labels).mean()

    temperatures, shares = jnp.array([1.0, 1.0, 2.0, 4.0]), jnp.array([0.0, 0.9, 0.9, 0.9])
    accuracies = student_accuracy(temperatures, shares)
    for temperature, share, accuracy in zip(temperatures, shares, accuracies, strict=True):
        print(f"T = {temperature:g}, {share:.0%} from the teacher: test accuracy {accuracy:.1%}")


if __name__ == "__main__":
    main()
