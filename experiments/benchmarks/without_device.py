"""Programs compiled for a GPU that is only described: registers, shared memory, spills, bytes.

Of the functions beside cross-entropy, which XLA computes, the bytes that a program moves are
counted: each of its operations reads its operands from memory and writes its result.

It needs `jax[cuda13]`, in a separate environment. Without Triton's products, as a real device
multiplies.
"""

import json
import math
import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import compile_targets
import jax
import jax.numpy as jnp
import measure

import jaxsoftmax as js
from benchmarks import head_programs as heads
from benchmarks import rows
from benchmarks.head_programs import Head, Program
from benchmarks.heads import BARS, LABELS, LARGEST, MORE_ROWS
from jaxsoftmax import kernels
from jaxsoftmax.kernels.gpu.rows import implementation, plans

# Compared with dense logits: GPT-2's head, whose classes are padded, and a small one.
COMPARED = (LARGEST, heads.Shape(2048, 768, 50_257), heads.Shape(4096, 1024, 1000))
# Numbers of classes of the sum in XLA's operations, of which cuBLAS multiplies one as it lies.
OF_XLA = (heads.Shape(8192, 2304, 256_000), heads.Shape(8192, 2304, 256_001))
OF_XLA_LABELS = heads.Shape(8192, 768, 32_768)
# The default in float32: the row kernel between XLA's products, and XLA's form of more classes.
OF_FLOAT32 = (heads.FLOAT32, heads.Shape(2048, 4096, 128_256, "float32"))
# One shape for each plan of rows, aligned or not.
OF_ROWS = (
    rows.Shape(65_536, 1000),
    rows.Shape(16_385, 4097, "float32"),
    rows.Shape(8192, 32_768),
    rows.Shape(8191, 50_257),
    rows.Shape(8192, 131_072, "float16"),
    rows.Shape(4096, 262_144),
)


def compile_for(name: str, parts: list[str], *, as_json: bool) -> None:
    """Print the resources of the programs of heads, rows and siblings."""
    jax.config.update("jax_platforms", "cpu")
    found: dict[str, Any] = {}
    siblings = programs_of_siblings if as_json else programs_of_every_sibling
    every = {"heads": programs_of_heads, "rows": programs_of_rows, "siblings": siblings}
    for part, programs in every.items():
        if part in parts:
            for title, entry in programs(name):
                found[title] = entry
                if not as_json:
                    print(f"{name} {title:40} {entry}", flush=True)
    if as_json:
        print(json.dumps({name: found}))


def resources(name: str, program: Callable, types: Any, **how: Any) -> dict[str, Any]:
    """Return a program's temporary bytes, the kernels of heads it calls, and the resources of all.

    Those of a kernel that this process has compiled before are not known again.
    """
    built, kernels = compiled_for(name, program, types, **how)
    calls = sorted(set(re.findall(r"/(linear_\w+)/mpmd_map", built.as_text())))
    return {"temporary_bytes": measure.temporary_bytes(built), "kernels": kernels, "calls": calls}


def compiled_for(name: str, program: Callable, types: Any, **how: Any) -> tuple[Any, Any]:
    """Return a program compiled for a target, and the resources of its kernels."""
    device = compile_targets.device_of(name)
    place = jax.sharding.SingleDeviceSharding(device)
    types = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), types)
    with compile_targets.traced_for(name, device), compile_targets.dumped() as folder:
        built = jax.jit(program, **how).lower(*types)
        built = built.compile(compiler_options=compile_targets.GPU_OPTIONS)
        return built, compile_targets.kernels(folder)


# -- Heads --


