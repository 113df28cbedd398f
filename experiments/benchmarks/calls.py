"""The price of one call: eager time and traced equations, beside the function that it replaces.

Notebooks call losses eagerly on small arrays, and large programs trace them many times. How long
does a call on float32 [32, 10] take outside of `jit`, and how many equations does the gradient of
its mean add to a program, beside Optax's or JAX's function? All equations are counted, including
those of calls within the program and the calls themselves.

Findings, on two cores: A loss takes 6 to 28 us, at most 0.26 of the time of Optax, whose
functions run operation by operation. `log_softmax` takes 1.3 times and `sigmoid` 2.3 times the time
of those of jax.nn, which are one program too. The gradient of `cross_entropy` has 189 equations,
where Optax's has 64, and that of `binary_cross_entropy` has fewer than Optax's. Those of the soft
losses, of `log_softmax` and of `logsumexp` have 3 to 6 times as many, because the exact
exponential, its sum and the logarithm of the rest of a row are a hundred equations that no
primitive combines.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr

import jaxsoftmax as js
from benchmarks.timing import Conditions, Step

CALLS, ROUNDS = 50, 41  # calls per reading of the clock


def kl_divergence(z: jax.Array, t: jax.Array) -> jax.Array:
    """Return Optax's divergence, computed from logits."""
    return optax.kl_divergence(jax.nn.log_softmax(z), t)


def mean_where(z: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the mean over the valid rows, as written with Optax."""
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(where=valid)


def ours_where(z: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the same mean in one call."""
    return js.mean_cross_entropy(z, y, valid=valid)


def pairs() -> dict[str, tuple[Callable, Callable, tuple]]:
    """Return our function, the one that it replaces, and arguments; the first is differentiated."""
    keys = jax.random.split(jax.random.key(0), 4)
    z = 3 * jax.random.normal(keys[0], (32, 10))
    y = jax.random.randint(keys[1], (32,), 0, 10)
    t = jax.nn.softmax(jax.random.normal(keys[2], z.shape))
    b = (t > 0.1).astype(jnp.float32)
    v = jax.random.uniform(keys[3], (32,))
    integers = optax.softmax_cross_entropy_with_integer_labels
    return {
        "cross_entropy": (js.cross_entropy, integers, (z, y)),
        "mean_cross_entropy, valid": (ours_where, mean_where, (z, y, y > 2)),
        "soft_cross_entropy": (js.soft_cross_entropy, optax.softmax_cross_entropy, (z, t)),
        "kl_divergence": (js.kl_divergence, kl_divergence, (z, t)),
        "binary_cross_entropy": (
            js.binary_cross_entropy, optax.sigmoid_binary_cross_entropy, (z, b)
        ),
        "multiclass_hinge": (js.multiclass_hinge, optax.losses.multiclass_hinge_loss, (z, y)),
        "squared_error": (js.squared_error, optax.squared_error, (z, t)),
        "weighted_mean": (js.weighted_mean, jnp.mean, (v,)),
        "log_softmax": (js.log_softmax, jax.nn.log_softmax, (z,)),
        "softmax": (js.softmax, jax.nn.softmax, (z,)),
        "logsumexp": (js.logsumexp, partial(jax.nn.logsumexp, axis=-1), (z,)),
        "sigmoid": (js.sigmoid, jax.nn.sigmoid, (z,)),
    }  # fmt: skip


def steps(conditions: Conditions) -> list[Step]:
    """Return one step for all functions."""
    return [Step("float32 32 x 10", partial(all_pairs, conditions))]


def all_pairs(conditions: Conditions) -> dict[str, Any]:
    """Time and count every pair."""
    print(f"{'':28}{'us':>8}{'theirs':>8}{'times theirs (quartiles)':>28}{'equations':>12}")
    found = {}
    for name, pair in pairs().items():
        found[name] = compared(*pair, rounds=1 if conditions.smoke else ROUNDS)
        show(name, found[name])
    return {"functions": found}


def compared(ours: Callable, theirs: Callable, arguments: tuple, *, rounds: int) -> dict[str, Any]:
    """Return the paired times of eager calls, and the equations of the gradients."""
    calls = CALLS if rounds > 1 else 1

    def repeated(function: Callable) -> None:
        for _ in range(calls):
            found = function(*arguments)
        jax.block_until_ready(found)

    both = {"theirs": theirs, "ours": ours}
    timing = measure.paired({n: partial(repeated, f) for n, f in both.items()}, rounds=rounds)
    ratio = timing["ratios"]["ours"]
    return {
        "calls": calls,
        "rounds": rounds,
        "microseconds": {
            name: 1e6 * found["median"] / calls for name, found in timing["seconds"].items()
        },
        "times_theirs": {
            "lower": 1 / ratio["upper"],
            "median": 1 / ratio["median"],
            "upper": 1 / ratio["lower"],
        },
        "equations": {name: equations(of_mean(f), *arguments) for name, f in both.items()},
    }


def of_mean(function: Callable) -> Callable:
    """Return the gradient of the mean in the first argument."""
    return jax.grad(lambda first, *rest: jnp.mean(function(first, *rest)))


def equations(function: Callable, *arguments: Any) -> int:
    """Count the equations of a traced function, including those of calls."""
    return sum(1 for _ in walked(jax.make_jaxpr(function)(*arguments).jaxpr))


def walked(jaxpr: Jaxpr) -> Iterator[Any]:
    """Yield every equation of a program and of the programs that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=is_program):
            if is_program(value):
                yield from walked(value.jaxpr if isinstance(value, ClosedJaxpr) else value)


def is_program(value: Any) -> bool:
    """Return whether a parameter of an equation is a program."""
    return isinstance(value, Jaxpr | ClosedJaxpr)


def show(name: str, found: dict[str, Any]) -> None:
    """Print one line."""
    times, ratio, counts = found["microseconds"], found["times_theirs"], found["equations"]
    print(
        f"{name:28}{times['ours']:8.1f}{times['theirs']:8.1f}"
        f"{ratio['median']:12.2f} ({ratio['lower']:.2f} to {ratio['upper']:.2f})"
        f"{counts['ours']:8} / {counts['theirs']}"
    )
