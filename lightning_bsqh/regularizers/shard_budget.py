"""Budget where every process holds some rows of each tensor: the same weights stay, and none is sent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.budget import Budget
from lightning_bsqh.regularizers.shard_selection import keep_best_within_of_shards, keep_largest_of_shards


class ShardBudget(Budget):
    """What :meth:`Budget.on_shards` gives."""

    _shards: Shards

    @override
    def _sizes(self, weights: Sequence[Tensor]) -> list[int]:
        return list(map(math.prod, self._shards.shapes))

    @override
    def _used(self, weights: Sequence[Tensor]) -> Tensor:
        return self._shards.totals([torch.count_nonzero(w) for w in weights])

    @override
    def _best(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> Tensor:
        costs, least, add_ = self._costs_of(weights), self._least(weights), self._shards.add_
        parts = [score.flatten() for score in scores]
        counts, per_row = [p.numel() for p in parts], [math.prod(shape[1:]) for shape in self._shards.shapes]
        places = [partial(self._shards.places, i, u, n) for i, (u, n) in enumerate(zip(per_row, counts, strict=True))]
        own = torch.cat(keep_largest_of_shards(parts, least, places, self._sizes(weights), add_))
        each = torch.cat([torch.full_like(p, c, dtype=torch.int64) for p, c in zip(parts, costs, strict=True)])
        left = self._affordable(weights) - sum(c * few for c, few in zip(costs, least, strict=True))
        others, total = own.logical_not(), sum(self._sizes(weights))
        at = self._shards.places_in_all(per_row, counts)
        keep = own.clone()
        keep[others] = keep_best_within_of_shards(
            (torch.cat(parts) / each)[others], each[others], left, at[others], total, add_
        )
        return keep


def on_shards(whole: Budget, shards: Shards) -> ShardBudget:
    """The same demand on tensors of which every process holds some rows."""
    part = ShardBudget.__new__(ShardBudget)
    vars(part).update(vars(whole))
    part._shards = shards
    return part
