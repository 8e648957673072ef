"""What many regularisers have in common when every weight must stay in a box [low, high]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_bsqh.regularizers.base import MetricWeight, Regularizer


class ConvexInBox(Regularizer):
    """A convex sum over single weights: in one dimension the nearest point of an interval is the best one."""

    @override
    def check_box(self, low: float, high: float) -> None:
        return

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        self.prox_(points, metric, epsilon)
        for z in points:
            z.clamp_(low, high)


class ZeroInBox(Regularizer):
    """One that asks for zeros, and so for a box that has 0 in it."""

    @override
    def check_box(self, low: float, high: float) -> None:
        if not low <= 0.0 <= high:
            raise ValueError(
                f"Box with low={low:g}, high={high:g} does not contain 0, so that no weight in it can be zero, which is"
                f" what {self!r} asks for: choose low <= 0 <= high, or a Box without a regularizer."
            )
