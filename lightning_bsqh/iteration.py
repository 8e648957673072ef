"""One iteration's w, G and D, and the candidates û made of them (method §2, §3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_bsqh.hamiltonian import augmented_gain
from lightning_bsqh.regularizers import MetricWeight, Regularizer


@dataclass(frozen=True)
class Candidate:
    """How a candidate û differs from the base point w.

    Attributes:
        slope: ⟨G, û − w⟩, the decrease that the linear model promises.
        tau: ‖û − w‖²_D.
        penalty_change: ρ[R(û) − R(w)].
    """

    slope: float
    tau: float
    penalty_change: float

    def gain(self, epsilon: float) -> float:
        """K_ε(û; w) − K_ε(w; w), summed over the layers."""
        return augmented_gain(self.slope, self.penalty_change, epsilon, self.tau)


class Iteration:
    """Makes candidates from one forward and adjoint sweep, and goes back where none is good.

    The parameters themselves hold whatever point is looked at; w is kept as a copy.

    Args:
        parameters: All trained tensors; they hold w.
        gradients: −G for each, None where the loss does not depend on it.
        metric: Computes D for each. Called anew for every candidate, so that D takes no memory during the sweeps.
        regularizer: R as it holds in this iteration.
        regularized: Positions of the tensors that R acts on.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        metric: Callable[[], Sequence[MetricWeight]],
        regularizer: Regularizer,
        regularized: Sequence[int],
    ) -> None:
        self._parameters = parameters
        self._gradients = gradients
        self._metric = metric
        self._regularizer = regularizer
        self._regularized = regularized
        self._weights = [parameters[i] for i in regularized]
        self._start = self._base = _copies(parameters)
        # Whether the parameters may hold something else than the base point.
        self._moved = False
        #: ρR at the base point.
        self.penalty = regularizer.penalty(self._weights)
        #: Whether w violates a constraint: one that has just been tightened.
        self.tightened = not regularizer.admits(self._weights)

    def maximise_(self, epsilon: float) -> Candidate:
        """Puts û_l = argmax K_{ε,l}(·; w_l) into the parameters, all layers from the same w and G (jacobi)."""
        metric = self._metric()
        for p, w, gradient, d in zip(self._parameters, self._base, self._gradients, metric, strict=True):
            if self._moved:
                p.copy_(w)
            if gradient is None:
                continue
            # z = w + G/(2εD) with G = −gradient.
            if isinstance(d, Tensor):
                p.addcdiv_(gradient, d, value=-0.5 / epsilon)
            else:
                p.add_(gradient, alpha=-0.5 / (epsilon * d))
        self._moved = True
        self._regularizer.prox_(self._weights, [metric[i] for i in self._regularized], epsilon)
        return self._measure(metric)

    def measure(self) -> Candidate:
        """Compares what the parameters hold with the base point."""
        return self._measure(self._metric())

    def _measure(self, metric: Sequence[MetricWeight]) -> Candidate:
        slopes: list[Tensor] = []
        taus: list[Tensor] = []
        for p, w, gradient, d in zip(self._parameters, self._base, self._gradients, metric, strict=True):
            step = (p - w).flatten()
            if gradient is not None:
                slopes.append(-torch.dot(gradient.flatten(), step))
            taus.append(torch.dot(step * (d.flatten() if isinstance(d, Tensor) else d), step))
        penalty_change = self._regularizer.penalty(self._weights) - self.penalty
        return Candidate(_sum(slopes), _sum(taus), penalty_change)

    def restore_(self, to_start: bool = False) -> None:
        """Puts the base point back into the parameters, to the bit; or the w of the start, before any projection."""
        for p, w in zip(self._parameters, self._start if to_start else self._base, strict=True):
            p.copy_(w)

    def project_(self) -> None:
        """Moves the base point, and the parameters with it, to the nearest admissible point in the metric."""
        self.restore_()
        metric = self._metric()
        self._regularizer.project_(self._weights, [metric[i] for i in self._regularized])
        self._base = _copies(self._parameters)
        self.penalty = self._regularizer.penalty(self._weights)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [t.detach().clone() for t in tensors]


def _sum(values: Sequence[Tensor]) -> float:
    """Σ of scalars in double precision, with one transfer from the device."""
    return math.fsum(torch.stack([v.to(values[0].device) for v in values]).tolist()) if values else 0.0
