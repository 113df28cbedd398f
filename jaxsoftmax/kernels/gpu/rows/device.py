"""The arithmetic of the row kernels in PTX, for Mosaic GPU.

A thread has 16 bytes of each 2,048 that its warpgroup treats, in every loop the same ones, so that
it reads what it wrote itself. Entries stay packed, two of half precision in a register, until they
are needed. Sums are taken by pairs, so that no chain of additions is long.

Functions without a leading underscore are called from a kernel's body; `interpreted` has the same
ones. All others build instructions from scalars of MLIR.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic.gpu import FragmentedArray, utils
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels.gpu.rows.numerics import (
    FAR,
    LOG2E,
    LOG2E_LOW,
    REACH,
    ROUNDING,
    SCALE_EXPONENT,
    THREADS,
    Scale,
    State,
)
from jaxsoftmax.kernels.gpu.rows.plans import VECTOR_BYTES, WARPS

arith, ir, llvm, memref, vector = utils.arith, utils.ir, utils.llvm, utils.memref, utils.vector

SCALAR = gpu.Layout.WG_SPLAT(())
PER_THREAD = gpu.Layout.WG_STRIDED((THREADS,), vec_size=1)
WARP_THREADS = 32

type Op = Callable[[Any, Any], Any]


def _literal(x: float | np.floating) -> str:
    """Return a float32 as PTX writes it."""
    return f"0f{np.float32(x).view(np.uint32):08X}"


# $0 = exp(x) 2^(64 - n), from x, magic = ROUNDING + 64 - n and the floor.
EXP = (
    "{ .reg .f32 z, x, n, f; .reg .b32 k, p; max.f32 z, $1, $3; "
    f"fma.rn.f32 x, z, {_literal(LOG2E)}, $2; sub.rn.f32 n, $2, x; "
    f"fma.rn.f32 f, z, {_literal(LOG2E)}, n; fma.rn.f32 f, z, {_literal(LOG2E_LOW)}, f; "
    "ex2.approx.ftz.f32 f, f; "
    "mov.b32 k, x; shl.b32 k, k, 23; mov.b32 p, f; add.s32 k, k, p; mov.b32 $0, k; }"
)
# $0 = x - maximum, and 0 where they are equal, finite or not.
BELOW = (
    "{ .reg .pred p; .reg .f32 d; setp.ge.f32 p, $1, $2; sub.rn.f32 d, $1, $2; "
    f"selp.f32 $0, {_literal(0)}, d, p; }}"
)
# $0 = n = round(maximum log2 e), with maxima of at least -FAR.
EXPONENT = (
    f"{{ .reg .f32 x; max.f32 x, $1, {_literal(-FAR)}; "
    f"fma.rn.f32 x, x, {_literal(LOG2E)}, {_literal(ROUNDING)}; "
    f"sub.rn.f32 $0, x, {_literal(ROUNDING)}; }}"
)
# $0 = 2^n for an integer n <= 0, and 0 below the smallest normal number.
POWER = (
    f"{{ .reg .f32 x; .reg .b32 k; max.NaN.f32 x, $1, {_literal(-127)}; "
    f"add.rn.f32 x, x, {_literal(ROUNDING + 127)}; "
    "mov.b32 k, x; shl.b32 k, k, 23; mov.b32 $0, k; }"
)


# -- Functions that a kernel's body calls --


def accumulate(entries: Any, state: State) -> State:
    """Return the state with the entries of a reference."""
    layouts = State(PER_THREAD, PER_THREAD)

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), layouts), return_type=State(*[_per_thread()] * 2))
    def inline(_: Any, entries: Any, state: State) -> State:
        before, total = (_numbers(a)[0] for a in state)
        registers = list(_load(entries))
        maximum = _max(before, _largest(registers))
        n = _asm(EXPONENT, maximum)
        bounded = _asm(f"max.f32 $0, $1, {_literal(-FAR)};", maximum)
        magic = arith.subf(_constant(ROUNDING + SCALE_EXPONENT), n)
        scale = Scale(magic, arith.subf(bounded, _constant(REACH)))
        kept = arith.mulf(total, _asm(POWER, arith.subf(_asm(EXPONENT, before), n)))
        return State(_spread(maximum), _spread(arith.addf(kept, _sum(registers, scale))))

    return inline(entries, state)


def add_exponentials(entries: Any, total: Any, scale: Scale) -> Any:
    """Return the sums of the threads with the exponentials of the entries of a reference."""
    layouts = Scale(*[SCALAR] * 3)

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), PER_THREAD, layouts), return_type=_per_thread())
    def inline(_: Any, entries: Any, total: Any, scale: Scale) -> Any:
        scale = Scale(*(_scalar(a) for a in scale))
        return _spread(arith.addf(_numbers(total)[0], _sum(list(_load(entries)), scale)))

    return inline(entries, total, scale)


def publish(state: State, place: Any, peers: int) -> None:
    """Write the maximum and the sum of each warp to `[4, 2]`.

    With peers, they are written to the same place in every block of the cluster.
    """

    @gpu.inline_mgpu(arg_types=(State(PER_THREAD, PER_THREAD), gpu.RefType()))
    def inline(_: Any, state: State, place: Any) -> None:
        maximum, total = (_numbers(a)[0] for a in state)
        largest = _reduce_warp(maximum, _max)
        shift = arith.subf(_asm(EXPONENT, maximum), _asm(EXPONENT, largest))
        both = largest, _reduce_warp(arith.mulf(total, _asm(POWER, shift)), arith.addf)
        thread = utils.thread_idx()
        lane = arith.remui(thread, _int(WARP_THREADS))
        warp = arith.remui(arith.divui(thread, _int(WARP_THREADS)), _int(WARPS))
        with utils.when(arith.cmpi(arith.CmpIPredicate.ult, lane, _int(max(peers, 1)))):
            (_store_to_peer if peers else _store_here)(place, warp, lane, both)

    inline(state, place)


def collect(place: Any, own: Any) -> tuple[Any, Any, Any]:
    """Return the maximum of what all warps found and of `own`, its n, and the sum relative to n."""
    count = place.shape[0]

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), SCALAR), return_type=(_scalar_type(),) * 3)
    def inline(_: Any, place: Any, own: Any) -> tuple[Any, ...]:
        lane = arith.remui(utils.thread_idx(), _int(WARP_THREADS))
        found = [_read_found(place, lane, start) for start in range(0, count, WARP_THREADS)]
        maximum = _tree(_max, [maximum for maximum, _ in found])
        maximum = _max(_reduce_warp(maximum, _max), _scalar(own))
        n = _asm(EXPONENT, maximum)
        terms = [arith.mulf(s, _asm(POWER, arith.subf(_asm(EXPONENT, m), n))) for m, s in found]
        total = _reduce_warp(_tree(arith.addf, terms), arith.addf)
        return tuple(FragmentedArray.splat(a, (), is_signed=None) for a in (maximum, n, total))

    return inline(place, own)


def exponential(z: Any, scale: Scale) -> Any:
    """Return the exponential of a scalar, exp(z) 2^(64 - n)."""

    @gpu.inline_mgpu(arg_types=(SCALAR,) * 3, return_type=_scalar_type())
    def inline(_: Any, *arguments: Any) -> Any:
        return FragmentedArray.splat(_asm(EXP, *map(_scalar, arguments)), (), is_signed=None)

    return inline(z, scale.magic, scale.floor)


def replace_by_gradient(entries: Any, scale: Scale, factor: Any) -> None:
    """Replace the entries of a reference by factor exp(z - offset) 2^(64 - n)."""
    vec_size = VECTOR_BYTES // entries.dtype.itemsize
    layout = gpu.Layout.WG_STRIDED(entries.shape, vec_size=vec_size)
    scalars = [a for a in (*scale, factor) if a is not None]

    @gpu.inline_mgpu(
        arg_types=(layout, *(SCALAR,) * len(scalars)),
        return_type=gpu.ShapeDtypeStruct(entries.shape, entries.dtype, layout=layout),
    )
    def inline(_: Any, z: Any, *scalars: Any) -> Any:
        *scale, factor = map(_scalar, scalars)
        found = np.empty_like(z.registers)
        for place, register in np.ndenumerate(z.registers):
            terms = [arith.mulf(e, factor) for e in _exponentials(register, Scale(*scale))]
            found[place] = _packed(terms, ir.VectorType(register.type))
        return FragmentedArray(_registers=found, _layout=z.layout, _is_signed=None)

    entries[...] = inline(gpu.load(entries, layout=layout), *scalars)


def copy_entries(
    chunk: Any, out: Any, base: Any, start: int, count: int, low: Any, high: Any, offset: int
) -> None:
    """Set out[base + c] = chunk[c - offset] for c from start, where low <= c < high."""

    @gpu.inline_mgpu(arg_types=(gpu.RefType(), gpu.RefType(), SCALAR, SCALAR, SCALAR))
    def inline(_: Any, chunk: Any, out: Any, *bounds: Any) -> None:
        base, low, high = map(_scalar, bounds)
        thread = arith.remui(utils.thread_idx(), _int(THREADS))
        c, is_less = arith.addi(thread, _int(start)), arith.CmpIPredicate.slt
        is_inside = arith.andi(
            arith.cmpi(is_less, thread, _int(count)),
            arith.andi(arith.cmpi(is_less, c, high), arith.cmpi(arith.CmpIPredicate.sle, low, c)),
        )
        with utils.when(is_inside):
            entry = memref.load(chunk, [_index(arith.subi(c, _int(offset)))])
            memref.store(entry, out, [_index(arith.addi(base, c))])

    inline(chunk, out, *(jnp.asarray(a, jnp.int32) for a in (base, low, high)))


def fence() -> None:
    """Order what blocks of a cluster wrote for each other, before and after."""

    @gpu.inline_mgpu()
    def inline(_: Any) -> None:
        _effect("fence.acq_rel.cluster;", [], "")

    inline()


# -- Loads and stores --


def _load(entries: Any) -> Iterator[Any]:
    """Yield the vectors that a thread has of a reference to shared memory, as they are loaded.

    The instruction is written out, because LLVM was seen to load a vector entry by entry.
    """
    kind, i32 = ir.MemRefType(entries.type), _i32()
    width = utils.bitwidth(kind.element_type) // 8
    thread = arith.remui(utils.thread_idx(), _int(THREADS))
    start = llvm.ptrtoint(i32, utils.memref_ptr(entries))
    start = arith.addi(start, arith.muli(thread, _int(VECTOR_BYTES)))
    four = llvm.StructType.get_literal([i32] * 4)
    for offset in range(0, math.prod(kind.shape) * width, VECTOR_BYTES * THREADS):
        text = f"ld.shared.v4.b32 {{$0, $1, $2, $3}}, [$4+{offset}];"
        constraints = "=r,=r,=r,=r,r,~{memory}"
        loaded = llvm.inline_asm(four, [start], text, constraints, has_side_effects=True)
        words = [llvm.extractvalue(i32, loaded, ir.DenseI64ArrayAttr.get([i])) for i in range(4)]
        register = ir.VectorType.get((VECTOR_BYTES // width,), kind.element_type)
        yield vector.bitcast(register, _vector(words, i32))


def _read_found(place: Any, lane: Any, start: int) -> tuple[Any, Any]:
    """Return what one warp found, a warp for each lane; lanes beyond the last add nothing."""
    count = ir.MemRefType(place.type).shape[0]
    warp = arith.addi(lane, _int(start))
    row = _index(arith.minui(warp, _int(count - 1)))
    maximum, total = (memref.load(place, [row, utils.c(i, ir.IndexType.get())]) for i in (0, 1))
    exists = arith.cmpi(arith.CmpIPredicate.ult, warp, _int(count))
    return maximum, arith.select(exists, total, _constant(0))


def _store_here(place: Any, warp: Any, lane: Any, values: Sequence[Any]) -> None:
    del lane
    for i, value in enumerate(values):
        memref.store(value, place, [_index(warp), utils.c(i, ir.IndexType.get())])


def _store_to_peer(place: Any, warp: Any, lane: Any, values: Sequence[Any]) -> None:
    """Lane l writes to block l of the cluster."""
    address = llvm.ptrtoint(_i32(), utils.memref_ptr(place))
    address = arith.addi(address, arith.muli(warp, _int(8)))
    text = (
        "{ .reg .b32 r; mapa.shared::cluster.u32 r, $0, $1; "
        "st.shared::cluster.v2.f32 [r], {$2, $3}; }"
    )
    _effect(text, [address, lane, *values], "r,r,f,f,")


# -- Numbers --


def _sum(registers: Sequence[Any], scale: Scale) -> Any:
    """Return the sum of the exponentials of a thread's registers, by pairs."""
    stack: list[tuple[int, Any]] = []
    for register in registers:
        level, total = 0, _tree(arith.addf, _exponentials(register, scale))
        while stack and stack[-1][0] == level:
            level, total = level + 1, arith.addf(stack.pop()[1], total)
        stack.append((level, total))
    return _tree(arith.addf, [total for _, total in reversed(stack)])


