"""The types that training shares: losses, models, metrics and examples."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jax import Array

type Loss = Callable[[Any, Array, Array], Array]
"""`loss(params, features[B, ...], targets[B, ...]) -> values[B]`, one value per example.

`params` are `LinearParams` or any pytree of floating arrays.
"""

type Score = Callable[[Any, Array, Array], Array]
"""A function with the signature of `Loss` that is reported and not minimized."""

type Logits = Callable[[Any, Array], Array]
"""A model: `logits(params, features[B, ...]) -> scores[B, K]`, or `[B, ..., K]`."""

type Metrics = dict[str, Array]
"""Means by name: "loss", and "accuracy" if there is a score."""


class Examples(NamedTuple):
    """Examples with one weight each; None stands for weights of 1."""

    features: Array
    targets: Array
    weights: Array | None


class EpochPart(NamedTuple):
    """A part of an epoch that has been run: all of it, or some of its minibatches.

    The metrics are means at the end of the epoch, and before it whatever the next part needs.
    """

    state: Any
    metrics: Metrics
    is_last: bool


class Strata(NamedTuple):
    """How the rows of an epoch are divided."""

    axes: tuple[str, ...]  # mesh axes over which the strata are divided; none for one device
    per_device: int  # number of strata on each device
    batch_size: int  # rows that a minibatch takes from each stratum
    in_fixed_order: bool  # whether sums have the same bits for any number of devices
    is_local: bool  # whether a device computes with its own arrays, and sums by the names of axes
