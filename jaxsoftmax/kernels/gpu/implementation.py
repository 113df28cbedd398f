"""The fused losses on Hopper and Blackwell GPUs, whose logits are never stored in memory.

One kernel (`logit_tiles`) computes tiles of x w, 128 examples by 256 classes, on Hopper (`hopper`)
or Blackwell (`blackwell`), and applies an epilogue (`epilogues`) to them. For the softmax that
gives statistics of the tiles, or a block of the gradient. XLA combines the statistics in float32,
and multiplies the gradients of all classes at the device's full rate; the gradients of a block of
classes are multiplied where they lie (`blocks`, `hopper_products`).

- forward (`softmax`): one product of N D K, and 12 N K / 256 bytes of statistics on Hopper. On
  Blackwell they are twice as many, as a warpgroup has 128 classes of a tile.
- backward (`softmax`): computes the logits again. In blocks, 2 N K bytes of gradients are written
  once and read twice. The gradient of the bias is their sum.
- value_and_gradients and rows_and_gradients (`exponentials`): the forward pass also stores the
  exponentials, and one pass over them computes the gradient: three products of N D K.
- the sigmoid's functions (`sigmoid`): labels are independent, so one kernel computes the values and
  the gradients of a block, and there are three products too. Where each example has its own mask,
  the copy of a block's targets carries it.

`tangent` and the derivatives of the reverse passes are those of `xla_chunked`: forward mode has two
products instead of one, and a kernel would not make it faster.

Reference: Milakov and Gimelshein, "Online normalizer calculation for softmax" (2018); Hsu et al.,
"Liger Kernel: efficient Triton kernels for LLM training" (2024).
"""

import jax.numpy as jnp

from jaxsoftmax import placement
from jaxsoftmax.kernels import row_sums, xla_chunked
from jaxsoftmax.kernels.gpu import (
    blackwell,
    exponentials,
    hopper,
    launch,
    sigmoid,
    softmax,
    whole_tiles,
)
from jaxsoftmax.kernels.types import Head, Options

forward, backward, tangent = softmax.forward, softmax.backward, xla_chunked.tangent
value_and_gradients, rows_and_gradients = row_sums.weighted_sums(forward, exponentials.sum_rows)
binary_forward, binary_backward = sigmoid.forward, sigmoid.backward
binary_tangent = xla_chunked.binary_tangent
binary_value_and_gradients = sigmoid.value_and_gradients


def unsupported(head: Head, options: Options) -> str | None:
    """Return why the tensor cores cannot compute this, or None."""
    k, dtype, mask = head.w.shape[1], head.x.dtype, whole_tiles.row_mask(head)
    if not placement.is_static(*head.x.shape, *head.w.shape):
        return f"it needs sizes that are numbers, got {head.x.shape} and {head.w.shape}"
    if dtype not in (jnp.bfloat16, jnp.float16):
        return (
            f"it needs bfloat16 or float16 features and weights, got {dtype}; "
            "'mosaic_gpu_rows' takes float32"
        )
    if head.targets.ndim == 1 and mask is not None:
        return f"it needs `where` of shape ({k},), one for all examples, got {mask.shape}"
    if launch.generation(options) is None:
        return (
            f"it needs a Hopper GPU, one of {', '.join(hopper.DEVICES)}, or a data center's "
            f"Blackwell GPU, one of {', '.join(blackwell.DEVICES)}, got {launch.device(options)!r}"
        )
    return None
