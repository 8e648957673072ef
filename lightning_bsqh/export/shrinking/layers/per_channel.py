"""Layers that treat every channel by itself: normalization by running statistics, PReLU, a parameter by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from lightning_bsqh.export.shrinking.layers.weights import with_parameters
from lightning_bsqh.export.shrinking.network import Network
from lightning_bsqh.export.shrinking.units import Channels, Units

if TYPE_CHECKING:
    from lightning_bsqh.export.shrinking.plan import Plan

_TENSORS = ("weight", "bias", "running_mean", "running_var")


class PerChannelLayer:
    """BatchNorm, InstanceNorm or PReLU.

    Args:
        name: Its name in the network.
        network: The network.
        source: The channels that it reads and gives.
    """

    inputs = None

    def __init__(self, name: str, network: Network, source: Channels) -> None:
        self.name, self._network, self._module = name, network, network.module(name)
        self.outputs = self._given(source)

    def _given(self, source: Channels) -> Channels:
        module = self._module
        if isinstance(module, nn.PReLU):
            slope = _plain(module.weight)
            return source.with_values(source.known, torch.where(source.value < 0, slope * source.value, source.value))
        mean, variance = module.running_mean, module.running_var
        if mean is None or variance is None:
            return Channels.unknown(source.axis, source.ids)
        scale = _plain(variance).add(module.eps).rsqrt()
        scale = scale if module.weight is None else scale * _plain(module.weight)
        shift = torch.zeros_like(scale) if module.bias is None else _plain(module.bias)
        value = torch.where(source.known, (source.value - _plain(mean)) * scale, 0.0) + shift
        # A scale of zero gives the shift, whatever comes in.
        return source.with_values(source.known | (scale == 0), value)

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """None."""
        return iter(())

    wishes = objections

    def rebuild(self, plan: Plan) -> None:
        """Cuts all that it has per channel."""
        kept = plan.kept_positions(self.outputs.ids)
        if len(kept) == len(self.outputs) or (isinstance(self._module, nn.PReLU) and self._module.weight.numel() == 1):
            return
        old = {name: getattr(self._module, name, None) for name in _TENSORS}
        cut: dict[str, Tensor | None] = {name: t.detach().cpu()[kept] for name, t in old.items() if t is not None}
        size = "num_parameters" if isinstance(self._module, nn.PReLU) else "num_features"
        self._network.replace(self.name, with_parameters(self._module, cut, {size: len(kept)}))


class ScaleOrShift:
    """A parameter or buffer of the forward itself, with one dimension that is longer than 1.

    Args:
        name: Its name in the network.
        network: The network.
        units: Where its elements are entered.
    """

    inputs = None

    def __init__(self, name: str, network: Network, units: Units) -> None:
        self.name, self._network = name, network
        self._tensor = network.tensor(name)
        axis = max(range(self._tensor.dim()), key=lambda dim: self._tensor.shape[dim])
        value = _plain(self._tensor).flatten()
        channels = Channels.unknown(axis, units.new(len(value)))
        self.outputs = channels.with_values(torch.ones(len(value), dtype=torch.bool), value)

    def objections(self, plan: Plan) -> Iterator[tuple[Tensor, str]]:
        """None."""
        return iter(())

    wishes = objections

    def rebuild(self, plan: Plan) -> None:
        """Cuts the tensor."""
        kept = plan.kept_positions(self.outputs.ids).to(self._tensor.device)
        if len(kept) < len(self.outputs):
            self._network.replace_tensor(self.name, self._tensor.detach().index_select(self.outputs.axis, kept))


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)
