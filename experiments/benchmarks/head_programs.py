"""The heads that are compared: value and gradients of a loss of features and weights.

A program is a function of a `Head`. Where the head has a bias, its features are data, and w and
bias are differentiated, else x and w.
"""

import importlib.util
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxsoftmax import kernels

MIB = 2**20


class Shape(NamedTuple):
    """Examples, features, classes, dtype, and whether the features are data."""

    n: int
    d: int
    k: int
    dtype: str = "bfloat16"
    parameters: bool = False

    @property
    def operations(self) -> int:
        """Return the operations of one product."""
        return 2 * self.n * self.d * self.k

    @property
    def bytes(self) -> int:
        """Return the bytes of features, weights and gradients, each read or written once."""
        x, w = self.n * self.d, self.d * self.k
        return jnp.dtype(self.dtype).itemsize * (x * (1 if self.parameters else 2) + 2 * w)

    def __str__(self) -> str:
        """Return the shape as it is printed, and as `parsed` reads it."""
        return f"{self.n}x{self.d}x{self.k}{'/parameters' * self.parameters} {self.dtype}"


def parsed(text: str) -> Shape:
    """Parse NxDxK or NxDxK/parameters, and a dtype, by default float32."""
    sizes, _, dtype = text.partition(" ")
    sizes, _, parameters = sizes.partition("/")
    return Shape(*map(int, sizes.split("x")), dtype or "float32", bool(parameters))  # type: ignore[arg-type]


class Head(NamedTuple):
    """The data of a head: features, weights, labels or targets, and cotangents of the outputs."""

    x: jax.Array
    w: jax.Array
    bias: jax.Array | None
    labels: jax.Array
    nll: jax.Array
    lse: jax.Array


class Program(NamedTuple):
    """A function of the head, and how many products of N x D x K it needs."""

    run: Callable[[Head], Any]
    products: int = 3


def data(shape: Shape) -> Head:
    """Return normal features, weights for logits of standard deviation 1, labels, cotangents."""
    keys = jax.random.split(jax.random.key(0), 5)
    x = jax.random.normal(keys[0], (shape.n, shape.d), shape.dtype)
    w = jax.random.normal(keys[1], (shape.d, shape.k), shape.dtype)
    w = w * jnp.asarray(shape.d**-0.5, shape.dtype)
    labels = jax.random.randint(keys[2], (shape.n,), 0, shape.k, jnp.int32)
    nll, lse = jax.random.normal(keys[3], (2, shape.n)) / shape.n
    bias = jnp.zeros(shape.k, shape.dtype) if shape.parameters else None
    return Head(x, w, bias, labels, nll, lse)


def data_of_labels(shape: Shape) -> Head:
    """Return the same features and weights, and targets with one in 1,000 true."""
    targets = jax.random.bernoulli(jax.random.key(3), 1e-3, (shape.n, shape.k))
    return data(shape)._replace(labels=targets)


def leaves(head: Head) -> tuple[jax.Array, jax.Array]:
    """Return what is differentiated."""
    return (head.x, head.w) if head.bias is None else (head.w, head.bias)


def replaced(head: Head, a: jax.Array, b: jax.Array) -> Head:
    """Return the head with other arrays in place of what is differentiated."""
    return head._replace(x=a, w=b) if head.bias is None else head._replace(w=a, bias=b)


def value_and_gradients(loss: Callable[[Head], jax.Array], head: Head) -> Any:
    """Return a scalar loss and its gradients."""
    return jax.value_and_grad(lambda *a: loss(replaced(head, *a)), (0, 1))(*leaves(head))


# -- Softmax --


def total(options: dict[str, Any], head: Head) -> Any:
    """Return the mean as a weighted sum, whose gradients are computed in the forward pass."""

    def loss(h: Head) -> jax.Array:
        weights = jnp.full(h.labels.shape, 1 / h.labels.size)
        return kernels.linear_cross_entropy_sum(
            h.x, h.w, h.labels, bias=h.bias, weights=weights, **options
        )

    return value_and_gradients(loss, head)


