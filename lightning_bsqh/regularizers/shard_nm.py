"""NM where every process holds some rows of each tensor: groups lie within rows, and the same ones stay free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.nm import NM
from lightning_bsqh.regularizers.shard_selection import keep_largest_of_shards


class ShardNM(NM):
    """What :meth:`NM.on_shards` gives."""

    _shards: Shards

    @override
    def _number(self, groups: Sequence[Tensor]) -> int:
        rows = (int(shape[0]) for shape in self._shards.shapes)
        return sum(n * per_row for n, per_row in zip(rows, self._per_row(), strict=True))

    @override
    def _thin(self, groups: Sequence[Tensor]) -> Tensor:
        return self._shards.totals([torch.count_nonzero(self._are_thin(g)) for g in groups]).sum()

    @override
    def _largest(self, losses: Tensor, sizes: Sequence[int], count: int) -> Tensor:
        places = partial(self._shards.places_in_all, self._per_row(), sizes)
        return keep_largest_of_shards([losses], [count], [places], [self._number([])], self._shards.add_)[0]

    def _per_row(self) -> list[int]:
        """How many groups a row has, for each tensor."""
        return [-(-int(shape[1]) // self.m) * math.prod(shape[2:]) for shape in self._shards.shapes]


def on_shards(whole: NM, shards: Shards) -> ShardNM:
    """The same demand on tensors of which every process holds some rows."""
    part = ShardNM.__new__(ShardNM)
    vars(part).update(vars(whole))
    part._shards = shards
    return part
