"""The metric D where only the device knows which batches have counted (``decide="device"``, method §2, §4)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.device_rule import precision_on
from lightning_bsqh.method.metric import RMS, Metric
from lightning_bsqh.network.packing import Pack
from lightning_bsqh.regularizers.base import MetricWeight

States = Sequence[dict[str, Any]]


class DeviceMetric:
    """A metric that remembers nothing, as the euclidean one.

    Args:
        metric: The metric.
        packs: All parameters.
        states: What is remembered of each parameter.
    """

    #: Whether there are parameters that no gradient had reached when this was made.
    has_unreached = False

    def __init__(self, metric: Metric, packs: Sequence[Pack], states: States) -> None:
        self._states = states

    def weight(self, pack: Pack, gradient: Tensor, low: Collection[int]) -> MetricWeight:
        """D with this iteration's gradient taken in.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them, shape ``[n]``.
            low: Positions of the parameters whose weights stand against those of others.
        """
        return 1.0

    def commit(self, pack: Pack, gradient: Tensor, counts: Tensor) -> None:
        """Remembers this iteration's gradient.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them.
            counts: Whether to, a boolean scalar.
        """
        return

    def numbers(self) -> list[Tensor]:
        """What the host does not know, as scalars."""
        return []

    def write_back(self, numbers: Iterator[float]) -> None:
        """Puts it into the states, from as many numbers as :meth:`numbers` gave."""
        return


class RMSOnDevice(DeviceMetric):
    """``RMS`` with its numbers of updates on the device.

    Most parameters have the same number, which is one scalar of their pack; those that joined later, or that no
    gradient has reached yet, have their own.

    Args:
        metric: The metric, whose running means are used as they are.
        packs: All parameters.
        states: What is remembered of each parameter.
    """

    def __init__(self, metric: RMS, packs: Sequence[Pack], states: States) -> None:
        super().__init__(metric, packs, states)
        self._metric = metric
        self._packs = packs
        self._usual: dict[Pack, Tensor] = {}
        # By the parameter's place in its pack; places without an entry have the usual number.
        self._others: dict[Pack, dict[int, Tensor]] = {}
        for pack in packs:
            self._load(pack)

    def _load(self, pack: Pack) -> None:
        updates = [int(state.get("updates", 0)) for state in self._own(pack)]
        usual = max(updates)
        self._usual[pack] = _number(usual, pack)
        self._others[pack] = {i: _number(n, pack) for i, n in enumerate(updates) if n < usual or n == 0}
        self.has_unreached = self.has_unreached or 0 in updates

    def _own(self, pack: Pack) -> list[dict[str, Any]]:
        return [self._states[i] for i in pack.positions]

    @override
    def weight(self, pack: Pack, gradient: Tensor, low: Collection[int]) -> Tensor:
        mean = self._metric.with_gradient(pack, gradient, self._own(pack))
        correction = self._correction(self._usual[pack])
        metric = mean.div_(correction).sqrt_().add_(self._metric.tiny)
        if self._others[pack]:
            self._correct_others_(metric, pack, gradient, correction, low)
        return metric

    def _correct_others_(
        self, metric: Tensor, pack: Pack, gradient: Tensor, correction: Tensor, low: Collection[int]
    ) -> None:
        tiny, usual = self._metric.tiny, self._usual[pack]
        own, gradients = metric.split(pack.sizes), gradient.split(pack.sizes)
        for i, count in self._others[pack].items():
            factor = (correction / self._correction(count)).sqrt().to(metric.dtype)
            corrected = (own[i] - tiny) * factor + tiny
            reached = torch.where(count == usual, own[i], corrected)
            without = torch.full_like(reached, tiny if pack.positions[i] in low else 1.0)
            own[i].copy_(torch.where(_is_reached(count, gradients[i]), reached, without))

    def _correction(self, count: Tensor) -> Tensor:
        return 1.0 - torch.pow(self._metric.decay, count + 1.0)

    @override
    def commit(self, pack: Pack, gradient: Tensor, counts: Tensor) -> None:
        states = self._own(pack)
        mean = self._metric.with_gradient(pack, gradient, states)
        known = self._metric.mean_of(pack, states)
        known.copy_(torch.where(counts, mean, known))
        gradients = gradient.split(pack.sizes) if self._others[pack] else []
        for i, count in self._others[pack].items():
            self._others[pack][i] = count + (counts & _is_reached(count, gradients[i]))
        if len(self._others[pack]) < len(pack.sizes):
            self._usual[pack] = self._usual[pack] + counts
        else:
            self._usual[pack] = torch.stack(list(self._others[pack].values())).max()

    @override
    def numbers(self) -> list[Tensor]:
        return [n for pack in self._packs for n in (self._usual[pack], *self._others[pack].values())]

    @override
    def write_back(self, numbers: Iterator[float]) -> None:
        for pack in self._packs:
            usual = int(next(numbers))
            others = {i: int(next(numbers)) for i in self._others[pack]}
            states = self._own(pack)
            pieces = pack.pieces(self._metric.mean_of(pack, states))
            for i, state in enumerate(states):
                if (count := others.get(i, usual)) > 0:
                    state["mean_square"], state["updates"] = pieces[i], count


def _number(value: int, pack: Pack) -> Tensor:
    device = pack.parameters[0].device
    return torch.full((), float(value), device=device, dtype=precision_on(device))


def _is_reached(count: Tensor, gradient: Tensor) -> Tensor:
    return (count > 0.0) | gradient.any()


def metric_on_device(metric: Metric, packs: Sequence[Pack], states: States) -> DeviceMetric:
    """A metric's form on the device."""
    return RMSOnDevice(metric, packs, states) if isinstance(metric, RMS) else DeviceMetric(metric, packs, states)
