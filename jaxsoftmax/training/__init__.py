"""Training by minibatches: an epoch is one compiled scan, and a sweep is its vmap.

The model is linear unless a loss brings its own function to logits. The parameters of such a model
may be any pytree.
"""

from jaxsoftmax.sources import ParquetSource, RecordSource, Source
from jaxsoftmax.training.epoch import train_epoch
from jaxsoftmax.training.evaluation import evaluate
from jaxsoftmax.training.fitting import fit
from jaxsoftmax.training.models import accuracy, on_logits, weight_decay_mask
from jaxsoftmax.training.results import FitResult, Interrupted
from jaxsoftmax.training.state import TrainState, init_state
from jaxsoftmax.training.sweeping import sweep
from jaxsoftmax.training.types import Logits, Loss, Metrics, Score

__all__ = [
    "FitResult",
    "Interrupted",
    "Logits",
    "Loss",
    "Metrics",
    "ParquetSource",
    "RecordSource",
    "Score",
    "Source",
    "TrainState",
    "accuracy",
    "evaluate",
    "fit",
    "init_state",
    "on_logits",
    "sweep",
    "train_epoch",
    "weight_decay_mask",
]
