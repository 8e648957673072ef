"""An iteration that nobody looks at before it is done (``decide="device"``, method §2)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.candidate import Candidate
from lightning_bsqh.method.iteration import Iteration
from lightning_bsqh.regularizers import Regularizer


class DeviceIteration(Iteration):
    """Makes one candidate, for an ε that is a scalar on the device, and takes it where a boolean scalar says so.

    w satisfies the constraint of the iteration, which whoever makes this knows.
    """

    #: Σ G²/(4D) and ‖G/D‖/‖w‖ in the precision of the weights, once there is a candidate; the latter is not finite if
    #: all weights are zero, and not a number if nobody looks at them.
    length: Tensor
    relative: Tensor

    @override
    def _admits(self, base: Sequence[Tensor]) -> bool:
        return True

    @override
    def _joined_regularizer(self, keeps_minimum: bool) -> Regularizer | None:
        # Whether there was enough left would be known too late.
        return super()._joined_regularizer(keeps_minimum=True)

    def propose_(self, epsilon_for: Callable[[Tensor, Tensor], Tensor]) -> tuple[Candidate, Tensor]:
        """Puts û into the parameters.

        Args:
            epsilon_for: Gives ε for Σ G²/(4D) and ‖G/D‖/‖w‖.

        Returns:
            What û is worth, and its ε.
        """
        metric, means = self._metrics(), self._means()
        directions = self._directions(metric, means)
        self.length = self._scalar("length")
        self.relative = self._measured_relative()
        epsilon = epsilon_for(self.length, self.relative)
        # What acts on the device takes a scalar tensor in place of the number.
        given: Any = epsilon.to(directions[0].dtype) if len(directions) == 1 else epsilon
        points = [
            torch.addcdiv(w, s, given.to(w.dtype), value=-0.5) for w, s in zip(self._base, directions, strict=True)
        ]
        del directions
        self._acting.prox_(self._weights(points), self._weights(metric), given)
        self.put_(points)
        return self._measure(points, metric, means=means), epsilon

    def _scalar(self, name: str) -> Tensor:
        found = self._of_gradient[name]
        assert isinstance(found, Tensor)
        return found

    def _measured_relative(self) -> Tensor:
        if not self._looks_at_weights:
            return torch.full_like(self.length, math.nan)
        return (self._scalar("direction") / self._scalar("weights")).sqrt_()

    @property
    def peak(self) -> Tensor | float:
        """The largest element of G, in size."""
        return self._of_gradient["peak"]

    def choose_(self, accepted: Tensor) -> None:
        """Puts w back unless a boolean scalar says that the candidate is the next iterate."""
        self.put_([torch.where(accepted, u, w) for u, w in zip(self.values(), self._base, strict=True)])
