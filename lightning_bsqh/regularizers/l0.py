"""R(u) = ‖u‖₀, the number of non-zero weights."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.foreach import added, at_most, by_kind, costs_of_zero, drop_, elementwise_, joined, scalars
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import SumInBox, ZeroInBox


class L0(ZeroInBox, SumInBox):
    """ρ‖u‖₀: every non-zero weight costs ρ; maximized by a hard threshold (method §3, row L0).

    Args:
        rho: Price ρ ≥ 0 of one non-zero weight, in units of the loss.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If it is negative or not finite.
    """

    def __init__(self, rho: float = 1e-5) -> None:
        self.rho = number("rho", rho, low=0.0)

    def __repr__(self) -> str:
        return f"L0(rho={self.rho:g})"

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return self

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return self.rho * added(scalars([torch.count_nonzero(w) for w in joined(weights)]))

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for z, d in by_kind(points, metric):
            # Keeping z costs ρ, dropping it εDz²; a tie goes to zero.
            drop_(z, at_most(costs_of_zero(z, d, epsilon), self.rho))

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        return self.rho * (weight != 0).to(weight.dtype)

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        def change_(z: Tensor, d: MetricWeight) -> None:
            kept = z.clamp(low, high)
            # What is kept now also costs its distance from z.
            cost = self.rho + epsilon * d * (kept - z).square()
            z.copy_(kept.masked_fill_(epsilon * d * z.square() <= cost, 0.0))

        elementwise_(change_, points, metric)
