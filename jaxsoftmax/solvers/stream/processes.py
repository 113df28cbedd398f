"""Which rows of a source this process reads, on which devices, and the sums over all processes.

A pass needs no other process until its end, when sums of the size of the parameters are added up.
They have the same bits on every process, and so have all that the solver decides.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxsoftmax import placement
from jaxsoftmax.sharding import Shards

AXIS = "rows"


class Processes(NamedTuple):
    """The processes that share a source, of which this is one."""

    rank: int = 0
    local: Mesh | None = None  # the devices of this process, which share its rows
    leaders: Mesh | None = None  # the first device of each process

    @property
    def size(self) -> int:
        """The number of processes."""
        return 1 if self.leaders is None else self.leaders.size

    @property
    def row_sharding(self) -> NamedSharding | None:
        """The sharding of rows over the devices of this process, None for one device."""
        if self.local is None or self.local.size == 1:
            return None
        return NamedSharding(self.local, PartitionSpec(AXIS, None))

    def span(self, rows: int) -> range:
        """Return the rows that this process reads."""
        return range(rows * self.rank // self.size, rows * (self.rank + 1) // self.size)

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Enable float64, and enter the mesh of this process in place of the user's."""
        with ExitStack() as stack:
            stack.enter_context(jax.enable_x64())
            if self.local is not None:
                stack.enter_context(jax.set_mesh(self.local))
            yield

    def sum(self, tree: Any) -> Any:
        """Return the sums of a tree's arrays over the processes, the same bits on each of them."""
        return self._combine(tree, adds=True)

    def gather(self, tree: Any) -> Any:
        """Return the arrays of all processes, `[processes, ...]`."""
        if self.size == 1:
            return jax.tree.map(lambda a: np.asarray(a)[None], tree)
        return self._combine(tree, adds=False)

    def agree(self, tree: Any) -> Any:
        """Return the first process's arrays: LAPACK may round differently on another machine."""
        return self.sum(tree if self.rank == 0 else jax.tree.map(jnp.zeros_like, tree))

    def _combine(self, tree: Any, *, adds: bool) -> Any:
        if self.size == 1:
            return tree
        assert self.leaders is not None
        with jax.set_mesh(self.leaders):
            sharding = NamedSharding(self.leaders, PartitionSpec(AXIS))
            parts = jax.tree.map(
                lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)[None]),
                tree,
            )
            combined = _combine_on(self.leaders, adds)(parts)
            found = jax.tree.map(lambda a: np.asarray(a.addressable_data(0)), combined)
        return jax.tree.map(jnp.asarray, found)  # on the mesh of this process again


@cache
def _combine_on(mesh: Mesh, adds: bool) -> Any:
    """Return the program that sums arrays over their first axis, or gives all of it to everyone."""
    combine = (lambda a: a.sum(0)) if adds else (lambda a: a)
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(lambda tree: jax.tree.map(combine, tree), out_shardings=everywhere)


def find_processes(shards: Shards | None) -> Processes:
    """Return the processes of the mesh of `jax.set_mesh`, or this one alone without shards.

    Raises:
        ValueError: `shards` names no rows, axes that the mesh does not have, or classes.
    """
    if shards is None:
        return Processes()
    if shards.classes is not None or shards.rows is None:
        raise ValueError(f"shards: expected Shards(rows=...) alone for a source, got {shards}")
    placement.count_shards(placement.axis_names(shards.rows), jnp.zeros(()))
    devices = jax.sharding.get_mesh().devices.ravel()
    ranks = sorted({device.process_index for device in devices})
    of_rank = [[d for d in devices if d.process_index == rank] for rank in ranks]
    rank = ranks.index(jax.process_index())
    leaders = Mesh([each[0] for each in of_rank], (AXIS,))
    return Processes(rank, Mesh(of_rank[rank], (AXIS,)), leaders)
