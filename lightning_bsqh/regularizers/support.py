"""What the constraints have in common that only say which weights may be non-zero."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.foreach import multiply_each_, squares
from lightning_bsqh.regularizers.base import MetricWeight
from lightning_bsqh.regularizers.boxed import ZeroInBox, best_of, ends
from lightning_bsqh.regularizers.tightening import TighteningConstraint


class SupportConstraint(TighteningConstraint, ZeroInBox):
    """u is zero outside a support, of which some are permitted; what is in it keeps its z.

    A support gains Dz² with every weight in it, and in a box the same less what clipping costs. So the maximizer has
    the permitted support with the largest sum of these scores, which a subclass finds.
    """

    @abstractmethod
    def _keep_best_(self, weights: Sequence[Tensor], scores: Sequence[Tensor]) -> None:
        """Sets all weights to zero that are not in the permitted support with the largest sum of scores.

        Args:
            weights: At least one tensor; overwritten.
            scores: What each weight gains in the support, not negative, the same shapes.
        """

    @property
    def _holds(self) -> bool:
        """Whether anything is demanded yet."""
        return self._share > 0.0

    @override
    def project_(self, weights: Sequence[Tensor], metric: Sequence[MetricWeight]) -> None:
        if self._holds and weights:
            scores = squares(weights)
            multiply_each_(scores, metric)
            self._keep_best_(weights, scores)

    @override
    def project_in_box_(
        self, weights: Sequence[Tensor], metric: Sequence[MetricWeight], low: float, high: float
    ) -> None:
        scores = []
        for w, d in zip(weights, metric, strict=True):
            clipped = w.clamp(low, high)
            # What keeping the clipped c gains over zero: Dw² − D(w−c)² = Dc(2w−c), and c lies between 0 and w.
            scores.append(d * clipped * (2.0 * w - clipped))
            w.copy_(clipped)
        if self._holds and weights:
            self._keep_best_(weights, scores)

    @override
    def hamiltonian_maximizer_in_box(self, ascents: Sequence[Tensor], low: float, high: float) -> list[Tensor | None]:
        # With 0 in the box the better end is never worse than 0.
        found = [best_of(g, ends(g, low, high), torch.zeros_like) for g in ascents]
        if self._holds and found:
            self._keep_best_(found, [g * u for g, u in zip(ascents, found, strict=True)])
        return list(found)

    @override
    def pinned(self, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        return [w == 0.0 for w in weights]
