"""The linear heads of benchmark.py in PyTorch, in a process that has PyTorch and not JAX.

`benchmark.py` starts this file with N, D, K, a dtype and "all" or "parameters". Each line that it
writes is a name, "cross_entropy" or "linear_cross_entropy", and the answer is the time in seconds
of one forward and backward pass of the mean loss. So the functions of both libraries take turns.
"""

import platform
import sys
import time
from collections.abc import Callable

import torch
from torch.nn import functional


def heads(n: int, d: int, k: int, dtype: str, wanted: str) -> dict[str, Callable[[], None]]:
    """Return one pass over random data, dense and fused; the fused one in chunks, as intended."""
    torch.manual_seed(0)
    kind = getattr(torch, dtype)
    everything = wanted == "all"
    x = torch.randn(n, d, dtype=kind, requires_grad=everything)
    w = torch.randn(k, d, dtype=kind).mul_(d**-0.5).requires_grad_()
    bias = None if everything else torch.zeros(k, dtype=kind, requires_grad=True)
    y = torch.randint(k, (n,))
    leaves = [a for a in (x, w, bias) if a is not None and a.requires_grad]

    def run(loss: Callable[[], torch.Tensor]) -> None:
        torch.autograd.grad(loss(), leaves)

    def fused() -> torch.Tensor:
        options = torch.nn.LinearCrossEntropyOptions()
        return functional.linear_cross_entropy(x, w, y, linear_bias=bias, options=options)

    return {
        "cross_entropy": lambda: run(
            lambda: functional.cross_entropy(functional.linear(x, w, bias), y)
        ),
        "linear_cross_entropy": lambda: run(fused),
    }


def main() -> None:
    """Print the versions, then answer each line of the input with the seconds of that head."""
    n, d, k = map(int, sys.argv[1:4])
    functions = heads(n, d, k, *sys.argv[4:6])
    print(f"python {platform.python_version()}, torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        functions[line.strip()]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
