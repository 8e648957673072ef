"""R plus weight decay: K of R + ρ‖u‖² is K of R alone, at another point and in another metric."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import override

from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.elastic_net import ElasticNet
from lightning_bsqh.regularizers.l1 import L1
from lightning_bsqh.regularizers.l2 import L2


class WithL2(Regularizer):
    """R(u) + ρ‖u‖² or ρ‖u‖²_D for any R; what ``R + L2(rho)`` makes (method §3, Sums).

    As εD(u − z)² + ρu² is (εD + ρ)(u − z')² and a constant, z' = εDz/(εD + ρ), the maximizer is that of R at z' in the
    metric D + ρ/ε, in a box as well as without one. With ρ‖u‖²_D, z' = εz/(ε + ρ) and the metric is D(1 + ρ/ε).

    Args:
        regularizer: R, a penalty or a constraint.
        decay: ρ‖u‖² or ρ‖u‖²_D.

    Raises:
        TypeError: If one of them is not what it should be.
    """

    def __init__(self, regularizer: Regularizer, decay: L2) -> None:
        if not isinstance(regularizer, Regularizer):
            raise TypeError(f"regularizer must be a Regularizer such as Cardinality(), got {regularizer!r}.")
        if not isinstance(decay, L2):
            raise TypeError(f"decay must be an L2 such as L2(rho=1e-5), got {decay!r}.")
        self.regularizer = regularizer
        self.decay = decay

    def __repr__(self) -> str:
        return f"{self.regularizer!r} + {self.decay!r}"

    @property
    @override
    def needs_total_steps(self) -> bool:
        return self.regularizer.needs_total_steps

    @property
    @override
    def couples_tensors(self) -> bool:
        return self.regularizer.couples_tensors

    @property
    @override
    def depends_on_metric(self) -> bool:
        return self.regularizer.depends_on_metric or self.decay.depends_on_metric

    @override
    def held_in(self, metric: Sequence[MetricWeight]) -> Regularizer:
        return WithL2(self.regularizer.held_in(metric), self.decay.held_in(metric))

    @property
    @override
    def needs_costs(self) -> bool:
        return self.regularizer.needs_costs

    @override
    def with_costs(self, costs: Sequence[int]) -> Regularizer:
        return WithL2(self.regularizer.with_costs(costs), self.decay)

    @override
    def at(self, step: int, total_steps: int | None) -> Regularizer:
        held = self.regularizer.at(step, total_steps)
        return self if held is self.regularizer else WithL2(held, self.decay)

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        inside = self.regularizer.on_vector(sizes)
        return None if inside is None or self.decay.in_metric else WithL2(inside, self.decay)

    @override
    def on_vector_with_minimum(self, sizes: Sequence[int]) -> Regularizer | None:
        inside = self.regularizer.on_vector_with_minimum(sizes)
        return None if inside is None or self.decay.in_metric else WithL2(inside, self.decay)

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        return WithL2(self.regularizer.on_shards(shards), self.decay)

    @override
    def leaves_enough(self, points: Sequence[Tensor]) -> Tensor | bool:
        return self.regularizer.leaves_enough(points)

    @property
    @override
    def acts_on_device(self) -> bool:
        return self.regularizer.acts_on_device

    @property
    @override
    def competes(self) -> bool:
        return self.regularizer.competes

    @override
    def confine_(self, weights: Sequence[Tensor]) -> None:
        self.regularizer.confine_(weights)

    @override
    def restricted_to(self, positions: Sequence[int]) -> Regularizer:
        return WithL2(self.regularizer.restricted_to(positions), self.decay.restricted_to(positions))

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor | float:
        return self.regularizer.penalty(weights) + self.decay.penalty(weights)

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        self.regularizer.prox_(points, self._complete_(points, metric, epsilon), epsilon)

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        return self.regularizer.admits(weights)

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        self.regularizer.project_(weights, metric)

    @override
    def check_box(self, low: float, high: float) -> None:
        self.regularizer.check_box(low, high)
        if type(self.regularizer).prox_in_box_ is Regularizer.prox_in_box_:
            raise TypeError(f"regularizer={self.regularizer!r} accepts a box in check_box but has no prox_in_box_.")

    @override
    def prox_in_box_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float, low: float, high: float
    ) -> None:
        self.regularizer.prox_in_box_(points, self._complete_(points, metric, epsilon), epsilon, low, high)

    @override
    def project_in_box_(
        self, weights: Sequence[Tensor], metric: Sequence[MetricWeight], low: float, high: float
    ) -> None:
        self.regularizer.project_in_box_(weights, metric, low, high)

    @override
    def check_separable(self) -> None:
        self.regularizer.check_separable()

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        parts = zip(self.regularizer.separate(weights), self.decay.separate(weights), strict=True)
        return [WithL2(part, decay) for part, decay in parts]

    @override
    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return self.regularizer.pinned(weights)

    @override
    def elementwise(self, weight: Tensor) -> Tensor | None:
        own, decay = self.regularizer.elementwise(weight), self.decay.elementwise(weight)
        return None if own is None or decay is None else own + decay

    @override
    def hamiltonian_maximizer(self, ascents: Sequence[Tensor]) -> list[Tensor | None]:
        rho = self.decay.rho
        if rho == 0.0:
            return self.regularizer.hamiltonian_maximizer(ascents)
        # ⟨G, u⟩ − ρ‖u‖² is −ρ‖u − G/(2ρ)‖² and a constant: R's own proximal point, with ρ as ε.
        found, metric = self._peaks(ascents)
        self.regularizer.prox_(found, metric, rho)
        return list(found)

    @override
    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        rho = self.decay.rho
        if rho == 0.0:
            return self.regularizer.hamiltonian_maximizer_in_box(ascents, low, high)
        found, metric = self._peaks(ascents)
        self.regularizer.prox_in_box_(found, metric, rho, low, high)
        return list(found)

    def _peaks(self, ascents: Sequence[Tensor]) -> tuple[list[Tensor], Sequence[MetricWeight]]:
        """Where ⟨G, u⟩ − ρ‖u‖² is largest, and the metric of that norm."""
        metric = self.decay.known_metric() if self.decay.in_metric else [1.0] * len(ascents)
        return [g / (2.0 * self.decay.rho * d) for g, d in zip(ascents, metric, strict=True)], metric

    def _complete_(
        self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float
    ) -> Sequence[MetricWeight]:
        """Moves every z to z' and gives the metric there, D + ρ/ε."""
        self.decay.prox_(points, metric, epsilon)
        share = self.decay.rho / epsilon
        return [d * (1.0 + share) if self.decay.in_metric else d + share for d in metric]


def add(first: Regularizer, second: object) -> Regularizer:
    """The sum of two regularizers, of which one is an ``L2``.

    Raises:
        TypeError: If neither is, so that no maximizer is known, or ``second`` is no regularizer.
    """
    if not isinstance(second, Regularizer):
        raise TypeError(f"Only a regularizer can be added to {first!r}, such as L2(rho=1e-5), got {second!r}.")
    if isinstance(first, L2) and not isinstance(second, L2):
        first, second = second, first
    if not isinstance(second, L2):
        if isinstance(second, WithL2):
            return add(add(first, second.regularizer), second.decay)
        raise TypeError(
            f"{first!r} + {second!r} has no maximizer in closed form: only L2 can be added to another regularizer. For"
            " different layers give a dict by name patterns, for bounds a Box around the regularizer."
        )
    return _with_decay(first, second)


def _with_decay(first: Regularizer, decay: L2) -> Regularizer:
    # By the very type: a user's subclass may mean something else.
    if type(first) is L2 and first.in_metric == decay.in_metric:
        return L2(first.rho + decay.rho, decay.in_metric)
    if isinstance(first, WithL2) and first.decay.in_metric == decay.in_metric:
        return WithL2(first.regularizer, L2(first.decay.rho + decay.rho, decay.in_metric))
    if decay.in_metric:
        return WithL2(first, decay)
    if type(first) is L1:
        return ElasticNet(first.rho, decay.rho)
    if type(first) is ElasticNet:
        return ElasticNet(first.rho_l1, first.rho_l2 + decay.rho)
    return WithL2(first, decay)
