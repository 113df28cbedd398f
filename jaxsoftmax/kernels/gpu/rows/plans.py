"""How the row kernels divide rows among blocks and warpgroups, and shared memory into chunks."""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

from jaxsoftmax.kernels.chunks import round_up

BLOCK = 1024  # entries that a warpgroup treats at once: 8 for each of its threads
VECTOR_BYTES = 16  # of a bulk copy, whose start and length are multiples of it
WARPS = 4  # of a warpgroup
# Shared memory of a block, without its barriers.
SHARED_BYTES = 227 * 1024 - 1024
MAX_SLOTS = 32  # of a block: each has a barrier
# Fewer entries do not keep the threads of a warpgroup busy: at 1,000 the kernel is 1.9 times as
# fast as Optax, and it takes the same time for fewer.
MIN_CLASSES = 768
MIN_ROUNDS = 4  # rows that each group of warpgroups has at least
# Places for what is found of a row far from 0 in a second pass: one warpgroup may be a row ahead.
FAR_PLACES = 2


class Tuning(NamedTuple):
    """The parameters that are chosen for speed."""

    group: int = 4  # warpgroups of a block that share a row
    cluster: int = 1  # blocks that share a row
    overlaps: bool = True  # whether a row is reduced before the gradient of the last is written
    waves: int = 1  # blocks of a multiprocessor, one after the other
    warpgroups: int = 4  # of a block
    chunk_bytes: int = 8192  # at most
    max_slots: int = MAX_SLOTS

    @property
    def row_places(self) -> int:
        """Return for how many rows there are places for what is found of them.

        One warpgroup of a group may write what it found of a row while another one reads what was
        found of the row before it or, where rows overlap, of the third before it.
        """
        return 4 if self.overlaps else 2


# The largest row in bytes, its tuning, and its share of the rate of XLA's copy, measured on an
# NVIDIA H200 with jax 0.11.2 in November 2026. Each was the best of the variants tried at:
#   2,000 bytes    bfloat16 65536 x 1000     169 us, Optax 314, XLA's form of the loss 299
#   8,192          bfloat16 16384 x 4096     120,         316,                         311
#   65,536         bfloat16 8192 x 32768     315,        1155,                        1044
#   131,072        float32 2048 x 32768      169,         304,                         350
#   262,144        bfloat16 8192 x 131072   1236,        4610,                        3840
#   524,288        bfloat16 4096 x 262144   1711,        4487,                        3820
# Between these sizes the choice goes by bytes and is not measured. The last needs two bytes an
# entry: in float32, clusters of 8 in one wave took 1190 us for 2048 x 131072, where Optax took
# 1088, and several waves were not tried.
MEASURED = (
    (4 * 1024, Tuning(group=1, overlaps=False, waves=3), 0.56),
    (16 * 1024, Tuning(group=1), 0.81),
    (96 * 1024, Tuning(), 1.13),
    (192 * 1024, Tuning(overlaps=False), 0.86),
    (384 * 1024, Tuning(cluster=2, overlaps=False), 1.12),
    (512 * 1024, Tuning(cluster=8, waves=4), 0.82),
)
HALF_PRECISION_BYTES = 384 * 1024  # the size from which rows have to be of half precision


def choose(k: int, itemsize: int) -> Tuning | None:
    """Return the tuning for rows of k entries, or None where none was measured to be faster."""
    size = k * itemsize
    if k < MIN_CLASSES or (size > HALF_PRECISION_BYTES and itemsize > 2):
        return None
    tunings = (tuning for limit, tuning, _ in MEASURED if size <= limit)
    # A window beyond a row may need a chunk that does not fit.
    return next((tuning for tuning in tunings if plan(k, itemsize, tuning).fits), None)


