"""Calls that treat every element by itself, and those of two tensors."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from lightning_bsqh.export.shrinking.flow import Call, own_shape
from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.units import Channels

_PRODUCTS = {operator.mul, operator.imul, torch.mul, torch.multiply, "mul", "multiply", "mul_"}


def elementwise(call: Call) -> Channels:
    """Activations, and arithmetic with numbers."""
    _check_in_place(call)
    source = call.channels
    return source.with_values(source.known, call.evaluate(source.value.clone()))


def dropout(call: Call) -> Channels:
    """Nothing in evaluation mode."""
    if call.module is None and call.option("training", 2, True):
        raise Opaque("which draws at random even in evaluation mode")
    return call.channels


def same(call: Call) -> Channels:
    """Gives what it takes."""
    return call.channels


def softmax(call: Call) -> Channels:
    """Along a dimension other than the channels'."""
    source, dim = call.channels, call.option("dim", 1, None)
    if not isinstance(dim, int) or dim % len(call.shape) == source.axis:
        raise Opaque("which mixes channels")
    return Channels.unknown(source.axis, source.ids)


def binary(call: Call) -> Channels | None:
    """Sums, products and the like of two tensors, or of one and a number."""
    _check_in_place(call)
    tensors = [arg for arg in call.node.args if own_shape(arg) is not None]
    if len(tensors) == 1:
        if any(isinstance(arg, fx.Node) and arg is not tensors[0] for arg in call.node.args):
            raise Opaque("whose other side is known at run time only")
        source = call.of(tensors[0])
        if source is None:
            return None
        return source.with_values(source.known, call.evaluate(source.value.clone()))
    if len(tensors) != 2:
        raise Opaque("with arguments by name")
    first, second = (_aligned(call, arg) for arg in tensors)
    if first is None and second is None:
        return None
    if first is not None and second is not None and first.axis == second.axis and len(first) == len(second):
        call.flow.units.join(first.ids, second.ids, call.name)
        return _combined(call, first, second)
    return _one_sided(call, tensors, first, second)


def _one_sided(call: Call, tensors: list[Any], first: Channels | None, second: Channels | None) -> Channels:
    """Two tensors one of which has nothing to cut, or no such dimension."""
    wide = max((side for side in (first, second) if side is not None), key=len)
    other = tensors[1] if wide is first else tensors[0]
    shape, back = own_shape(other) or (), len(call.output_shape) - wide.axis
    if (back <= len(shape) and shape[-back] != 1) or call.output_shape[wide.axis] != len(wide):
        raise Opaque("where the other side cannot be cut")
    narrow = second if wide is first else first
    if narrow is not None:
        call.flow.units.keep(narrow.ids, f"is spread over all channels in {call.name}")
    known = wide.known & (wide.value == 0) if _is_product(call) else torch.zeros_like(wide.known)
    return wide.with_values(known, torch.zeros_like(wide.value))


def _combined(call: Call, first: Channels, second: Channels) -> Channels:
    known, value = first.known & second.known, call.evaluate(first.value.clone(), second.value.clone())
    if _is_product(call):
        # Finite numbers times zero.
        zero = (first.known & (first.value == 0)) | (second.known & (second.value == 0))
        known, value = known | zero, torch.where(zero, 0.0, value)
    return first.with_values(known, value)


def _aligned(call: Call, argument: Any) -> Channels | None:
    """Its channels with the dimension counted as in the result."""
    channels, shape = call.of(argument), own_shape(argument)
    if channels is None or shape is None:
        return None
    return channels.moved(channels.axis + len(call.output_shape) - len(shape))


def _is_product(call: Call) -> bool:
    return call.node.target in _PRODUCTS


def _check_in_place(call: Call) -> None:
    if call.overwrites():
        raise Opaque("which overwrites what others read")
