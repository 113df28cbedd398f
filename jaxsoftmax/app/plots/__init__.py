"""Figures of a fit, each a separate matplotlib `Figure`, for a notebook or for the report.

    learning_curves        loss, error and accuracy by epoch
    regularization_curve   held-out loss by the strength of the penalty
    confusion_matrix       true against predicted classes, readable for 2 to 100 of them
    reliability_diagram    frequencies against probabilities, before and after calibration
    ranking_curves         ROC and precision-recall curves
    average_ranking_curves the same, averaged over many classes
    threshold_curves       precision, recall and F1 by the threshold
    class_templates        the weights of a model of images, as images
    top_features           the features with the largest weights for each class
    mistakes               misclassified images, with their predictions
    residuals              predicted against true numbers
    compare_intervals      a metric of several runs with its intervals
    compare_curves         validation losses of several runs

The figures are made without pyplot and have neither state nor a backend: `figure.savefig(path)`
writes one, and a notebook shows one after `%matplotlib inline`. Blue and orange, which color-blind
readers can distinguish, mean right and wrong, or for and against. Heat maps vary the opacity of a
color rather than the color, so that they suit both light and dark pages.
"""

from jaxsoftmax.app.plots.comparison import compare_curves, compare_intervals
from jaxsoftmax.app.plots.confusion import confusion_matrix, most_confused_pairs
from jaxsoftmax.app.plots.features import top_features
from jaxsoftmax.app.plots.images import class_templates, mistakes
from jaxsoftmax.app.plots.learning import learning_curves, regularization_curve
from jaxsoftmax.app.plots.ranking import average_ranking_curves, ranking_curves, threshold_curves
from jaxsoftmax.app.plots.regression import residuals
from jaxsoftmax.app.plots.reliability import reliability_diagram
from jaxsoftmax.app.plots.style import BLUE, ORANGE, PALETTE, STYLE

__all__ = [
    "BLUE",
    "ORANGE",
    "PALETTE",
    "STYLE",
    "average_ranking_curves",
    "class_templates",
    "compare_curves",
    "compare_intervals",
    "confusion_matrix",
    "learning_curves",
    "mistakes",
    "most_confused_pairs",
    "ranking_curves",
    "regularization_curve",
    "reliability_diagram",
    "residuals",
    "threshold_curves",
    "top_features",
]
