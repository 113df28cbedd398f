"""Fused losses of a linear head: linear -> softmax or sigmoid -> cross-entropy, without logits."""

from jaxsoftmax.kernels.api import (
    LinearLoss,
    LinearStats,
    linear_binary_cross_entropy,
    linear_binary_cross_entropy_sum,
    linear_cross_entropy,
    linear_cross_entropy_stats,
    linear_cross_entropy_sum,
)
from jaxsoftmax.kernels.tiles import Tiles

__all__ = [
    "LinearLoss",
    "LinearStats",
    "Tiles",
    "linear_cross_entropy",
    "linear_cross_entropy_stats",
    "linear_cross_entropy_sum",
    "linear_binary_cross_entropy",
    "linear_binary_cross_entropy_sum",
]
