"""R(u) = ‖u‖₁."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.foreach import added, by_kind, joined, quotients, scalars, soften_, times
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import ConvexInBox


class L1(ConvexInBox):
    """ρ‖u‖₁, maximized by a soft threshold at ρ/(2εD) (method §3, row L1).

    Args:
        rho: Factor ρ ≥ 0, in units of the loss per unit of weight.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If it is negative or not finite.
    """

    def __init__(self, rho: float = 1e-5) -> None:
        self.rho = number("rho", rho, low=0.0)

    def __repr__(self) -> str:
        return f"L1(rho={self.rho:g})"

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return self

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return self.rho * added(scalars([w.abs().sum() for w in joined(weights)]))

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        for z, d in by_kind(points, metric):
            soften_(z, quotients(self.rho, times(d, 2.0 * epsilon)))

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        return self.rho * weight.abs()
