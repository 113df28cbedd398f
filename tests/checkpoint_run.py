"""A run with checkpoints, to be killed: `python tests/checkpoint_run.py DEVICES FOLDER EPOCHS`.

It prints a line when the first epoch is over, and the parameters' bits and the history at the end.
"""

import hashlib
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from jaxsoftmax import cross_entropy, training

N, D, K = 64, 6, 4


def run(folder: Path, epochs: int) -> str:
    """Return the digest of the parameters and the history."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, D)).astype(np.float32)
    y = rng.integers(0, K, N).astype(np.int32)
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        result = training.fit(
            training.on_logits(cross_entropy),
            jax.device_put(x, rows),
            jax.device_put(y, rows),
            optimizer=optax.adam(1e-2),
            key=jax.random.key(0),
            epochs=epochs,
            batch_size=16,
            virtual_shards=8,
            callback=lambda metrics: print("epoch", metrics["epoch"], flush=True),
            checkpoint=folder,
            resume=True,
            checkpoint_interval=0,
        )
    arrays = [*jax.tree.leaves(result.state), *result.history.values()]
    return hashlib.sha256(b"".join(np.asarray(a).tobytes() for a in arrays)).hexdigest()


if __name__ == "__main__":
    devices, folder, epochs = sys.argv[1:]
    jax.config.update("jax_num_cpu_devices", int(devices))
    print("end", run(Path(folder), int(epochs)), flush=True)
