"""The problems of the other parts in PyTorch's libraries, in a process that has PyTorch.

`peers.py` starts this file with a problem, as JSON. The first line of the answer has the installed
contestants and their versions. Each further line of input is a contestant, and the answer is the
time in seconds of one pass: of forward and backward for a head, of an epoch, of a fit.
"""

import importlib.util
import json
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import torch
from torch.nn import functional

# A contestant: the module that it needs, and the package with its version.
PACKAGES = {
    "torch": ("torch", "torch"),
    "torch fused": ("torch", "torch"),
    "torch bare": ("torch", "torch"),
    "torch loader": ("torch", "torch"),
    "liger": ("liger_kernel", "liger-kernel"),
    "cut": ("cut_cross_entropy", "cut-cross-entropy"),
    "quack": ("quack", "quack-kernels"),
    "cyanure": ("cyanure_gpu", "cyanure-gpu"),
}
NEEDS_CUDA = ("liger", "cut", "quack")  # their kernels are in Triton or CuTe


# -- Heads --


def loss(name: str) -> Callable[..., torch.Tensor]:
    """Return the mean loss of x [N, D], w [K, D], bias [K] or None, and labels [N]."""
    if name == "torch":
        return lambda x, w, b, y: functional.cross_entropy(functional.linear(x, w, b), y)
    if name == "torch fused":
        # In chunks of its own choice, as intended.
        options = torch.nn.LinearCrossEntropyOptions()
        fused = functional.linear_cross_entropy
        return lambda x, w, b, y: fused(x, w, y, linear_bias=b, options=options)
    if name == "liger":
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()
        return lambda x, w, b, y: liger(w, x, y, b)
    if name == "cut":
        from cut_cross_entropy import linear_cross_entropy

        return lambda x, w, b, y: linear_cross_entropy(x, w, y, bias=b)
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return lambda x, w, b, y: chunked_linear_cross_entropy(x, w, y)


def heads(problem: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return forward and backward passes over random data."""
    n, d, k, parameters = (problem[name] for name in ("n", "d", "k", "parameters"))
    kind = {"dtype": getattr(torch, problem["dtype"]), "device": problem["device"]}
    x = torch.randn(n, d, **kind).requires_grad_(not parameters)
    w = torch.randn(k, d, **kind).mul_(d**-0.5).requires_grad_()
    bias = torch.zeros(k, **kind, requires_grad=True) if parameters else None
    y = torch.randint(k, (n,), device=problem["device"])
    leaves = [a for a in (x, w, bias) if a is not None and a.requires_grad]

    def passes(name: str) -> Callable[[], Any]:
        function = loss(name)
        return lambda: torch.autograd.grad(function(x, w, bias, y), leaves)

    return tried(
        {name: lambda name=name: passes(name) for name in ("torch", "torch fused", *NEEDS_CUDA)}
    )


# -- Epochs --


def loops(problem: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return one epoch of SGD over the same random data, written in two ways."""
    size, features, classes, batch = problem["sizes"]
    device = problem["device"]
    x, y = (
        torch.randn(size, features, device=device),
        torch.randint(classes, (size,), device=device),
    )
    model = torch.nn.Linear(features, classes, device=device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    data = torch.utils.data.TensorDataset(x.cpu(), y.cpu())
    loader = torch.utils.data.DataLoader(data, batch_size=batch, shuffle=True)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()

    def bare() -> None:
        for rows in torch.randperm(size, device=device).split(batch):
            step(x[rows], y[rows])

    def with_loader() -> None:
        for x, y in loader:
            step(x.to(device), y.to(device))

    return tried({"torch bare": lambda: bare, "torch loader": lambda: with_loader})


# -- Solvers --


def solvers(problem: dict[str, Any]) -> dict[str, Callable[[], Any]]:
    """Return fits of the mean loss + alpha / 2 ||w||^2 to a relative duality gap of 1e-3."""
    import numpy as np

    arrays = np.load(problem["file"])

    def cyanure() -> Callable[[], Any]:
        from cyanure_gpu.estimators import Classifier

        how = {"loss": "multiclass-logistic", "penalty": "l2", "fit_intercept": True, "tol": 1e-3,
               "lambda_1": problem["alpha"], "max_iter": 2000, "verbose": False}  # fmt: skip
        return lambda: Classifier(**how).fit(arrays["x"], arrays["y"])

    return tried({"cyanure": cyanure})


# -- The process --


def tried(makers: dict[str, Callable[[], Callable[[], Any]]]) -> dict[str, Callable[[], Any]]:
    """Return the functions of installed libraries that run; an error of one is its answer."""
    found = {}
    for name, make in makers.items():
        absent = importlib.util.find_spec(PACKAGES[name][0]) is None
        if absent or (name in NEEDS_CUDA and not torch.cuda.is_available()):
            continue
        try:
            function = make()
            function()
        except Exception as reason:
            print(f"{name}: {reason!r}", file=sys.stderr)
        else:
            found[name] = function
    return found


def seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    wait()
    start = time.perf_counter()
    function()
    wait()
    return time.perf_counter() - start


def main() -> None:
    """Print the contestants, then answer each line of the input."""
    answer, sys.stdout = sys.stdout, sys.stderr  # what libraries print is no answer
    problem = json.loads(sys.argv[1])
    torch.manual_seed(0)
    functions = {"head": heads, "epoch": loops, "solver": solvers}[problem["kind"]](problem)
    print(json.dumps({n: version(PACKAGES[n][1]) for n in functions}), file=answer, flush=True)
    for line in sys.stdin:
        print(seconds(functions[line.strip()]), file=answer, flush=True)


if __name__ == "__main__":
    main()
