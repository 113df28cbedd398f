"""The row kernels' body: what each warpgroup does with its rings of chunks.

Each warpgroup has a ring of slots in shared memory, and treats a part of each row of its group:

    load     bulk copies fill the slots with the next chunks, as many as there are slots
    reduce   the maximum of a chunk and the sum of its exponentials, label excluded, are taken from
             its slot; the group's warps then exchange what they found of a row
    write    the gradient takes the place of the logits in the slot, from where a bulk copy stores
             it; the slot is free for the load of a later chunk

So an entry is read once and written once, and is in registers only briefly. Where `overlaps` is
set, a row is reduced before the gradient of the row before it is written, so that no warpgroup
waits for what the others find.

The label's logit is read from global memory, ahead of time, and its entry is excluded by writing
-inf into the slot: the sum of the others is never the difference of two sums.

Bulk copies are of whole vectors of 16 bytes. Where rows are not, the window of a row begins in the
row before it and ends in the one after. These entries are excluded as well, and the gradient's
first and last entries are stored one by one. The window of the last row may end up to 14 bytes
beyond the array, but never beyond the 16 bytes in which the array ends.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as gpu

from jaxsoftmax.kernels.gpu.rows import device, interpreted
from jaxsoftmax.kernels.gpu.rows.numerics import (
    FAR,
    REACH,
    ROUNDING,
    SCALE_EXPONENT,
    THREADS,
    Scale,
    State,
    far_scale,
)
from jaxsoftmax.kernels.gpu.rows.plans import (
    BLOCK,
    FAR_PLACES,
    WARPS,
    Plan,
)

# Labels with another meaning than a class; MASKED - y stands for a label y that a mask excludes.
UNDEFINED, IGNORED, MASKED = -1, -2, -3
TURNS = 2  # barriers of a group: one for every other row


class Kernel(NamedTuple):
    """The static settings of a kernel."""

    rows: int
    plan: Plan
    writes_gradient: bool
    interpret: bool
    writes_maximum: bool = False

    @property
    def columns(self) -> int:
        """Return how many numbers of a row the kernel writes."""
        return 2 + self.writes_maximum

    @property
    def exchanges_in_memory(self) -> bool:
        """Return whether blocks exchange what they found through global memory.

        The interpreter has no shared memory of another block.
        """
        return self.interpret and self.plan.tuning.cluster > 1

    @property
    def ops(self) -> ModuleType:
        """Return the module with the arithmetic."""
        return interpreted if self.interpret else device


class Refs(NamedTuple):
    """The references of a kernel; logits and gradient are one vector where rows are unaligned."""

    logits: Any  # [N, K] or [N K]
    labels: Any  # [N]: a class, UNDEFINED, IGNORED, or at most MASKED
    cotangents: Any  # [N]
    gradient: Any  # like the logits, and possibly the same memory
    losses: Any  # [N, 2 or 3]: the loss is log1p(excess) + gap, and lse log1p(excess) + maximum
    exchange: Any  # [2 N, warps, 2]
    ring: Any  # [warpgroups, slots, entries]
    full: Any  # barriers of the slots: the chunk is there
    turn: Any  # barriers of the groups: all have found what there is
    found: Any  # [places, groups, warps, 2]: what the warps found of a row


class Given(NamedTuple):
    """The inputs of a row beside its logits."""

    label: Any
    cotangent: Any
    own: Any  # the label's logit


class Found(NamedTuple):
    """The results of a row's reduction, which all of its warpgroups have."""

    own: Any  # the label's logit, -inf where the label is masked
    maximum: Any  # of all entries
    n: Any  # round(maximum log2 e)
    others: Any  # the sum of the exponentials without the label's; NaN makes the row NaN
    is_far: Any  # whether the maximum is subtracted first
    is_zero: Any  # whether loss and gradient are 0

    @property
    def scale(self) -> Scale:
        """Return the scale of the exponentials of a row that is not far from 0."""
        return Scale(ROUNDING + SCALE_EXPONENT - self.n, self.maximum - REACH)


