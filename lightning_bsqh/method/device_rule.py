"""Rules for ε whose memory lies on the device, so that no step waits for the host (``decide="device"``, method §2)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

if TYPE_CHECKING:
    from lightning_bsqh.method.augmentation import Augmentation, Backtracking, Curvature


@dataclass(frozen=True)
class DeviceTrial:
    """What a rule learns from a trial, as :class:`~lightning_bsqh.method.trial.Trial`; scalars in double precision.

    Attributes:
        accepted: Whether û became the iterate.
        change: L_B(û) − L_B(w), +∞ if L_B(û) is not finite.
        slope: ⟨G, û − w⟩.
        tau: ‖û − w‖²_D.
        resolution: The rounding error of the loss.
        length: Σ G²/(4D).
    """

    accepted: Tensor
    change: Tensor
    slope: Tensor
    tau: Tensor
    resolution: Tensor
    length: Tensor


class DeviceRule(ABC):
    """A rule for ε in tensors; it gives what the rule that it was made from would give, to rounding.

    A rule of one's own that returns one from ``on_device`` can be used with ``decide="device"``.

    Args:
        rule: The rule that it stands for, which has the memory before and, by way of :meth:`state_dict`, after.
        device: Where the memory lies.
        dtype: Its precision.
    """

    def __init__(self, rule: Augmentation, device: torch.device, dtype: torch.dtype) -> None:
        self.rule = rule
        #: All that the rule remembers, shape ``[n]``; the first entry is ε before the schedule.
        self.memory = torch.tensor(self.numbers(rule.state_dict()), device=device, dtype=dtype)

    def epsilon_at(self, progress: float | None) -> Tensor:
        """ε for the next trial, schedule included; ``progress`` is known to the host."""
        epsilon = self.memory[0]
        if self.rule.schedule is None or progress is None:
            return epsilon
        return (epsilon * self.rule.schedule(progress)).clamp_max_(self.rule.epsilon_max)

    def epsilon_for(self, epsilon: Tensor, length: Tensor) -> Tensor:
        """ε to try instead of ``epsilon``, at least as large, now that Σ G²/(4D) is known."""
        return epsilon

    @abstractmethod
    def observe(self, trial: DeviceTrial) -> Tensor:
        """The memory after a trial, a new tensor; :attr:`memory` stays."""

    @abstractmethod
    def numbers(self, state: dict[str, Any]) -> list[float]:
        """The rule's ``state_dict`` as the numbers of the memory."""

    @abstractmethod
    def state_dict(self, numbers: Sequence[float]) -> dict[str, Any]:
        """The reverse of :meth:`numbers`."""

    def _bounded(self, epsilon: Tensor) -> Tensor:
        return epsilon.clamp(self.rule.epsilon_min, self.rule.epsilon_max)


class BacktrackingOnDevice(DeviceRule):
    """``Backtracking`` in tensors; it remembers ε."""

    rule: Backtracking

    @override
    def observe(self, trial: DeviceTrial) -> Tensor:
        return self._bounded(torch.where(trial.accepted, self.memory * self.rule.zeta, self.memory * self.rule.sigma))

    @override
    def numbers(self, state: dict[str, Any]) -> list[float]:
        return [state["epsilon"]]

    @override
    def state_dict(self, numbers: Sequence[float]) -> dict[str, Any]:
        return {"epsilon": numbers[0]}


