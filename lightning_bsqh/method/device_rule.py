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

    There is none where a constraint has just been tightened: such iterations are decided on the host.

    Attributes:
        accepted: Whether û became the iterate.
        change: L_B(û) − L_B(w), +∞ if L_B(û) is not finite.
        slope: ⟨G, û − w⟩.
        tau: ‖û − w‖²_D.
        resolution: The rounding error of the loss.
        length: Σ G²/(4D).
        relative: ‖G/D‖/‖w‖ where w ≠ 0; not finite if all weights are zero, not a number if the rule does not look at
            it.
        progress: Share of the training that is done, known to the host; None if its length is unknown.
    """

    accepted: Tensor
    change: Tensor
    slope: Tensor
    tau: Tensor
    resolution: Tensor
    length: Tensor
    relative: Tensor
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
    # The averages: of these four all is done at once.
    length: Tensor
    second_order: Tensor
    tau: Tensor
    relative: Tensor
    steps: Tensor
    eased: Tensor


class _Curved(NamedTuple):
    """The curvature of a step; not a number, or infinite, where there was none.

    ``own`` is half of it, ``bound`` what is noise of it, and ``is_known`` says whether it is more than that.
    """

    own: Tensor
    bound: Tensor
    is_known: Tensor


class CurvatureOnDevice(DeviceRule):
    """``Curvature`` in tensors, with as few of their operators as will do."""

    rule: Curvature

    def __init__(self, rule: Augmentation, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(rule, device, dtype)
        # Once known they stay so, and need not be asked for.
        state = rule.state_dict()
        self._knows_length, self._knows_relative = (state[name] is not None for name in ("length", "relative"))
        self._zero = torch.zeros((), device=device, dtype=dtype)
        self._far = torch.full_like(self._zero, math.inf)
        self._smoothing = torch.full_like(self._zero, self.rule.smoothing)
        # The memory that was taken apart last.
        self._seen: Tensor | None = None
        # The bounds of all that it remembers, of which only ε and the share of the shortest step have some.
        self._low, self._high = torch.full_like(self.memory, -math.inf), torch.full_like(self.memory, math.inf)
        self._low[0], self._high[0] = rule.epsilon_min, rule.epsilon_max
        self._high[_Remembered._fields.index("eased")] = 1.0

    @property
    def _longest(self) -> float:
        return self.rule.longest or math.inf

    @property
    def _raises_first(self) -> bool:
        """Whether this may be the first step with a relative length."""
        return not self._knows_relative and self._longest < math.inf

    def _recalled(self) -> tuple[_Remembered, Tensor]:
        """The memory in its parts, and the length above which a gradient is an outlier; once for each memory."""
        if self._seen is not self.memory:
            self._seen, self._known = self.memory, _Remembered(*self.memory.unbind())
            self._usual = self._known.length * (self.rule.outlier or math.inf)
        return self._known, self._usual

    @override
    def epsilon_for(self, epsilon: Tensor, length: Tensor, relative: Tensor) -> Tensor:
        known, usual = self._recalled()
        found = epsilon
        if self.rule.outlier is not None:
            # Of a length that is not finite, or has nothing to be compared with, there is no excess.
            found = (length / usual).nan_to_num_(0.0, 0.0).sqrt_().clamp_min_(1.0).mul_(epsilon)
        if self._raises_first:
            raised = torch.maximum(found, (relative / (2.0 * self._longest)).nan_to_num_(0.0, 0.0))
            found = torch.where(known.relative.isnan(), raised, found)
        return found.clamp_max(self.rule.epsilon_max)

    @override
    def observe(self, trial: DeviceTrial) -> Tensor:
        known, _ = self._recalled()
        second_order = trial.change + trial.slope
        own = second_order / trial.tau
        # Without a step nothing is more than the noise.
        bound = (trial.resolution / trial.tau).nan_to_num_(math.nan, math.nan)
        curved = _Curved(own, bound, own.abs() > bound)
        unsafe = known.epsilon / self.rule.safety
        after = self._after_accepted(trial, second_order, known, curved, unsafe)
        after = torch.where(trial.accepted, after, self._after_rejected(known, curved, unsafe))
        return after.clamp_(self._low, self._high)

    def _after_rejected(self, known: _Remembered, curved: _Curved, unsafe: Tensor) -> Tensor:
        # What nothing is known of asks for as much as it may.
        factor = torch.where(curved.is_known, curved.own, self._far).div_(unsafe).clamp_(1.1, 2.0)
        epsilon, eased = factor.mul_(known.epsilon), known.eased * self.rule.EASED
        return torch.stack(known._replace(epsilon=epsilon, eased=eased))

    def _after_accepted(
        self,
        trial: DeviceTrial,
        second_order: Tensor,
        known: _Remembered,
        curved: _Curved,
        unsafe: Tensor,
    ) -> Tensor:
        known = known._replace(steps=known.steps + 1.0)
        if self._raises_first:
            epsilon = self._start(trial, known)
            known, unsafe = known._replace(epsilon=epsilon), epsilon / self.rule.safety
        known = self._averaged(trial, second_order, known, curved)
        target = torch.where(curved.is_known, known.second_order / known.tau, curved.bound)
        ratio = self._within(target, known, unsafe, trial.progress)
        is_far = ratio < _E
        halves = is_far > known.settled
        if not self._is_positive:
            # A target of zero is infinitely far away, and is not approached by halves.
            halves &= ratio > 0.0
        factor = self._slow(ratio, curved.is_known).masked_fill_(halves, 0.5)
        # A bool is less than another only if it is false.
        settled = torch.maximum(known.settled, is_far < curved.is_known)
        eased = known.eased * self.rule.REGAINED
        return torch.stack(known._replace(settled=settled, epsilon=factor.mul_(known.epsilon), eased=eased))

    def _averaged(self, trial: DeviceTrial, second_order: Tensor, known: _Remembered, curved: _Curved) -> _Remembered:
        length = known.length if self._knows_length else torch.where(known.length.isnan(), trial.length, known.length)
        relative = known.relative
        if not self._knows_relative:
            relative = torch.where(relative.isnan(), trial.relative, relative)
        counted = trial.length
        if self.rule.outlier is not None:
            usual = self._usual if self._knows_length else self.rule.outlier * length
            counted = torch.minimum(counted, usual)
        old = before = self.memory[2:6]
        if not (self._knows_length and self._knows_relative):
            before = torch.stack([length, known.second_order, known.tau, relative])
        shown = torch.stack([counted, second_order, trial.tau, trial.relative])
        # 0 · r < r says that r is positive and finite.
        has_relative, curves = 0.0 * trial.relative < trial.relative, curved.is_known
        counts = torch.stack([trial.length < math.inf, curves, curves, has_relative])
        averages = torch.where(counts, torch.lerp(shown, before, self.rule.memory), old).unbind()
        return known._replace(**dict(zip(_Remembered._fields[2:6], averages, strict=True)))

    def _start(self, trial: DeviceTrial, known: _Remembered) -> Tensor:
        """ε, as the start may have been raised for the first step."""
        raised = torch.maximum(known.epsilon, (trial.relative / (2.0 * self._longest)).nan_to_num_(0.0, 0.0))
        return torch.where(known.relative.isnan(), self._bounded(raised), known.epsilon)

    def _largest_epsilon(self, progress: float | None, known: _Remembered) -> Tensor:
        """Where the step is as short as it may be, divided by the safety; infinite if it may have any length."""
        shortest, rule = self.rule.shortest or 0.0, self.rule
        if not shortest:
            return self._far
        eased = known.eased
        if progress is None:
            grown = (known.steps * ((1.0 - rule.FIRST) / rule.WARM_UP_STEPS)).add_(rule.FIRST).clamp_max_(1.0)
            eased = grown.mul_(eased)
        else:
            shortest *= rule.grown_at(progress / rule.WARM_UP)
        return torch.addcdiv(self._zero, known.relative, eased, value=0.5 / rule.safety / shortest)

    def _within(self, target: Tensor, known: _Remembered, unsafe: Tensor, progress: float | None) -> Tensor:
        """The target, moved to where the step is neither too short nor too long, as a multiple of ε.

        Args:
            target: The target, divided by the safety as all here.
            known: What is remembered.
            unsafe: ε, too.
            progress: Share of the training that is done.
        """
        safety = self.rule.safety
        if self.rule.looks_at_weights:
            lower = known.relative * (0.5 / safety / self._longest)
            moved = target.clamp(lower, self._largest_epsilon(progress, known))
            target = moved if self._knows_relative else torch.where(known.relative.isnan(), target, moved)
        if self.rule.floor or not self._is_positive:
            target = target.clamp_min(self.rule.floor / safety)
        return target / unsafe

    @property
    def _is_positive(self) -> bool:
        """Whether no target can be zero."""
        return self.rule.floor > 0.0 or (self._knows_relative and self._longest < math.inf)

    def _slow(self, ratio: Tensor, is_known: Tensor) -> Tensor:
        """The factor that covers a part of the way; 1, any number to the power of 0, where no curvature is known."""
        factor = ratio.pow(torch.where(is_known, self._smoothing, self._zero))
        return factor.clamp_(math.exp(-self.rule.fall), math.exp(self.rule.rise))

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