def per_example(options: dict[str, Any], head: Head) -> Any:
    """Return both outputs, and gradients with a random cotangent for each."""

    def loss(*a: jax.Array) -> kernels.LinearLoss:
        h = replaced(head, *a)
        return kernels.linear_cross_entropy(h.x, h.w, h.labels, bias=h.bias, **options)

    found, back = jax.vjp(loss, *leaves(head))
    return found, back(type(found)(head.nll, head.lse))


def forward(options: dict[str, Any], head: Head) -> Any:
    """Return the values alone."""
    return kernels.linear_cross_entropy(head.x, head.w, head.labels, bias=head.bias, **options)


def dense(head: Head, dtype: Any = None) -> Any:
    """Return the mean loss as users write it without a library of heads."""

    def loss(h: Head) -> jax.Array:
        z = jnp.matmul(h.x, h.w, preferred_element_type=dtype)
        z = z if h.bias is None else z + h.bias
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(z, h.labels))

    return value_and_gradients(loss, head)


def z_loss(nll: jax.Array, lse: jax.Array, mean_logit: Any = None) -> jax.Array:
    """Return a loss that keeps the logits near 0, of a row or of all."""
    del mean_logit
    return nll + 1e-4 * lse**2


def z_loss_per_example(head: Head) -> Any:
    """Return the mean with a z-loss, from the outputs of each example."""

    def loss(h: Head) -> jax.Array:
        return z_loss(*kernels.linear_cross_entropy(h.x, h.w, h.labels, bias=h.bias)).mean()

    return value_and_gradients(loss, head)


def z_loss_dense(head: Head) -> Any:
    """Return the mean with a z-loss of stored logits."""

    def loss(h: Head) -> jax.Array:
        z = h.x @ h.w
        nll = optax.softmax_cross_entropy_with_integer_labels(z, h.labels)
        return z_loss(nll, jax.nn.logsumexp(z, -1)).mean()

    return value_and_gradients(loss, head)


def tokamax(head: Head) -> Any:
    """Return the loss of another JAX library, a kernel for TPUs and chunks of XLA elsewhere."""
    from tokamax import linear_softmax_cross_entropy_loss as loss

    how = {} if jax.default_backend() == "tpu" else {"implementation": "chunked_xla"}
    return value_and_gradients(lambda h: loss(h.x, h.labels, h.w, reduction="mean", **how), head)


def jax_cce(head: Head) -> Any:
    """Return the loss of another JAX library, in blocks of classes, of transposed weights."""
    from jax_cce import linear_cross_entropy as loss

    return value_and_gradients(lambda h: loss(h.x, h.w.T, h.labels), head)


def products(head: Head) -> Any:
    """Multiply what any method with gradients must multiply, without a loss."""
    z = jax.lax.optimization_barrier(head.x @ head.w)
    return (z @ head.w.T, head.x.T @ z) if head.bias is None else head.x.T @ z


def one_product(head: Head) -> Any:
    """Multiply what the values alone need."""
    return head.x @ head.w


