"""The price of one call: eager time and traced equations, beside the function that it replaces.

Command: `python experiments/call_cost.py`, about a minute. `--smoke` takes few rounds and writes no
record. The record is results/call_cost_PLATFORM.json.

Question. Notebooks call losses eagerly on small arrays, and large programs trace them many times.
How long does a call on float32 [32, 10] take outside of `jit`, and how many equations does the
gradient of its mean add to a program, beside Optax's or JAX's function? All equations are counted,
including those of calls within the program and the calls themselves.

Findings, on two cores: A loss takes 6 to 28 us, at most a quarter of the time of Optax, whose
functions run operation by operation. `log_softmax` takes 1.3 times and `sigmoid` 2.3 times the time
of those of jax.nn, which are one program too. The gradient of `cross_entropy` has 3.0 times the
equations of Optax's and that of `binary_cross_entropy` has fewer. Those of the soft losses, of
`log_softmax` and of `logsumexp` have 3 to 6 times as many, because the exact exponential, its sum
and the logarithm of the rest of a row are a hundred equations that no primitive combines.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
import optax
from jax.extend.core import ClosedJaxpr, Jaxpr

import jaxsoftmax as js

CALLS = 50  # per reading of the clock
KEYS = jax.random.split(jax.random.key(0), 4)
Z = 3 * jax.random.normal(KEYS[0], (32, 10))
Y = jax.random.randint(KEYS[1], (32,), 0, 10)
T = jax.nn.softmax(jax.random.normal(KEYS[2], Z.shape))
B = (T > 0.1).astype(jnp.float32)
V = jax.random.uniform(KEYS[3], (32,))
ON = Y > 2


def kl_divergence(z: jax.Array, t: jax.Array) -> jax.Array:
    """Return Optax's divergence, computed from logits."""
    return optax.kl_divergence(jax.nn.log_softmax(z), t)


def mean_where(z: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the mean over the valid rows, as written with Optax."""
    return optax.softmax_cross_entropy_with_integer_labels(z, y).mean(where=valid)


def ours_where(z: jax.Array, y: jax.Array, valid: jax.Array) -> jax.Array:
    """Return the same mean in one call."""
    return js.mean_cross_entropy(z, y, valid=valid)


# Our function, the function that it replaces, and their arguments; the first is differentiated.
PAIRS: dict[str, tuple[Callable, Callable, tuple]] = {
    "cross_entropy": (js.cross_entropy, optax.softmax_cross_entropy_with_integer_labels, (Z, Y)),
    "mean_cross_entropy, valid": (ours_where, mean_where, (Z, Y, ON)),
    "soft_cross_entropy": (js.soft_cross_entropy, optax.softmax_cross_entropy, (Z, T)),
    "kl_divergence": (js.kl_divergence, kl_divergence, (Z, T)),
    "binary_cross_entropy": (js.binary_cross_entropy, optax.sigmoid_binary_cross_entropy, (Z, B)),
    "multiclass_hinge": (js.multiclass_hinge, optax.losses.multiclass_hinge_loss, (Z, Y)),
    "squared_error": (js.squared_error, optax.squared_error, (Z, T)),
    "weighted_mean": (js.weighted_mean, jnp.mean, (V,)),
    "log_softmax": (js.log_softmax, jax.nn.log_softmax, (Z,)),
    "softmax": (js.softmax, jax.nn.softmax, (Z,)),
    "logsumexp": (js.logsumexp, partial(jax.nn.logsumexp, axis=-1), (Z,)),
    "sigmoid": (js.sigmoid, jax.nn.sigmoid, (Z,)),
}


def main() -> None:
    """Time and count every pair, print the table and write the record."""
    parser = argparse.ArgumentParser(description="Eager and tracing cost of a call.")
    parser.add_argument("--rounds", type=int, default=41, help="paired rounds per function")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, no record")
    arguments = parser.parse_args()
    print(f"{'':28}{'us':>8}{'theirs':>8}{'times theirs (quartiles)':>28}{'equations':>12}")
    record = {}
    for name, pair in PAIRS.items():
        record[name] = found = compared(*pair, rounds=3 if arguments.smoke else arguments.rounds)
        show(name, found)
    if not arguments.smoke:
        settings = {"dtype": "float32", "shape": [32, 10], "logits": "3 * normal"}
        name = f"call_cost_{jax.default_backend()}"
        print("written:", measure.write_record(name, settings | {"functions": record}).name)


def compared(ours: Callable, theirs: Callable, arguments: tuple, *, rounds: int) -> dict[str, Any]:
    """Return the paired times of eager calls, and the equations of the gradients."""

    def repeated(function: Callable) -> None:
        for _ in range(CALLS):
            found = function(*arguments)
        jax.block_until_ready(found)

    both = {"theirs": theirs, "ours": ours}
    timing = measure.paired({n: partial(repeated, f) for n, f in both.items()}, rounds=rounds)
    ratio = timing["ratios"]["ours"]
    return {
        "calls": CALLS,
        "rounds": rounds,
        "microseconds": {
            name: 1e6 * found["median"] / CALLS for name, found in timing["seconds"].items()
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


if __name__ == "__main__":
    main()
