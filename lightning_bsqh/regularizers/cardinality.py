"""The constraint ‖u‖₀ ≤ k, tightened along a ramp."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import choice, integer, number
from lightning_bsqh.foreach import at_least, multiply_each_, no_larger, scalars, squares
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import ZeroInBox, best_of, ends
from lightning_bsqh.regularizers.groups import Groups
from lightning_bsqh.regularizers.selection import keep_largest_overall
from lightning_bsqh.regularizers.tightening import TighteningConstraint


class Cardinality(TighteningConstraint, ZeroInBox):
    """At most k = n − round(sparsity·n) of all n regularised weights are non-zero (method §3, row cardinality).

    The k largest ε D z² are kept, over all layers together or in each weight tensor for itself; among equal
    ones those that come first. The sparsity demanded rises along a
    cubic ramp between two shares of the training and is the target from there on, to the weight.

    No tensor is emptied by rounding or by competition: each keeps its own ``minimum`` best weights, the rest of the k
    is given to the best of all others; k is never less than these together.

    With ``groups`` all this is about groups of weights instead: at most k of n groups have a non-zero weight, and
    the k with the largest Σ ε D z² are kept whole.

    Args:
        sparsity: Target share of exact zeros among the regularised weights, or groups, in [0, 1).
        ramp: Start and end of the ramp as shares of the training, 0 ≤ start ≤ end ≤ 1.
        interval: Number of iterations from one tightening to the next. None takes a 200th of the
            training, at least 2 and at most 100: between tightenings the iterate is admissible and
            the acceptance test is that of a fixed objective.
        scope: ``"global"`` counts over all weights together; ``"layer"`` lets every weight tensor of n_l
            elements keep its own n_l − round(sparsity·n_l), so that no layer can be emptied for another.
        groups: None for single weights; ``"output"`` for filters and rows, ``"input"`` for input channels and
            columns, as in ``GroupL0``.
        minimum: How many weights, or groups, every tensor keeps at least (all, if it has fewer), 0 or more. With one
            left no layer has a constant output, through which no gradient passes; 0 permits that.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range; when used, if a regularised tensor has no such groups.
    """

    def __init__(
        self,
        sparsity: float = 0.9,
        ramp: tuple[float, float] = (0.05, 0.5),
        interval: int | None = None,
        scope: str = "global",
        groups: str | None = None,
        minimum: int = 1,
    ) -> None:
        super().__init__(ramp, interval)
        self.sparsity = number("sparsity", sparsity, low=0.0, high=1.0, open_high=True)
        self.scope = choice("scope", scope, ("global", "layer"))
        self.groups = groups
        self._groups = Groups(groups)
        self.minimum = integer("minimum", minimum, low=0)

    def __repr__(self) -> str:
        scope = "" if self.scope == "global" else f", scope={self.scope!r}"
        groups = "" if self.groups is None else f", groups={self.groups!r}"
        minimum = "" if self.minimum == 1 else f", minimum={self.minimum}"
        return f"Cardinality(sparsity={self.sparsity:g}, {self._schedule()}{scope}{groups}{minimum})"

    def sparsity_at(self, step: int, total_steps: int | None) -> float:
        """The share of zeros demanded in iteration ``step`` (from 0) of ``total_steps``."""
        return self.at(step, total_steps)._demanded

    @property
    def _demanded(self) -> float:
        return self.sparsity * self._share

    def _kept(self, counts: Sequence[int]) -> int:
        """K for tensors with so many groups that compete with each other."""
        total = sum(counts)
        return max(total - round(self._demanded * total), sum(min(self.minimum, count) for count in counts))

    def _counts(self, weights: Sequence[Tensor]) -> list[int]:
        return [self._groups.count(w) for w in weights]

    def _parts(self, weights: Sequence[Tensor]) -> list[Sequence[Tensor]]:
        """The sets of tensors over which the choice is made together."""
        return [[w] for w in weights] if self.scope == "layer" else [weights]

    @property
    @override
    def is_flat(self) -> bool:
        return self.scope == "global" and self.groups is None

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        if self._demanded == 0.0 or not weights:
            return True
        counts = self._counts(weights)
        nonzero = scalars([self._groups.count_nonzero(w) for w in weights])
        if self.scope == "layer":
            return no_larger(nonzero, [self._kept([count]) for count in counts])
        # The places that a tensor is kept free count, whether it needs them or not.
        return at_least(nonzero, [min(self.minimum, count) for count in counts]).sum() <= self._kept(counts)

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        if self._demanded > 0.0:
            scores = squares(weights)
            multiply_each_(scores, metric)
            self._keep_best_(weights, scores)

    @override
    def project_in_box_(
        self, weights: Sequence[Tensor], metric: Sequence[MetricWeight], low: float, high: float
    ) -> None:
        scores = []
        for w, d in zip(weights, metric, strict=True):
            clipped = w.clamp(low, high)
            # What keeping the clipped c gains over zero: Dw² − D(w−c)² = Dc(2w−c), and c lies between 0 and w.
            scores.append(d * clipped * (2.0 * w - clipped))
            w.copy_(clipped)
        if self._demanded > 0.0:
            self._keep_best_(weights, scores)

    @override
    def hamiltonian_maximiser_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        # With 0 in the box the better end is never worse than 0.
        found = [best_of(g, ends(g, low, high), torch.zeros_like) for g in ascents]
        if self._demanded > 0.0:
            self._keep_best_(found, [g * u for g, u in zip(ascents, found, strict=True)])
        return list(found)

    def _keep_best_(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        """Sets all groups to zero but those with the largest sums of scores."""
        if not weights:
            return
        for part, values in zip(self._parts(weights), self._parts(scores), strict=True):
            every = torch.cat([self._groups.sums(v) for v in values])
            counts = self._counts(part)
            keep = keep_largest_overall(every, self._kept(counts), counts, self.minimum)
            self._groups.drop_all_(part, keep.logical_not_())

    @property
    @override
    def couples_tensors(self) -> bool:
        return self.scope == "global"

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        if self.scope == "layer":
            return [self] * len(weights)
        parts = []
        for w in weights:
            # Every tensor keeps as many as it has in the maximiser over all.
            part = copy.copy(self)
            part.scope, part._share = "layer", 1.0
            part.sparsity = 1.0 - int(self._groups.count_nonzero(w)) / max(self._groups.count(w), 1)
            parts.append(part)
        return parts

    @override
    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return [w == 0.0 for w in weights]