KERNEL = {"implementation": "mosaic_gpu"}
SMALL, LARGE = {"memory": 128 * MIB}, {"memory": 512 * MIB}
XLA = {"implementation": "xla_chunked"}
PRODUCTS = {"products": Program(products), "one product": Program(one_product, 1)}
# Of one loss for an example, in the order of the table; the first one is compared with the others.
ANYWHERE = {
    "sum": Program(partial(total, {})),
    "per example": Program(partial(per_example, {}), 4),
    "forward": Program(partial(forward, {}), 1),
    "reference": Program(partial(per_example, {"implementation": "reference"})),
    "optax": Program(dense),
}
OF_GPUS = {
    "sum": Program(partial(total, KERNEL | LARGE)),
    "sum, 128 MiB": Program(partial(total, KERNEL | SMALL)),
    "per example, 512 MiB": Program(partial(per_example, KERNEL | LARGE), 4),
    "per example": Program(partial(per_example, KERNEL | SMALL), 4),
    "forward": Program(partial(forward, KERNEL), 1),
}
SOFTMAX_OF_GPUS = OF_GPUS | {
    "optax": Program(dense),
    "optax, float32 logits": Program(partial(dense, dtype=jnp.float32)),
    "sum, xla": Program(partial(total, XLA | LARGE)),
    "per example, xla": Program(partial(per_example, XLA | SMALL), 4),
}
OF_MORE_ROWS = {name: OF_GPUS[name] for name in ("per example", "forward")}
OF_MORE_ROWS = {"sum": Program(partial(total, KERNEL))} | OF_MORE_ROWS | {"optax": Program(dense)}
FLOAT32 = Shape(8192, 768, 50_257, "float32")  # GPT-2's head
OF_FLOAT32 = {
    "sum": Program(partial(total, LARGE)),
    "forward": Program(partial(forward, {}), 1),
    "optax": Program(dense),
    "sum, xla": Program(partial(total, XLA | LARGE)),
}
OF_Z_LOSS = {
    "sum": Program(partial(total, {})),
    "sum, z-loss": Program(partial(total, {"row_loss": z_loss})),
    "per example, z-loss": Program(z_loss_per_example, 4),
    "optax": Program(dense),
    "optax, z-loss": Program(z_loss_dense),
}
OF_TPUS = ANYWHERE | {
    "sum, mosaic_tpu": Program(partial(total, {"implementation": "mosaic_tpu"})),
    "per example, mosaic_tpu": Program(partial(per_example, {"implementation": "mosaic_tpu"}), 4),
}
PEERS = {
    name: Program(run)
    for name, run in {"tokamax": tokamax, "jax_cce": jax_cce}.items()
    if importlib.util.find_spec(name)
}


# -- The sigmoid's --


def labels_total(options: dict[str, Any], head: Head) -> Any:
    """Return the weighted sum of the examples' losses, and its gradients."""

    def loss(h: Head) -> jax.Array:
        return kernels.linear_binary_cross_entropy_sum(h.x, h.w, h.labels, weights=h.nll, **options)

    return value_and_gradients(loss, head)


def labels_per_example(options: dict[str, Any], head: Head) -> Any:
    """Return each example's loss, and gradients with a random cotangent for each."""
    loss = partial(kernels.linear_binary_cross_entropy, **options)
    found, back = jax.vjp(lambda x, w: loss(x, w, head.labels), head.x, head.w)
    return found, back(head.nll)


def labels_forward(options: dict[str, Any], head: Head) -> Any:
    """Return the values alone."""
    return kernels.linear_binary_cross_entropy(head.x, head.w, head.labels, **options)


def labels_dense(head: Head) -> Any:
    """Return the loss as users write it without a library of heads."""

    def loss(h: Head) -> jax.Array:
        each = optax.sigmoid_binary_cross_entropy(h.x @ h.w, h.labels.astype(h.x.dtype))
        return jnp.vdot(h.nll, jnp.sum(each, 1, dtype=jnp.float32))

    return value_and_gradients(loss, head)


def sigmoid(options: dict[str, Any]) -> dict[str, Program]:
    """Return the sigmoid's programs with options of the implementation."""
    return {
        "sum": Program(partial(labels_total, options)),
        "per example": Program(partial(labels_per_example, options), 4),
        "forward": Program(partial(labels_forward, options), 1),
    }


SIGMOID = sigmoid({}) | {"optax": Program(labels_dense)}
SIGMOID_OF_GPUS = sigmoid(KERNEL) | {
    "optax": Program(labels_dense),
    "sum, xla": Program(partial(labels_total, XLA)),
    "per example, xla": Program(partial(labels_per_example, XLA), 4),
}