class CurvatureOnDevice(DeviceRule):
    """``Curvature`` in tensors; it remembers ε, whether it has settled, the usual length, and the two averages.

    A length that is not known yet is not a number.
    """

    rule: Curvature

    def __init__(self, rule: Augmentation, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(rule, device, dtype)
        # Once known it stays so, and need not be asked for.
        self._knows_length = rule.state_dict()["length"] is not None

    @override
    def epsilon_for(self, epsilon: Tensor, length: Tensor) -> Tensor:
        if self.rule.outlier is None:
            return epsilon
        excess = length / (self.rule.outlier * self.memory[2])
        # Of a length that is not finite, or has nothing to be compared with, there is no excess.
        factor = excess.nan_to_num_(0.0, 0.0).sqrt_().clamp_min_(1.0)
        return factor.mul_(epsilon).clamp_max_(self.rule.epsilon_max)

    @override
    def observe(self, trial: DeviceTrial) -> Tensor:
        epsilon, settled, length, average, tau = self.memory.unbind()
        second_order = trial.change + trial.slope
        size = second_order.abs()
        known = (size > trial.resolution) & (size < math.inf) & (trial.tau > 0.0)
        moves = trial.accepted & known
        average = torch.where(moves, torch.lerp(second_order, average, self.rule.memory), average)
        tau = torch.where(moves, torch.lerp(trial.tau, tau, self.rule.memory), tau)
        target = torch.where(known, average / tau, trial.resolution / trial.tau) * self.rule.safety
        ratio = target.clamp_min_(self.rule.floor or 0.0).div_(epsilon)
        is_far = ratio < _E
        own = second_order / (trial.tau * epsilon)
        factor = torch.where(trial.accepted, self._approach(ratio, is_far, settled, known), self._rise(own, known))
        # A bool is less than another only if it is false.
        settled = torch.maximum(settled, is_far < moves)
        epsilon = self._bounded(factor * epsilon)
        return torch.stack([epsilon, settled, self._usual(trial, length), average, tau])

    def _approach(self, ratio: Tensor, is_far: Tensor, settled: Tensor, known: Tensor) -> Tensor:
        """The factor of ε after an accepted trial, ``ratio`` being that to its target."""
        halves = is_far > settled
        if not self.rule.floor:
            # A target of zero is infinitely far away, and is not approached by halves.
            halves &= ratio > 0.0
        slow = ratio.pow(self.rule.smoothing).clamp_(math.exp(-self.rule.fall), math.exp(self.rule.rise))
        return torch.where(halves, ratio.clamp_min(0.5), slow.masked_fill_(~known, 1.0))

    def _rise(self, own: Tensor, known: Tensor) -> Tensor:
        """The factor of ε after a rejected trial, by its own curvature."""
        return (own * self.rule.safety).clamp_(1.1, 2.0).masked_fill_(~known, 2.0)

    def _usual(self, trial: DeviceTrial, length: Tensor) -> Tensor:
        usual = length if self._knows_length else torch.where(length.isnan(), trial.length, length)
        counted = trial.length
        if self.rule.outlier is not None:
            counted = torch.minimum(counted, self.rule.outlier * usual)
        seen = trial.accepted & (trial.length < math.inf)
        return torch.where(seen, torch.lerp(counted, usual, self.rule.memory), length)

    @override
    def numbers(self, state: dict[str, Any]) -> list[float]:
        length = math.nan if state["length"] is None else state["length"]
        return [state["epsilon"], float(state["settled"]), length, state["second_order"], state["tau"]]

    @override
    def state_dict(self, numbers: Sequence[float]) -> dict[str, Any]:
        epsilon, settled, length, second_order, tau = numbers
        usual = None if math.isnan(length) else length
        own = {"epsilon": epsilon, "settled": settled > 0.0, "length": usual}
        return {**own, "second_order": second_order, "tau": tau}


#: A target closer than this factor has been reached.
_E = math.exp(-1.0)


def precision_on(device: torch.device) -> torch.dtype:
    """The dtype of the numbers that decisions are taken on: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


def decides_as(rule: Augmentation, kind: type[Augmentation]) -> bool:
    """Whether a rule decides as this one, and not as a subclass of a user's does."""
    names = ("observe", "epsilon_for", "epsilon_at", "state_dict", "load_state_dict", "_follow", "_approach")
    return all(getattr(type(rule), name, None) is getattr(kind, name, None) for name in names)
