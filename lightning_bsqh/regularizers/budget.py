"""The constraint Σ cost·[u ≠ 0] ≤ budget, with the uses of a tensor as its cost."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import integer, number
from lightning_bsqh.foreach import added, at_least, flat, scalars, scaled
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.cardinality import Cardinality
from lightning_bsqh.regularizers.groups import Groups
from lightning_bsqh.regularizers.selection import keep_best_within
from lightning_bsqh.regularizers.support import SupportConstraint


class Budget(SupportConstraint):
    """At most a share of the dense network's multiply-adds is left if zeros are skipped (method §3, row Budget).

    A weight that is used c times in a forward costs c. Kept are the weights with the largest ε D z² per cost, as long
    as the budget lasts; among equal ones those that come first. No other support that costs as much as this one, or
    less, gains more; what is left of the budget is less than the next weight costs.

    No tensor is emptied: each keeps its ``minimum`` best weights, and the budget is never less than these cost.

    Args:
        multiply_adds: Share of Σ_l c_l·n_l that the non-zero weights may cost, in (0, 1].
        ramp: Start and end of the ramp along which the share falls from 1, as shares of the training.
        interval: Number of iterations from one tightening to the next, as in ``Cardinality``.
        minimum: How many weights every tensor keeps at least (all, if it has fewer), 0 or more.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range; when used, if the costs are not known: the strategy counts them in
            the first forward; without a Trainer, :meth:`with_costs` tells them.
    """

    def __init__(
        self,
        multiply_adds: float = 0.1,
        ramp: tuple[float, float] = (0.05, 0.5),
        interval: int | None = None,
        minimum: int = 1,
    ) -> None:
        super().__init__(ramp, interval)
        self.multiply_adds = number("multiply_adds", multiply_adds, low=0.0, high=1.0, open_low=True)
        self.minimum = integer("minimum", minimum, low=0)
        self._costs: tuple[int, ...] | None = None

    def __repr__(self) -> str:
        minimum = "" if self.minimum == 1 else f", minimum={self.minimum}"
        return f"Budget(multiply_adds={self.multiply_adds:g}, {self._schedule()}{minimum})"

    @property
    @override
    def needs_costs(self) -> bool:
        return self._costs is None

    @override
    def with_costs(self, costs: Sequence[int]) -> Budget:
        known = copy.copy(self)
        known._costs = tuple(integer(f"costs[{i}]", cost, low=1) for i, cost in enumerate(costs))
        return known

    @override
    def restricted_to(self, positions: Sequence[int]) -> Regularizer:
        return self if self._costs is None else self.with_costs([self._costs[i] for i in positions])

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        if not (self._holds and weights):
            return True
        costs = self._costs_of(weights)
        used = at_least(self._used(weights), self._least(weights))
        return added(scaled(used, costs)) <= self._affordable(weights)

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        # Only here, as it is derived from this class.
        from lightning_bsqh.regularizers.shard_budget import on_shards

        return on_shards(self, shards)

    def _used(self, weights: Sequence[Tensor]) -> Tensor:
        """How many weights of each tensor are not zero."""
        return scalars([torch.count_nonzero(w) for w in weights])

    @property
    @override
    def _holds(self) -> bool:
        return self._share > 0.0 and self.multiply_adds < 1.0

    @override
    def _keep_best_(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        Groups(None).drop_all_(weights, self._best(weights, scores).logical_not_())

    def _best(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
        """Marks what is kept, of all tensors one after the other."""
        costs, sizes = self._costs_of(weights), self._sizes(weights)
        return keep_best_within(flat(scores), sizes, costs, self._affordable(weights), self._least(weights))

    def _sizes(self, weights: Sequence[Tensor]) -> list[int]:
        return [w.numel() for w in weights]

    @property
    @override
    def couples_tensors(self) -> bool:
        return True

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        return [self._held_for(w) for w in weights]

    def _held_for(self, weight: Tensor) -> Regularizer:
        """As many weights as this tensor has in the maximizer over all."""
        part = Cardinality(0.0, ramp=(0.0, 0.0), scope="layer", minimum=self.minimum)
        part.sparsity = 1.0 - int(torch.count_nonzero(weight)) / max(weight.numel(), 1)
        return part

    def _least(self, weights: Sequence[Tensor]) -> list[int]:
        return [min(self.minimum, size) for size in self._sizes(weights)]

    def _costs_of(self, weights: Sequence[Tensor]) -> tuple[int, ...]:
        if self._costs is None:
            raise ValueError(f"{self!r} does not know how often each tensor is used: give it with_costs([...]).")
        if len(self._costs) != len(weights):
            raise ValueError(f"{self!r} has costs for {len(self._costs)} tensors, but there are {len(weights)}.")
        return self._costs

    def _affordable(self, weights: Sequence[Tensor]) -> int:
        """What the non-zero weights may cost."""
        costs = self._costs_of(weights)
        dense = sum(cost * size for cost, size in zip(costs, self._sizes(weights), strict=True))
        least = sum(cost * few for cost, few in zip(costs, self._least(weights), strict=True))
        return max(int((1.0 - (1.0 - self.multiply_adds) * self._share) * dense + 1e-9), least)
