"""The implementation that runs where none is named: one table, each row with its source.

The first row whose devices and shapes fit runs. No choice takes more memory than the dense
computation by more than the budget, by the plans of the implementations.

The figures in milliseconds are of one NVIDIA H200 with jax 0.11.2, in November 2026, in bfloat16.
They are from prototypes of the kernels; the same programs of this version have been compiled for an
H200, and not timed. Those of float32 are counted in programs that jax 0.12 compiled for an H200.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxsoftmax import placement
from jaxsoftmax.kernels.primitives import FLOAT_BYTES
from jaxsoftmax.kernels.tiles import BYTES_PER_BLOCK_LOGIT, BYTES_PER_CHUNK_LOGIT
from jaxsoftmax.kernels.types import Head, Options

HALF_BYTES = 2  # of an entry of x, w and dense logits
# Below, tiles of 128 by 256 logits are so few, four for each of an H200's 132 cores,
# that many cores are idle while the last ones are computed.
MANY_LOGITS = 2**24
# Below, more than half of a tile lies beyond the last class.
MANY_CLASSES = 128


@dataclass(frozen=True)
class Default:
    """An implementation, the devices and heads for which it is the default, and the source."""

    implementation: str
    source: str
    devices: tuple[str, ...] = ()  # parts of the names of kinds of devices; all without any
    fits: Callable[[Head, Options], bool] = lambda head, options: True

    def suits(self, head: Head, options: Options) -> bool:
        """Return whether this row is for a head and the device that a program is traced for."""
        kind = options.target.device_kind if self.devices else ""
        return (not self.devices or any(name in kind for name in self.devices)) and self.fits(
            head, options
        )


def _has_many_tiles(head: Head, options: Options) -> bool:
    """Return whether the logits are many, or more than the budget has room for."""
    n, k = head.x.shape[0], head.w.shape[1]
    exceeds_budget = options.tiles.classes < k
    return k >= MANY_CLASSES and (n * k >= MANY_LOGITS or exceeds_budget)


def _has_room_for_copies(head: Head, options: Options) -> bool:
    """Return whether a kernel takes no more memory than dense half-precision logits and the budget.

    All gradients in the logits at once, or a block of them and the float32 sum of x's gradient;
    and the copies of w and its gradient in whole tiles, where D or K needs any, within the budget
    of a sum.
    """
    n, (d, k) = head.x.shape[0], head.w.shape
    budget = BYTES_PER_BLOCK_LOGIT * n * options.tiles.classes
    copied = k + -k % 64 if d % 8 or k % 64 else 0
    gradients = min(HALF_BYTES * n * max(k, copied), budget + FLOAT_BYTES * n * d)
    copies = 2 * HALF_BYTES * d * copied
    fits_sum = copies <= BYTES_PER_CHUNK_LOGIT * options.tiles.rows * k
    return fits_sum and gradients + copies <= HALF_BYTES * n * k + budget


def _is_whole(head: Head, options: Options) -> bool:
    """Return whether the arrays are on one device, with sizes that are numbers.

    On an Auto mesh the compiler divides XLA's operations among the devices, but not a kernel.
    """
    del options
    is_local = placement.count_devices(head.x) == placement.count_devices(head.w) == 1
    return is_local and placement.is_static(*head.x.shape, *head.w.shape)


def _suits_tiles(head: Head, options: Options) -> bool:
    """Return whether a kernel that computes the logits in tiles is for this head."""
    is_whole = _is_whole(head, options)
    return is_whole and _has_many_tiles(head, options) and _has_room_for_copies(head, options)


HOPPER = ("H100", "H200", "H800", "H20")
DEFAULTS = (
    Default(
        "mosaic_gpu",
        "2048 x 4096 x 128256: sum 9.75 to 9.86 ms (dense Optax 9.6 to 9.8 with bfloat16 logits, "
        "21.1 with float32 logits, xla_chunked 14.5), per example 12.6 to 12.7 (xla_chunked 17.2), "
        "forward 3.18 (x @ w 3.07). Sigmoid, 8192 x 4096 x 32768: sum 11.8 (dense 14.2, "
        "xla_chunked 12.5), per example 15.3 (15.8). 8,016 tiles and more; the limits for fewer "
        "are reasoned and not measured, and so are Hopper GPUs other than an H200.",
        devices=HOPPER,
        fits=_suits_tiles,
    ),
    Default(
        "mosaic_gpu_rows",
        "Float32, not measured on a device: by traffic and compiled memory. Gigabytes that the sum "
        "moves beside its three products, its temporaries in MB, and the milliseconds that these "
        "take at 3.4 TB/s and products at 450 TFLOP/s. 8192 x 768 x 50257: 3.6, 422, 5.3 "
        "(xla_chunked 6.9, 477, 6.3; dense Optax 9.9, 3,294, 7.1). 8192 x 4096 x 32000: 3.3, 596, "
        "15.3 (5.4, 558, 15.9; 6.3, 2,097, 16.2). The rows alone were measured: 0.68 ms of the "
        "second one, where XLA's form took 1.24. Per example the forward pass takes 1.9 "
        "and 5.2 ms (2.5 and 5.7), and the gradient is that of xla_chunked.",
        devices=HOPPER,
        fits=_is_whole,
    ),
    Default(
        "xla_chunked",
        "Few logits on a Hopper GPU: one block of them, which is the dense computation. Float32 "
        "with more than 98,304 classes, where no plan of the row kernel was measured to be faster: "
        "2048 x 4096 x 128256 moves 6.5 GB beside three products, as dense logits do (6.3), in 534 "
        "MB for 1,055. Other GPUs and TPUs: not measured; on CPUs "
        "experiments/results/benchmark_cpu.json.",
    ),
)
