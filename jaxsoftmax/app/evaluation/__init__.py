"""Scores, predictions and metrics of a fitted head.

    compute_scores         K scores (or one) per example, from its features
    to_logits              logits of the K classes or of each label, if the loss has probabilities
    compute_probabilities  their softmax, or their sigmoids
    predict                a class, labels or numbers
    compute_metrics        all metrics of a task that are meaningful for its loss, in JSON types
    calibrate              temperature and vector scaling fitted to validation scores

Heads fitted with softmax or sigmoid give probabilities. Heads fitted with hinge or squared error do
not, since the softmax of their scores would not be a probability, and they have no metrics that
need one. A sigmoid for each of K > 2 classes against the rest gives K numbers that do not sum to 1;
the probabilities are those numbers divided by their sum.

All of it runs on the host, where a few thousand examples take less time than a program to compile;
only the calibration of hundreds of classes is compiled.
"""

from jaxsoftmax.app.evaluation.baselines import Baseline, baseline
from jaxsoftmax.app.evaluation.calibrations import calibrate
from jaxsoftmax.app.evaluation.metrics import compute_metrics
from jaxsoftmax.app.evaluation.raw_metrics import rank_classes
from jaxsoftmax.app.evaluation.results import TITLES, format_metric, separate_items, supports
from jaxsoftmax.app.evaluation.scores import (
    compute_probabilities,
    compute_scores,
    link,
    predict,
    to_logits,
)

__all__ = [
    "Baseline",
    "TITLES",
    "baseline",
    "calibrate",
    "compute_metrics",
    "compute_probabilities",
    "compute_scores",
    "format_metric",
    "link",
    "predict",
    "rank_classes",
    "separate_items",
    "supports",
    "to_logits",
]
