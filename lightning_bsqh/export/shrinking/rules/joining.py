"""Concatenation, padding and products of attention."""

from __future__ import annotations

from typing import Any

import torch

from lightning_bsqh.export.shrinking.flow import Call, own_shape
from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.rewritten import NewPadding
from lightning_bsqh.export.shrinking.units import Channels


def concatenated(call: Call) -> Channels:
    """torch.cat: along the channels one after the other, along another dimension tied pairwise."""
    parts, dim = call.node.args[0], call.option("dim", 1, 0)
    if not isinstance(parts, (tuple, list)) or not isinstance(dim, int):
        raise Opaque("")
    dim %= len(call.output_shape)
    found = [call.of(part) for part in parts]
    if all(channels is None or channels.axis == dim for channels in found):
        return _one_after_the_other(call, list(parts), found, dim)
    whole = [channels for channels in found if channels is not None]
    if len(whole) < len(found) or len({channels.axis for channels in whole}) > 1:
        raise Opaque("together with what cannot be cut")
    first = whole[0]
    for other in whole[1:]:
        call.flow.units.join(first.ids, other.ids, call.name)
        first = first.with_values(first.known & other.known & (first.value == other.value), first.value)
    return first


def _one_after_the_other(call: Call, parts: list[Any], found: list[Channels | None], dim: int) -> Channels:
    if all(channels is None for channels in found):
        raise Opaque("")
    whole = [_fixed(call, part, dim) if c is None else c for part, c in zip(parts, found, strict=True)]
    columns = [torch.cat([getattr(channels, name) for channels in whole]) for name in ("ids", "known", "value")]
    return Channels(dim, *columns)


def _fixed(call: Call, part: Any, dim: int) -> Channels:
    shape = own_shape(part)
    if shape is None or len(shape) <= dim:
        raise Opaque("")
    channels = Channels.unknown(dim, call.flow.units.new(shape[dim]))
    call.flow.units.keep(channels.ids, f"comes into {call.name} from what cannot be cut")
    return channels


def padded(call: Call) -> Channels:
    """F.pad: of the channels themselves with constant ones, of other dimensions with what may be no constant there."""
    source, widths = call.channels, call.node.args[1] if len(call.node.args) > 1 else None
    mode, fill = call.option("mode", 2, "constant"), call.option("value", 3, None) or 0.0
    if not isinstance(widths, (tuple, list)) or not all(isinstance(width, int) and width >= 0 for width in widths):
        raise Opaque("")
    place = 2 * (len(call.shape) - 1 - source.axis)
    around = [w for i, w in enumerate(widths) if i not in (place, place + 1)]
    if mode == "constant" and any(around):
        source = source.with_values(source.known & (source.value == fill), source.value)
    if not any(widths[place : place + 2]):
        return source
    if mode != "constant":
        raise Opaque("which mixes channels")
    return _padded_channels(call, source, place, [int(width) for width in widths[place : place + 2]], float(fill))


def _padded_channels(call: Call, source: Channels, place: int, widths: list[int], fill: float) -> Channels:
    before, after = (call.flow.units.new(width) for width in widths)
    call.flow.sites.append(NewPadding(call.node, place, before, after))
    sides = [
        Channels.unknown(source.axis, ids).with_values(
            torch.ones(len(ids), dtype=torch.bool), torch.full((len(ids),), fill, dtype=torch.float64)
        )
        for ids in (before, after)
    ]
    whole = [sides[0], source, sides[1]]
    columns = [torch.cat([getattr(channels, name) for channels in whole]) for name in ("ids", "known", "value")]
    return Channels(source.axis, *columns)


def attention(call: Call) -> Channels:
    """scaled_dot_product_attention: heads, a dimension before the last two, go as one in queries, keys and values."""
    parts = [call.of(arg) for arg in call.node.args[:3]]
    if call.option("attn_mask", 3, None) is not None or len(parts) < 3:
        raise Opaque("with a mask or arguments by name")
    first, *_, values = _tied_batches(call, parts)
    return first.with_values(values.known, values.value)


def matrix_product(call: Call) -> Channels:
    """Products of matrices whose channels are a dimension before the last two, such as heads."""
    first, _ = _tied_batches(call, [call.of(arg) for arg in call.node.args[:2]])
    return Channels.unknown(first.axis, first.ids)


def _tied_batches(call: Call, parts: list[Channels | None]) -> list[Channels]:
    whole = [channels for channels in parts if channels is not None]
    shapes = [own_shape(arg) or () for arg in call.node.args[: len(parts)]]
    batches = {(len(shape), c.axis, len(c)) for shape, c in zip(shapes, whole, strict=False)}
    if len(whole) < len(parts) or len(batches) > 1 or whole[0].axis >= len(shapes[0]) - 2:
        raise Opaque("which mixes channels")
    for other in whole[1:]:
        call.flow.units.join(whole[0].ids, other.ids, call.name)
    return whole
