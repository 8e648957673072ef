"""R(u) = ‖u‖₂², weight decay as part of the objective."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.foreach import added, by_kind, joined, multiply_, scalars, shares, times
from lightning_bsqh.regularizers.base import MetricWeight
from lightning_bsqh.regularizers.boxed import ConvexInBox


class L2(ConvexInBox):
    """ρ‖u‖², maximised by the shrinkage εDz/(εD + ρ) (method §3, row L2).

    Args:
        rho: Factor ρ ≥ 0, in units of the loss per unit of squared weight.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If it is negative or not finite.
    """

    def __init__(self, rho: float = 1e-5) -> None:
        self.rho = number("rho", rho, low=0.0)

    def __repr__(self) -> str:
        return f"L2(rho={self.rho:g})"

    @property
    @override
    def is_flat(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return self.rho * added(scalars([w.square().sum() for w in joined(weights)]))

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for z, d in by_kind(points, metric):
            multiply_(z, shares(times(d, epsilon), self.rho))

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        return self.rho * weight.square()

    @override
    def _peaks(self, ascent: Tensor, low: float, high: float) -> list[Tensor]:
        return [(ascent / (2.0 * self.rho)).clamp(low, high)] if self.rho > 0.0 else []
