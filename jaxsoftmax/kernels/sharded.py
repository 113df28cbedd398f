"""An implementation on rows and classes that are sharded over mesh axes.

It has the functions of an implementation (see `types`), each with one shard_map around those of
another one, so that the rules of differentiation see whole arrays. Inside a shard_map of the
caller's the arrays are local already.

What crosses between devices are a few numbers a row over the shards of the classes, the gradient of
x over those of the classes, and the gradients of w and bias over those of the rows.

Bits. A block's logits are a product of one shape on any number of shards, and had the same bits in
all shapes of more than a few rows and classes that were tried on a CPU. Per example, the sums of
blocks are rescaled to a running maximum and added in floats, so that the losses differ by an ulp or
two between numbers of shards. The weighted sum takes whole rows, whose exponentials are added as
integers: its value and w's gradient have the bits of their products. Where there is no room for
enough of them (`chunks`), the sum computes the logits twice, as per example. x's gradient is a sum
of floats over the shards.

x's gradient is a float32 sum before it is rounded. XLA for TPUs rounds a bfloat16 gradient first,
which halves the bytes that cross and loses up to half an ulp of bfloat16 a shard; features in
float32 have theirs summed in float32. It is an all-reduce, since x is whole on each shard of the
classes. Where rows are sharded over an axis of their own, each device has only its rows of x, and
so of the sum. Where the caller shards x's gradient over the axes of the classes too, as by
`with_sharding_constraint(gradient, P(("data", "model"), None))`, XLA for TPUs makes it a
reduce-scatter: on a described v5e:4x4, the program for 512 x 256 features in float32 has, in place
of the all-reduce, `all-reduce-scatter (input: f32[128,256]) -> f32[32,256]`.
"""

from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from jaxsoftmax import placement, validation
from jaxsoftmax.class_shards import ClassShards
from jaxsoftmax.kernels import chunks, primitives, shards, xla_chunked
from jaxsoftmax.kernels.primitives import relative_exp
from jaxsoftmax.kernels.row_losses import RowLoss, RowTerms
from jaxsoftmax.kernels.types import (
    Head,
    LSEParts,
    ModelCotangents,
    ModelTangents,
    NeedsGrad,
    Options,
    RowCotangents,
    RowTangents,
    Stats,
)
from jaxsoftmax.linear_map import with_derivatives_of


def on_shards(module: ModuleType, axes: ClassShards) -> Any:
    """Return the implementation for arrays that lie on these axes."""
    if not axes.classes and axes.mesh is None:
        return module
    return ShardedImplementation(module, axes)


