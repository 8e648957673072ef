"""Discrete where every process holds some rows of each tensor: along the ramp the same weights stay free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

from torch import Tensor
from typing_extensions import override

from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.discrete import Discrete
from lightning_bsqh.regularizers.shard_selection import keep_largest_of_shards


class ShardDiscrete(Discrete):
    """What :meth:`Discrete.on_shards` gives."""

    _shards: Shards

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return None

    @override
    def _count(self, weights: Sequence[Tensor]) -> int:
        return sum(map(math.prod, self._shards.shapes))

    @override
    def _on_levels(self, weights: Sequence[Tensor]) -> Tensor:
        return self._shards.totals([self._are_on_levels(w).count_nonzero() for w in weights]).sum()

    @override
    def _largest(self, gains: Tensor, sizes: Sequence[int], count: int) -> Tensor:
        per_row = [math.prod(shape[1:]) for shape in self._shards.shapes]
        places = partial(self._shards.places_in_all, per_row, sizes)
        return keep_largest_of_shards([gains], [count], [places], [self._count([])], self._shards.add_)[0]


def on_shards(whole: Discrete, shards: Shards) -> ShardDiscrete:
    """The same demand on tensors of which every process holds some rows."""
    part = ShardDiscrete.__new__(ShardDiscrete)
    vars(part).update(vars(whole))
    part._shards = shards
    return part
