"""The constraint that every weight is one of finitely many levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer


class Discrete(Regularizer):
    """Every regularised weight is one of the levels; û is the level nearest to z (method §3, row finite set).

    The nearest level maximises K whatever ε and D are. A tie goes to the level nearer to 0, and between
    −a and a to a. It is a constraint: R = 0 on it.

    Args:
        levels: The permitted values, at least one, in any order.

    Raises:
        TypeError: If ``levels`` is no sequence of numbers.
        ValueError: If ``levels`` is empty, or a level is not finite.
    """

    def __init__(self, levels: Sequence[float]) -> None:
        if isinstance(levels, str) or not isinstance(levels, Sequence):
            raise TypeError(f"levels must be a sequence of numbers such as (-0.1, 0.0, 0.1), got {levels!r}.")
        if not levels:
            raise ValueError(f"levels must hold at least one number in (-inf, inf), got {levels!r}.")
        self.levels = _sorted(levels)

    @classmethod
    def binary(cls, scale: float) -> Discrete:
        """The two levels −scale and scale.

        Raises:
            TypeError: If ``scale`` is no number.
            ValueError: If it is not finite or not above 0.
        """
        scale = number("scale", scale, low=0.0, open_low=True)
        return cls((-scale, scale))

    @classmethod
    def ternary(cls, scale: float) -> Discrete:
        """The three levels −scale, 0 and scale.

        Raises:
            TypeError: If ``scale`` is no number.
            ValueError: If it is not finite or not above 0.
        """
        scale = number("scale", scale, low=0.0, open_low=True)
        return cls((-scale, 0.0, scale))

    def __repr__(self) -> str:
        return f"Discrete(levels={self.levels})"

    @override
    def penalty(self, weights: Sequence[Tensor]) -> float:
        return 0.0

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        self.project_(points, metric)

    @override
    def admits(self, weights: Sequence[Tensor]) -> bool:
        return all(torch.equal(w, _nearest(w, self.levels)) for w in weights)

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        for w in weights:
            w.copy_(_nearest(w, self.levels))

    @override
    def check_box(self, low: float, high: float) -> None:
        if not self._inside(low, high):
            raise ValueError(f"Box with low={low:g}, high={high:g} contains none of the levels of {self!r}.")

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        self.project_in_box_(points, metric, low, high)

    @override
    def project_in_box_(
        self, weights: Sequence[Tensor], metric: Sequence[MetricWeight], low: float, high: float
    ) -> None:
        for w in weights:
            w.copy_(_nearest(w, self._inside(low, high)))

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
