"""The names that the command line knows: tasks, losses, optimizers and data sets.

They stand apart from what they name, so that `--help` lists them without an import of JAX.
"""

from enum import StrEnum


class Task(StrEnum):
    """The kind of target: one of K classes, any of K labels, or K numbers."""

    classes = "classes"
    labels = "labels"
    numbers = "numbers"


class LossName(StrEnum):
    """Names of losses, which compare scores with a class, labels or numbers."""

    softmax = "softmax"
    sigmoid = "sigmoid"
    squared_error = "squared_error"
    hinge = "hinge"


class OptimizerName(StrEnum):
    """Names of Optax optimizers."""

    adamw = "adamw"
    adam = "adam"
    sgd = "sgd"
    momentum = "momentum"
    lbfgs = "lbfgs"


class KeptEpoch(StrEnum):
    """The epoch whose model is kept: that of the smallest validation loss, or the last one."""

    best = "best"
    last = "last"


TASK_LOSSES = {
    Task.classes: tuple(LossName),
    Task.labels: (LossName.sigmoid, LossName.hinge),
    Task.numbers: (LossName.squared_error,),
}
"""The losses that are meaningful for each task."""

EMBEDDED = "digits"
"""The data set that is part of the package."""

PREPARED = {
    "mnist": "MNIST, LeCun, Cortes & Burges (1998), CC BY-SA 3.0",
    "fashion_mnist": "Fashion-MNIST, Xiao, Rasul & Vollgraf (2017), MIT",
    "cifar10": "CIFAR-10, Krizhevsky (2009), no license stated",
}
"""The origin and the license of the known data sets that TensorFlow Datasets prepares, by name."""
