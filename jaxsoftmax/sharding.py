"""`Shards`: the names of the mesh axes over which arrays are sharded."""

from typing import NamedTuple


class Shards(NamedTuple):
    """The mesh axes over which the rows of a batch, its examples, are sharded.

    An axis is named as in `jax.sharding.Mesh`. Inside a `jax.shard_map` over that axis, arrays are
    the local parts, and sums go over the axis by its name. Elsewhere arrays are whole, and the mesh
    is theirs, or the one of `jax.set_mesh`.

    Attributes:
        rows: the name of an axis, or a tuple of names from the slowest to the fastest.

    Example:
        >>> from jaxsoftmax import Shards
        >>> print(Shards(rows="data"))
        Shards(rows='data')
    """

    rows: str | tuple[str, ...]
