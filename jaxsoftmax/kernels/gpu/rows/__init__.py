"""Cross-entropy over logits that exist, on Hopper GPUs: one read, and one write of the gradient.

    rules            what a loss of `jaxsoftmax.losses` calls: where the kernels run, derivatives
    implementation   the calls of the kernels
    pipeline         their body: load, reduce, write
    plans            how rows are divided, from what was measured
    numerics         constants of the exact exponential
    device           arithmetic in PTX, and `interpreted`, the same in JAX for the interpreter

Reference: Hsu et al., "Liger Kernel: efficient Triton kernels for LLM training" (2024), which
writes the gradient in place of the logits.
"""

from jaxsoftmax.kernels.gpu.rows.rules import losses, unsupported, weighted_sum

__all__ = ["losses", "unsupported", "weighted_sum"]
