"""The constraint low ≤ u ≤ high, alone or together with another regularizer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import number, shown
from lightning_bsqh.foreach import added, both, clamp_, joined, scalars
from lightning_bsqh.network.shards import Shards
from lightning_bsqh.regularizers.base import MetricWeight, Regularizer
from lightning_bsqh.regularizers.boxed import best_of, ends


class Box(Regularizer):
    """Every regularized weight lies in [low, high] (method §3, row Box).

    Alone it clips z. Together with another regularizer û is the exact maximizer in the box: with the
    convex ``L1``, ``L2`` and ``ElasticNet`` the clipped prox; with ``L0``, ``LHalf``, ``LTwoThirds``,
    ``GroupL0`` and ``Cardinality`` the true cost of the clipped c, R's share + εD(c−z)², is compared with
    that of zero; with ``Discrete`` the levels outside the box are left out.

    Args:
        low: Lower end; None for no lower end.
        high: Upper end, above ``low``; None for no upper end.
        regularizer: A regularizer to combine the box with, None for the box alone.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If neither end is given, ``low`` is not below ``high``, or the box cannot be combined with
            ``regularizer``: one that asks for zeros needs 0 in the box, ``Discrete`` a level in it, and
            a user's own one its methods ``check_box`` and ``prox_in_box_``.
    """

    def __init__(
        self, low: float | None = -1.0, high: float | None = 1.0, regularizer: Regularizer | None = None
    ) -> None:
        if low is None and high is None:
            raise ValueError("low and high are both None: a Box needs at least one of them.")
        self.low = -math.inf if low is None else number("low", low, low=-math.inf, open_low=True)
        self.high = math.inf if high is None else number("high", high, low=self.low, open_low=True)
        if regularizer is not None and not isinstance(regularizer, Regularizer):
            raise TypeError(
                f"regularizer must be a Regularizer such as L0(rho=1e-5) or None, got {shown(regularizer)}."
            )
        if regularizer is not None:
            regularizer.check_box(self.low, self.high)
            if type(regularizer).prox_in_box_ is Regularizer.prox_in_box_:
                raise TypeError(
                    f"regularizer={shown(regularizer)} accepts a box in check_box but has no prox_in_box_: give it that"
                    " method, or leave check_box out."
                )
        self.regularizer = regularizer

    def __repr__(self) -> str:
        inside = "" if self.regularizer is None else f", regularizer={self.regularizer!r}"
        low = None if math.isinf(self.low) else self.low
        high = None if math.isinf(self.high) else self.high
        return f"Box(low={low}, high={high}{inside})"

    @property
    @override
    def needs_total_steps(self) -> bool:
        return self.regularizer is not None and self.regularizer.needs_total_steps

    @override
    def at(self, step: int, total_steps: int | None) -> Regularizer:
        if self.regularizer is None:
            return self
        return self._around(self.regularizer.at(step, total_steps))

    def _around(self, inside: Regularizer) -> Regularizer:
        low, high = (None if math.isinf(end) else end for end in (self.low, self.high))
        return self if inside is self.regularizer else Box(low, high, inside)

    @property
    @override
    def depends_on_metric(self) -> bool:
        return self.regularizer is not None and self.regularizer.depends_on_metric

    @override
    def held_in(self, metric: Sequence[MetricWeight]) -> Regularizer:
        return self if self.regularizer is None else self._around(self.regularizer.held_in(metric))

    @property
    @override
    def needs_costs(self) -> bool:
        return self.regularizer is not None and self.regularizer.needs_costs

    @override
    def with_costs(self, costs: Sequence[int]) -> Regularizer:
        return self if self.regularizer is None else self._around(self.regularizer.with_costs(costs))

    @override
    def restricted_to(self, positions: Sequence[int]) -> Regularizer:
        return self if self.regularizer is None else self._around(self.regularizer.restricted_to(positions))

    @override
    def on_vector(self, sizes: Sequence[int]) -> Regularizer | None:
        if self.regularizer is None:
            return self
        inside = self.regularizer.on_vector(sizes)
        low, high = (None if math.isinf(end) else end for end in (self.low, self.high))
        return None if inside is None else Box(low, high, inside)

    @override
    def on_shards(self, shards: Shards) -> Regularizer:
        return self if self.regularizer is None else self._around(self.regularizer.on_shards(shards))

    @override
    def leaves_enough(self, points: Sequence[Tensor]) -> Tensor | bool:
        return self.regularizer is None or self.regularizer.leaves_enough(points)

    @property
    @override
    def acts_on_device(self) -> bool:
        return self.regularizer is None or self.regularizer.acts_on_device

    @property
    @override
    def competes(self) -> bool:
        return self.regularizer is not None and self.regularizer.competes

    @override
    def confine_(self, weights: Sequence[Tensor]) -> None:
        for w in weights:
            w.clamp_(self.low, self.high)

    @override
    def penalty(self, weights: Sequence[Tensor]) -> Tensor | float:
        return 0.0 if self.regularizer is None else self.regularizer.penalty(weights)

    @override
    def prox_(self, points: Sequence[Tensor], metric: Sequence[MetricWeight], epsilon: float) -> None:
        if self.regularizer is None:
            self.project_(points, metric)
        else:
            self.regularizer.prox_in_box_(points, metric, epsilon, self.low, self.high)

    @override
    def admits(self, weights: Sequence[Tensor]) -> Tensor | bool:
        # By way of clamp, so that an end that the weights' dtype cannot hold is rounded as in the prox.
        outside = added(scalars([torch.count_nonzero(w != w.clamp(self.low, self.high)) for w in joined(weights)]))
        return both(outside == 0, True if self.regularizer is None else self.regularizer.admits(weights))

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        if self.regularizer is None:
            clamp_(weights, self.low, self.high)
        else:
            self.regularizer.project_in_box_(weights, metric, self.low, self.high)

    @property
    @override
    def couples_tensors(self) -> bool:
        return self.regularizer is not None and self.regularizer.couples_tensors

    @override
    def check_separable(self) -> None:
        if self.regularizer is not None:
            self.regularizer.check_separable()

    @override
    def separate(self, weights: Sequence[Tensor]) -> Sequence[Regularizer]:
        if self.regularizer is None:
            return [self] * len(weights)
        return [self._around(part) for part in self.regularizer.separate(weights)]

    @override
    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return [None] * len(weights) if self.regularizer is None else self.regularizer.pinned(weights)

    @override
    def elementwise(self, weight: Tensor) -> Tensor | None:
        return torch.zeros_like(weight) if self.regularizer is None else self.regularizer.elementwise(weight)

    @override
    def hamiltonian_maximizer(self, ascents: Sequence[Tensor]) -> list[Tensor | None]:
        if math.isinf(self.low) or math.isinf(self.high):
            return [None for _ in ascents]
        if self.regularizer is not None:
            return self.regularizer.hamiltonian_maximizer_in_box(ascents, self.low, self.high)
        # Bang-bang: low where G < 0 and high where G > 0.
        return [best_of(g, ends(g, self.low, self.high), torch.zeros_like) for g in ascents]
