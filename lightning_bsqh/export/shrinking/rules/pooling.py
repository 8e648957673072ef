"""Pooling, interpolation, and means or sums over dimensions."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lightning_bsqh.export.shrinking.flow import Call
from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.units import Channels


def largest(call: Call, dims: int) -> Channels:
    """Max pooling over the last ``dims`` dimensions: what lies outside never counts."""
    if call.option("return_indices", 6, False) or call.output_shape == ():
        raise Opaque("which gives positions, too")
    return _pooled(call, dims)


def average(call: Call, dims: int) -> Channels:
    """Average pooling: with padding that counts, a constant other than zero is one no more."""
    channels = _pooled(call, dims)
    padding = call.option("padding", 3, 0)
    padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
    if call.option("divisor_override", 6, None) is None and not (padded and call.option("count_include_pad", 5, True)):
        return channels
    return channels.with_values(channels.known & (channels.value == 0), channels.value)


def adaptive(call: Call, dims: int | None = None) -> Channels:
    """Adaptive pooling and interpolation: averages or maxima of what is there; None: of all dimensions behind dim 1."""
    if call.option("return_indices", 2, False) is True:
        raise Opaque("which gives positions, too")
    return _pooled(call, dims)


def reduced(call: Call) -> Channels:
    """mean, amax and amin over dimensions other than the channels'."""
    return _reduced(call, 1.0)


def summed(call: Call) -> Channels:
    """A sum over dimensions other than the channels'."""
    dims = _dims(call)
    return _reduced(call, float(math.prod(call.shape[dim] for dim in dims)))


def _reduced(call: Call, factor: float) -> Channels:
    source, dims = call.channels, _dims(call)
    if source.axis in dims:
        raise Opaque("which mixes channels")
    kept = call.option("keepdim", 2, False)
    axis = source.axis if kept else source.axis - sum(dim < source.axis for dim in dims)
    value: Tensor = source.value * factor
    # How many are summed may depend on the size of the images.
    known = source.known if factor == 1.0 else source.known & (value == 0)
    return source.with_values(known, value).moved(axis)


def _dims(call: Call) -> list[int]:
    dims: Any = call.option("dim", 1, None)
    dims = [dims] if isinstance(dims, int) else dims
    if not isinstance(dims, (tuple, list)) or not all(isinstance(dim, int) for dim in dims) or not dims:
        raise Opaque("which mixes channels")
    return [dim % len(call.shape) for dim in dims]


def _pooled(call: Call, dims: int | None) -> Channels:
    """Channels stay channels if the dimension is none of those that are pooled."""
    source = call.channels
    if source.axis != 1 or len(call.shape) < 3 or len(call.shape) - 2 != (dims or len(call.shape) - 2):
        raise Opaque("which pools over channels")
    return source
