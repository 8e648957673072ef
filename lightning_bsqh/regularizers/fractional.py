"""What ‖u‖_{1/2}^{1/2} and ‖u‖_{2/3}^{2/3} have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.foreach import added, elementwise_, joined, scalars
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import SumInBox, ZeroInBox


class Fractional(ZeroInBox, SumInBox):
    """ρ Σ|u_i|^p with 0 < p < 1, maximized by a threshold that shrinks what it keeps.

    Args:
        rho: Factor ρ ≥ 0, in units of the loss.

    Raises:
        TypeError: If ``rho`` is no number.
        ValueError: If it is negative or not finite.
    """

    #: The exponent p.
    power: float

    def __init__(self, rho: float = 1e-5) -> None:
        self.rho = number("rho", rho, low=0.0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(rho={self.rho:g})"

    @abstractmethod
    def _threshold_(self, z: Tensor, strength: Tensor) -> None:
        """Replaces z by the u of least (u−z)² + λ|u|^p, in place; a tie goes to zero.

        Args:
            z: Any shape; overwritten.
            strength: λ = ρ/(εD) > 0, a scalar or of z's shape.
        """

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return self

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        return self.rho * added(scalars([w.abs().pow(self.power).sum() for w in joined(weights)]))

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        def change_(z: Tensor, d: MetricWeight) -> None:
            strength = self.rho / (epsilon * d)
            if not isinstance(strength, Tensor):
                # Filled on the device: a number copied to it would make the host wait.
                strength = torch.full((), strength, dtype=z.dtype, device=z.device)
            self._threshold_(z, strength.to(z.dtype))

        if self.rho > 0.0:
            elementwise_(change_, points, metric)

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        def change_(z: Tensor, d: MetricWeight) -> None:
            kept = z.clone()
            self.prox_([kept], [d], epsilon)
            clipped = kept.clamp(low, high)
            # From 0 to its minimum the cost first rises and then falls: the best in the box is the clipped one or 0.
            cost = self.rho * clipped.abs().pow(self.power) + epsilon * d * (clipped - z).square()
            worse = (clipped != kept) & (epsilon * d * z.square() <= cost)
            z.copy_(clipped.masked_fill_(worse, 0.0))

        elementwise_(change_, points, metric)

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        return self.rho * weight.abs().pow(self.power)
