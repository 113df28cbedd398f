"""Lines that describe the data, the settings and the result of a fit."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxsoftmax.app.data.dataset import Dataset, Task
from jaxsoftmax.app.evaluation import TITLES, baseline, format_metric
from jaxsoftmax.app.text import replace_unprintable, shorten

if TYPE_CHECKING:  # for `probe` alone, which imports the solvers
    from jaxsoftmax.solvers import Solution


def describe(dataset: Dataset) -> str:
    """Describe a data set in two lines.

    Args:
        dataset: data of any task.

    Returns:
        Its source, and its sizes.

    Example:
        >>> from jaxsoftmax.app import data
        >>> from jaxsoftmax.app.cli import summaries
        >>> print(summaries.describe(data.load("digits")).splitlines()[1])
        1,085 train, 357 validation, 355 test examples of 64 features, 10 classes
    """
    schema = dataset.schema
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    sizes = ", ".join(f"{len(split.features):,} {name}" for name, split in splits.items())
    features = _count(schema.num_features, "feature", "features")
    targets = _count(len(schema.classes), _SINGULAR[schema.task], schema.task)
    origin = replace_unprintable(f"{dataset.name}: {dataset.source}")
    return f"{origin}\n{sizes} examples of {features}, {targets}"


_SINGULAR = {Task.classes: "class", Task.labels: "label", Task.numbers: "number"}


def _count(number: int, singular: str, plural: str) -> str:
    return f"{number:,} {singular if number == 1 else plural}"


def format_settings(settings: Mapping[str, Any]) -> str:
    """Format settings as one line.

    Args:
        settings: values by name; None is left out.

    Returns:
        Names and values.

    Example:
        >>> from jaxsoftmax.app.cli import summaries
        >>> summaries.format_settings({"loss": "softmax", "batch_size": 32, "patience": None})
        'loss softmax, batch size 32'
    """
    return ", ".join(
        f"{name.replace('_', ' ')} {value:.4g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' ')} {value}"
        for name, value in settings.items()
        if value is not None
    )


OVERFITTING = 0.01
"""The relative rise of the validation loss after its minimum that is called overfitting."""


def describe_overfitting(
    history: Mapping[str, np.ndarray], *, is_last_kept: bool = False
) -> str | None:
    """Describe how the validation loss rose after its minimum, if it did while training went on.

    Args:
        history: one number per epoch, with "loss" and "validation_loss".
        is_last_kept: whether the model of the last epoch is kept in place of the best one.

    Returns:
        One line, or None.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax.app.cli import summaries
        >>> losses = {"loss": np.array([3.0, 2, 1]), "validation_loss": np.array([3.0, 2, 4])}
        >>> print(summaries.describe_overfitting(losses).partition(":")[0])
        overfitting after epoch 2
    """
    train, validation = history["loss"], history["validation_loss"]
    best = int(np.argmin(np.where(np.isnan(validation), np.inf, validation)))
    if not (validation[-1] > (1 + OVERFITTING) * validation[best] and train[-1] < train[best]):
        return None
    kept = f"{len(train)}, the last one, which was asked for" if is_last_kept else str(best + 1)
    return (
        f"overfitting after epoch {best + 1}: the validation loss rose from {validation[best]:.4f} "
        f"to {validation[-1]:.4f} while the training loss fell; the model kept is of epoch {kept}"
    )


def format_certificate(C: float, solution: "Solution") -> str:
    """Format the proven distance of a solution from the optimum.

    Args:
        C: the chosen C.
        solution: the solution at that C.

    Returns:
        One line.

    Example:
        >>> import numpy as np
        >>> from jaxsoftmax import solvers
        >>> from jaxsoftmax.app.cli import summaries
        >>> solution = solvers.solve(np.array([[0.0], [1.0]]), np.array([0, 1]), C=1.0)
        >>> summaries.format_certificate(1.0, solution).partition(":")[0]
        'C = 1'
    """
    if not np.isfinite(solution.gap):
        return f"C = {C:.4g}: {solution.reason}"
    distance = f"proven to be within {solution.gap:.1e} of the optimum"
    return f"C = {C:.4g}: objective {solution.objective:.6f}, {distance}"


def format_headline(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Format the most important metric with its interval, and what a constant would reach.

    Args:
        metrics: the result of `evaluation.compute_metrics` for each split, with intervals for the
            test examples.

    Returns:
        One line.

    Example:
        >>> from jaxsoftmax.app.cli import summaries
        >>> test = {"examples": 4, "accuracy": 0.5, "accuracy_interval": [0.4, 0.6],
        ...         "per_class": [{"name": "a", "support": 1}, {"name": "b", "support": 3}]}
        >>> summaries.format_headline({"train": test, "test": test})
        'test accuracy 50.00%, 95% interval 40.00% to 60.00%; baseline 75.00%, always b'
    """
    test = metrics["test"]
    name = "accuracy" if "accuracy" in test else "rmse"
    low, high = (format_metric(name, end) for end in test[f"{name}_interval"])
    line = f"test {TITLES[name]} {format_metric(name, test[name])}, 95% interval {low} to {high}"
    constant = baseline(metrics["train"], test)
    if constant is None:
        return line
    prediction = replace_unprintable(shorten(constant.prediction, 40))
    return f"{line}; baseline {format_metric(name, constant.value)}, always {prediction}"
