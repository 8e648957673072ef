"""Linear layers, ungrouped convolutions and embeddings: every output reads every input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_bsqh.export.shrinking.layers.weights import (
    TRANSPOSED,
    bias_of,
    brought,
    by_output,
    pads_with_zeros,
    with_parameters,
)
from lightning_bsqh.export.shrinking.network import Network
from lightning_bsqh.export.shrinking.units import Channels, Units

if TYPE_CHECKING:
    from lightning_bsqh.export.shrinking.plan import Plan

_SIZES = {"in_features", "out_features", "in_channels", "out_channels"}


class MixingLayer:
    """A Linear, Conv or ConvTranspose layer without groups.

    Args:
        name: Its name in the network.
        network: The network.
        source: The channels that it reads; None where they are not known and all stay.
        axis: The dimension of the channels of its output.
        units: Where its outputs are entered.
    """

    def __init__(self, name: str, network: Network, source: Channels | None, axis: int, units: Units) -> None:
        self.name, self._network, self._source = name, network, source
        self._module = network.module(name)
        weight = by_output(self._module)
        self._uses = (weight != 0).any(2)
        self._pads = pads_with_zeros(self._module)
        self.outputs = self._given(weight, axis, units)

    @property
    def zero_outputs(self) -> Tensor:
        """Which outputs have no weights left, boolean."""
        return ~self._uses.any(1)

    @property
    def inputs(self) -> Tensor | None:
        """The units that it reads."""
        return None if self._source is None else self._source.ids

    @property
    def unread_inputs(self) -> Tensor:
        """Which inputs have no weights left, boolean."""
        return ~self._uses.any(0)

    def _given(self, weight: Tensor, axis: int, units: Units) -> Channels:
        """What the layer gives: an output is known that reads nothing but what is known and can be folded."""
        outputs = len(weight)
        channels = Channels.unknown(axis, units.new(outputs))
        bias = bias_of(self._module, outputs)
        if self._source is None:
            return channels.with_values(self.zero_outputs, bias)
        foldable = self._foldable
        known = ~self._uses[:, ~foldable].any(1)
        return channels.with_values(known, bias + brought(weight, foldable, self._source.value))

    @property
    def _foldable(self) -> Tensor:
        """Which inputs are constant for this layer, its padding included."""
        assert self._source is not None
        return self._source.known & ((self._source.value == 0) | (not self._pads))

    def _read(self, plan: Plan) -> Tensor:
        """Which inputs the outputs that stay read."""
        return self._uses[~plan.removed(self.outputs.ids)].any(0)

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """An input that is read must stay, unless its value is known."""
        if self._source is not None:
            yield self._source.ids[self._read(plan) & ~self._source.known], f"is read by {self.name}"

    def wishes(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """One constant channel must stay where there are some that cannot go into the bias."""
        if self._source is None:
            return
        missing = self._read(plan) & plan.removed(self._source.ids) & ~self._foldable
        if bool(missing.any()) and not bool((self._stand_ins(plan)).any()):
            order = torch.where(missing, self._source.value.abs(), 0.0).argsort(descending=True)
            reason = f"stands for all that are constant before {self.name}, whose padding is no such constant"
            yield self._source.ids[order[:1]], reason

    def _stand_ins(self, plan: Plan) -> Tensor:
        """Which inputs stay and are constant, but not zero."""
        assert self._source is not None
        return self._source.known & (self._source.value != 0) & ~plan.removed(self._source.ids)

    def rebuild(self, plan: Plan) -> None:
        """Cuts the weights, and folds what the removed inputs have brought."""
        rows = plan.kept_positions(self.outputs.ids)
        weight, bias = by_output(self._module), bias_of(self._module, len(self.outputs))
        columns = torch.arange(weight.shape[1]) if self._source is None else plan.kept_positions(self._source.ids)
        if len(rows) == weight.shape[0] and len(columns) == weight.shape[1]:
            return
        cut, folded = weight[rows][:, columns], bias
        if self._source is not None:
            gone = plan.removed(self._source.ids) & self._source.known & self._read(plan)
            folded = bias + brought(weight, gone & self._foldable, self._source.value)
            self._merge(plan, cut, weight[rows], columns, gone & ~self._foldable)
        needs_bias = self._module.bias is not None or not torch.equal(folded, bias)
        self._put(cut, folded[rows] if needs_bias else None)

    def _merge(self, plan: Plan, cut: Tensor, weight: Tensor, columns: Tensor, gone: Tensor) -> None:
        """Adds to the weights of one constant input, in ``cut``, what others have brought, as shares of its value."""
        if bool(gone.any()):
            assert self._source is not None
            value = self._source.value
            other = int(torch.where(self._stand_ins(plan), value.abs(), 0.0).argmax())
            added = torch.einsum("oik,i->ok", weight[:, gone].double(), value[gone] / value[other])
            cut[:, int((columns == other).nonzero())] = (weight[:, other].double() + added).to(cut.dtype)

    def _put(self, weight: Tensor, bias: Tensor | None) -> None:
        module = self._module
        outputs, inputs = weight.shape[:2]
        stored = weight.transpose(0, 1) if isinstance(module, TRANSPOSED) else weight
        sizes = dict(zip(("in_features", "in_channels"), (inputs, inputs), strict=True))
        sizes |= dict(zip(("out_features", "out_channels"), (outputs, outputs), strict=True))
        stored = stored.reshape(*stored.shape[:2], *module.weight.shape[2:])
        sizes = {name: size for name, size in sizes.items() if hasattr(module, name)}
        self._network.replace(self.name, with_parameters(module, {"weight": stored, "bias": bias}, sizes))


class Embedding:
    """An embedding: its columns are channels, its rows stay.

    Args:
        name: Its name in the network.
        network: The network.
        axis: The dimension of the channels of its output.
        units: Where its outputs are entered.
    """

    inputs = None

    def __init__(self, name: str, network: Network, axis: int, units: Units) -> None:
        self.name, self._network = name, network
        self._module = network.module(name)
        weight = self._module.weight.detach().to("cpu", torch.float64)
        same = (weight == weight[:1]).all(0)
        self.zero_outputs = (weight == 0).all(0)
        self.outputs = Channels.unknown(axis, units.new(weight.shape[1])).with_values(same, weight[0])

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """None."""
        return iter(())

    wishes = objections

    def rebuild(self, plan: Plan) -> None:
        """Cuts the columns."""
        kept = plan.kept_positions(self.outputs.ids)
        if len(kept) < len(self.outputs):
            weight = self._module.weight.detach().cpu()[:, kept]
            new = with_parameters(self._module, {"weight": weight}, {"embedding_dim": len(kept)})
            self._network.replace(self.name, new)
