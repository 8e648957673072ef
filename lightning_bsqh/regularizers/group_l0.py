"""R(u) = the number of groups of weights that are not all zero."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import choice, number
from lightning_bsqh.foreach import added, by_kind, costs_of_zero, scalars, scaled
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import ZeroInBox, best_of, ends
from lightning_bsqh.regularizers.groups import Groups


class GroupL0(ZeroInBox):
    """ρ Σ_g weight(g)·[u_g ≠ 0]: every group with at least one non-zero weight costs ρ·weight(g) (method §3).

    A group is kept whole if Σ_g εDz² > ρ·weight(g), else it is zero; a tie goes to zero. R counts weights
    only: a bias that belongs to a filter is neither counted nor removed with it.

    Args:
        rho: Price ρ ≥ 0 of one group of weight 1, in units of the loss.
        groups: ``"output"`` takes the slices of a tensor along dim 0 (filters of a convolution, rows of a
            linear layer: the weights that lead into one output), ``"input"`` those along dim 1 (input
            channels, columns; of a convolution with ``groups`` > 1 the channels' positions in their
            groups). ConvTranspose has them the other way round.
        weight: ``"count"`` makes every group weigh 1, ``"size"`` as much as it has elements, so
            that ρ is the price of one weight as in ``L0``.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If an option is out of its range; when used, if a regularized tensor has no such dim.
    """

    def __init__(self, rho: float = 1e-3, groups: str = "output", weight: str = "count") -> None:
        self.rho = number("rho", rho, low=0.0)
        self.groups = choice("groups", groups, ("output", "input"))
        self._groups = Groups(groups)
        self.weight = choice("weight", weight, ("count", "size"))

    def __repr__(self) -> str:
        return f"GroupL0(rho={self.rho:g}, groups={self.groups!r}, weight={self.weight!r})"

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        # An output's weights are a row, which is in one piece.
        return self if self.groups == "output" else super().on_shards(shards)

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        counts = scalars([self._groups.count_nonzero(w) for w in weights])
        return added(scaled(counts, [self._price(w) for w in weights]))

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for own, d in by_kind(points, metric):
            for z, cost in zip(own, costs_of_zero(own, d, epsilon), strict=True):
                self._drop_(z, cost)

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        for z, d in zip(points, metric, strict=True):
            clipped = z.clamp(low, high)
            # What keeping the clipped c gains over zero, besides its price: εDz² − εD(c−z)² = εDc(2z−c).
            gain = epsilon * d * clipped * (2.0 * z - clipped)
            z.copy_(clipped)
            self._drop_(z, gain)

    @override
    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        found: list[Tensor | None] = []
        for g in ascents:
            u = best_of(g, ends(g, low, high), torch.zeros_like)
            self._drop_(u, g * u)
            found.append(u)
        return found

    def _drop_(self, z: Tensor, gain: Tensor) -> None:
        """Sets the groups to zero whose gains do not add up to more than their price."""
        self._groups.drop_(z, self._groups.sums(gain) <= self._price(z))

    def _price(self, tensor: Tensor) -> float:
        """ρ·weight(g), the same for all groups of one tensor."""
        count = self._groups.count(tensor)
        return self.rho * (tensor.numel() / max(count, 1) if self.weight == "size" else 1.0)
