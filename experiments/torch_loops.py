"""The epoch of training_speed.py in PyTorch: two loops, in a process that has PyTorch and not JAX.

`training_speed.py` starts this file. Each line that it writes is the name of a loop, "bare" or
"loader", and the answer is the time in seconds of one epoch. So the loops of both libraries can
take turns. Arguments: examples, features, classes, batch size.
"""

import platform
import sys
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset


def loops(size: int, features: int, classes: int, batch: int) -> dict[str, Callable[[], None]]:
    """Return one epoch of SGD over the same random data, written in two ways."""
    torch.manual_seed(0)
    x, y = torch.randn(size, features), torch.randint(classes, (size,))
    model = torch.nn.Linear(features, classes)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)

    def step(x: torch.Tensor, y: torch.Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    def bare() -> None:
        for rows in torch.randperm(size).split(batch):
            step(x[rows], y[rows])

    def with_loader() -> None:
        for pair in loader:
            step(*pair)

    return {"bare": bare, "loader": with_loader}


def main() -> None:
    """Print the versions, then answer each line of the input with the seconds of that loop."""
    epochs = loops(*map(int, sys.argv[1:5]))
    print(f"python {platform.python_version()}, torch {torch.__version__}", flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        epochs[line.strip()]()
        print(time.perf_counter() - start, flush=True)


if __name__ == "__main__":
    main()
