"""Cardinality where every process holds some rows of each tensor: the same weights stay, and none is sent."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.foreach import at_least, no_larger
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.cardinality import Cardinality
from lightning_bsqh.regularizers.shard_selection import keep_largest_of_shards


class ShardCardinality(Cardinality):
    """What :meth:`Cardinality.on_shards` gives.

    All numbers are those of the whole tensors, so the processes take equal branches, and add up counts in the same
    order. Rows and groups ``"output"`` are in one piece.
    """

    _shards: Shards

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return None

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        units = self._units(weights)
        if not (self._holds and any(units)):
            return True
        if self.scope != "global":
            return no_larger(self._used(weights), self._kept_each(weights))
        return at_least(self._used(weights), self._least(units)).sum() <= self._kept(units)

    @override
    def _units(self, weights: Sequence[Tensor]) -> list[int]:
        return [int(shape[0]) if self.groups else math.prod(shape) for shape in self._shards.shapes]

    @override
    def _shapes(self, weights: Sequence[Tensor]) -> tuple[tuple[int, ...], ...]:
        return tuple(map(tuple, self._shards.shapes))

    @override
    def _used(self, weights: Sequence[Tensor]) -> Tensor:
        return self._shards.totals([self._groups.count_nonzero(w) for w in weights]).double()

    @override
    def _keep_best_(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        units = self._units(weights)
        sums = [self._groups.sums(score) for score in scores]
        if self.scope == "global":
            keep = self._best_of_all(sums, units)
        else:
            keep = self._best_of_each(sums, units, self._kept_each(weights))
        self._groups.drop_all_(weights, torch.cat(list(keep)).logical_not_())

    def _best_of_each(self, sums: Sequence[Tensor], units: Sequence[int], counts: Sequence[int]) -> list[Tensor]:
        """Marks so many of each tensor."""
        each = zip(self._per_row(), sums, strict=True)
        places = [partial(self._shards.places, i, per_row, s.numel()) for i, (per_row, s) in enumerate(each)]
        return keep_largest_of_shards(sums, counts, places, units, self._shards.add_)

    def _best_of_all(self, sums: Sequence[Tensor], units: Sequence[int]) -> Sequence[Tensor]:
        """Marks the best over all tensors, of which each keeps its minimum."""
        kept, least, sizes = self._kept(units), self._least(units), [s.numel() for s in sums]

        def best(count: int, without: Sequence[Tensor] | None = None) -> Tensor:
            places: list[Callable[[], Tensor]] = [partial(self._shards.places_in_all, self._per_row(), sizes)]
            lists = None if without is None else [torch.cat(list(without))]
            return keep_largest_of_shards([torch.cat(list(sums))], [count], places, [sum(units)], add_, lists)[0]

        add_ = self._shards.add_
        keep = best(kept).split(sizes)
        if self.minimum == 0 or len(sums) < 2:
            return keep
        found = self._shards.totals([torch.count_nonzero(part) for part in keep]).tolist()
        if all(has >= few for has, few in zip(found, least, strict=True)):
            return keep
        # The best of each tensor, and of all others those that are best overall.
        own = self._best_of_each(sums, units, least)
        return (best(kept - sum(least), own) | torch.cat(own)).split(sizes)

    def _per_row(self) -> list[int]:
        return [1 if self.groups else math.prod(shape[1:]) for shape in self._shards.shapes]


def on_shards(whole: Cardinality, shards: Shards) -> ShardCardinality:
    """The same demand on tensors of which every process holds some rows."""
    part = ShardCardinality.__new__(ShardCardinality)
    vars(part).update(vars(whole))
    part._shards = shards
    return part