class Plan(NamedTuple):
    """The chunks of rows of one length.

    Where rows are not of whole vectors, a window of whole vectors around each row is loaded.
    """

    tuning: Tuning
    k: int
    itemsize: int
    window: int  # entries loaded for a row
    chunk: int  # entries, a multiple of BLOCK
    steps: int  # chunks of a row that a warpgroup has
    slots: int  # chunks that a warpgroup has in shared memory
    batch: int  # blocks of entries that are reduced together

    @property
    def fits(self) -> bool:
        """Return whether there are slots for whole rows, and for a chunk that is on its way."""
        return self.slots >= (1 + self.tuning.overlaps) * self.steps + 1

    @property
    def vector(self) -> int:
        """Return the entries of a vector."""
        return VECTOR_BYTES // self.itemsize

    @property
    def is_aligned(self) -> bool:
        """Return whether rows are of whole vectors."""
        return self.k % self.vector == 0

    @property
    def groups(self) -> int:
        """Return how many rows a block treats at once."""
        return self.tuning.warpgroups // self.tuning.group

    @property
    def parts(self) -> int:
        """Return how many warpgroups share a row."""
        return self.tuning.cluster * self.tuning.group

    @property
    def chunks(self) -> int:
        """Return how many chunks of a row hold anything."""
        return -(-self.window // self.chunk)

    @property
    def has_empty_chunks(self) -> bool:
        """Return whether some warpgroups have fewer chunks than others."""
        return self.chunks < self.parts * self.steps

    def fewest_rows(self, cores: int) -> int:
        """Return how many rows keep all multiprocessors busy."""
        return MIN_ROUNDS * self._clusters_of_a_wave(cores) * self.groups

    def clusters(self, rows: int, cores: int) -> int:
        """Return how many clusters of blocks are launched."""
        most = self._clusters_of_a_wave(cores) * self.tuning.waves
        return min(most, -(-rows // self.groups))

    def _clusters_of_a_wave(self, cores: int) -> int:
        """Return how many clusters of blocks run at once.

        Of 132 multiprocessors, in groups of 16 and 18, clusters of 4 or more use 128.
        """
        cluster = self.tuning.cluster
        usable = cores if cluster < 4 else cores // 16 * 16
        return max(usable // cluster, 1)

    def spans(self, low: int, high: int) -> Iterator[tuple[int, int, int, int]]:
        """Return what chunks hold of the entries from low to high of the window.

        Copies have a length known at compile time, so chunks are grouped by it.

        Returns:
            For each group of chunks the first and the last one, and begin and length in them.
        """

        def part(q: int) -> tuple[int, int]:
            return max(low - q * self.chunk, 0), min(high - q * self.chunk, self.chunk)

        for (begin, end), group in groupby(range(self.chunks), part):
            chunks = list(group)
            if begin < end:
                yield chunks[0], chunks[-1], begin, end - begin


def plan(k: int, itemsize: int, tuning: Tuning) -> Plan:
    """Return the chunks of rows of k entries."""
    vector = VECTOR_BYTES // itemsize
    window = k if k % vector == 0 else round_up(k + vector - 1, vector)
    parts = tuning.cluster * tuning.group
    most = max(tuning.chunk_bytes // itemsize // BLOCK * BLOCK, BLOCK)
    part = round_up(-(-window // parts), BLOCK)
    steps = -(-part // most)
    chunk = round_up(-(-part // steps), BLOCK)
    # The last entries of an unaligned row are stored one by one, and from one chunk.
    while window != k and (-(-window // chunk) - 1) * chunk > k // vector * vector:
        chunk += BLOCK
    steps = -(-window // (parts * chunk))
    slots = _count_slots(chunk * itemsize, parts, tuning)
    # Half precision has 8 entries in a vector, and the same number of registers.
    most_blocks = 8 if itemsize == 2 else 4
    batch = max(b for b in range(1, most_blocks + 1) if chunk // BLOCK % b == 0)
    return Plan(tuning, k, itemsize, window, chunk, steps, slots, batch)


def _count_slots(chunk_bytes: int, parts: int, tuning: Tuning) -> int:
    """Return how many chunks fit for each warpgroup, beside what the warps exchange."""
    groups = tuning.warpgroups // tuning.group
    told = (tuning.row_places + FAR_PLACES) * groups * parts * WARPS * 2 * 4
    fit = (SHARED_BYTES - round_up(told, 1024)) // (tuning.warpgroups * chunk_bytes)
    return min(fit, MAX_SLOTS // tuning.warpgroups, tuning.max_slots)
