"""Calls of modules with parameters, and of parameters themselves."""

from __future__ import annotations

from typing import Any

from torch import fx, nn

from lightning_bsqh.export.shrinking.flow import Call
from lightning_bsqh.export.shrinking.layers import Embedding, GroupedLayer, MixingLayer, PerChannelLayer, ScaleOrShift
from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.rules.shapes import size_read
from lightning_bsqh.export.shrinking.units import Channels


def mixing(call: Call) -> Channels:
    """Linear, convolutions and transposed convolutions."""
    _check_own(call)
    source, network, units = call.source, call.flow.network, call.flow.units
    linear = isinstance(call.module, nn.Linear)
    axis = len(call.shape) - (1 if linear else call.module.weight.dim() - 1)
    if source is not None and source.axis != axis:
        units.keep(source.ids, f"is used by {call.name}, which mixes another dimension")
        source = None
    kind = GroupedLayer if getattr(call.module, "groups", 1) > 1 else MixingLayer
    layer = kind(call.name, network, source, axis, units)
    call.flow.sites.append(layer)
    return layer.outputs


def embedding(call: Call) -> Channels:
    """An embedding of indices."""
    _check_own(call)
    if call.module.max_norm is not None:
        raise Opaque("whose max_norm mixes channels")
    layer = Embedding(call.name, call.flow.network, len(call.output_shape) - 1, call.flow.units)
    call.flow.sites.append(layer)
    return layer.outputs


def per_channel(call: Call) -> Channels:
    """BatchNorm, InstanceNorm, PReLU: channels are dim 1, or dim 0 of a sample without a batch."""
    _check_own(call)
    source = call.channels
    if source.axis != 1:
        raise Opaque("which has its channels along another dimension")
    if isinstance(call.module, nn.PReLU) and call.module.weight.numel() == 1:
        return source.with_values(source.known, call.evaluate(source.value.clone()))
    layer = PerChannelLayer(call.name, call.flow.network, source)
    call.flow.sites.append(layer)
    return layer.outputs


def parameter(call: Call) -> Any:
    """A parameter or buffer that the forward takes by itself."""
    name = str(call.node.target)
    try:
        tensor = call.flow.network.tensor(name)
        long = [size for size in tensor.shape if size > 1]
    except AttributeError:
        return None
    if len(long) != 1 or not tensor.is_floating_point() or call.flow.network.shared(name):
        return None
    site = ScaleOrShift(name, call.flow.network, call.flow.units)
    call.flow.sites.append(site)
    return site.outputs


def _check_own(call: Call) -> None:
    reason = call.flow.network.shared(call.name)
    if reason is not None:
        raise Opaque(f"for {reason}")
    if call.node.kwargs or not all(isinstance(arg, fx.Node) for arg in call.node.args):
        raise Opaque("with further arguments")


def parameter_or_shape(call: Call) -> Any:
    """``get_attr`` of a parameter, or ``x.shape``."""
    return parameter(call) if call.node.op == "get_attr" else size_read(call)
