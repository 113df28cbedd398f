"""What this library and others have and do not have: tried where possible, else read.

Command: `python experiments/features.py [--torch-python PATH]`, under a minute. It tries this
library, Optax, jax.nn, scikit-learn and, if PATH is an interpreter that has it, PyTorch, and writes
results/features.json, whose table tables.py puts into README.md. With `--smoke` it writes nothing,
and fails if an answer differs from the record. The record is also the place of what was read of
libraries that need a GPU, with its source.

Question. Which library keeps the digits of a confident answer, ignores a row whatever it holds,
computes a head without its logits, and says how far a linear classifier is from its optimum?

Findings: Optax, jax.nn and torch return 0 for a loss of 2.06e-09. In Optax and in torch an ignored
row of NaN still has a gradient of NaN. In Optax the label -1 has the loss of the last class; torch
refuses it. scikit-learn reports no distance from the optimum; Cyanure stops by a duality gap, which
is a bound without an intercept (benchmarks/beside_cyanure.py).
"""

import inspect
import json
import subprocess
import sys
from collections.abc import Callable

import document
import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

import jaxsoftmax
from jaxsoftmax import calibration, cross_entropy, linear_cross_entropy, mean_cross_entropy, solve

GITHUB, TORCH = "https://github.com", "https://docs.pytorch.org/docs/2.13/generated"
LIGER = (
    f"{GITHUB}/linkedin/Liger-Kernel/blob/main/src/liger_kernel/ops/fused_linear_cross_entropy.py"
)
CUT = f"{GITHUB}/apple/ml-cross-entropy/blob/main/cut_cross_entropy/linear_cross_entropy.py"
TOKAMAX = (
    f"{GITHUB}/openxla/tokamax/blob/main/tokamax/_src/ops/linear_softmax_cross_entropy_loss/api.py"
)
JAX_CCE = f"{GITHUB}/Coffeempty/jax-cce/blob/main/src/jax_cce/core.py"
FUSED = f"{TORCH}/torch.nn.functional.linear_cross_entropy.html"
CYANURE = f"{GITHUB}/inria-thoth/cyanure/blob/master/cyanure/estimators.py"

OURS, OPTAX, JAX_NN, SKLEARN = "jaxsoftmax", "Optax", "jax.nn", "scikit-learn"
PYTORCH = "torch"
LOGITS = jnp.array([[20.0, 0.0], [0.5, 1.0]])

DIGITS = "a loss of 2.06e-09 is not 0 (float32)"
IGNORED = "an ignored row has gradient 0, whatever it holds"
RANGE = "a label out of range has no other class's loss"
HESSIAN = "exact Hessians by `jax.hessian`"
WITHOUT = "a linear layer and its loss without the logits"
SOFTCAP = "... with a softcap"
EACH = "... with one loss per example"
CERTIFIED = "a bound on the distance from a linear model's optimum"
TEMPERATURE = "temperature scaling"
CTC = "losses of sequences (CTC)"
GROUPS = "group and fused-lasso penalties"

# Prints the version of torch, and its answers in the order of TRIED_IN_TORCH.
IN_TORCH = """
import inspect, json, math, torch
from torch.nn import functional as F
z = torch.tensor([[20.0, 0.0], [0.5, 1.0]])
value = float(F.cross_entropy(z, torch.tensor([0, 1]), reduction="none")[0])
broken = torch.tensor([[float("nan"), 0.0], [0.5, 1.0]], requires_grad=True)
F.cross_entropy(broken, torch.tensor([-100, 1])).backward()
def refuses(label):
    try:
        return bool(F.cross_entropy(z, torch.tensor([label, 0]), reduction="none")[0].isnan())
    except IndexError:
        return True
head = F.linear_cross_entropy(z, z, torch.tensor([0, 1]), reduction="none")
print(json.dumps([torch.__version__, [
    abs(value / math.log1p(math.exp(-20)) - 1) < 1e-6,
    bool((broken.grad[0] == 0).all()),
    refuses(-1) and refuses(2),
    "softcap" in inspect.signature(F.linear_cross_entropy).parameters,
    head.shape == (2,),
    hasattr(F, "ctc_loss"),
]]))
"""
TRIED_IN_TORCH = (DIGITS, IGNORED, RANGE, SOFTCAP, EACH, CTC)

# What was read in November 2026 of libraries that cannot be tried here, with its source.
READ: dict[str, dict[str, tuple[str, str]]] = {
    WITHOUT: {
        PYTORCH: ("yes", FUSED), "Liger": ("yes", LIGER), "cut-cross-entropy": ("yes", CUT),
        "tokamax": ("yes", TOKAMAX), "jax-cce": ("yes", JAX_CCE),
    },
    SOFTCAP: {
        "Liger": ("yes", LIGER), "cut-cross-entropy": ("yes", CUT), "tokamax": ("no", TOKAMAX),
        "jax-cce": ("no", JAX_CCE),
    },
    EACH: {
        "Liger": ("yes", LIGER), "cut-cross-entropy": ("yes", CUT), "tokamax": ("no", TOKAMAX),
        "jax-cce": ("no", JAX_CCE),
    },
    CERTIFIED: {"Cyanure": ("without an intercept", CYANURE)},
    GROUPS: {"Cyanure": ("yes", CYANURE)},
}  # fmt: skip