def _exponentials(register: Any, scale: Scale) -> list[Any]:
    """Return exp(z - offset) 2^(64 - n) of the entries of a register."""
    found = []
    for entry in _entries(register):
        z = entry()
        if scale.maximum is not None:
            z = _asm(BELOW, z, scale.maximum)
        found.append(_asm(EXP, z, scale.magic, scale.floor))
    return found


def _entries(register: Any) -> list[Callable[[], Any]]:
    """Return functions that give each entry of a register in float32, where it is needed."""
    kind = ir.VectorType(register.type)
    half = _half(kind)
    if half is None:
        return [partial(_extract, register, i) for i in range(kind.shape[0])]
    pairs = _pairs(register)
    return [partial(_widen, pair, half, high) for pair in pairs for high in (False, True)]


def _largest(registers: Sequence[Any]) -> Any:
    """Return the largest entry in float32; of half precision two at a time are compared."""
    half = _half(ir.VectorType(registers[0].type))
    if half is None:
        return _tree(_max, [_tree(_max, [e() for e in _entries(r)]) for r in registers])
    larger = partial(_max_of_pairs, half)
    pair = _tree(larger, [_tree(larger, _pairs(r)) for r in registers])
    return _max(_widen(pair, half, False), _widen(pair, half, True))


def _half(kind: Any) -> str | None:
    """Return the name of a half-precision format in PTX, or None for float32."""
    names = {ir.BF16Type.get(): "bf16", ir.F16Type.get(): "f16"}
    return names.get(kind.element_type)


