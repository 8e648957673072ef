"""The constraint that of m neighboring weights at most n are non-zero, as sparse tensor cores ask for it."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.foreach import scalars
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import Regularizer
from lightning_bsqh.regularizers.selection import keep_largest, keep_largest_of_few
from lightning_bsqh.regularizers.support import SupportConstraint


class NM(SupportConstraint):
    """Of every m weights that are neighbors along the input channels at most n are non-zero (method §3, row N:M).

    The n largest Dz² of each group of m keep their z; among equal ones those that come first. The groups lie along
    dim 1 (columns of a linear layer, input channels of a convolution, at each of its places) from the first channel
    on; where m does not divide their number the last group is smaller, and keeps at most n as well.

    The share of the groups that must be so rises along a ramp: those that lose least by it are, chosen anew in every
    iteration; the others are free. From the ramp's end on it is all.

    Args:
        n: How many may be non-zero, 1 ≤ n ≤ m.
        m: Size of a group, at least 1 and at most 1024.
        ramp: Start and end of the ramp as shares of the training, 0 ≤ start ≤ end ≤ 1.
        interval: Number of iterations from one tightening to the next, as in ``Cardinality``.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range; when used, if a regularized tensor has no dim 1.
    """

    def __init__(
        self, n: int = 2, m: int = 4, ramp: tuple[float, float] = (0.05, 0.5), interval: int | None = None
    ) -> None:
        super().__init__(ramp, interval)
        self.m = integer("m", m, low=1)
        self.n = integer("n", n, low=1)
        if self.n > self.m or self.m > 1024:
            raise ValueError(f"n and m must be such that 1 <= n <= m <= 1024, got n={n!r}, m={m!r}.")

    def __repr__(self) -> str:
        return f"NM(n={self.n}, m={self.m}, {self._schedule()})"

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        groups = [self._groups(w != 0) for w in weights]
        needed = self._needed(groups)
        if needed == 0:
            return True
        return self._thin(groups) >= needed

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        # Only here, as it is derived from this class.
        from lightning_bsqh.regularizers.shard_nm import on_shards

        return on_shards(self, shards)

    @override
    def _keep_best_(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        groups = [self._groups(score) for score in scores]
        dropped = [keep_largest_of_few(g, self.n).logical_not_() for g in groups]
        if self._share < 1.0:
            losses = torch.cat([g.mul(drop).sum(1) for g, drop in zip(groups, dropped, strict=True)])
            sizes = [len(g) for g in groups]
            free = self._largest(losses, sizes, self._number(groups) - self._needed(groups))
            for drop, own in zip(dropped, free.split(sizes), strict=True):
                drop.logical_and_(own.logical_not().unsqueeze(1))
        for w, drop in zip(weights, dropped, strict=True):
            w.masked_fill_(self._ungrouped(drop, w), 0.0)

    @property
    @override
    def couples_tensors(self) -> bool:
        # Only along the ramp: which groups may still be free is chosen over all tensors.
        return self._share < 1.0

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        if self._share == 1.0:
            return [self] * len(weights)
        return [self._held_for(self._are_thin(self._groups(w != 0))) for w in weights]

    def _held_for(self, thin: Tensor) -> Regularizer:
        part = copy.copy(self)
        part._share = float(thin.double().mean()) if thin.numel() else 1.0
        return part

    def _needed(self, groups: Sequence[Tensor]) -> int:
        """How many groups must have no more than n."""
        return round(self._share * self._number(groups))

    def _number(self, groups: Sequence[Tensor]) -> int:
        return sum(len(g) for g in groups)

    def _thin(self, groups: Sequence[Tensor]) -> Tensor:
        """How many groups have no more than n."""
        return scalars([torch.count_nonzero(self._are_thin(g)) for g in groups]).sum()

    def _largest(self, losses: Tensor, sizes: Sequence[int], count: int) -> Tensor:
        """Marks so many of what the groups of all tensors lose, one after the other."""
        return keep_largest(losses, count)

    def _are_thin(self, nonzero: Tensor) -> Tensor:
        return nonzero.sum(1) <= self.n

    def _groups(self, values: Tensor) -> Tensor:
        """One group per row, shape ``[groups, m]``; smaller ones filled up with zeros at their ends."""
        if values.dim() < 2:
            raise ValueError(
                f"NM needs tensors with input channels (dim 1), but a regularized one has the shape"
                f" {tuple(values.shape)}: choose what R acts on with regularize=[...]."
            )
        last = values.movedim(1, -1)
        return pad(last, (0, -last.shape[-1] % self.m)).reshape(-1, self.m)

    def _ungrouped(self, groups: Tensor, like: Tensor) -> Tensor:
        """The reverse of :meth:`_groups`, in the shape of ``like``."""
        last = like.movedim(1, -1)
        filled = groups.view(*last.shape[:-1], -(-last.shape[-1] // self.m) * self.m)
        return filled[..., : last.shape[-1]].movedim(-1, 1)
