"""Grouped and depthwise convolutions: a group goes whole, with the channels that it reads."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lightning_bsqh.export.shrinking.layers.weights import bias_of, by_output, pads_with_zeros, with_parameters
from lightning_bsqh.export.shrinking.network import Network
from lightning_bsqh.export.shrinking.units import Channels, Units

if TYPE_CHECKING:
    from lightning_bsqh.export.shrinking.plan import Plan


class GroupedLayer:
    """A convolution with ``groups`` > 1, transposed or not.

    Args:
        name: Its name in the network.
        network: The network.
        source: The channels that it reads; None where they are not known and all stay.
        axis: The dimension of the channels of its output.
        units: Where its outputs are entered.
    """

    def __init__(self, name: str, network: Network, source: Channels | None, axis: int, units: Units) -> None:
        self.name, self._network = name, network
        self._module = network.module(name)
        self._groups = self._module.groups
        weight = by_output(self._module)
        self.zero_outputs = ~(weight != 0).flatten(1).any(1)
        self.inputs = None if source is None else source.ids
        ids = units.new(len(weight))
        self._tie(ids, units)
        self.outputs = self._given(weight, source, Channels.unknown(axis, ids))

    def _tie(self, outputs: Tensor, units: Units) -> None:
        if self.inputs is None:
            units.keep(outputs, f"comes from {self.name}, a grouped convolution whose input stays")
            return
        inputs = self.inputs.view(self._groups, -1)
        for ids in (outputs.view(self._groups, -1), inputs):
            first = inputs[:, :1].expand_as(ids)
            units.join(first.flatten(), ids.flatten(), f"{self.name}, of which only whole groups can go")

    def _given(self, weight: Tensor, source: Channels | None, outputs: Channels) -> Channels:
        bias = bias_of(self._module, len(weight))
        if source is None:
            return outputs.with_values(self.zero_outputs, bias)
        foldable = source.known & ((source.value == 0) | (not pads_with_zeros(self._module)))
        per_group = len(weight) // self._groups
        fold, value = (t.view(self._groups, -1).repeat_interleave(per_group, 0) for t in (foldable, source.value))
        known = ~((weight != 0).any(2) & ~fold).any(1)
        return outputs.with_values(known, bias + (weight.double().sum(2) * value).sum(1))

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """None: what is read goes with what reads it."""
        return iter(())

    wishes = objections

    def rebuild(self, plan: Plan) -> None:
        """Cuts whole groups."""
        kept = plan.kept_positions(self.outputs.ids.view(self._groups, -1)[:, 0])
        if len(kept) == self._groups:
            return
        module, groups = self._module, len(kept)
        weight = module.weight.detach().cpu()
        cut = weight.view(self._groups, -1, *weight.shape[1:])[kept].flatten(0, 1)
        bias = None if module.bias is None else module.bias.detach().cpu().view(self._groups, -1)[kept].flatten()
        sizes = {
            name: getattr(module, name) // self._groups * groups for name in ("in_channels", "out_channels", "groups")
        }
        self._network.replace(self.name, with_parameters(module, {"weight": cut, "bias": bias}, sizes))

    @property
    def unread_inputs(self) -> Tensor:
        """None is counted by itself, since none can go by itself."""
        return torch.zeros(0 if self.inputs is None else len(self.inputs), dtype=torch.bool)
