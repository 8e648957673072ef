"""The metric D of the augmentation term ε‖u − w‖²_D (method §4)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh._validation import shown
from lightning_bsqh.method.augmentation import RuleDefaults
from lightning_bsqh.method.packed_state import PackedState
from lightning_bsqh.network.packing import Pack
from lightning_bsqh.regularizers.base import MetricWeight


@dataclass(frozen=True)
class Unreached:
    """What is known of the parameters that no gradient has reached before this iteration.

    Attributes:
        low: Positions of those whose weights stand against those of others, as for the places of Cardinality.
        reached: By position, whether this iteration's gradient reaches them, where the processes have told each other;
            elsewhere only the device knows.
    """

    low: Collection[int] = ()
    reached: Mapping[int, bool] = field(default_factory=dict)

    def is_reached(self, position: int, gradient: Tensor) -> Tensor:
        """Whether a gradient has an element that is not zero, in any process: a scalar on its device."""
        known = self.reached.get(position)
        return gradient.any() if known is None else torch.tensor(known, device=gradient.device)


class Metric(ABC):
    """Turns the gradients of the parameters into the diagonal D.

    What it remembers lies in the optimizer's ``state`` of every parameter. It changes only in :meth:`commit`, when the
    iteration is through, so that one that is skipped or interrupted leaves nothing.
    """

    #: What the default rule for ε takes where the user has left it open, in mini-batch mode and in full-batch mode.
    rule_defaults: RuleDefaults
    full_batch_rule_defaults: RuleDefaults
    #: The share of the past in the gradient that candidates are made of, where the user has left it open.
    averaging = 0.0

    def largest_gradient(self, dtype: torch.dtype) -> float:
        """An element of G above it is as good as infinite."""
        return torch.finfo(dtype).max

    @abstractmethod
    def weight(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]], unreached: Unreached) -> Any:
        """D with this iteration's gradient taken in.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them, shape ``[n]``.
            states: What is remembered of each parameter of the pack.
            unreached: What is known of the parameters without a state.

        Returns:
            A new tensor of shape ``[n]``, or a scalar; positive.
        """

    @abstractmethod
    def commit(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]], reached: Sequence[bool]) -> None:
        """Remembers this iteration's gradient.

        Args:
            pack: Whose parameters.
            gradient: −G of all of them, shape ``[n]``.
            states: What is remembered of each parameter of the pack; changed.
            reached: Whether each parameter's gradient has an element that is not zero.
        """

    def unreached(self, states: Sequence[Mapping[str, Any]]) -> list[int]:
        """Positions of the parameters that no gradient has reached yet, as far as that makes a difference."""
        return []

    def repack(self) -> None:
        """The packs are about to be made anew: what is kept for the present ones can go."""
        return

    @abstractmethod
    def remembered(self, state: Mapping[str, Any], parameter: Tensor, low: bool) -> MetricWeight:
        """D of one parameter as the last iteration left it, of the parameter's shape or a scalar.

        Args:
            state: What is remembered of it.
            parameter: The parameter.
            low: Whether its weights stand against those of others.
        """


class Euclidean(Metric):
    """D = 1, the plain method."""

    rule_defaults = full_batch_rule_defaults = RuleDefaults(epsilon=5.0)

    @override
    def weight(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]], unreached: Unreached) -> float:
        return 1.0

    @override
    def commit(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]], reached: Sequence[bool]) -> None:
        return

    @override
    def remembered(self, state: Mapping[str, Any], parameter: Tensor, low: bool) -> float:
        return 1.0


class RMS(Metric):
    """D_i = √(bias-corrected running mean of G_i²) + tiny: a common length scale for all weights.

    The state per parameter: ``mean_square`` (shape of the parameter) and ``updates`` (an integer), from the first
    gradient on that is not zero. Before it, as in the branches above a layer that starts at zero, there is no scale:
    D = 1, as in the plain method, so that no price takes weights away that have not been tried yet; or tiny where they
    would otherwise take the places of weights that have.
    """

    # A weight whose gradient is as large as usual moves by 1/(2ε): at the start by as good as nothing.
    rule_defaults = RuleDefaults(epsilon=10_000.0, longest=0.3, shortest=0.12)
    # There an iteration costs a pass over all data, and the curvature is exact.
    full_batch_rule_defaults = RuleDefaults(epsilon=62.5, longest=0.3)
    averaging = 0.8
    decay = 0.999
    tiny = 1e-8

    @override
    def largest_gradient(self, dtype: torch.dtype) -> float:
        # Its square has to be finite.
        return 0.99 * math.sqrt(torch.finfo(dtype).max)

    def __init__(self) -> None:
        self._means = PackedState("mean_square")

    @override
    def weight(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]], unreached: Unreached) -> Tensor:
        mean = self.with_gradient(pack, gradient, states)
        updates = [int(state.get("updates", 0)) for state in states]
        usual = max(updates)
        metric = mean.div_(self._correction(usual + 1)).sqrt_().add_(self.tiny)
        if min(updates) < usual or usual == 0:
            self._correct_others_(metric, pack, gradient, updates, unreached)
        return metric

    def _correct_others_(
        self, metric: Tensor, pack: Pack, gradient: Tensor, updates: Sequence[int], unreached: Unreached
    ) -> None:
        """What joined later than most, or is not reached yet, has a correction of its own."""
        usual = max(updates)
        split = zip(metric.split(pack.sizes), gradient.split(pack.sizes), updates, pack.positions, strict=True)
        for own, g, count, position in split:
            if count < usual:
                factor = (self._correction(usual + 1) / self._correction(count + 1)) ** 0.5
                own.sub_(self.tiny).mul_(factor).add_(self.tiny)
            if count == 0:
                without = torch.full_like(own, self.tiny if position in unreached.low else 1.0)
                own.copy_(torch.where(unreached.is_reached(position, g), own, without))

    @override
    def commit(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]], reached: Sequence[bool]) -> None:
        mean = self.mean_of(pack, states)
        mean.mul_(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)
        pieces = None
        for i, state in enumerate(states):
            if "mean_square" in state:
                state["updates"] += 1
            elif reached[i]:
                pieces = pack.pieces(mean) if pieces is None else pieces
                state["mean_square"], state["updates"] = pieces[i], 1

    @override
    def unreached(self, states: Sequence[Mapping[str, Any]]) -> list[int]:
        return [i for i, state in enumerate(states) if "mean_square" not in state]

    @override
    def repack(self) -> None:
        self._means.repack()

    @override
    def remembered(self, state: Mapping[str, Any], parameter: Tensor, low: bool) -> MetricWeight:
        if "mean_square" not in state:
            return self.tiny if low else 1.0
        return (state["mean_square"] / self._correction(state["updates"])).sqrt_().add_(self.tiny)

    def _correction(self, updates: int) -> float:
        return float(1.0 - self.decay**updates)

    def with_gradient(self, pack: Pack, gradient: Tensor, states: Sequence[dict[str, Any]]) -> Tensor:
        """The running means of G² with this iteration's gradient taken in, a new vector."""
        return self.mean_of(pack, states).mul(self.decay).addcmul_(gradient, gradient, value=1.0 - self.decay)

    def mean_of(self, pack: Pack, states: Sequence[dict[str, Any]]) -> Tensor:
        """The running means of a pack in one vector, of which the states hold views."""
        known = self._means.find(pack, [state for state in states if "mean_square" in state])
        if known is None:
            known = self._means.gather(pack, states, torch.zeros_like(pack.values()))
            self._means.hold(pack, known, states, only_known=True)
        return known


def make_metric(name: str) -> Metric:
    """The metric of that name.

    Raises:
        ValueError: If there is none.
    """
    metrics: dict[str, type[Metric]] = {"euclidean": Euclidean, "rms": RMS}
    if not isinstance(name, str) or name not in metrics:
        raise ValueError(f"metric must be one of {sorted(metrics)}, got {shown(name)}.")
    return metrics[name]()
