"""Calls that only move, cut or rename dimensions."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, fx

from lightning_bsqh.export.shrinking.flow import Call
from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.rewritten import NewSize, NewSlice, NewSplit
from lightning_bsqh.export.shrinking.units import Channels

_READS_SIZE = ("view", "reshape", "flatten")


def moved(call: Call) -> Channels:
    """Permutations, slices of other dimensions and the like, which keep all channels in their order."""
    source, positions, axis = _followed(call, _marker(call))
    if not torch.equal(positions, torch.arange(len(source))):
        raise Opaque("which picks channels")
    return source.moved(axis)


def indexed(call: Call) -> Any:
    """``x[...]``: of a tensor a view, of a tuple an entry."""
    entry = call.flow.channels.get(cast(fx.Node, call.node.args[0]))
    index = call.node.args[1]
    if isinstance(entry, tuple):
        return entry[index] if isinstance(index, int) else None
    if entry is None:
        return None
    source, positions, axis = _followed(call, _marker(call))
    if torch.equal(positions, torch.arange(len(source))):
        return source.moved(axis)
    taken = source.taken(positions).moved(axis)
    call.flow.sites.append(NewSlice(call.node, source, positions))
    return taken


def divided(call: Call) -> tuple[Channels | None, ...]:
    """Chunk and split: along the channels into parts, along another dimension into tensors with all of them."""
    marker = _marker(call)
    parts = call.evaluate(marker)
    if not isinstance(parts, (tuple, list)):
        raise Opaque("")
    followed = [_read(part) for part in parts]
    source = call.channels
    if all(len(positions) == len(source) for positions, _ in followed):
        return tuple(source.moved(axis) for _, axis in followed)
    parts_of = tuple(source.taken(positions).moved(axis) for positions, axis in followed)
    call.flow.sites.append(NewSplit(call.node, source.axis, [part.ids for part in parts_of]))
    return parts_of


def reshaped(call: Call) -> Channels:
    """flatten, view, reshape: the channels' dimension stays, is joined with those behind it, or is divided."""
    source, before, after = call.channels, call.shape, call.output_shape
    if call.node.kwargs and call.node.target not in ("flatten", torch.flatten):
        raise Opaque("with arguments by name")
    outer, inner = math.prod(before[: source.axis]), math.prod(before[source.axis + 1 :])
    axes = [axis for axis in range(len(after)) if math.prod(after[:axis]) == outer]
    for rebuild in (_kept_dimension, _joined_dimensions, _divided_dimension):
        for axis in reversed(axes):
            channels = rebuild(call, source, inner, axis, after)
            if channels is not None:
                if call.node.target not in ("flatten", torch.flatten) and call.module is None:
                    call.flow.sites.append(NewSize(call.node, axis, channels.ids))
                return channels
    raise Opaque("which mixes the channels with other dimensions")


def size_read(call: Call) -> None:
    """``x.size()`` or ``x.shape``: harmless unless the number of channels goes into something else than a shape."""
    source = call.source
    if source is None:
        return
    if call.node.target is getattr and call.node.args[1] != "shape":
        raise Opaque("")
    dim = call.option("dim", 1, None) if call.node.target in ("size", torch.Tensor.size) else None
    readers = [call.node] if isinstance(dim, int) else list(call.node.users)
    for reader in readers:
        which = dim if isinstance(dim, int) else reader.args[1] if len(reader.args) > 1 else None
        harmless = isinstance(which, int) and which % len(call.shape) != source.axis
        if not (harmless or all(user.target in _READS_SIZE for user in reader.users)):
            call.flow.units.keep(source.ids, "has a number of channels that the forward computes with")


def _kept_dimension(call: Call, source: Channels, inner: int, axis: int, after: tuple[int, ...]) -> Channels | None:
    same = after[axis] == len(source) and math.prod(after[axis + 1 :]) == inner
    return source.moved(axis) if same else None


def _joined_dimensions(call: Call, source: Channels, inner: int, axis: int, after: tuple[int, ...]) -> Channels | None:
    times, rest = divmod(after[axis], len(source))
    if rest or times == 0 or times * math.prod(after[axis + 1 :]) != inner:
        return None
    return source.taken(torch.arange(len(source)).repeat_interleave(times)).moved(axis)


def _divided_dimension(call: Call, source: Channels, inner: int, axis: int, after: tuple[int, ...]) -> Channels | None:
    count = after[axis]
    if count < 2 or len(source) % count or math.prod(after[axis + 1 :]) != len(source) // count * inner:
        return None
    ids, known, value = (t.view(count, -1) for t in (source.ids, source.known, source.value))
    first = ids[:, :1].expand_as(ids)
    call.flow.units.join(first.flatten(), ids.flatten(), f"{call.name}, of which only whole parts can go")
    same = known.all(1) & (value == value[:, :1]).all(1)
    return Channels.unknown(axis, ids[:, 0]).with_values(same, value[:, 0])


def _marker(call: Call) -> Tensor:
    """A tensor of the argument's shape whose elements tell their channel, and whose memory tells the dimension."""
    source, shape = call.channels, call.shape
    if len(source) == 1:
        raise Opaque("with a single channel")
    view = [len(source) if dim == source.axis else 1 for dim in range(len(shape))]
    return torch.arange(len(source)).view(view).expand(shape)


def _followed(call: Call, marker: Tensor) -> tuple[Channels, Tensor, int]:
    return call.channels, *_read(call.evaluate(marker))


def _read(result: Any) -> tuple[Tensor, int]:
    """Which channels are in what came out, and along which dimension."""
    axes = [dim for dim in range(result.dim()) if result.shape[dim] > 1 and result.stride(dim) != 0]
    if len(axes) != 1 or 0 in result.shape:
        raise Opaque("which mixes the channels with other dimensions")
    (axis,) = axes
    index: tuple[Any, ...] = tuple(slice(None) if dim == axis else 0 for dim in range(result.dim()))
    return result[index], axis
