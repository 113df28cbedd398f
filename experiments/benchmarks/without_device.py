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
from typing import Any

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
    every = {"heads": programs_of_heads, "rows": programs_of_rows, "siblings": programs_of_siblings}
    for part, programs in every.items():
        if part in parts:
            for title, entry in programs(name):
                found[title] = entry
                if not as_json:
                    print(f"{name} {title:40} {entry}", flush=True)
    if as_json:
        print(json.dumps({name: found}))


def resources(name: str, program: Callable, types: Any, **how: Any) -> dict[str, Any]:
    """Return the temporary bytes of a program and the resources of its kernels."""
    built, kernels = compiled_for(name, program, types, **how)
    return {"temporary_bytes": measure.temporary_bytes(built), "kernels": kernels}


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
        _, bar = bars.get(title.removeprefix("labels, ").removeprefix("more rows, "), (None, None))
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
    "more rows, sum": (heads.OF_MORE_ROWS["sum"], heads.data, MORE_ROWS),
    "more rows, per example": (heads.OF_MORE_ROWS["per example"], heads.data, MORE_ROWS),
    "everything": (Program(with_everything), heads.data, LARGEST),
    "forward, a core alone": (Program(alone), heads.data, LARGEST),
    **{
        f"labels, {name}": (program, heads.data_of_labels, LABELS)
        for name, program in heads.sigmoid(heads.KERNEL).items()
    },
    "labels, everything": (Program(labels_with_everything), heads.data_of_labels, LABELS),
    **{f"default, {s}": (Program(partial(heads.total, {})), heads.data, s) for s in COMPARED},
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

SIBLINGS: dict[str, Callable[..., Any]] = {
    "logsumexp": lambda z, t: js.logsumexp(z),
    "soft_cross_entropy": js.soft_cross_entropy,
    "kl_divergence": js.kl_divergence,
    "softmax": lambda z, t: js.softmax(z),
    "log_softmax": lambda z, t: js.log_softmax(z),
    "binary_cross_entropy": js.binary_cross_entropy,
}
IGNORED = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant"}
OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\((.*)", re.MULTILINE)
ITEM_BYTES = {"bf16": 2, "f16": 2, "pred": 1, "s8": 1, "u8": 1}  # and 4 of all others


def programs_of_siblings(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the functions, each with its derivative, and the bytes that they move for a logit."""
    shape = rows.SIBLINGS["gpu"]
    type_ = jax.ShapeDtypeStruct((shape.n, shape.k), shape.dtype)
    for title, function in SIBLINGS.items():
        built, _ = compiled_for(name, partial(with_derivative, function), (type_, type_))
        yield (
            title,
            {
                "temporary_bytes": measure.temporary_bytes(built),
                "bytes_per_logit": moved_bytes(built.as_text()) / (shape.n * shape.k),
            },
        )


def with_derivative(function: Callable[..., Any], z: Any, t: Any) -> Any:
    """Return values, and the gradient in the logits with a cotangent for each value."""
    found, back = jax.vjp(lambda z: function(z, t), z)
    cotangents = t if found.ndim == z.ndim else jnp.cos(jnp.arange(len(z), dtype=jnp.float32))
    return found, back(cotangents.astype(found.dtype))


def moved_bytes(text: str) -> int:
    """Return the bytes that the operations of a compiled program read and write."""
    entry = text[text.index("\nENTRY") :]
    sizes: dict[str, int] = {}
    total = 0
    for name, types, operation, rest in OPERATION.findall(entry[: entry.index("\n}")]):
        sizes[name] = type_bytes(types)
        if operation not in IGNORED:
            operands = dict.fromkeys(re.findall(r"%?([\w.-]+)", rest.split("), ")[0]))
            total += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
    return total


def type_bytes(types: str) -> int:
    """Return the bytes of arrays, from a type as XLA writes it."""
    arrays = re.findall(r"(\w+)\[([\d,]*)\]", types)
    return sum(
        ITEM_BYTES.get(dtype, 4) * math.prod(map(int, filter(None, sizes.split(","))))
        for dtype, sizes in arrays
    )