class ShardedImplementation(NamedTuple):
    """The implementation of a module, on the parts that each device holds."""

    module: ModuleType
    axes: ClassShards

    # -- Softmax --

    def forward(self, head: Head, options: Options) -> LSEParts:
        """Return the terms of each row's loss over all classes."""

        def local(head: Head) -> LSEParts:
            (head,) = placement.match_varying_axes(head)
            head, first = _localize_labels(head, self.axes)
            return _combine(self.module.forward(head, options), first, self.axes)

        stats = Stats(0, 0, 0) if options.stats else None  # type: ignore[arg-type]
        terms = LSEParts(0, 0, 0, stats)  # type: ignore[arg-type]
        return self._map(local, (head,), (self._head(head),), self._rows(terms))

    def tangent(
        self, head: Head, parts: LSEParts, tangents: ModelTangents, options: Options
    ) -> RowTangents:
        """Return the tangents of the loss terms and the mean."""

        def local(head: Head, parts: LSEParts, tangents: ModelTangents) -> RowTangents:
            head, parts, tangents = placement.match_varying_axes(head, parts, tangents)
            head, _ = _localize_labels(head, self.axes)
            found = self.module.tangent(head, parts, tangents, options)
            return jax.tree.map(self._sum_classes, found)

        places = self._head(head), self._rows(parts), self._model(tangents)
        results = RowTangents(0, 0, None if parts.stats is None else 0)  # type: ignore[arg-type]
        return self._map(local, (head, parts, tangents), places, self._rows(results))

    def backward(
        self,
        head: Head,
        parts: LSEParts,
        cotangents: RowCotangents,
        needs_grad: NeedsGrad,
        options: Options,
    ) -> ModelCotangents:
        """Return the gradients of x, w and bias that are needed."""

        def local(head: Head, parts: LSEParts, cotangents: RowCotangents) -> ModelCotangents:
            matched, parts, cotangents = placement.match_varying_axes(head, parts, cotangents)
            matched, _ = _localize_labels(matched, self.axes)
            wide = self._widen(needs_grad, options)
            found = self.module.backward(matched, parts, cotangents, wide, options)
            return self._sum_gradients(found, head, needs_grad)

        places = self._head(head), self._rows(parts), self._rows(cotangents)
        return self._map(local, (head, parts, cotangents), places, self._model(needs_grad))

    def value_and_gradients(
        self,
        head: Head,
        valid: Array | None,
        weights: Array,
        needs_grad: NeedsGrad,
        options: Options,
    ) -> tuple[Array, ModelCotangents]:
        """Return each row's loss, and the gradients of the weighted sum."""
        run = self.module.value_and_gradients
        if self.axes.classes:
            run = _sums_over_classes(self.module, self.axes)

        def local(head: Head, valid: Array | None, weights: Array) -> tuple[Array, ModelCotangents]:
            matched, matched_valid, matched_weights = self._match(head, valid, weights)
            wide = self._widen(needs_grad, options)
            nll, found = run(matched, matched_valid, matched_weights, wide, options)
            return nll, self._sum_gradients(found, head, needs_grad)

        places = self._head(head), self._rows(valid), self._rows(weights)
        results = self._rows(weights), self._model(needs_grad)
        return self._map(local, (head, valid, weights), places, results)

    def rows_and_gradients(
        self,
        head: Head,
        weights: Array,
        constants: tuple[Array, ...],
        function: Callable,
        needs_grad: NeedsGrad,
        options: Options,
    ) -> tuple[RowTerms, ModelCotangents]:
        """Return the terms of each row, and the gradients of the weighted sum of a function."""
        run = self.module.rows_and_gradients
        if self.axes.classes:
            run = _rows_over_classes(self.module, self.axes)

        def local(head: Head, weights: Array, constants: Any) -> tuple[RowTerms, ModelCotangents]:
            matched, _, matched_weights = self._match(head, None, weights)
            wide = self._widen(needs_grad, options)
            rows, found = run(matched, matched_weights, constants, function, wide, options)
            return rows, self._sum_gradients(found, head, needs_grad)

        everywhere = jax.tree.map(lambda _: PartitionSpec(), constants)
        places = self._head(head), self._rows(weights), everywhere
        results = self._rows(RowTerms.zeros(weights)), self._model(needs_grad)
        return self._map(local, (head, weights, constants), places, results)

    # -- Sigmoid --

    def binary_forward(self, head: Head, options: Options) -> Array:
        """Return the sum of each row's losses over the labels of all shards."""

        def local(head: Head) -> Array:
            (head,) = placement.match_varying_axes(head)
            return self._sum_classes(self.module.binary_forward(head, options))

        return self._map(local, (head,), (self._head(head),), self._rows(0))

    def binary_tangent(self, head: Head, tangents: ModelTangents, options: Options) -> Array:
        """Return the tangent of `binary_forward`."""

        def local(head: Head, tangents: ModelTangents) -> Array:
            head, tangents = placement.match_varying_axes(head, tangents)
            return self._sum_classes(self.module.binary_tangent(head, tangents, options))

        places = self._head(head), self._model(tangents)
        return self._map(local, (head, tangents), places, self._rows(0))

    def binary_backward(
        self, head: Head, cotangents: Array, needs_grad: NeedsGrad, options: Options
    ) -> ModelCotangents:
        """Return the gradients of x, w and bias that are needed."""

        def local(head: Head, cotangents: Array) -> ModelCotangents:
            matched, cotangents = placement.match_varying_axes(head, cotangents)
            wide = self._widen(needs_grad, options)
            found = self.module.binary_backward(matched, cotangents, wide, options)
            return self._sum_gradients(found, head, needs_grad)

        places = self._head(head), self._rows(cotangents)
        return self._map(local, (head, cotangents), places, self._model(needs_grad))

    def binary_value_and_gradients(
        self, head: Head, weights: Array, needs_grad: NeedsGrad, options: Options
    ) -> tuple[Array, ModelCotangents]:
        """Return each row's loss, and the gradients of the weighted sum."""

        def local(head: Head, weights: Array) -> tuple[Array, ModelCotangents]:
            matched, weights = placement.match_varying_axes(head, weights)
            wide = self._widen(needs_grad, options)
            values, found = self.module.binary_value_and_gradients(matched, weights, wide, options)
            return self._sum_classes(values), self._sum_gradients(found, head, needs_grad)

        places = self._head(head), self._rows(weights)
        results = self._rows(weights), self._model(needs_grad)
        return self._map(local, (head, weights), places, results)

    # -- Where arrays lie, and what crosses --

    def _map(self, function: Callable[..., Any], inputs: Any, places: Any, results: Any) -> Any:
        return shards.map_shards(function, self.axes, inputs, places, results)

    def _head(self, head: Head) -> Head:
        return shards.specs(head, self.axes)

    def _rows(self, tree: Any) -> Any:
        return shards.per_row(self.axes, tree)

    def _model(self, tree: Any) -> ModelTangents:
        """Return the PartitionSpecs of what is there of x, w and bias."""
        rows, classes = self.axes.rows or None, self.axes.classes or None
        places = PartitionSpec(rows, None), PartitionSpec(None, classes), PartitionSpec(classes)
        pairs: Any = zip(tree, places, strict=True)
        return ModelTangents(*(None if a is None else place for a, place in pairs))

    def _sum_classes(self, x: Array) -> Array:
        return lax.psum(x, self.axes.classes)

    def _widen(self, needs_grad: NeedsGrad, options: Options) -> NeedsGrad:
        """Return the dtypes of a device's gradients: x's is a part of a sum over all classes."""
        if needs_grad.x is None or not self.axes.classes:
            return needs_grad
        return needs_grad._replace(x=primitives.sum_dtype(options.dtype))

    def _sum_gradients(
        self, found: ModelCotangents, head: Head, needs_grad: NeedsGrad
    ) -> ModelCotangents:
        """Return gradients that vary as their arguments do: summed over the other axes."""
        pairs: Any = zip(found, head.model, strict=True)
        x, w, bias = (None if g is None else placement.sum_like(g, a) for g, a in pairs)
        return ModelCotangents(None if x is None else x.astype(needs_grad.x), w, bias)

    def _match(self, head: Head, valid: Array | None, weights: Array) -> tuple[Any, ...]:
        """Return arrays that vary alike, those of rows only over the axes of the rows."""
        if not self.axes.classes:
            return placement.match_varying_axes(head, valid, weights)
        targets, valid, weights = placement.match_varying_axes(head.targets, valid, weights)
        (head,) = placement.match_varying_axes(head)
        return head._replace(targets=targets), valid, weights