def _pairs(register: Any) -> list[Any]:
    count = ir.VectorType(register.type).shape[0] // 2
    pairs = vector.bitcast(ir.VectorType.get((count,), _i32()), register)
    return [_extract(pairs, i) for i in range(count)]


def _widen(pair: Any, half: str, high: bool) -> Any:
    if half == "bf16":
        text = "and.b32 $0, $1, 0xffff0000;" if high else "shl.b32 $0, $1, 16;"
    else:
        part = "h" if high else "l"
        text = f"{{ .reg .b16 l, h; mov.b32 {{l, h}}, $1; cvt.f32.f16 $0, {part}; }}"
    return llvm.inline_asm(ir.F32Type.get(), [pair], text, "=f,r")


def _max_of_pairs(half: str, a: Any, b: Any) -> Any:
    return llvm.inline_asm(_i32(), [a, b], f"max.NaN.{half}x2 $0, $1, $2;", "=r,r,r")


def _packed(terms: list[Any], kind: Any) -> Any:
    """Return float32 numbers as a register of this type."""
    half = _half(kind)
    if half is None:
        return _vector(terms, ir.F32Type.get())
    text = f"cvt.rn.{half}x2.f32 $0, $2, $1;"
    pairs = [
        llvm.inline_asm(_i32(), pair, text, "=r,f,f")
        for pair in zip(terms[::2], terms[1::2], strict=True)
    ]
    return vector.bitcast(kind, _vector(pairs, _i32()))


