"""R(u) = ‖u‖₂² or ‖u‖_D², weight decay as part of the objective."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number, shown
from lightning_bsqh.foreach import added, by_kind, joined, multiply_, multiply_each_, scalars, shares, squares, times
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import ConvexInBox


class L2(ConvexInBox):
    """ρ‖u‖², maximized by the shrinkage εDz/(εD + ρ); or ρ‖u‖²_D, by εz/(ε + ρ) (method §3, row L2).

    ``R + L2(rho)`` adds it to any other R.

    Args:
        rho: Factor ρ ≥ 0, in units of the loss per unit of squared weight, or of ‖u‖²_D.
        in_metric: Whether the norm is that of the metric D. All weights of a layer then shrink by the same factor, as
            in decoupled weight decay; as D changes from one iteration to the next, so does R.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If ``rho`` is negative or not finite; if R is asked for while it depends on a D not given
            (:meth:`held_in`).
    """

    def __init__(self, rho: float = 1e-5, in_metric: bool = False) -> None:
        self.rho = number("rho", rho, low=0.0)
        if not isinstance(in_metric, bool):
            raise TypeError(f"in_metric must be True or False, got {shown(in_metric)}.")
        self.in_metric = in_metric
        self._metric: tuple[MetricWeight, ...] | None = None

    def __repr__(self) -> str:
        return f"L2(rho={self.rho:g}{', in_metric=True' if self.in_metric else ''})"

    @property
    @override
    def depends_on_metric(self) -> bool:
        return self.in_metric

    @override
    def held_in(self, metric: Sequence[MetricWeight]) -> L2:
        if not self.in_metric:
            return self
        held = copy.copy(self)
        held._metric = tuple(metric)
        return held

    @override
    def restricted_to(self, positions: Sequence[int]) -> L2:
        return self if self._metric is None else self.held_in([self._metric[i] for i in positions])

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[L2]:
        return [self.restricted_to([i]) for i in range(len(weights))]

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return None if self.in_metric else self

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor:
        if not self.in_metric:
            return self.rho * added(scalars([w.square().sum() for w in joined(weights)]))
        values = squares(weights)
        multiply_each_(values, self.known_metric())
        return self.rho * added(scalars([value.sum() for value in joined(values)]))

    def known_metric(self) -> Sequence[MetricWeight]:
        """The D of ρ‖u‖²_D, one for each regularized tensor.

        Raises:
            ValueError: If it was not given.
        """
        if self._metric is None:
            raise ValueError(f"{self!r} has a value for a known metric only: ask held_in(metric), with D per tensor.")
        return self._metric

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        if self.in_metric:
            multiply_(points, [epsilon / (epsilon + self.rho)] * len(points))
            return
        for z, d in by_kind(points, metric):
            multiply_(z, shares(times(d, epsilon), self.rho))

    @override
    def elementwise(self, weight: Tensor) -> Tensor | None:
        if not self.in_metric:
            return self.rho * weight.square()
        if self._metric is None or len(self._metric) != 1:
            return None
        return self.rho * self._metric[0] * weight.square()

    @override
    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        if not self.in_metric:
            return super().hamiltonian_maximizer_in_box(ascents, low, high)
        # Each tensor has a price of its own.
        parts = zip(self.separate(ascents), ascents, strict=True)
        return [best for part, g in parts for best in ConvexInBox.hamiltonian_maximizer_in_box(part, [g], low, high)]

    @override
    def _peaks(self, ascent: Tensor, low: float, high: float) -> list[Tensor]:
        if self.rho == 0.0:
            return []
        d = self.known_metric()[0] if self.in_metric else 1.0
        return [(ascent / (2.0 * self.rho * d)).clamp(low, high)]