# -- A weighted sum over sharded classes --


def _sums_over_classes(module: ModuleType, axes: ClassShards) -> Callable:
    """Return a device's part of `value_and_gradients`, with the derivatives of XLA's operations."""
    plain = partial(_sum_over_classes, xla_chunked, axes)
    if module is xla_chunked:
        return plain
    return with_derivatives_of(plain)(partial(_sum_over_classes, module, axes))


def _sum_over_classes(
    module: ModuleType,
    axes: ClassShards,
    head: Head,
    valid: Array | None,
    weights: Array,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[Array, ModelCotangents]:
    """Return each row's loss over all classes, and this device's part of the gradients.

    Whole rows take three products, and their exponentials are those of `softmax_core`, in XLA's
    operations: the kernels of `mosaic_tpu` and `mosaic_gpu` finish a chunk of rows, from the logits
    to the gradient in them, before they return, and the sum over the other shards is missing in
    between. Where the logits are computed twice (`chunks`), both times are the implementation's.
    """
    size = chunks.rows_per_chunk(head, needs_grad, options)
    if size is not None:
        local = axes._replace(mesh=None)
        return xla_chunked.chunks_of_rows(head, valid, weights, needs_grad, options, size, local)
    head, weights = xla_chunked.ignore_rows(head, valid, weights)
    head, forward, backward = _two_passes(module, head, axes)
    nll, gradients = xla_chunked.compute_twice(
        head, weights, needs_grad, options, forward, backward
    )
    return validation.zero_ignored(nll, valid), gradients


def _rows_over_classes(module: ModuleType, axes: ClassShards) -> Callable:
    """Return a device's part of `rows_and_gradients`, as `_sums_over_classes`."""
    plain = partial(_row_losses_over_classes, xla_chunked, axes)
    if module is xla_chunked:
        return plain
    return with_derivatives_of(plain, options=3)(partial(_row_losses_over_classes, module, axes))


def _row_losses_over_classes(
    module: ModuleType,
    axes: ClassShards,
    head: Head,
    weights: Array,
    constants: tuple[Array, ...],
    function: Callable,
    needs_grad: NeedsGrad,
    options: Options,
) -> tuple[RowTerms, ModelCotangents]:
    """Return the terms of each row over all classes, and this device's part of the gradients.

    The plan is that of `_sum_over_classes`.
    """
    loss = RowLoss(function, constants)
    size = chunks.rows_per_chunk(head, needs_grad, options)
    if size is not None:
        local = axes._replace(mesh=None)
        return xla_chunked.chunks_of_row_losses(
            loss, head, weights, needs_grad, options, size, local
        )
    head, forward, backward = _two_passes(module, head, axes)
    return xla_chunked.compute_twice(
        head, weights, needs_grad, options, forward, backward, loss.part_cotangents
    )


def _two_passes(
    module: ModuleType, head: Head, axes: ClassShards
) -> tuple[Head, Callable, Callable]:
    """Return a head with local labels, and forward and backward passes over all classes."""
    head, first = _localize_labels(head, axes)

    def forward(head: Head, options: Options) -> LSEParts:
        return _combine(module.forward(head, options), first, axes)

    def backward(
        head: Head, parts: LSEParts, cotangents: RowCotangents, *of: Any
    ) -> ModelCotangents:
        return module.backward(*placement.match_varying_axes(head, parts, cotangents), *of)

    return head, forward, backward


def _localize_labels(head: Head, axes: ClassShards) -> tuple[Head, Array | int]:
    """Return the head with labels relative to this device's first class, and that class.

    The label of another device's class becomes -1: a number above the classes of this device could
    be in a kernel's padding.
    """
    if not axes.classes:
        return head, 0
    classes = head.w.shape[1]
    first = lax.axis_index(axes.classes) * classes
    local = head.targets - first
    is_local = (local >= 0) & (local < classes)
    return head._replace(targets=jnp.where(is_local, local, -1)), first


def _combine(parts: LSEParts, first: Array | int, axes: ClassShards) -> LSEParts:
    """Combine the loss terms of each device's classes, from class `first` on, over all classes."""
    if not axes.classes:
        return parts
    maximum = lax.pmax(lax.stop_gradient(parts.maximum), axes.classes)
    rest = parts.sum_exp_rest * relative_exp(parts.maximum, maximum)
    sum_exp_rest, label_logit = lax.psum((rest, parts.label_logit), axes.classes)
    stats = _combine_stats(parts, maximum, first, axes)
    return LSEParts(maximum, sum_exp_rest, label_logit, stats)


def _combine_stats(
    parts: LSEParts, maximum: Array, first: Array | int, axes: ClassShards
) -> Stats | None:
    if parts.stats is None:
        return None
    mean, classes, predicted = parts.stats
    total, classes = lax.psum((mean * classes, classes), axes.classes)
    # Of the devices that have the largest logit, the one with the smallest index has the first.
    none = jnp.iinfo(jnp.int32).max  # a row with a NaN has no largest logit
    candidate = jnp.where(parts.maximum == maximum, predicted + first, none).astype(jnp.int32)
    least = lax.pmin(candidate, axes.classes)
    return Stats(total / jnp.maximum(classes, 1), classes, jnp.where(least == none, 0, least))
