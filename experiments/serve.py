"""Serving: a classifier exported for batches of any size, stored, loaded and called, to copy.

Command: `python experiments/serve.py`, seconds. It fits a head to the digits, exports a program
that returns the predicted class, its probability and an energy, and stores it as one file. Whoever
loads the file needs JAX, but neither this library nor the training script. The weights are
arguments of the program, so that a new model does not need a new program. Storing one needs
`pip install flatbuffers`.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jaxsoftmax import LinearParams, logsumexp, softmax, solve
from jaxsoftmax.app import data

PLATFORMS = ("cpu", "cuda", "tpu")


def predict(w: jax.Array, bias: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """Return the class, its probability, and the energy -log sum exp z, high for odd images."""
    z = x @ w + bias
    return z.argmax(-1), softmax(z).max(-1), -logsumexp(z)


def export_program(params: LinearParams, features: int) -> bytes:
    """Compile `predict` for batches of any size and every platform, and return it as bytes."""
    (batch,) = export.symbolic_shape("batch")
    x = jax.ShapeDtypeStruct((batch, features), jnp.float32)
    model = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in (params.w, params.bias)]
    return bytes(export.export(jax.jit(predict), platforms=PLATFORMS)(*model, x).serialize())


def main() -> None:
    """Fit, export, store, load, and call at three sizes."""
    digits = data.load("digits")
    params = solve(digits.train.features, digits.train.targets, C=0.1, gap=1e-4).params
    images, labels = digits.test.features, digits.test.targets

    with tempfile.TemporaryDirectory() as folder:
        program, weights = Path(folder) / "predict.jax", Path(folder) / "weights.npz"
        program.write_bytes(export_program(params, images.shape[1]))
        np.savez(weights, w=params.w, bias=params.bias)
        print(f"{program.name}: {program.stat().st_size:,} bytes")

        # What a server does; it imports jax and numpy only.
        call = jax.jit(export.deserialize(bytearray(program.read_bytes())).call)
        model = np.load(weights)
        for size in (1, 7, len(images)):
            classes, probabilities, _ = call(model["w"], model["bias"], images[:size])
            accuracy = (classes == labels[:size]).mean()
            print(f"{size} images: accuracy {accuracy:.1%}, least sure {probabilities.min():.2f}")


if __name__ == "__main__":
    main()