def _max(a: Any, b: Any) -> Any:
    return _asm("max.NaN.f32 $0, $1, $2;", a, b)


def _reduce_warp(x: Any, op: Op) -> Any:
    for distance in (16, 8, 4, 2, 1):
        x = op(x, utils.shfl_bfly(x, distance))
    return x


def _tree(op: Op, items: list[Any]) -> Any:
    """Return the reduction of the items by pairs."""
    while len(items) > 1:
        last = items[-1:] if len(items) % 2 else []
        items = [op(a, b) for a, b in zip(items[::2], items[1::2], strict=False)] + last
    return items[0]


# -- MLIR --


def _asm(text: str, *arguments: Any) -> Any:
    """Return the result of PTX on float32 scalars."""
    constraints = "=f" + ",f" * len(arguments)
    return llvm.inline_asm(ir.F32Type.get(), list(arguments), text, constraints)


def _effect(text: str, arguments: Sequence[Any], constraints: str) -> None:
    void = ir.Type.parse("!llvm.void")
    constraints += "~{memory}"
    llvm.inline_asm(void, list(arguments), text, constraints, has_side_effects=True)


def _i32() -> Any:
    return ir.IntegerType.get_signless(32)


def _int(value: int) -> Any:
    return utils.c(value, _i32())


def _constant(value: float | np.floating) -> Any:
    return utils.c(float(value), ir.F32Type.get())


def _index(value: Any) -> Any:
    return arith.index_cast(ir.IndexType.get(), value)


def _scalar(array: Any) -> Any:
    return array.registers.item()


def _numbers(array: Any) -> list[Any]:
    """Return the numbers that a thread has of an array."""
    return [
        _extract(register, i)
        for register in array.registers.flat
        for i in range(ir.VectorType(register.type).shape[0])
    ]


def _spread(x: Any) -> Any:
    """Return an array with one number for each thread."""
    register = vector.broadcast(ir.VectorType.get((1,), ir.F32Type.get()), x)
    registers = np.array([register], dtype=object)
    return FragmentedArray(_registers=registers, _layout=PER_THREAD.to_mgpu(), _is_signed=None)


def _per_thread() -> Any:
    return gpu.ShapeDtypeStruct((THREADS,), np.dtype(np.float32), layout=PER_THREAD)


def _scalar_type() -> Any:
    return gpu.ShapeDtypeStruct((), np.dtype(np.float32), layout=SCALAR)


def _extract(values: Any, i: int) -> Any:
    position = ir.DenseI64ArrayAttr.get([i])
    return vector.extract(values, dynamic_position=[], static_position=position)


def _vector(numbers: Sequence[Any], kind: Any) -> Any:
    result = llvm.mlir_undef(ir.VectorType.get((len(numbers),), kind))
    for i, number in enumerate(numbers):
        position = ir.DenseI64ArrayAttr.get([i])
        result = vector.insert(number, result, dynamic_position=[], static_position=position)
    return result
