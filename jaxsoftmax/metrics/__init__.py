r"""Metrics of a classifier: how often it is right, how well it ranks, how far to trust it.

    from logits [..., K] and labels [...]  hits, accuracy, top_k_accuracy, negative_log_likelihood,
                                           brier_score, expected_calibration_error
    from logits and targets, per label     label_accuracy, log_loss
    counts of a single-label classifier    confusion_matrix, class_counts
    counts of a multi-label classifier     label_counts
    from either's counts                   precision, recall, f1, and micro, which sums counts
    from confidences and targets           roc_auc, average_precision, reliability
    from any of these                      macro, the mean over classes; bootstrap, an interval

Macro F1 is thus `macro(f1(counts))`, micro F1 is `f1(micro(counts))`, and the one-vs-rest ROC-AUC
of a softmax is `roc_auc(*one_vs_rest(logits, labels))`. The shared rules:

- Every function depends on arrays alone and runs under jit. `weights` is one non-negative number
  per example, or one for all. An example of weight 0 is ignored, whatever it holds.
- The predicted class is the first of the largest logits. A label is predicted if its logit is above
  0, that is, if its probability is above one half.
- An undefined metric is NaN, never an exception. A logit that is NaN, a label out of range, or a
  target other than 0 and 1 makes every metric NaN in which it counts, and so do data without what
  the metric needs (for ROC-AUC one positive and one negative). A mean over no examples, or over
  examples of zero total weight, is 0, as in `weighted_mean`.
- Sums are float32, or float64 for float64 logits. None of them is one long sequential sum, which
  would stop at 2^24 examples.
- Counts are integers unless weights are floats: exact up to a total of 2 10^9, and int64 if
  `jax_enable_x64` is set. An integer cannot be NaN: an undefined integer count is -1.
"""

from jaxsoftmax.metrics.calibration_error import (
    Binning,
    Reliability,
    expected_calibration_error,
    reliability,
)
from jaxsoftmax.metrics.counts import (
    Counts,
    class_counts,
    confusion_matrix,
    f1,
    label_counts,
    macro,
    micro,
    precision,
    recall,
)
from jaxsoftmax.metrics.intervals import Interval, bootstrap
from jaxsoftmax.metrics.means import (
    accuracy,
    brier_score,
    hits,
    label_accuracy,
    log_loss,
    negative_log_likelihood,
    top_k_accuracy,
)
from jaxsoftmax.metrics.ranking import average_precision, one_vs_rest, roc_auc

__all__ = [
    # means over examples
    "hits",
    "accuracy",
    "top_k_accuracy",
    "negative_log_likelihood",
    "brier_score",
    "log_loss",
    "label_accuracy",
    # counts
    "Counts",
    "confusion_matrix",
    "class_counts",
    "label_counts",
    "micro",
    "macro",
    "precision",
    "recall",
    "f1",
    # rankings
    "one_vs_rest",
    "roc_auc",
    "average_precision",
    # calibration error
    "Binning",
    "Reliability",
    "reliability",
    "expected_calibration_error",
    # intervals
    "Interval",
    "bootstrap",
]
