"""The constraint ‖u‖₀ ≤ k, tightened along a ramp."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import choice, integer, number
from lightning_bsqh.foreach import at_least, no_larger, norms, scalars
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.erdos_renyi import erdos_renyi_counts
from lightning_bsqh.regularizers.groups import Groups, fan_in, rows
from lightning_bsqh.regularizers.selection import (
    keep_blocks,
    keep_largest,
    keep_largest_in_rows,
    keep_largest_overall,
)
from lightning_bsqh.regularizers.support import SupportConstraint


class Cardinality(SupportConstraint):
    """At most k = n − round(sparsity·n) of all n regularized weights are non-zero (method §3, row cardinality).

    The k largest ε D z² are kept, over all layers together or in each weight tensor for itself; among equal
    ones those that come first. The sparsity demanded rises along a
    cubic ramp between two shares of the training and is the target from there on, to the weight.

    No tensor is emptied by rounding or by competition: each keeps its own ``minimum`` best weights, the rest of the k
    is given to the best of all others; k is never less than these together.

    With ``groups`` all this is about groups of weights instead: at most k of n groups have a non-zero weight, and
    the k with the largest Σ ε D z² are kept whole.

    Args:
        sparsity: Target share of exact zeros among the regularized weights, or groups, in [0, 1).
        ramp: Start and end of the ramp as shares of the training, 0 ≤ start ≤ end ≤ 1.
        interval: Number of iterations from one tightening to the next. None takes a 200th of the
            training, at least 2 and at most 100: between tightenings the iterate is admissible and
            the acceptance test is that of a fixed objective.
        scope: What competes. ``"global"``: all weights together. ``"layer"``: the weights of a tensor; each of n_l
            elements keeps its own n_l − round(sparsity·n_l). ``"row"``: the weights that lead into one output, a slice
            along dim 0; each keeps the same number (constant fan-in). ``"erdos_renyi"``: the weights of a tensor, which
            keeps a number in proportion to the sum of its dimensions, so that small tensors stay denser.
        groups: None for single weights; ``"output"`` for filters and rows, ``"input"`` for input channels and
            columns, as in ``GroupL0``.
        minimum: How many weights, or groups, every tensor keeps at least (all, if it has fewer), 0 or more. With one
            left no layer has a constant output, through which no gradient passes; 0 permits that.
        multiple: With ``groups``: every tensor keeps a multiple of so many groups, or all. What is counted, and what
            ``sparsity`` is a share of, are then blocks of so many groups; a tensor's last block may be smaller.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range; when used, if a regularized tensor has no such groups.
    """

    #: Sizes of the tensors of which the one vector consists that this is for; None where tensors come apart.
    _sizes: tuple[int, ...] | None = None
    #: Whether each of them keeps its minimum on the vector, too, which takes more operations.
    _keeps_minimum = False

    def __init__(
        self,
        sparsity: float = 0.9,
        ramp: tuple[float, float] = (0.05, 0.5),
        interval: int | None = None,
        scope: str = "global",
        groups: str | None = None,
        minimum: int = 1,
        multiple: int = 1,
    ) -> None:
        super().__init__(ramp, interval)
        self.sparsity = number("sparsity", sparsity, low=0.0, high=1.0, open_high=True)
        self.scope = choice("scope", scope, ("global", "layer", "row", "erdos_renyi"))
        self.groups = groups
        self._groups = Groups(groups)
        self.minimum = integer("minimum", minimum, low=0)
        self.multiple = integer("multiple", multiple, low=1)
        if groups is not None and self.scope in ("row", "erdos_renyi"):
            raise ValueError(f"groups={groups!r} cannot be used with scope={scope!r}, which is about single weights.")
        if groups is None and self.multiple > 1:
            raise ValueError(f"multiple={multiple!r} needs groups, such as groups='output'.")

    def __repr__(self) -> str:
        given = [
            f"{name}={getattr(self, name)!r}"
            for name, default in (("scope", "global"), ("groups", None), ("minimum", 1), ("multiple", 1))
            if getattr(self, name) != default
        ]
        return f"Cardinality({', '.join([f'sparsity={self.sparsity:g}', self._schedule(), *given])})"

    def sparsity_at(self, step: int, total_steps: int | None) -> float:
        """The share of zeros demanded in iteration ``step`` (from 0) of ``total_steps``."""
        return self.at(step, total_steps)._demanded

    @property
    def _demanded(self) -> float:
        return self.sparsity * self._share

    @property
    @override
    def _holds(self) -> bool:
        return self._demanded > 0.0

    # ------------------------------------------------------------------ how many

    def _units(self, weights: Sequence[Tensor]) -> list[int]:
        """Numbers of weights, groups or blocks of groups."""
        if self._sizes is not None:
            return list(self._sizes)
        return [math.ceil(self._groups.count(w) / self.multiple) for w in weights]

    def _least(self, units: Sequence[int]) -> list[int]:
        """How many of them each tensor keeps in any case."""
        return [min(math.ceil(self.minimum / self.multiple), count) for count in units]

    def _kept(self, units: Sequence[int]) -> int:
        """The k for tensors that compete with each other."""
        return max(sum(units) - round(self._demanded * sum(units)), sum(self._least(units)))

    def _kept_each(self, weights: Sequence[Tensor]) -> list[int]:
        """The k of every tensor, or of every row of it, where tensors do not compete."""
        if self.scope == "row":
            return [self._kept([fan_in(w)]) for w in weights]
        units = self._units(weights)
        if self.scope == "layer":
            return [self._kept([count]) for count in units]
        return list(erdos_renyi_counts(self._shapes(weights), self._kept(units), self.minimum))

    def _shapes(self, weights: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(w.shape) for w in weights)

    def _used(self, weights: Sequence[Tensor]) -> Tensor:
        """How many units of every tensor, or of the fullest row, are not zero."""
        if self.scope == "row":
            return scalars([torch.count_nonzero(rows(w), 1).amax() for w in weights])
        nonzero = scalars([self._groups.count_nonzero(w) for w in weights])
        return nonzero if self.multiple == 1 else (nonzero / self.multiple).ceil()

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        if self.scope != "global" or self.groups is not None or self.multiple != 1:
            return None
        whole = copy.copy(self)
        whole._sizes = tuple(sizes)
        return whole

    @override
    def on_vector_with_minimum(self, sizes: Sequence[int]) -> Regularizer | None:
        whole = self.on_vector(sizes)
        if isinstance(whole, Cardinality):
            whole._keeps_minimum = True
        return whole

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        # Only here, as it is derived from this class.
        from lightning_bsqh.regularizers.shard_cardinality import on_shards

        if self.groups == "input" or self.multiple != 1:
            return super().on_shards(shards)
        # Whoever competes within a row is in one piece.
        return self if self.scope == "row" else on_shards(self, shards)

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def leaves_enough(self, points: Sequence[Tensor]) -> Tensor | bool:
        if self._sizes is None or self._keeps_minimum or not self.minimum or self._demanded == 0.0 or not points:
            return True
        parts = [part for part in points[0].split(list(self._sizes)) if part.numel()]
        if self.minimum == 1:
            return norms(parts, math.inf).count_nonzero() == len(parts)
        least = [min(self.minimum, part.numel()) for part in parts]
        return no_larger(norms(parts, 0.0).neg(), [-few for few in least])

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        weights = [w for w in weights if w.numel() > 0]
        if not (self._holds and weights):
            return True
        if self._sizes is not None:
            return self._used_on_vector(weights[0]) <= self._kept(self._sizes)
        if self.scope != "global":
            return no_larger(self._used(weights), self._kept_each(weights))
        units = self._units(weights)
        # The places that a tensor is kept free count, whether it needs them or not.
        return at_least(self._used(weights), self._least(units)).sum() <= self._kept(units)

    def _used_on_vector(self, weights: Tensor) -> Tensor:
        """How many weights are not zero; where each tensor keeps its minimum at least so many of it."""
        used = torch.count_nonzero(weights)
        if not (self._keeps_minimum and self.minimum):
            return used
        parts = [part for part in weights.split(list(self._sizes or ())) if part.numel()]
        if self.minimum == 1:
            return used + (len(parts) - norms(parts, math.inf).count_nonzero())
        each = scalars([torch.count_nonzero(part) for part in parts])
        return at_least(each, self._least([part.numel() for part in parts])).sum()

    # ------------------------------------------------------------------ which

    @override
    def _keep_best_(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        if self.scope == "global":
            self._keep_(weights, scores, self._kept(self._units(weights)))
            return
        for w, score, kept in zip(weights, scores, self._kept_each(weights), strict=True):
            if self.scope == "row":
                w.masked_fill_(keep_largest_in_rows(rows(score), kept).logical_not_().view(w.shape), 0.0)
            else:
                self._keep_([w], [score], kept)

    def _keep_(self, weights: Sequence[Tensor], scores: Sequence[Tensor], kept: int) -> None:
        """Lets the best units of all these tensors stay."""
        sums = [self._groups.sums(score) for score in scores]
        if self._sizes is not None and not self._keeps_minimum:
            # Without the minimum; leaves_enough tells whether that makes a difference.
            keep = keep_largest(sums[0], kept)
        elif self.multiple == 1:
            together = sums[0] if len(sums) == 1 else torch.cat(sums)
            keep = keep_largest_overall(together, kept, self._units(weights), self.minimum)
        else:
            keep = keep_blocks(sums, kept, self.multiple, math.ceil(self.minimum / self.multiple))
        self._groups.drop_all_(weights, keep.logical_not_())

    @property
    @override
    def couples_tensors(self) -> bool:
        return self.scope == "global"

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        if self.scope in ("layer", "row"):
            return [self] * len(weights)
        # Every tensor keeps as many as it has in the maximizer over all.
        used = zip(self._used(weights).tolist(), self._units(weights), strict=True)
        return [self._held_for(kept, units) for kept, units in used]

    def _held_for(self, used: float, units: int) -> Regularizer:
        part = copy.copy(self)
        part.scope, part._share = "layer", 1.0
        part.sparsity = 1.0 - used / max(units, 1)
        return part