def tried() -> dict[str, dict[str, bool]]:
    """Try each feature in each library in which it makes sense and that is installed."""
    optax_loss = optax.softmax_cross_entropy_with_integer_labels
    losses: dict[str, Callable] = {
        OURS: cross_entropy,
        OPTAX: optax_loss,
        JAX_NN: lambda z, y: -jnp.take_along_axis(jax.nn.log_softmax(z), y[:, None], -1)[:, 0],
    }
    means: dict[str, Callable] = {
        OURS: lambda z, y, valid: mean_cross_entropy(z, y, valid=valid),
        OPTAX: lambda z, y, valid: optax_loss(z, y).mean(where=valid),
    }
    fitted = LogisticRegression(max_iter=5000).fit(*load_iris(return_X_y=True))
    reports_gap = any("gap" in name for name in vars(fitted))
    solution = solve(load_iris().data, load_iris().target, C=1.0)
    return {
        DIGITS: {name: keeps_digits(loss) for name, loss in losses.items()},
        IGNORED: {name: ignores(mean) for name, mean in means.items()},
        RANGE: {name: refuses_labels(losses[name]) for name in (OURS, OPTAX)},
        HESSIAN: {name: has_hessian(loss) for name, loss in losses.items()},
        WITHOUT: {OURS: without_logits(), OPTAX: hasattr(optax, "linear_cross_entropy"),
                  JAX_NN: hasattr(jax.nn, "linear_cross_entropy")},
        SOFTCAP: {OURS: without_logits(softcap=30.0)},
        EACH: {OURS: linear_cross_entropy(LOGITS, jnp.eye(2), jnp.array([0, 1])).nll.shape == (2,)},
        CERTIFIED: {OURS: bool(solution.gap <= 1e-6), SKLEARN: reports_gap},
        CTC: {OURS: hasattr(jaxsoftmax, "ctc_loss"), OPTAX: hasattr(optax, "ctc_loss")},
        GROUPS: {OURS: "groups" in inspect.signature(solve).parameters},
        TEMPERATURE: {OURS: hasattr(calibration, "temperature_scaling"), SKLEARN: scales()},
    }  # fmt: skip


def tried_in_torch(python: str) -> tuple[str, dict[str, bool]]:
    """Return the version and the answers of torch, which another interpreter may have."""
    done = subprocess.run([python, "-c", IN_TORCH], capture_output=True, text=True, check=True)
    version, answers = json.loads(done.stdout)
    return version, dict(zip(TRIED_IN_TORCH, answers, strict=True))


def keeps_digits(loss: Callable) -> bool:
    """Return whether the loss of a confident answer has its digits."""
    value = float(loss(LOGITS, jnp.array([0, 1]))[0])
    return bool(abs(value / np.log1p(np.exp(-20.0)) - 1) < 1e-6)


def ignores(mean: Callable) -> bool:
    """Return whether a row of NaN that does not count has gradient 0."""
    logits, valid = LOGITS.at[0].set(jnp.nan), jnp.array([False, True])
    gradient = jax.grad(lambda z: mean(z, jnp.array([-100, 1]), valid))(logits)
    return bool((gradient[0] == 0).all() & jnp.isfinite(gradient[1]).all())


def refuses_labels(loss: Callable) -> bool:
    """Return whether labels out of range, on both sides, give NaN."""
    return bool(jnp.isnan(loss(LOGITS, jnp.array([-1, 2]))).all())


def has_hessian(loss: Callable) -> bool:
    """Return whether the Hessian of a confident answer's loss has its digits."""
    hessian = jax.hessian(lambda z: loss(z[None], jnp.array([0]))[0])(LOGITS[0])
    p = 1 / (1 + np.exp(20.0))
    return bool(abs(hessian[1, 1] / (p * (1 - p)) - 1) < 1e-5)


def without_logits(**settings: float) -> bool:
    """Return whether the gradient of a head needs less memory than its logits."""
    x, w = jnp.ones((512, 8)), jnp.ones((8, 8192))
    loss = lambda w: linear_cross_entropy(  # noqa: E731
        x, w, jnp.zeros(512, int), memory=2**20, **settings
    ).nll.sum()
    program = jax.jit(jax.grad(loss)).lower(w).compile()
    return measure.temporary_bytes(program) < 4 * 512 * 8192


def scales() -> bool:
    """Return whether scikit-learn scales by a temperature."""
    x, y = load_iris(return_X_y=True)
    try:
        CalibratedClassifierCV(LogisticRegression(max_iter=5000), method="temperature").fit(x, y)
    except ValueError:  # what an older version says of a method that it does not have
        return False
    return True


def main() -> None:
    """Try, print, and write the record or compare with it."""
    options = document.arguments(__doc__, torch=True)
    found, version = tried(), None
    if options.torch_python:
        version, answers = tried_in_torch(options.torch_python)
        for feature, answer in answers.items():
            found[feature][PYTORCH] = answer
    for feature, answers in found.items():
        print(f"{feature}: {answers}")
    if not options.smoke:
        versions = {"jaxsoftmax": jaxsoftmax.__version__, "torch": version}
        record = {"tried": found, "read": READ, "versions": versions}
        measure.write_record("features", record)
        return
    record = document.recorded("features")["tried"]
    if any(record[name][library] != has for name in found for library, has in found[name].items()):
        sys.exit("an answer differs from results/features.json")


if __name__ == "__main__":
    main()
