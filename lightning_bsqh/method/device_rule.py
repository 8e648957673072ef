"""Rules for ε whose memory lies on the device, so that no step waits for the host (``decide="device"``, method §2)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

if TYPE_CHECKING:
    from lightning_bsqh.method.augmentation import Augmentation, Backtracking
    from lightning_bsqh.method.curvature import Curvature


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
        relative: ‖G/D‖/‖w‖; not a number if all weights are zero, or if the rule does not look at it.
        tightened: Whether w violated a constraint that has just been tightened; known to the host, which decides such
            steps itself.
        progress: Share of the training that is done, known to the host; None if its length is unknown.
    """

    accepted: Tensor
    change: Tensor
    slope: Tensor
    tau: Tensor
    resolution: Tensor
    length: Tensor
    relative: Tensor
    tightened: bool = False
    progress: float | None = None


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

    def epsilon_for(self, epsilon: Tensor, length: Tensor, relative: Tensor) -> Tensor:
        """ε to try instead of ``epsilon``, at least as large, now that Σ G²/(4D) and ‖G/D‖/‖w‖ are known."""
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


class _Remembered(NamedTuple):
    """What ``Curvature`` remembers, by the names of its ``state_dict``; what is not known yet is not a number."""

    epsilon: Tensor
    settled: Tensor
    length: Tensor
    second_order: Tensor
    tau: Tensor
    relative: Tensor
    steps: Tensor
    grown: Tensor
    eased: Tensor


