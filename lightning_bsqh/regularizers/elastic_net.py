"""R(u) = a sum of ‖u‖₁ and ‖u‖₂²."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.foreach import added, by_kind, joined, multiply_, quotients, scalars, shares, soften_, times
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import ConvexInBox


class ElasticNet(ConvexInBox):
    """ρ₁‖u‖₁ + ρ₂‖u‖², maximized by εD·soft(z, ρ₁/(2εD))/(εD + ρ₂) (method §3, row elastic net).

    Args:
        rho_l1: Factor ρ₁ ≥ 0 of ‖u‖₁, in units of the loss per unit of weight.
        rho_l2: Factor ρ₂ ≥ 0 of ‖u‖², in units of the loss per unit of squared weight.

    Raises:
        TypeError: If a factor is no number.
        ValueError: If a factor is negative or not finite.
    """

    def __init__(self, rho_l1: float = 1e-5, rho_l2: float = 1e-5) -> None:
        self.rho_l1 = number("rho_l1", rho_l1, low=0.0)
        self.rho_l2 = number("rho_l2", rho_l2, low=0.0)

    def __repr__(self) -> str:
        return f"ElasticNet(rho_l1={self.rho_l1:g}, rho_l2={self.rho_l2:g})"

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return self

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        all_weights = joined(weights)
        absolute = scalars([w.abs().sum() for w in all_weights])
        return added(self.rho_l1 * absolute + self.rho_l2 * scalars([w.square().sum() for w in all_weights]))

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for z, d in by_kind(points, metric):
            weight = times(d, epsilon)
            soften_(z, quotients(0.5 * self.rho_l1, weight))
            multiply_(z, shares(weight, self.rho_l2))

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        return self.rho_l1 * weight.abs() + self.rho_l2 * weight.square()

    @override
    def _peaks(self, ascent: Tensor, low: float, high: float) -> list[Tensor]:
        soft = ascent - ascent.clamp(-self.rho_l1, self.rho_l1)
        return [(soft / (2.0 * self.rho_l2)).clamp(low, high)] if self.rho_l2 > 0.0 else []
