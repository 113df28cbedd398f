"""jaxsoftmax: the classification head for JAX.

It computes linear scores, softmax or sigmoid, and cross-entropy, exactly and with derivatives in
closed form, and it fits such heads with Optax. Every function is a pure function of arrays.
"""

import importlib
from typing import TYPE_CHECKING, Any

# JAX takes a second to import. The table of contents is loaded at its first use (PEP 562), so that
# the command line shows its help and refuses a wrong argument at once.
if TYPE_CHECKING:
    import jaxsoftmax.calibration
    import jaxsoftmax.metrics  # noqa: F401
    from jaxsoftmax.derivatives import (
        binary_cross_entropy_gradient,
        binary_cross_entropy_hessian_product,
        binary_gauss_newton_factor,
        cross_entropy_gradient,
        cross_entropy_hessian_product,
        gauss_newton_factor,
    )
    from jaxsoftmax.kernels import (
        LinearLoss,
        LinearStats,
        Tiles,
        linear_binary_cross_entropy,
        linear_binary_cross_entropy_sum,
        linear_cross_entropy,
        linear_cross_entropy_stats,
        linear_cross_entropy_sum,
    )
    from jaxsoftmax.linear import LinearParams
    from jaxsoftmax.links import log_sigmoid, log_softmax, logsumexp, sigmoid, softmax, softplus
    from jaxsoftmax.losses import (
        binary_cross_entropy,
        brier,
        check_labels,
        cross_entropy,
        entropy,
        focal,
        hinge,
        kl_divergence,
        mean_cross_entropy,
        multiclass_hinge,
        smoothed_cross_entropy,
        soft_cross_entropy,
        squared_error,
        weighted_mean,
    )
    from jaxsoftmax.sampling import SampledClasses, sample_classes
    from jaxsoftmax.sharding import Shards, pad_classes
    from jaxsoftmax.solvers import Solution, solve, solve_path
    from jaxsoftmax.training import (
        FitResult,
        TrainState,
        evaluate,
        fit,
        init_state,
        on_logits,
        sweep,
        train_epoch,
    )

__version__ = "0.1.0"

__all__ = [
    # links: scores <-> probabilities
    "logsumexp",
    "log_softmax",
    "softmax",
    "log_sigmoid",
    "sigmoid",
    "softplus",
    # derivatives in closed form
    "cross_entropy_gradient",
    "cross_entropy_hessian_product",
    "gauss_newton_factor",
    "binary_cross_entropy_gradient",
    "binary_cross_entropy_hessian_product",
    "binary_gauss_newton_factor",
    # losses, one value per example
    "cross_entropy",
    "mean_cross_entropy",
    "smoothed_cross_entropy",
    "soft_cross_entropy",
    "binary_cross_entropy",
    "entropy",
    "kl_divergence",
    "squared_error",
    "brier",
    "hinge",
    "multiclass_hinge",
    "focal",
    "weighted_mean",
    "check_labels",
    # linear map and loss in one, without the logits
    "linear_cross_entropy",
    "linear_cross_entropy_sum",
    "linear_cross_entropy_stats",
    "linear_binary_cross_entropy",
    "linear_binary_cross_entropy_sum",
    "LinearLoss",
    "LinearStats",
    "Tiles",
    "sample_classes",
    "SampledClasses",
    # the linear model and its training
    "LinearParams",
    "on_logits",
    "fit",
    "sweep",
    "init_state",
    "train_epoch",
    "evaluate",
    "TrainState",
    "FitResult",
    "Shards",
    "pad_classes",
    # the certified optimum of a linear model
    "solve",
    "solve_path",
    "Solution",
]

_MODULES = ("links", "derivatives", "losses", "kernels", "sampling", "linear", "training",
            "sharding", "solvers")  # fmt: skip
_MORE_MODULES = ("metrics", "calibration")

if not TYPE_CHECKING:  # for which every other name would exist too

    def __getattr__(name: str) -> Any:
        """Return a module, or load all of `__all__` and return a name in it."""
        if name in _MODULES + _MORE_MODULES:
            return importlib.import_module(f"{__name__}.{name}")
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        modules = [importlib.import_module(f"{__name__}.{module}") for module in _MODULES]
        globals().update({n: getattr(m, n) for m in modules for n in __all__ if hasattr(m, n)})
        return globals()[name]

    def __dir__() -> list[str]:
        """Return all names, for completion in a shell."""
        return sorted({*globals(), *__all__, *_MORE_MODULES})
