"""The constraint that every weight is one of finitely many levels."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number, shown
from lightning_bsqh.foreach import copy_, elementwise_, flat, joined, multiply_each_, scalars, unflat
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import best_of
from lightning_bsqh.regularizers.selection import keep_largest
from lightning_bsqh.regularizers.tightening import TighteningConstraint


class Discrete(TighteningConstraint):
    """Every regularized weight is one of the levels; û is the level nearest to z (method §3, row finite set).

    The nearest level maximizes K whatever ε and D are. A tie goes to the level nearer to 0, and between
    −a and a to a. It is a constraint: R = 0 on it.

    A weight leaves a level only if one step carries it past the middle to the next, so a network whose
    weights are on levels from the start hardly learns. Therefore the share of weights that must be
    on levels rises along a ramp: at least round(share·n) of all n weights are, those with the smallest
    εD(z − level)², chosen anew in every iteration; the others are free. From the ramp's end on it is all.

    Args:
        levels: The permitted values, at least one, in any order.
        ramp: Start and end of the ramp as shares of the training, 0 ≤ start ≤ end ≤ 1; (0, 0) has all
            weights on levels at once.
        interval: Number of iterations from one tightening to the next, as in ``Cardinality``.

    Raises:
        TypeError: If ``levels`` is no sequence of numbers, or another option has the wrong type.
        ValueError: If ``levels`` is empty, a level is not finite, or another option is out of its range.
    """

    def __init__(
        self, levels: Sequence[float], ramp: tuple[float, float] = (0.05, 0.7), interval: int | None = None
    ) -> None:
        if isinstance(levels, str) or not isinstance(levels, Sequence):
            raise TypeError(f"levels must be a sequence of numbers such as (-0.1, 0.0, 0.1), got {shown(levels)}.")
        if not levels:
            raise ValueError(f"levels must hold at least one number in (-inf, inf), got {shown(levels)}.")
        self.levels = _sorted(levels)
        super().__init__(ramp, interval)

    @classmethod
    def binary(cls, scale: float, ramp: tuple[float, float] = (0.05, 0.7), interval: int | None = None) -> Discrete:
        """The two levels −scale and scale.

        Raises:
            TypeError: If ``scale`` is no number.
            ValueError: If it is not finite or not above 0.
        """
        scale = number("scale", scale, low=0.0, open_low=True)
        return cls((-scale, scale), ramp, interval)

    @classmethod
    def ternary(cls, scale: float, ramp: tuple[float, float] = (0.05, 0.7), interval: int | None = None) -> Discrete:
        """The three levels −scale, 0 and scale.

        Raises:
            TypeError: If ``scale`` is no number.
            ValueError: If it is not finite or not above 0.
        """
        scale = number("scale", scale, low=0.0, open_low=True)
        return cls((-scale, 0.0, scale), ramp, interval)

    def __repr__(self) -> str:
        return f"Discrete(levels={self.levels}, {self._schedule()})"

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        return self

    @property
    @override
    def acts_on_device(self) -> bool:
        return True

    @property
    @override
    def competes(self) -> bool:
        # Along the ramp for places off the levels; after it D does not matter.
        return True

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        needed = self._needed(weights)
        return True if needed == 0 else self._on_levels(weights) >= needed

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        # Only here, as it is derived from this class.
        from lightning_bsqh.regularizers.shard_discrete import on_shards

        return on_shards(self, shards)

    def _needed(self, weights: Sequence[Tensor]) -> int:
        """How many weights must be on levels."""
        return round(self._share * self._count(weights))

    def _count(self, weights: Sequence[Tensor]) -> int:
        return sum(w.numel() for w in weights)

    def _on_levels(self, weights: Sequence[Tensor]) -> Tensor:
        """How many weights are on levels."""
        return scalars([torch.count_nonzero(self._are_on_levels(w)) for w in joined(weights)]).sum()

    def _are_on_levels(self, weight: Tensor) -> Tensor:
        return weight == _nearest(weight, self.levels)

    def _largest(self, gains: Tensor, sizes: Sequence[int], count: int) -> Tensor:
        """Marks so many of the gains of all tensors, one after the other."""
        return keep_largest(gains, count)

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        self.project_in_box_(weights, metric, -math.inf, math.inf)

    @override
    def check_box(self, low: float, high: float) -> None:
        if not self._inside(low, high):
            raise ValueError(f"Box with low={low:g}, high={high:g} contains none of the levels of {self!r}.")

    @override
    def project_in_box_(
        self, weights: Sequence[Tensor], metric: Sequence[MetricWeight], low: float, high: float
    ) -> None:
        levels = self._inside(low, high)
        if self._share < 1.0 and weights:
            self._project_most_(weights, metric, levels, low, high)
        else:
            elementwise_(lambda w, _: w.copy_(_nearest(w, levels)), weights, [1.0] * len(weights))

    def _project_most_(
        self,
        weights: Sequence[Tensor],
        metric: Sequence[MetricWeight],
        levels: Sequence[float],
        low: float,
        high: float,
    ) -> None:
        """Puts weights on levels, but only clips those for which that is dearest, as many as may be free."""
        w = flat(weights)
        nearest, clipped = _nearest(w, levels), w.clamp(low, high)
        gains = (nearest - w).square_().sub_((clipped - w).square_())
        multiply_each_(unflat(gains, weights), metric)
        free = self._largest(gains, [own.numel() for own in weights], self._count(weights) - self._needed(weights))
        copy_(weights, unflat(torch.where(free, clipped, nearest), weights))

    @property
    @override
    def couples_tensors(self) -> bool:
        # Only along the ramp: which weights may still be free is chosen over all tensors.
        return self._share < 1.0

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        parts = []
        for w in weights:
            part = copy.copy(self)
            part._share = float(self._are_on_levels(w).double().mean()) if self._share < 1.0 else 1.0
            parts.append(part)
        return parts

    @override
    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return [self._are_on_levels(w) for w in weights]

    @override
    def hamiltonian_maximizer(self, ascents: Sequence[Tensor]) -> list[Tensor | None]:
        return self.hamiltonian_maximizer_in_box(ascents, -math.inf, math.inf)

    @override
    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        if self._share < 1.0:
            # Free weights are bounded by the box alone, and chosen over all tensors.
            return [None for _ in ascents]
        levels = self._inside(low, high)
        return [best_of(g, [torch.full_like(g, level) for level in levels], torch.zeros_like) for g in ascents]

    def _inside(self, low: float, high: float) -> tuple[float, ...]:
        return tuple(level for level in self.levels if low <= level <= high)


def _sorted(levels: Sequence[float]) -> tuple[float, ...]:
    values = [number(f"levels[{i}]", v, low=-math.inf, open_low=True) for i, v in enumerate(levels)]
    return tuple(sorted(set(values)))


def _nearest(values: Tensor, levels: Sequence[float]) -> Tensor:
    """The level nearest to each value, in the dtype of ``values``."""
    nearest = torch.full_like(values, levels[0])
    for lower, upper in pairwise(levels):
        middle = (lower + upper) / 2.0
        # A value in the middle takes the lower level if it is positive and the upper one otherwise.
        nearest.masked_fill_(values > middle if middle > 0.0 else values >= middle, upper)
    return nearest
