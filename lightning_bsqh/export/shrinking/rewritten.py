"""Calls of the graph whose numbers change when channels go: shapes, slices, parts, padding."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, fx

from lightning_bsqh.export.shrinking.opaque import Opaque
from lightning_bsqh.export.shrinking.units import Channels

if TYPE_CHECKING:
    from lightning_bsqh.export.shrinking.plan import Plan


class Rewritten:
    """A call that objects to nothing, and is rewritten in the end."""

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """None."""
        return iter(())

    wishes = objections


class NewSize(Rewritten):
    """A view or reshape whose sizes are written out.

    Args:
        node: The call.
        axis: The dimension of the channels in its result.
        ids: Their units.
    """

    def __init__(self, node: fx.Node, axis: int, ids: Tensor) -> None:
        self._node, self._axis, self._ids = node, axis, ids
        sizes = self._sizes
        if not isinstance(sizes, tuple) or len(sizes) <= axis:
            raise Opaque("with a shape that is known at run time only")

    @property
    def _sizes(self) -> Any:
        args = self._node.args
        return tuple(args[1]) if len(args) == 2 and isinstance(args[1], (tuple, list)) else args[1:]

    def rebuild(self, plan: Plan) -> None:
        """Writes the new number of channels where the old one stood."""
        sizes = list(self._sizes)
        if isinstance(sizes[self._axis], int) and sizes[self._axis] != -1:
            sizes[self._axis] = len(plan.kept_positions(self._ids))
            self._node.args = (self._node.args[0], tuple(sizes))


class NewSlice(Rewritten):
    """``x[:, a:b]`` along the channels, and whatever slices along other dimensions.

    Args:
        node: The call.
        source: The channels that are cut.
        positions: Which of them are taken.
    """

    def __init__(self, node: fx.Node, source: Channels, positions: Tensor) -> None:
        self._node, self._source, self._positions = node, source, positions
        index = self._index
        plain = len(index) > source.axis and all(isinstance(part, (int, slice)) for part in index[: source.axis + 1])
        steps = positions.diff()
        if not plain or not isinstance(index[source.axis], slice) or not bool((steps == 1).all()):
            raise Opaque("which picks channels")

    @property
    def _index(self) -> tuple[Any, ...]:
        index = self._node.args[1]
        return index if isinstance(index, tuple) else (index,)

    def rebuild(self, plan: Plan) -> None:
        """Counts anew where the slice begins and ends."""
        kept = plan.kept_positions(self._source.ids)
        start, stop = ((kept < end).sum().item() for end in (self._positions[0], self._positions[-1] + 1))
        index = list(self._index)
        index[self._source.axis] = slice(start, stop)
        self._node.args = (self._node.args[0], tuple(index))


class NewSplit(Rewritten):
    """A chunk or split along the channels.

    Args:
        node: The call.
        axis: The dimension.
        parts: The units of each part.
    """

    def __init__(self, node: fx.Node, axis: int, parts: list[Tensor]) -> None:
        self._node, self._axis, self._parts = node, axis, parts

    def rebuild(self, plan: Plan) -> None:
        """Splits into parts of the new sizes."""
        sizes = [len(plan.kept_positions(ids)) for ids in self._parts]
        self._node.op, self._node.target = "call_function", torch.split
        self._node.args, self._node.kwargs = (self._node.args[0], sizes, self._axis), {}


class NewPadding(Rewritten):
    """A padding with constant channels.

    Args:
        node: The call.
        place: Position of the two widths in its list of widths.
        before: Units of the channels put before.
        after: Units of those put behind.
    """

    def __init__(self, node: fx.Node, place: int, before: Tensor, after: Tensor) -> None:
        self._node, self._place, self._before, self._after = node, place, before, after

    def rebuild(self, plan: Plan) -> None:
        """Pads with as many as are still wanted."""
        widths = list(cast("tuple[int, ...]", self._node.args[1]))
        widths[self._place] = len(plan.kept_positions(self._before))
        widths[self._place + 1] = len(plan.kept_positions(self._after))
        self._node.update_arg(1, tuple(widths))