class CurvatureOnDevice(DeviceRule):
    """``Curvature`` in tensors."""

    rule: Curvature

    def __init__(self, rule: Augmentation, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(rule, device, dtype)
        # Once known they stay so, and need not be asked for.
        state = rule.state_dict()
        self._knows_length, self._knows_relative = (state[name] is not None for name in ("length", "relative"))

    @property
    def _known(self) -> _Remembered:
        return _Remembered(*self.memory.unbind())

    @property
    def _longest(self) -> float:
        return self.rule.longest or math.inf

    @override
    def epsilon_for(self, epsilon: Tensor, length: Tensor, relative: Tensor) -> Tensor:
        known = self._known
        found = epsilon
        if self.rule.outlier is not None:
            excess = length / (self.rule.outlier * known.length)
            # Of a length that is not finite, or has nothing to be compared with, there is no excess.
            found = excess.nan_to_num_(0.0, 0.0).sqrt_().clamp_min_(1.0).mul_(epsilon)
        if self._raises_first:
            raised = torch.maximum(found, (relative / (2.0 * self._longest)).nan_to_num_(0.0))
            found = torch.where(known.relative.isnan(), raised, found)
        return found.clamp_max(self.rule.epsilon_max)

    @property
    def _raises_first(self) -> bool:
        """Whether this may be the first step with a relative length."""
        return not self._knows_relative and self._longest < math.inf

    @override
    def observe(self, trial: DeviceTrial) -> Tensor:
        before = self._known
        second_order = trial.change + trial.slope
        size = second_order.abs()
        is_curved = (size > trial.resolution) & (size < math.inf) & (trial.tau > 0.0)
        rise = self._rise(second_order / (trial.tau * before.epsilon), is_curved)
        now = self._with_gradient(trial, before)
        if trial.tightened:
            # Its curvature tells nothing, its length does.
            fall = self._slow(self._within(now.epsilon, now)).masked_fill_(now.settled == 0.0, 1.0)
        else:
            now, fall = self._by_curvature(trial, second_order, is_curved, now)
        epsilon = self._bounded(torch.where(trial.accepted, fall, rise) * now.epsilon)
        eased = torch.where(trial.accepted, now.eased, now.eased * self.rule._EASED)
        return torch.stack(now._replace(epsilon=epsilon, eased=eased))

    def _with_gradient(self, trial: DeviceTrial, known: _Remembered) -> _Remembered:
        """With the gradient and the number of an accepted step."""
        epsilon, relative = self._with_relative(trial, known)
        return known._replace(
            epsilon=epsilon,
            length=self._usual(trial, known.length),
            relative=relative,
            steps=known.steps + trial.accepted,
            grown=self._grown(trial, known),
        )

    def _with_relative(self, trial: DeviceTrial, known: _Remembered) -> tuple[Tensor, Tensor]:
        """ε, to which the start may have been raised, and the usual relative length."""
        epsilon, usual = known.epsilon, known.relative
        if not self.rule.looks_at_weights:
            return epsilon, usual
        seen = trial.accepted & (trial.relative > 0.0) & (trial.relative < math.inf)
        if self._raises_first:
            raised = self._bounded(torch.maximum(epsilon, trial.relative / (2.0 * self._longest)))
            epsilon = torch.where(seen & usual.isnan(), raised, epsilon)
        if not self._knows_relative:
            usual = torch.where(usual.isnan(), trial.relative, usual)
        return epsilon, torch.where(seen, torch.lerp(trial.relative, usual, self.rule.memory), known.relative)

    def _grown(self, trial: DeviceTrial, known: _Remembered) -> Tensor:
        first, rule = self.rule._FIRST, self.rule
        if trial.progress is not None:
            return known.grown.masked_fill(
                trial.accepted, min(first + (1.0 - first) * (trial.progress / rule._WARM_UP), 1.0)
            )
        grown = ((known.steps + 1.0) * ((1.0 - first) / rule._WARM_UP_STEPS)).add_(first).clamp_max_(1.0)
        return torch.where(trial.accepted, grown, known.grown)

    def _by_curvature(
        self, trial: DeviceTrial, second_order: Tensor, is_curved: Tensor, known: _Remembered
    ) -> tuple[_Remembered, Tensor]:
        """With the curvature of an accepted step, and the factor of ε for it."""
        counts = trial.accepted & is_curved
        average = torch.where(
            counts, torch.lerp(second_order, known.second_order, self.rule.memory), known.second_order
        )
        tau = torch.where(counts, torch.lerp(trial.tau, known.tau, self.rule.memory), known.tau)
        target = torch.where(is_curved, average / tau, trial.resolution / trial.tau) * self.rule.safety
        ratio = self._within(target, known)
        is_far = (ratio < _E) & (trial.tau > 0.0)
        factor = self._approach(ratio, is_far, known.settled, is_curved)
        # A bool is less than another only if it is false.
        settled = torch.maximum(known.settled, is_far < counts)
        return known._replace(settled=settled, second_order=average, tau=tau), factor

    def _within(self, target: Tensor, known: _Remembered) -> Tensor:
        """The target, moved to where the step is neither too short nor too long, as a multiple of ε."""
        if self.rule.looks_at_weights:
            wanted = 0.5 * known.relative
            moved = target
            if self.rule.shortest:
                moved = torch.minimum(moved, wanted / (self.rule.shortest * known.grown * known.eased))
            moved = torch.maximum(moved, wanted / self._longest)
            target = moved if self._knows_relative else torch.where(known.relative.isnan(), target, moved)
        return target.clamp_min(self.rule.floor).div_(known.epsilon)

    def _approach(self, ratio: Tensor, is_far: Tensor, settled: Tensor, is_curved: Tensor) -> Tensor:
        """The factor of ε after an accepted trial, ``ratio`` being that to its target."""
        halves = is_far > settled
        if not self.rule.floor:
            # A target of zero is infinitely far away, and is not approached by halves.
            halves &= ratio > 0.0
        return torch.where(halves, ratio.clamp_min(0.5), self._slow(ratio).masked_fill_(~is_curved, 1.0))

    def _slow(self, ratio: Tensor) -> Tensor:
        return ratio.pow(self.rule.smoothing).clamp_(math.exp(-self.rule.fall), math.exp(self.rule.rise))

    def _rise(self, own: Tensor, is_curved: Tensor) -> Tensor:
        """The factor of ε after a rejected trial, by its own curvature."""
        return (own * self.rule.safety).clamp_(1.1, 2.0).masked_fill_(~is_curved, 2.0)

    def _usual(self, trial: DeviceTrial, length: Tensor) -> Tensor:
        usual = length if self._knows_length else torch.where(length.isnan(), trial.length, length)
        counted = trial.length
        if self.rule.outlier is not None:
            counted = torch.minimum(counted, self.rule.outlier * usual)
        seen = trial.accepted & (trial.length < math.inf)
        return torch.where(seen, torch.lerp(counted, usual, self.rule.memory), length)

    @override
    def numbers(self, state: dict[str, Any]) -> list[float]:
        return [math.nan if state[name] is None else float(state[name]) for name in _Remembered._fields]

    @override
    def state_dict(self, numbers: Sequence[float]) -> dict[str, Any]:
        state: dict[str, Any] = dict(zip(_Remembered._fields, numbers, strict=True))
        for name in ("length", "relative"):
            state[name] = None if math.isnan(state[name]) else state[name]
        return {**state, "settled": state["settled"] > 0.0, "steps": int(state["steps"])}


#: A target closer than this factor has been reached.
_E = math.exp(-1.0)


def precision_on(device: torch.device) -> torch.dtype:
    """The dtype of the numbers that decisions are taken on: double precision where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


#: What a subclass may have of its own: it is done on the host, before the training.
_OF_THE_HOST = frozenset({"prepare", "start", "on_device"})


def decides_as(rule: Augmentation, kind: type[Augmentation]) -> bool:
    """Whether a rule decides as this one, and not as a subclass of a user's does."""
    names = {
        name
        for of in kind.__mro__
        for name, value in vars(of).items()
        if (callable(value) or isinstance(value, property)) and not name.startswith("__") and name not in _OF_THE_HOST
    }
    return all(getattr(type(rule), name, None) is getattr(kind, name) for name in names)
