"""The constraint ‖u‖₀ ≤ k, tightened along a ramp."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import integer, number
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.selection import keep_largest


class Cardinality(Regularizer):
    """At most k = n − round(sparsity·n) of all n regularised weights are non-zero (method §3, row cardinality).

    The k largest ε D z² are kept, over all layers together. The sparsity demanded rises along a
    cubic ramp between two shares of the training and is the target from there on, to the weight.

    Args:
        sparsity: Target share of exact zeros among the regularised weights, in [0, 1).
        ramp: Start and end of the ramp as shares of the training, 0 ≤ start ≤ end ≤ 1.
        interval: Number of iterations from one tightening to the next. None takes a 200th of the
            training, at least 2 and at most 100: between tightenings the iterate is admissible and
            the acceptance test is that of a fixed objective.
    """

    couples_tensors = True

    def __init__(
        self, sparsity: float = 0.9, ramp: tuple[float, float] = (0.05, 0.5), interval: int | None = None
    ) -> None:
        self.sparsity = number("sparsity", sparsity, low=0.0, high=1.0, open_high=True)
        if not isinstance(ramp, Sequence) or len(ramp) != 2:
            raise ValueError(f"ramp must be a pair (start, end) of shares of the training, got {ramp!r}.")
        start = number("ramp[0]", ramp[0], low=0.0, high=1.0)
        self.ramp = (start, number("ramp[1]", ramp[1], low=start, high=1.0))
        self.interval = None if interval is None else integer("interval", interval, low=1)

    def __repr__(self) -> str:
        return f"Cardinality(sparsity={self.sparsity:g}, ramp={self.ramp})"

    @property
    @override
    def needs_total_steps(self) -> bool:
        return self.ramp[1] > 0.0

    def sparsity_at(self, step: int, total_steps: int | None) -> float:
        """The share of zeros demanded in iteration ``step`` (from 0) of ``total_steps``."""
        if not self.needs_total_steps:
            return self.sparsity
        if total_steps is None:
            raise ValueError("Cardinality with a ramp needs total_steps.")
        start, end = self.ramp
        # In whole iterations: with the last one at the latest the target holds, however short the training.
        first = min(int(start * total_steps), total_steps - 1)
        last = min(max(int(end * total_steps), first), total_steps - 1)
        if step >= last:
            return self.sparsity
        if step < first:
            return 0.0
        interval = self.interval or min(max(total_steps // 200, 2), 100)
        reached = (step - first) // interval * interval
        return self.sparsity * (1.0 - (1.0 - reached / (last - first)) ** 3)

    @override
    def at(self, step: int, total_steps: int | None) -> Regularizer:
        return _AtMost(self.sparsity_at(step, total_steps))

    @override
    def penalty(self, weights: Sequence[Tensor]) -> float:
        return 0.0

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        _AtMost(self.sparsity).prox_(points, metric, epsilon)

    @override
    def admits(self, weights: Sequence[Tensor]) -> bool:
        return _AtMost(self.sparsity).admits(weights)

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        _AtMost(self.sparsity).project_(weights, metric)

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        # A constraint that is satisfied has no price.
        return torch.zeros_like(weight)


class _AtMost(Regularizer):
    """The constraint with the sparsity demanded in one iteration."""

    couples_tensors = True

    def __init__(self, sparsity: float) -> None:
        self.sparsity = sparsity

    def _kept(self, weights: Sequence[Tensor]) -> int:
        total = sum(w.numel() for w in weights)
        return total - round(self.sparsity * total)

    @override
    def penalty(self, weights: Sequence[Tensor]) -> float:
        return 0.0

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        # ε is common to all weights, so the order of ε D z² is that of D z².
        self.project_(points, metric)

    @override
    def admits(self, weights: Sequence[Tensor]) -> bool:
        if self.sparsity == 0.0:
            return True
        return sum(int(torch.count_nonzero(w)) for w in weights) <= self._kept(weights)

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        kept = self._kept(weights)
        if self.sparsity == 0.0 or not weights:
            return
        scores = torch.cat([(d * w.square()).flatten() for w, d in zip(weights, metric, strict=True)])
        keep = keep_largest(scores, kept)
        for w, part in zip(weights, keep.split([w.numel() for w in weights]), strict=True):
            w.masked_fill_(~part.view(w.shape), 0.0)

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        # A constraint that is satisfied has no price.
        return torch.zeros_like(weight)