def programs_of_heads(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each program of a head, with the bar of its megabytes."""
    for title, (program, make, shape) in HEADS.items():
        types = jax.eval_shape(partial(make, shape))
        kind = "sigmoid" if make is heads.data_of_labels else "softmax"
        bars = BARS.get((kind, shape), {})
        _, bar = bars.get(re.sub("^(labels|more rows|row loss), ", "", title), (None, None))
        yield title, resources(name, program.run, (types,)) | {"limit": bar}


def with_everything(head: Head) -> Any:
    """Return the losses with statistics, softcap, bias and mask, the most work at a tile's end."""
    options = {
        "bias": head.nll.sum() * jnp.ones(head.w.shape[1]),
        "where": head.labels.sum() > jnp.arange(head.w.shape[1]),
    }
    return kernels.linear_cross_entropy_stats(
        head.x, head.w, head.labels, softcap=30.0, **heads.KERNEL, **options
    )


def smoothed_total(head: Head, **options: Any) -> Any:
    """Return the mean with label smoothing and a z-loss."""

    def row_loss(nll: jax.Array, lse: jax.Array, mean_logit: jax.Array) -> jax.Array:
        return heads.z_loss(nll, lse) + 0.1 * (lse - mean_logit - nll)

    return heads.total(heads.KERNEL | heads.LARGE | {"row_loss": row_loss} | options, head)


def labels_with_everything(head: Head) -> Any:
    """Return the losses with softcap, bias, mask and weights of the positives."""
    ones = jnp.ones(head.w.shape[1])
    options = {"softcap": 30.0, "where": head.labels.any(0), "pos_weight": head.nll.max() * ones}
    return heads.labels_total(heads.KERNEL | options | {"bias": head.nll.sum() * ones}, head)


def alone(head: Head) -> Any:
    """Return the values of rows that fill one tile, which shares no tiles of w with another."""
    return heads.forward(heads.KERNEL, head._replace(x=head.x[:128], labels=head.labels[:128]))


HEADS: dict[str, tuple[Program, Callable[..., Any], heads.Shape]] = {
    **{name: (program, heads.data, LARGEST) for name, program in heads.OF_GPUS.items()},
    "row loss, sum": (Program(smoothed_total), heads.data, LARGEST),
    "row loss, capped": (Program(partial(smoothed_total, softcap=30.0)), heads.data, LARGEST),
    "more rows, sum": (heads.OF_MORE_ROWS["sum"], heads.data, MORE_ROWS),
    "more rows, per example": (heads.OF_MORE_ROWS["per example"], heads.data, MORE_ROWS),
    "everything": (Program(with_everything), heads.data, LARGEST),
    "forward, a core alone": (Program(alone), heads.data, LARGEST),
    **{
        f"labels, {name}": (program, heads.data_of_labels, LABELS)
        for name, program in heads.sigmoid(heads.KERNEL).items()
    },
    "labels by XLA": (
        Program(partial(heads.labels_total, heads.XLA)),
        heads.data_of_labels,
        OF_XLA_LABELS,
    ),
    "labels, everything": (Program(labels_with_everything), heads.data_of_labels, LABELS),
    **{f"default, {s}": (Program(partial(heads.total, {})), heads.data, s) for s in COMPARED},
    **{f"xla, {s}": (Program(partial(heads.total, heads.XLA)), heads.data, s) for s in OF_XLA},
    **{
        f"float32, {s}": (Program(partial(heads.total, heads.LARGE)), heads.data, s)
        for s in OF_FLOAT32
    },
    "values of float32": (Program(partial(heads.forward, {})), heads.data, heads.FLOAT32),
    **{f"dense, {s}": (Program(heads.dense), heads.data, s) for s in COMPARED},
}


# -- Rows --


def programs_of_rows(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the kernels of each plan, as programs of logits, labels and cotangents."""
    for shape in OF_ROWS:
        size = jnp.dtype(shape.dtype).itemsize
        plan = plans.plan(shape.k, size, plans.choose(shape.k, size))
        for title, (program, donated) in kernels_of(plan).items():
            types = jax.eval_shape(partial(rows.data, shape))
            found = resources(name, program, types, donate_argnums=donated)
            yield f"{shape}, {title}", found


def kernels_of(plan: plans.Plan) -> dict[str, tuple[Callable[..., Any], tuple[int, ...]]]:
    """Return the kernels of a plan, and which of their arguments are donated."""
    options = {"plan": plan, "cores": 132, "interpret": False}
    both = partial(implementation.losses_and_gradient, **options)
    return {
        "losses": (lambda z, labels, _: implementation.losses(z, labels, **options), ()),
        "in place": (partial(both, in_place=True), (0,)),
    }


# -- Siblings --


class Sibling(NamedTuple):
    """A function of logits and targets, and the fewest bytes of bfloat16 it moves for a logit.

    A pass reads the logits for the maximum, one for the sums, and one for a result.
    """

    function: Callable[..., Any]
    least: int  # of values and gradients
    least_of_values: int
    takes_labels: bool = False


def alone_of(link: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of logits with an argument that it ignores."""
    return lambda z, _: link(z)


def focal_loss(z: Any, t: Any) -> Any:
    """Return the focal loss of labels."""
    return js.focal(js.binary_cross_entropy(z, t), gamma=2.0)


SIBLINGS: dict[str, Sibling] = {
    "logsumexp": Sibling(alone_of(js.logsumexp), 8, 4),
    "soft_cross_entropy": Sibling(js.soft_cross_entropy, 12, 6),
    "kl_divergence": Sibling(js.kl_divergence, 12, 6),
    "softmax": Sibling(alone_of(js.softmax), 14, 8),
    "log_softmax": Sibling(alone_of(js.log_softmax), 14, 8),
    "entropy": Sibling(alone_of(js.entropy), 8, 4),
    "brier": Sibling(js.brier, 8, 4, takes_labels=True),
    # Its cotangents are the logits, which are read anyway.
    "cross_entropy_gradient": Sibling(js.cross_entropy_gradient, 10, 8, takes_labels=True),
    "binary_cross_entropy": Sibling(js.binary_cross_entropy, 10, 8),
    "kl_divergence of logarithms": Sibling(partial(js.kl_divergence, log_targets=True), 12, 6),
    "smoothed_cross_entropy": Sibling(
        partial(js.smoothed_cross_entropy, smoothing=0.1), 8, 4, takes_labels=True
    ),
    "multiclass_hinge": Sibling(js.multiclass_hinge, 6, 2, takes_labels=True),
}
# Printed beside them.
OTHERS: dict[str, Sibling] = {
    "cross_entropy": Sibling(js.cross_entropy, 6, 2, takes_labels=True),
    "squared_error": Sibling(js.squared_error, 6, 4),
    "focal": Sibling(focal_loss, 10, 8),
    "hinge": Sibling(js.hinge, 10, 8),
    "sigmoid": Sibling(alone_of(js.sigmoid), 8, 4),
    "log_sigmoid": Sibling(alone_of(js.log_sigmoid), 8, 4),
    "softplus": Sibling(alone_of(js.softplus), 8, 4),
}
IGNORED = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}
OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", re.MULTILINE)
ITEM_BYTES = {"bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}  # and 4 of all others


def programs_of_siblings(
    name: str, siblings: dict[str, Sibling] = SIBLINGS
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the functions, each with its derivative, and the bytes that they move for a logit."""
    shape = rows.SIBLINGS["gpu"]
    z = jax.ShapeDtypeStruct((shape.n, shape.k), shape.dtype)
    labels = jax.ShapeDtypeStruct((shape.n,), jnp.int32)
    for title, sibling in siblings.items():
        types = z, labels if sibling.takes_labels else z
        built, _ = compiled_for(name, partial(with_derivative, sibling.function), types)
        entry = {
            "temporary_bytes": measure.temporary_bytes(built),
            "bytes_per_logit": moved_bytes(built.as_text()) / (shape.n * shape.k),
            "least": sibling.least,
        }
        yield title, entry


def programs_of_every_sibling(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield all links and losses along rows, with the bytes of their values as well."""
    shape = rows.SIBLINGS["gpu"]
    z = jax.ShapeDtypeStruct((shape.n, shape.k), shape.dtype)
    labels = jax.ShapeDtypeStruct((shape.n,), jnp.int32)
    every = SIBLINGS | OTHERS
    for title, entry in programs_of_siblings(name, every):
        sibling = every[title]
        types = z, labels if sibling.takes_labels else z
        built, _ = compiled_for(name, sibling.function, types)
        moved = moved_bytes(built.as_text()) / (shape.n * shape.k)
        yield title, entry | {"of_values": moved, "least_of_values": sibling.least_of_values}


def with_derivative(function: Callable[..., Any], z: Any, t: Any) -> Any:
    """Return values, and the gradient in the logits with a cotangent for each value."""
    found, back = jax.vjp(lambda z: function(z, t), z)
    if found.ndim < z.ndim:
        cotangents = jnp.cos(jnp.arange(len(z), dtype=jnp.float32))
    else:
        cotangents = t if t.ndim == z.ndim else z
    return found, back(cotangents.astype(found.dtype))


def moved_bytes(text: str) -> int:
    """Return the bytes that the operations of a compiled program read and write."""
    entry = text[text.index("\nENTRY") :]
    sizes: dict[str, int] = {}
    total = 0
    for name, types, operation, rest in OPERATION.findall(entry[: entry.index("\n}")]):
        sizes[name] = type_bytes(types)
        if operation not in IGNORED:
            # XLA numbers the operands of a long list in comments.
            operands_text = re.sub(r"/\*.*?\*/", "", rest).split("), ")[0]
            names = re.findall(r"%?([\w.-]+)", operands_text)
            called = re.search(r"calls=%([\w.-]+)", rest)
            gathered = gathered_from(text, called[1]) if called else set()
            operands = dict.fromkeys(a for i, a in enumerate(names) if i not in gathered)
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def gathered_from(text: str, name: str) -> set[int]:
    """Return the parameters of a fusion of which it reads no more than an entry of each row."""
    body = text[text.index(f"\n%{name} (") :]
    body = body[: body.index("\n}")]
    parameters = {p: int(i) for p, i in re.findall(r"%?([\w.-]+) = \S+ parameter\((\d+)\)", body)}

    def is_gathered(operand: str) -> bool:
        pattern = rf"%([\w.-]+) = \S+ ([\w-]+)\([^)]*%{re.escape(operand)}[,)]"
        users = re.findall(pattern, body)
        return bool(users) and all(
            operation == "gather" or (operation == "convert" and is_gathered(user))
            for user, operation in users
        )

    return {number for parameter, number in parameters.items() if is_gathered(parameter)}


def type_bytes(types: str) -> int:
    """Return the bytes of arrays, from a type as XLA writes it."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(
        ITEM_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in arrays
    )
