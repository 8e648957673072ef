"""What many regularizers have in common when every weight must stay in a box [low, high]."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.foreach import clamp_
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer


class SumInBox(Regularizer):
    """A sum over single weights that is convex, or concave on either side of 0, and least at 0."""

    @override
    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        def price(u: Tensor) -> Tensor:
            value = self.elementwise(u)
            assert value is not None
            return value

        # Gu − ρR(u) is largest at 0, at an end, or where its derivative vanishes.
        return [
            best_of(g, [torch.zeros_like(g).clamp(low, high), *ends(g, low, high), *self._peaks(g, low, high)], price)
            for g in ascents
        ]

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        return self

    def _peaks(self, ascent: Tensor, low: float, high: float) -> list[Tensor]:
        """Where the derivative of Gu − ρR(u) vanishes, clipped to the box; none if R is nowhere strictly convex."""
        return []


class ConvexInBox(SumInBox):
    """A convex sum over single weights: in one dimension the nearest point of an interval is the best one."""

    @override
    def check_box(self, low: float, high: float) -> None:
        return

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        self.prox_(points, metric, epsilon)
        clamp_(points, low, high)


class ZeroInBox(Regularizer):
    """One that asks for zeros, and so for a box that has 0 in it."""

    @override
    def check_box(self, low: float, high: float) -> None:
        if not low <= 0.0 <= high:
            raise ValueError(
                f"Box with low={low:g}, high={high:g} does not contain 0, so that no weight in it can be zero, which is"
                f" what {self!r} asks for: choose low <= 0 <= high, or a Box without a regularizer."
            )


def ends(like: Tensor, low: float, high: float) -> list[Tensor]:
    """The two ends of the box, in the shape of ``like``."""
    return [torch.full_like(like, low), torch.full_like(like, high)]


def best_of(ascent: Tensor, candidates: Sequence[Tensor], price: Callable[[Tensor], Tensor]) -> Tensor:
    """Of several u the one with the largest Gu − ρR(u), for each weight alone; a tie goes to the first.

    Args:
        ascent: G, any shape.
        candidates: At least one u of that shape.
        price: ρR of every single weight.
    """
    best = candidates[0]
    value = ascent * best - price(best)
    for u in candidates[1:]:
        other = ascent * u - price(u)
        best, value = torch.where(other > value, u, best), torch.maximum(other, value)
    return best
