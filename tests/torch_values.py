"""What torch's losses answer, so that the tests compare with torch where torch is not installed.

Command: `python tests/torch_values.py`, seconds, in an environment that has PyTorch. It writes
torch_values.json: inputs, and value and gradient in the logits of each call in float64, by the call
as a torch user writes it. `test_moving_here.py` reads it.
"""

import json
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812

RECORD = Path(__file__).with_suffix(".json")

# As written in a torch program, of z, y, t and the weights w of classes and p of positives.
CALLS = (
    "F.cross_entropy(z, y)",
    'F.cross_entropy(z, y, reduction="none")',
    'F.cross_entropy(z, y, reduction="sum")',
    "F.cross_entropy(z, y, weight=w)",
    'F.cross_entropy(z, y, weight=w, reduction="none")',
    "F.cross_entropy(z, ignored, ignore_index=-100)",
    "F.cross_entropy(z, y, label_smoothing=0.1)",
    "F.cross_entropy(z, y, weight=w, label_smoothing=0.1)",
    'F.cross_entropy(z, y, weight=w, label_smoothing=0.1, reduction="none")',
    "F.cross_entropy(z, ignored, weight=w, ignore_index=-100, label_smoothing=0.1)",
    "F.cross_entropy(z, y, label_smoothing=1.0)",
    "F.cross_entropy(z.T[None], ignored[None], weight=w, ignore_index=-100)",
    "F.nll_loss(F.log_softmax(z, -1), y)",
    "F.cross_entropy(z, t)",
    "F.cross_entropy(z, t, weight=w)",
    'F.kl_div(F.log_softmax(z, -1), t, reduction="batchmean")',
    'F.kl_div(F.log_softmax(z, -1), t.log(), log_target=True, reduction="batchmean")',
    'T**2 * F.kl_div(F.log_softmax(z / T, -1), F.softmax(s / T, -1), reduction="batchmean")',
    "F.binary_cross_entropy_with_logits(z, b)",
    "F.binary_cross_entropy_with_logits(z, b, pos_weight=p)",
    "F.binary_cross_entropy_with_logits(z, b, weight=w)",
    "F.multilabel_soft_margin_loss(z, b)",
    "F.linear_cross_entropy(z, W, ignored, linear_bias=c, ignore_index=-100)",
    "F.linear_cross_entropy(z, W, ignored, weight=w, ignore_index=-100)",
    "F.linear_cross_entropy(z, W, y, label_smoothing=0.1)",
    "F.mse_loss(z, t)",
    "F.log_softmax(z, -1)[:, 1]",
    "F.softmax(z, -1)[:, 1]",
    "F.logsigmoid(z)",
    "F.softplus(z)",
    "torch.logsumexp(z, -1)",
)


def main() -> None:
    """Make the calls and write the record."""
    inputs = drawn()
    names = {name: torch.tensor(value) for name, value in inputs.items()}
    found = {}
    for call in CALLS:
        z = names["z"].clone().requires_grad_()
        value = eval(call, {"F": F, "torch": torch} | names | {"z": z})
        (gradient,) = torch.autograd.grad(value.sum(), z)
        found[call] = {"value": value.tolist(), "gradient": gradient.tolist()}
    record = {
        "inputs": {name: value.tolist() for name, value in inputs.items()},
        "dtype": "float64",
        "calls": found,
        "versions": {"torch": torch.__version__.split("+")[0]},
    }
    RECORD.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    print("written:", RECORD.name)


def drawn() -> dict[str, np.ndarray]:
    """Logits of 6 examples and 4 classes, and what goes with them."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 6)
    return {
        "z": np.round(3 * rng.standard_normal((6, 4)), 3),
        "y": y,
        "ignored": np.where([0, 1, 0, 0, 1, 0], -100, y),
        "t": np.round(rng.dirichlet(np.ones(4), 6), 3),
        "b": rng.integers(0, 2, (6, 4)).astype(np.float64),
        "w": np.array([0.5, 1.0, 2.0, 0.25]),
        "p": np.array([3.0, 0.5, 1.0, 8.0]),
        # Scores of a teacher and a temperature; for a head on the features z, its weights and bias.
        "s": np.round(3 * rng.standard_normal((6, 4)), 3),
        "T": np.array(2.0),
        "W": np.round(rng.standard_normal((4, 4)), 3),
        "c": np.round(rng.standard_normal(4), 3),
    }


if __name__ == "__main__":
    main()