class Factors(NamedTuple):
    """The factors that turn the exponentials of a row into its gradient."""

    others: Any
    label: Any  # the gradient at the label itself
    is_zero: Any  # whether the gradient is 0, NaN or not: that of a row of weight 0 is


def scratch(kernel: Kernel, dtype: Any) -> list[Any]:
    """Return the types of ring, full, turn and found."""
    plan, tuning = kernel.plan, kernel.plan.tuning
    turns: Any = {"num_arrivals": tuning.group, "num_barriers": (TURNS + FAR_PLACES) * plan.groups}
    found = tuning.row_places + FAR_PLACES, plan.groups, plan.parts * WARPS, 2
    return [
        gpu.SMEM((tuning.warpgroups, plan.slots, plan.chunk), dtype),
        gpu.Barrier(num_barriers=tuning.warpgroups * plan.slots),
        gpu.ClusterBarrier(collective_axes=("rank",), **turns)
        if tuning.cluster > 1
        else gpu.Barrier(**turns),
        gpu.SMEM(found, jnp.float32),
    ]


def body(kernel: Kernel, refs: Refs) -> None:
    """Run the rows of this warpgroup's group."""
    Warpgroup(kernel, refs).run()


class Warpgroup:
    """One warpgroup: its place among the others, and its part of each row."""

    def __init__(self, kernel: Kernel, refs: Refs) -> None:
        """Find the place: the rows of a group are `first`, `first + stride`, ..."""
        plan, tuning = kernel.plan, kernel.plan.tuning
        self.kernel, self.refs, self.plan, self.ops = kernel, refs, plan, kernel.ops
        self.index = lax.axis_index("warpgroup")
        self.group = lax.div(self.index, tuning.group)
        rank = lax.axis_index("rank") if tuning.cluster > 1 else 0
        self.part = rank * tuning.group + lax.rem(self.index, tuning.group)
        self.first = lax.axis_index("core") * plan.groups + self.group
        self.stride = lax.axis_size("core") * plan.groups
        self.count = lax.div(kernel.rows - self.first + self.stride - 1, self.stride)
        self.total = self.count * plan.steps

    def run(self) -> None:
        """Load, reduce and write; labels are read two rows ahead, and their logits one."""
        for t in range(self.plan.slots):
            pl.when(t < self.total)(partial(self.load, jnp.int32(t)))
        labels = self.label(jnp.int32(0)), self.label(jnp.int32(1))
        given = self.given(jnp.int32(0), labels[0])
        overlaps = self.plan.tuning.overlaps
        step = self.overlapping_step if overlaps else self.step
        lax.fori_loop(0, self.count + int(overlaps), step, (labels[1], given, given))
        if self.kernel.writes_gradient:
            gpu.wait_smem_to_gmem(0)

    def step(self, i: Array, carry: Any) -> Any:
        """Reduce a row and write its gradient."""
        label, given, _ = carry
        after = self.label(i + 2), self.given(i + 1, label)
        self.reduce(i, given.label)
        self.write(i, given)
        return *after, given

    def overlapping_step(self, i: Array, carry: Any) -> Any:
        """Reduce a row and write the gradient of the one before it."""
        label, given, before = carry
        after = self.label(i + 2), self.given(i + 1, label)
        pl.when(i < self.count)(lambda: self.reduce(i, given.label))
        pl.when(i > 0)(lambda: self.write(i - 1, before))
        return *after, given

    # -- The inputs of a row --

    def row(self, i: Array) -> Array:
        """Return the number of the group's row i."""
        return self.first + i * self.stride

    def label(self, i: Array) -> Array:
        """Return the label of the group's row i, or of the last row beyond it."""
        return self.refs.labels[jnp.minimum(self.row(i), self.kernel.rows - 1)]

    def given(self, i: Array, label: Array) -> Given:
        """Return label, cotangent and the label's logit."""
        r, k = jnp.minimum(self.row(i), self.kernel.rows - 1), self.plan.k
        y = jnp.clip(label, 0, k - 1)
        own = self.refs.logits[r, y] if self.plan.is_aligned else self.refs.logits[r * k + y]
        return Given(label, self.refs.cotangents[r], own.astype(jnp.float32))

    # -- Load --

    def load(self, t: Array) -> None:
        """Fill a slot with this warpgroup's chunk t."""
        i, q = self.chunk(t)
        slot = lax.rem(t, self.plan.slots)
        barrier = self.refs.full.at[self.index * self.plan.slots + slot]

        def copy(begin: int, length: int) -> None:
            gpu.copy_gmem_to_smem(
                self.global_entries(self.refs.logits, i, q, begin, length),
                self.slot(slot).at[pl.ds(begin, length)],
                barrier,
                oob_mode=gpu.OOBFillMode.PROMISE_IN_BOUNDS,
            )

        self.for_span(q, 0, self.plan.window, copy)
        if self.plan.has_empty_chunks:
            pl.when(q >= self.plan.chunks)(lambda: gpu.barrier_arrive(barrier))

    def chunk(self, t: Array) -> tuple[Array, Array]:
        """Return which of the group's rows chunk t is of, and which chunk of the row it is."""
        return lax.div(t, self.plan.steps), self.part * self.plan.steps + lax.rem(
            t, self.plan.steps
        )

    def slot(self, number: Array) -> Any:
        """Return the entries of a slot."""
        return self.refs.ring.at[self.index, number]

    def head(self, i: Array) -> Any:
        """Return how many entries of the window come before the row."""
        if self.plan.is_aligned:
            return 0
        return lax.rem(self.row(i) * self.plan.k, self.plan.vector)

    def global_entries(self, ref: Any, i: Array, q: Array, begin: int, length: int) -> Any:
        """Return entries of chunk q of a row in global memory."""
        start = q * self.plan.chunk + begin
        if self.plan.is_aligned:
            return ref.at[self.row(i), pl.ds(start, length)]
        start += self.row(i) * self.plan.k - self.head(i)
        return ref.at[pl.ds(pl.multiple_of(start, self.plan.vector), length)]

    def for_span(self, q: Array, low: int, high: int, copy: Callable[[int, int], None]) -> None:
        """Call copy(begin, length) for what chunk q has of the window's entries."""
        everywhere = 0, self.plan.parts * self.plan.steps - 1
        for first, last, begin, length in self.plan.spans(low, high):
            if (first, last) == everywhere:
                copy(begin, length)
            else:
                pl.when((q >= first) & (q <= last))(partial(copy, begin, length))

    # -- Reduce --

    def reduce(self, i: Array, label: Array) -> None:
        """Find the maximum and the sum of this warpgroup's part, and publish them."""
        plan = self.plan

        def step(j: Array, state: State) -> State:
            t = i * plan.steps + j
            slot = lax.rem(t, plan.slots)
            gpu.barrier_wait(self.refs.full.at[self.index * plan.slots + slot])
            self.exclude(i, self.chunk(t)[1], slot, label)
            return self.for_batches(slot, self.ops.accumulate, state)

        start = State(_per_thread(-jnp.inf), _per_thread(0))
        self.publish(i, lax.fori_loop(0, plan.steps, step, start), far=False)

    def for_batches(self, slot: Array, reduce: Callable[[Any, Any], Any], carry: Any) -> Any:
        """Return the carry after all batches of blocks of a slot."""
        size = self.plan.batch * BLOCK

        def step(b: Any, carry: Any) -> Any:
            return reduce(self.slot(slot).at[pl.ds(b * size, size)], carry)

        count = self.plan.chunk // size
        return step(0, carry) if count == 1 else lax.fori_loop(0, count, step, carry)

    def exclude(self, i: Array, q: Array, slot: Array, label: Array) -> None:
        """Write -inf in place of what is not the row's, and of the label."""
        plan, head = self.plan, self.head(i)
        end = head + plan.k - q * plan.chunk  # of the row's entries in this chunk
        if not plan.is_aligned:
            is_first = (q == 0) & (head > 0)
            pl.when(is_first)(lambda: self.set_lowest(slot, 0, lambda c: c < head))
        if not plan.is_aligned or plan.window % plan.chunk or plan.has_empty_chunks:

            @pl.when(end < plan.chunk)
            def _tail() -> None:
                @pl.loop(lax.div(lax.max(end, 0), BLOCK), plan.chunk // BLOCK)
                def _block(b: Array) -> None:
                    self.set_lowest(slot, b, lambda c: c >= end)

        place, is_here = self.place_of_label(i, q, label)
        block = lax.div(place, BLOCK)
        pl.when(is_here)(lambda: self.set_lowest(slot, block, lambda c: c == place))

    def place_of_label(self, i: Array, q: Array, label: Array) -> tuple[Array, Array]:
        """Return where in chunk q the label is, and whether it is there."""
        place = label + self.head(i) - q * self.plan.chunk
        is_class = (label >= 0) & (label < self.plan.k)
        return place, is_class & (place >= 0) & (place < self.plan.chunk)

    def set_lowest(self, slot: Array, b: Any, condition: Callable[[Array], Array]) -> None:
        """Write -inf to the entries of a block whose number satisfies the condition."""
        z = self.block(slot, b)
        is_excluded = condition(self.numbers(b))
        self.store_block(slot, b, jnp.where(is_excluded, self.splat(-jnp.inf), z))

    def block(self, slot: Array, b: Any) -> Array:
        """Return a block of a slot."""
        return gpu.load(self.slot(slot).at[pl.ds(b * BLOCK, BLOCK)], layout=self.layout)

    def store_block(self, slot: Array, b: Any, values: Array) -> None:
        """Write a block of a slot."""
        self.slot(slot).at[pl.ds(b * BLOCK, BLOCK)][...] = values

    def numbers(self, b: Any) -> Array:
        """Return the numbers of a block's entries in their chunk."""
        return gpu.broadcasted_iota(jnp.int32, (BLOCK,), 0, layout=self.layout) + b * BLOCK

    def splat(self, value: float) -> Array:
        """Return a block of one value."""
        return gpu.layout_cast(jnp.full(BLOCK, value, self.refs.ring.dtype), self.layout)

    @property
    def layout(self) -> Any:
        """Return which entries of a block each thread has: a vector at a time."""
        return gpu.Layout.WG_STRIDED((BLOCK,), vec_size=self.plan.vector)

    # -- The exchange between warpgroups --

    def publish(self, i: Array, state: State, *, far: bool) -> None:
        """Tell all warpgroups of the row what the warps of this one found."""
        place, barrier = self.place(i, far)
        own = place.at[pl.ds(self.part * WARPS, WARPS)]
        is_split = self.plan.tuning.cluster > 1
        direct = is_split and not self.kernel.exchanges_in_memory
        self.ops.publish(state, own, self.plan.tuning.cluster if direct else 0)
        if is_split:
            self.ops.fence()
            gpu.commit_smem()  # one thread arrives for all
        gpu.barrier_arrive(barrier)

    def hear(self, i: Array, own: Array, *, far: bool) -> tuple[Array, Array, Array]:
        """Return the maximum of the row, its n, and the sum of the others' exponentials."""
        place, barrier = self.place(i, far)
        gpu.barrier_wait(barrier)
        return self.ops.collect(place, own)

    def place(self, i: Array, far: bool) -> tuple[Any, Any]:
        """Return where the warps of row i write what they found, and the barrier they arrive at.

        The next row may be found, and told, before all have heard of this one.
        """
        warps = pl.ds(0, self.plan.parts * WARPS)
        places = self.plan.tuning.row_places
        barrier = (lax.rem(i, 2) + TURNS * int(far)) * self.plan.groups + self.group
        if self.kernel.exchanges_in_memory:
            place = self.refs.exchange.at[self.row(i) + self.kernel.rows * int(far), warps]
        else:
            number = lax.rem(i, FAR_PLACES) + places if far else lax.rem(i, places)
            place = self.refs.found.at[number, self.group, warps]
        return place, self.refs.turn.at[barrier]

    # -- Write --

    def write(self, i: Array, given: Given) -> None:
        """Write the row's loss and gradient, and load what comes next into its slots."""
        found = self.find(i, given)
        factors = self.settle(i, given, found)

        def step(j: Array, _: Any) -> Any:
            t = i * self.plan.steps + j
            slot, q = lax.rem(t, self.plan.slots), self.chunk(t)[1]
            if self.kernel.writes_gradient:
                self.replace(slot, found, factors)
                place, is_here = self.place_of_label(i, q, given.label)
                pl.when(is_here & ~factors.is_zero)(
                    lambda: self.set_entry(slot, place, factors.label)
                )
            gpu.commit_smem()
            self.release(t, partial(self.store, i, q, slot))
            return ()

        lax.fori_loop(0, self.plan.steps, step, ())

    def find(self, i: Array, given: Given) -> Found:
        """Return what all warpgroups found of the row."""
        is_class = (given.label >= 0) & (given.label < self.plan.k)
        is_defined = is_class | (given.label <= MASKED)
        own = jnp.where(is_class, given.own, -jnp.inf)
        maximum, n, others = self.hear(i, own, far=False)
        is_zero = (given.label == IGNORED) | (is_defined & (maximum == -jnp.inf))
        is_far = (jnp.abs(maximum) >= FAR) & (maximum > -jnp.inf)  # False for NaN
        others = lax.cond(is_far, lambda: self.sum_again(i, maximum), lambda: others)
        # Exponentials are made of integers, which lose a NaN.
        is_number = is_defined & (maximum == maximum)
        others = jnp.where(is_number, others, jnp.nan)
        return Found(own, maximum, n, others, is_far, is_zero)

    def settle(self, i: Array, given: Given, found: Found) -> Factors:
        """Write the row's loss, as in `softmax_core`, and return the factors of its gradient."""
        e_own, e_max = (self.exponential(z, found) for z in (found.own, found.maximum))
        total = found.others + e_own
        leads = found.own == found.maximum
        excess = jnp.where(leads, found.others / e_own, total / e_max - 1)
        gap = jnp.where(leads, 0, found.maximum - found.own)

        @pl.when(self.part == 0)
        def _loss() -> None:
            for c, value in enumerate((excess, gap)):
                self.refs.losses[self.row(i), c] = jnp.where(found.is_zero, 0, value)
            if self.kernel.writes_maximum:
                self.refs.losses[self.row(i), 2] = found.maximum

        share = found.others / total
        is_zero = found.is_zero | (given.cotangent == 0)
        return Factors(given.cotangent / total, -share * given.cotangent, is_zero)

    def exponential(self, z: Array, found: Found) -> Array:
        """Return the exponential of a logit that is not in a slot."""
        usual, far = found.scale, far_scale(found.maximum)
        below = jnp.where(z >= found.maximum, 0, z - found.maximum)
        magic = jnp.where(found.is_far, far.magic, usual.magic)
        floor = jnp.where(found.is_far, far.floor, usual.floor)
        return self.ops.exponential(jnp.where(found.is_far, below, z), Scale(magic, floor))

    def sum_again(self, i: Array, maximum: Array) -> Array:
        """Return the sum of the others' exponentials relative to a maximum that is far from 0."""
        scale = far_scale(maximum)

        def add(entries: Any, total: Array) -> Array:
            return self.ops.add_exponentials(entries, total, scale)

        def step(j: Array, total: Array) -> Array:
            slot = lax.rem(i * self.plan.steps + j, self.plan.slots)
            return self.for_batches(slot, add, total)

        total = lax.fori_loop(0, self.plan.steps, step, _per_thread(0))
        self.publish(i, State(_per_thread(0), total), far=True)
        return self.hear(i, jnp.float32(0), far=True)[2]

    def replace(self, slot: Array, found: Found, factors: Factors) -> None:
        """Replace the logits of a slot by their gradient."""

        def replace(scale: Scale) -> None:
            def of_block(entries: Any) -> None:
                self.ops.replace_by_gradient(entries, scale, factors.others)

            self.for_blocks(slot, of_block)

        pl.when(~factors.is_zero & ~found.is_far)(lambda: replace(found.scale))
        pl.when(~factors.is_zero & found.is_far)(lambda: replace(far_scale(found.maximum)))

        @pl.when(factors.is_zero)
        def _zero() -> None:
            @pl.loop(0, self.plan.chunk // BLOCK)
            def _block(b: Array) -> None:
                self.store_block(slot, b, self.splat(0))

    def for_blocks(self, slot: Array, replace: Callable[[Any], None]) -> None:
        """Call a function with all blocks of a slot, a batch in a row."""

        @pl.loop(0, self.plan.chunk // BLOCK // self.plan.batch)
        def _batch(number: Array) -> None:
            for a in range(self.plan.batch):
                start = (number * self.plan.batch + a) * BLOCK
                replace(self.slot(slot).at[pl.ds(start, BLOCK)])

    def set_entry(self, slot: Array, place: Array, value: Array) -> None:
        """Write a number into one entry of a slot."""
        b = lax.div(place, BLOCK)
        entries = self.block(slot, b).astype(jnp.float32)
        chosen = jnp.where(self.numbers(b) == place, value, entries)
        self.store_block(slot, b, chosen.astype(self.refs.ring.dtype))

    def release(self, t: Array, store: Callable[[], None]) -> None:
        """Store the gradient, and load a later chunk into a slot that is free."""
        lag = 0
        if self.kernel.writes_gradient:
            store()
            # While this slot is being copied, the one before it is free, unless copies cannot be
            # counted: there is none of an empty chunk.
            lag = 0 if self.plan.has_empty_chunks else 1
            gpu.wait_smem_to_gmem(lag, wait_read_only=True)
        later = t - lag + self.plan.slots
        pl.when((t >= lag) & (later < self.total))(lambda: self.load(later))

    def store(self, i: Array, q: Array, slot: Array) -> None:
        """Store the gradient of chunk q of a row."""
        plan, whole = self.plan, self.slot(slot)
        k = plan.k
        low, high = (0, k) if plan.is_aligned else (plan.vector, k // plan.vector * plan.vector)

        def copy(begin: int, length: int) -> None:
            out = self.global_entries(self.refs.gradient, i, q, begin, length)
            gpu.copy_smem_to_gmem(whole.at[pl.ds(begin, length)], out)

        self.for_span(q, low, high, copy)
        if not plan.is_aligned:
            head = self.head(i)
            edge = partial(self.ops.copy_entries, whole, self.refs.gradient, self.row(i) * k - head)
            pl.when(q == 0)(lambda: edge(0, plan.vector, head, head + k, 0))
            last = plan.chunks - 1
            pl.when(q == last)(lambda: edge(high, 2 * plan.vector, 0, head + k, last * plan.chunk))


def _per_thread(value: float) -> Array:
    """Return one number for each thread."""
    layout = gpu.Layout.WG_STRIDED((THREADS,), vec_size=1)
    return gpu.layout_cast(jnp.full(THREADS, value, jnp.float32), layout)
