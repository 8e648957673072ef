"""K(û; w) ≥ K(w; w) for layers that are not affine in their parameters (method §3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_bsqh.method.hamiltonian import squared_length
from lightning_bsqh.regularizers import MetricWeight, Regularizer

#: The shares λ of the authors' program: λ²û + (1−λ²)w is tried for each, in this order.
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0)


@dataclass(frozen=True, eq=False)
class TrueHamiltonian:
    """One layer whose true K can be evaluated.

    Attributes:
        positions: Where the layer's tensors are among all parameters.
        alignment: Evaluates Σ_s⟨p_{l+1}, λ_l(x_l, u)⟩ at what the parameters hold.
    """

    positions: Sequence[int]
    alignment: Callable[[], float]


@dataclass(frozen=True)
class LinearParts:
    """The linear parts of an iteration's Hamiltonians.

    Attributes:
        base: w, for all parameters.
        gradients: −G, for all parameters.
        means: −Ḡ, for all parameters.
    """

    base: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    means: Sequence[Tensor | None]

    @staticmethod
    def change(ascents: Sequence[Tensor | None], positions: Sequence[int], steps: Sequence[Tensor]) -> float:
        """⟨G, û − w⟩ of one layer.

        Args:
            ascents: −G, for all parameters.
            positions: Where the layer's tensors are among them.
            steps: û − w of these tensors, flat.
        """
        pairs = [(ascents[i], s) for i, s in zip(positions, steps, strict=True)]
        return sum(-float(torch.dot(g.flatten(), s)) for g, s in pairs if g is not None)


class Safeguard:
    """Moves û back toward w, layer by layer, until the true K is at least that at w.

    The closed form maximizes the linearization of ⟨p, λ(x, ·)⟩ at w. Where the true K_{ε,l}(û; w) is below
    K_{ε,l}(w; w), the best of λ²û + (1−λ²)w is taken; of equal ones the later. Elements that a constraint
    pins (a weight that Cardinality has set to zero) stay where û has them.

    Args:
        parameters: All trained tensors.
        regularizer: R as it holds in this iteration.
        regularized: Positions of the tensors that R acts on.
    """

    def __init__(self, parameters: Sequence[Tensor], regularizer: Regularizer, regularized: Sequence[int]) -> None:
        self._parameters = parameters
        self._regularizer = regularizer
        self._regularized = regularized
        # At w it is the same for all trials of an iteration.
        self._at_base: dict[TrueHamiltonian, float] = {}

    def apply_(
        self,
        checks: Sequence[TrueHamiltonian],
        base: Sequence[Tensor],
        gradients: Sequence[Tensor | None],
        metric: Sequence[MetricWeight],
        epsilon: float,
        means: Sequence[Tensor] | None = None,
    ) -> float:
        """Replaces û in the parameters by a point that the true K does not put below w, for every layer in ``checks``.

        Args:
            checks: The layers.
            base: w, for all parameters.
            gradients: −G, for all parameters.
            metric: D, for all parameters.
            epsilon: The augmentation parameter.
            means: −Ḡ, for all parameters, in whose place of −G the linear part of K has it; None takes −G.

        Returns:
            What the true ⟨p, λ(x, û) − λ(x, w)⟩ exceeds the linear ⟨G, û − w⟩ by, summed over these layers.
        """
        proposal = [p.detach().clone() for p in self._parameters]
        pinned: dict[int, Tensor | None] = dict(
            zip(self._regularized, self._regularizer.pinned([proposal[i] for i in self._regularized]), strict=True)
        )
        self._put_(range(len(base)), base)
        linear = LinearParts(base, gradients, gradients if means is None else means)
        found = [self._best(check, linear, proposal, pinned, metric, epsilon) for check in checks]
        self._put_(range(len(base)), proposal)
        for check, (best, _, _) in zip(checks, found, strict=True):
            self._put_(check.positions, best)
        total = 0.0
        for check, (best, gain, excess) in zip(checks, found, strict=True):
            if gain < 0.0:
                # Only where elements are pinned; w itself is as good as any if the constraint permits it.
                self._put_(check.positions, [base[i] for i in check.positions])
                if self._regularizer.admits([self._parameters[i] for i in self._regularized]):
                    continue
                self._put_(check.positions, best)
            total += excess
        return total

    def _best(
        self,
        check: TrueHamiltonian,
        linear: LinearParts,
        proposal: Sequence[Tensor],
        pinned: dict[int, Tensor | None],
        metric: Sequence[MetricWeight],
        epsilon: float,
    ) -> tuple[list[Tensor], float, float]:
        """The tensors chosen for one layer, K's gain there, and by how much its true part exceeds the linear one."""
        at_base = self._at_base.get(check)
        if at_base is None:
            at_base = self._at_base[check] = check.alignment()
        penalty, base = self._penalty(), linear.base

        def gain(point: Sequence[Tensor]) -> tuple[float, float]:
            self._put_(check.positions, point)
            aligned = check.alignment() - at_base
            change = self._penalty() - penalty
            self._put_(check.positions, [base[i] for i in check.positions])
            steps = [(u - base[i]).flatten() for u, i in zip(point, check.positions, strict=True)]
            tau = sum(float(squared_length(s, metric[i])) for s, i in zip(steps, check.positions, strict=True))
            excess = aligned - linear.change(linear.gradients, check.positions, steps)
            promised = linear.change(linear.means, check.positions, steps)
            return promised + excess - change - epsilon * tau, excess

        best = [proposal[i] for i in check.positions]
        best_gain, excess = gain(best)
        if best_gain >= 0.0:
            return best, best_gain, excess
        if math.isnan(best_gain):
            best_gain = -math.inf
        for share in SHARES:
            point = [self._between(proposal[i], base[i], share * share, pinned.get(i)) for i in check.positions]
            # w itself may lie outside of bounds that have come later than it.
            self._confine_(check.positions, point)
            value, its_excess = gain(point)
            if value >= best_gain:
                best, best_gain, excess = point, value, its_excess
        return best, best_gain, excess

    def _confine_(self, positions: Sequence[int], point: Sequence[Tensor]) -> None:
        own = [place for place, i in enumerate(self._regularized) if i in positions]
        if own:
            weights = [point[list(positions).index(self._regularized[place])] for place in own]
            self._regularizer.restricted_to(own).confine_(weights)

    @staticmethod
    def _between(proposal: Tensor, base: Tensor, share: float, pinned: Tensor | None) -> Tensor:
        point = share * proposal + (1.0 - share) * base
        return point if pinned is None else torch.where(pinned, proposal, point)

    def _penalty(self) -> float:
        return float(self._regularizer.penalty([self._parameters[i] for i in self._regularized]))

    def _put_(self, positions: Sequence[int], values: Sequence[Tensor]) -> None:
        for i, value in zip(positions, values, strict=True):
            self._parameters[i].copy_(value)
