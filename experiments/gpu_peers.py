"""The heads of gpu_head.py in PyTorch's libraries, in a process that has PyTorch and a GPU.

`gpu_head.py` starts this file with M, H, V and the names of libraries. The first line of the answer
has the installed ones and their versions. Each further line of input is a name and a number of
passes, and the answer is the time in seconds of that number of forward and backward passes of the
mean loss.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch

MODULES = {
    "torch": ("torch", "torch"),
    "liger": ("liger_kernel", "liger-kernel"),
    "cut": ("cut_cross_entropy", "cut-cross-entropy"),
    "quack": ("quack", "quack-kernels"),
}


def loss(name: str) -> Callable[..., torch.Tensor]:
    """Return the mean loss of x [M, H], w [V, H] and labels [M]."""
    if name == "torch":
        functional = torch.nn.functional
        return lambda x, w, y: functional.cross_entropy(functional.linear(x, w), y)
    if name == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        return lambda x, w, y: liger(w, x, y)
    if name == "cut":
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy


def main() -> None:
    """Print the installed libraries, then answer each line of the input."""
    m, h, v = map(int, sys.argv[1:4])
    torch.manual_seed(0)
    kind = {"dtype": torch.bfloat16, "device": "cuda"}
    x = torch.randn(m, h, **kind).requires_grad_()
    w = torch.randn(v, h, **kind).mul_(h**-0.5).requires_grad_()
    y = torch.randint(v, (m,), device="cuda")
    losses, versions = {}, {}
    for name in sys.argv[4:]:
        module, package = MODULES[name]
        if importlib.util.find_spec(module):
            try:
                function = loss(name)
                torch.autograd.grad(function(x, w, y), (x, w))
            except Exception as reason:  # any error of another library is its answer
                print(f"{name}: {reason!r}", file=sys.stderr)
            else:
                losses[name], versions[name] = function, version(package)
    print(json.dumps(versions), flush=True)
    for line in sys.stdin:
        name, times = line.split()
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(int(times)):
            torch.autograd.grad(losses[name](x, w, y), (x, w))
        torch.cuda.synchronize()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
