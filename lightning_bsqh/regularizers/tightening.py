"""What the constraints that tighten along a ramp have in common."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import Self, override

from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.ramp import Ramp


class TighteningConstraint(Regularizer):
    """A constraint of which a share is demanded that rises from 0 to 1 along a ramp; R = 0 on it.

    A subclass defines ``admits``, ``project_`` and, for a box, ``check_box`` and ``project_in_box_``, all for the share
    ``_share`` of its demand. As ε is common to all weights, the maximizer is the nearest admissible point in D.

    Args:
        ramp: Start and end of the ramp as shares of the training, see :class:`~lightning_bsqh.regularizers.ramp.Ramp`.
        interval: Number of iterations from one tightening to the next, None for the default.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range.
    """

    #: Share of the demand that holds.
    _share = 1.0
    #: Whether that share is the one of a single iteration, so that there is no ramp any more.
    _is_held = False

    def __init__(self, ramp: tuple[float, float], interval: int | None) -> None:
        self._ramp = Ramp(ramp, interval)
        self.ramp = self._ramp.ends
        self.interval = self._ramp.interval

    @property
    @override
    def needs_total_steps(self) -> bool:
        return not self._is_held and self._ramp.needs_total_steps

    @override
    def at(self, step: int, total_steps: int | None) -> Self:
        return self if self._is_held else self._held_at(self._ramp.share_at(step, total_steps))

    def _held_at(self, share: float) -> Self:
        """The constraint with this share of its demand, and without a ramp."""
        held = copy.copy(self)
        held._share, held._is_held = share, True
        return held

    def _schedule(self) -> str:
        """The ramp, or how far it has come, for ``__repr__``."""
        return f"share={self._share:g}" if self._is_held else f"ramp={self.ramp}"

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor | float:
        return 0.0

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        self.project_(points, metric)

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        self.project_in_box_(points, metric, low, high)

    @override
    def elementwise(self, weight: Tensor) -> Tensor:
        # A constraint that is satisfied has no price.
        return torch.zeros_like(weight)
