"""Two processes, two CPU devices each: `python tests/process_cases.py RANK PORT FOLDER EXPECTED`.

EXPECTED is the result of `fit_source()` in one process. Rank 0 prints a line "PASS name" or
"FAIL name: reason" for each function of the host that is given arrays of which each process holds a
part. The truth is the same function of the whole arrays.
"""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxsoftmax as js
from jaxsoftmax import linear, training

N, D, K = 256, 6, 4


def examples() -> tuple[np.ndarray, np.ndarray]:
    """Features and labels."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)).astype(np.float32)
    return x, np.argmax(x[:, :K] + rng.gumbel(size=(N, K)), 1).astype(np.int32)


def fit_source(**division: Any) -> str:
    """Return the bits of a model that is fitted to a source."""
    rows = [*zip(*examples(), strict=True)]
    result = training.fit(
        training.on_logits(js.cross_entropy),
        training.RecordSource(rows, lambda row: row, block_size=50, window=128),
        optimizer=optax.sgd(0.1),
        key=jax.random.key(0),
        epochs=2,
        batch_size=64,
        params=linear.init(D, K),
        virtual_shards=4,
        **division,
    )
    return b"".join(np.asarray(a).tobytes() for a in result.params).hex()


def cases(folder: str, expected: str) -> dict[str, Callable[[Any, Any], Any]]:
    """Functions of features and labels."""
    loss = training.on_logits(js.cross_entropy)
    how = {"key": jax.random.key(0), "epochs": 2, "batch_size": 64}

    def fitted(x: Any, y: Any) -> Any:
        return training.fit(loss, x, y, optimizer=optax.sgd(0.1), **how).history

    def fitted_in_strata(x: Any, y: Any) -> Any:
        division = {"virtual_shards": 4}
        if isinstance(x, jax.Array):
            division |= {"shards": js.Shards(rows="rows")}
        result = training.fit(loss, x, y, optimizer=optax.sgd(0.1), **how, **division)
        return jax.tree.map(lambda a: np.asarray(a).view(np.uint32), result.params)

    def resumed(x: Any, y: Any) -> Any:
        how_long = how | {"batch_size": 64, "optimizer": optax.sgd(0.1)}
        if isinstance(x, jax.Array):
            training.fit(loss, x, y, checkpoint=folder, **how_long | {"epochs": 1})
            how_long |= {"checkpoint": folder, "resume": True}
        return training.fit(loss, x, y, **how_long).history

    def streamed(x: Any, y: Any) -> str:
        if not isinstance(x, jax.Array):
            return expected
        with jax.set_mesh(Mesh(np.array(jax.devices()), ("rows",))):
            return fit_source(shards=js.Shards(rows="rows"))

    def swept(x: Any, y: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), 2)
        rates = {"make_optimizer": optax.sgd, "hyperparams": jnp.array([0.1, 1.0]), "keys": keys}
        return training.sweep(loss, x, y, epochs=1, batch_size=64, **rates).history

    def bad_label(x: Any, y: Any) -> str:
        try:
            js.check_labels(y, K - 1)
        except ValueError as error:
            return str(error)
        return "no error"

    return {
        "check_labels": lambda x, y: js.check_labels(y, K),
        "check_labels names a label": bad_label,
        "fit": fitted,
        "fit, each shard in its own order, to the same bits": fitted_in_strata,
        "fit, resumed": resumed,
        "fit of a source, of which each process reads its part": streamed,
        "sweep": swept,
        "solve": lambda x, y: js.solve(x, y, C=1.0, gap=1e-8).params,
    }


def difference(found: Any, truth: Any) -> str | None:
    """What is wrong, or None."""
    if isinstance(truth, str):
        return None if found == truth else f"{found} for {truth}"
    for a, t in zip(jax.tree.leaves(found), jax.tree.leaves(truth), strict=True):
        if not np.allclose(np.asarray(a), np.asarray(t), rtol=1e-5, atol=1e-6):
            return f"{np.asarray(a)} for {np.asarray(t)}"
    return None


def main(rank: int, port: str, folder: str, expected: str) -> None:
    """Run all, in the same order on both processes."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    x, y = examples()
    rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
    parts = [
        jax.make_array_from_callback(a.shape, rows, lambda place, a=a: a[place]) for a in (x, y)
    ]
    for name, function in cases(folder, expected).items():
        reason = difference(function(*parts), function(x, y))
        if rank == 0:
            print(f"FAIL {name}: {reason}" if reason else f"PASS {name}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
