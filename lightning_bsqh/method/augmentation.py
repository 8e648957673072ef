"""Rules for the augmentation parameter ε (method §4)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
from typing_extensions import override

from lightning_bsqh._validation import flag, number
from lightning_bsqh.method.device_rule import BacktrackingOnDevice, CurvatureOnDevice, DeviceRule, decides_as

# Under this name, too, as rules of users import it from here.
from lightning_bsqh.method.trial import Trial as Trial


class CosineRaise:
    """Multiplies ε by 2/(1 + cos πt) at share t of the training, against mini-batch noise (method §4).

    Args:
        limit: The largest factor, at least 1.
    """

    def __init__(self, limit: float = 1000.0) -> None:
        self.limit = number("limit", limit, low=1.0)

    def __call__(self, progress: float) -> float:
        """The factor at ``progress`` in [0, 1]."""
        share = 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
        return min(1.0 / share, self.limit) if share > 0.0 else self.limit


class Augmentation(ABC):
    """Chooses ε from what the trials show.

    A rule of one's own implements :meth:`observe`; it reads and sets :attr:`epsilon`, which stays
    within the bounds. Numbers that a rule remembers belong into :meth:`state_dict`.

    Args:
        epsilon: Start ε⁰ > 0. None leaves it to the metric.
        epsilon_min: Lower bound, > 0.
        epsilon_max: Upper bound.
        schedule: Whether ε is raised towards the end of a training of known length by
            :class:`CosineRaise`.
    """

    #: Whether :meth:`epsilon_for` and :meth:`observe` are to be told ‖G/D‖/‖w‖.
    looks_at_weights = False

    def __init__(
        self,
        epsilon: float | None = None,
        epsilon_min: float = 1e-8,
        epsilon_max: float = 1e12,
        schedule: bool = True,
    ) -> None:
        self.epsilon_min = number("epsilon_min", epsilon_min, low=0.0, open_low=True)
        self.epsilon_max = number("epsilon_max", epsilon_max, low=self.epsilon_min)
        self.schedule = CosineRaise() if flag("schedule", schedule) else None
        self._epsilon: float | None = None
        if epsilon is not None:
            self.start(epsilon)

    def start(self, epsilon: float) -> None:
        """Sets the start ε⁰."""
        number("epsilon", epsilon, low=self.epsilon_min, high=self.epsilon_max)
        self._epsilon = float(epsilon)

    def prepare(self, default_epsilon: float, default_floor: float) -> None:
        """Fills in what the user left to the metric; called once, by the optimizer.

        Args:
            default_epsilon: Start that suits the metric.
            default_floor: ε below which steps are too long for any network in that metric; 0 if the metric
                knows no such length.
        """
        if self._epsilon is None:
            self.start(min(max(default_epsilon, self.epsilon_min), self.epsilon_max))

    @property
    def epsilon(self) -> float:
        """The rule's ε, before the schedule."""
        if self._epsilon is None:
            raise RuntimeError("epsilon has not been set: give a start, or let an optimizer prepare the rule.")
        return self._epsilon

    @epsilon.setter
    def epsilon(self, value: float) -> None:
        self._epsilon = min(max(value, self.epsilon_min), self.epsilon_max)

    def epsilon_at(self, progress: float | None) -> float:
        """ε for the next trial, at share ``progress`` of the training (None: length unknown)."""
        if self.schedule is None or progress is None:
            return self.epsilon
        return min(self.epsilon * self.schedule(progress), self.epsilon_max)

    def epsilon_for(self, epsilon: float, length: float, relative: float = math.nan) -> float:
        """ε to try instead of ``epsilon``, at least as large, now that the length of the gradient is known.

        Here ``epsilon`` itself. If it is larger, the candidate made with ``epsilon`` is not looked at.

        Args:
            epsilon: What :meth:`epsilon_at` gave.
            length: Σ G²/(4D), which is ε²τ of the step without a regulariser, whatever ε is.
            relative: ‖G/D‖/‖w‖, 2ε times the length of that step as a share of that of the weights; given only to a
                rule that looks at it.
        """
        return epsilon

    @abstractmethod
    def observe(self, trial: Trial) -> None:
        """Moves :attr:`epsilon` after a trial; after a rejected one it must rise."""

    def on_device(self, device: torch.device, dtype: torch.dtype) -> DeviceRule | None:
        """The same rule with its memory on a device, for ``decide="device"``; None if there is none.

        Args:
            device: Where the memory is to lie.
            dtype: Its precision.
        """
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on."""
        return {"epsilon": self.epsilon}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.epsilon = float(state["epsilon"])


class Backtracking(Augmentation):
    """The SQH rule: rejected ε ← σε, accepted ε ← ζε (Borzì 2023; method §4).

    Args:
        epsilon: Start ε⁰ > 0.
        sigma: Factor σ > 1 after a rejection.
        zeta: Factor ζ in (0, 1] after an acceptance.
        epsilon_min: Lower bound, > 0.
        epsilon_max: Upper bound.
        schedule: Whether to raise ε towards the end of training.
    """

    def __init__(
        self,
        epsilon: float | None = 1.0,
        sigma: float = 1.1,
        zeta: float = 0.9,
        epsilon_min: float = 1e-8,
        epsilon_max: float = 1e12,
        schedule: bool = True,
    ) -> None:
        super().__init__(epsilon, epsilon_min, epsilon_max, schedule)
        self.sigma = number("sigma", sigma, low=1.0, open_low=True)
        self.zeta = number("zeta", zeta, low=0.0, high=1.0, open_low=True)

    @override
    def observe(self, trial: Trial) -> None:
        self.epsilon = self.epsilon * (self.zeta if trial.accepted else self.sigma)

    @override
    def on_device(self, device: torch.device, dtype: torch.dtype) -> DeviceRule | None:
        return BacktrackingOnDevice(self, device, dtype) if decides_as(self, Backtracking) else None


class TargetRule(Augmentation):
    """Moves ln ε towards a target of a subclass, and shortens steps along gradients that are far longer than usual.

    Args:
        epsilon: Start ε⁰ > 0; None takes the metric's.
        memory: Decay in [0, 1) of the running averages per batch.
        smoothing: Part in (0, 1] of the distance that one accepted trial covers.
        fall: Largest decrease of ln ε by one accepted trial, > 0.
        rise: Largest increase of ln ε by one accepted trial, > 0.
        outlier: How many times as long as usual, in Σ G²/(4D), a gradient may be, > 1; None sets no limit.
        epsilon_min: Lower bound, > 0.
        epsilon_max: Upper bound.
        schedule: Whether to raise ε towards the end of training.
    """

    def __init__(
        self,
        epsilon: float | None,
        memory: float,
        smoothing: float,
        fall: float,
        rise: float,
        outlier: float | None,
        epsilon_min: float,
        epsilon_max: float,
        schedule: bool,
    ) -> None:
        super().__init__(epsilon, epsilon_min, epsilon_max, schedule)
        self.memory = number("memory", memory, low=0.0, high=1.0, open_high=True)
        self.smoothing = number("smoothing", smoothing, low=0.0, high=1.0, open_low=True)
        self.fall = number("fall", fall, low=0.0, open_low=True)
        self.rise = number("rise", rise, low=0.0, open_low=True)
        self.outlier = None if outlier is None else number("outlier", outlier, low=1.0, open_low=True)
        # Whether ε has been near its target once: from then on it falls slowly.
        self._settled = False
        # The running average of Σ G²/(4D); None before the first step.
        self._length: float | None = None

    @override
    def epsilon_for(self, epsilon: float, length: float, relative: float = math.nan) -> float:
        if not self._length or self.outlier is None or not math.isfinite(length):
            return epsilon
        return max(epsilon, min(math.sqrt(length / (self.outlier * self._length)) * epsilon, self.epsilon_max))

    def _average_length(self, length: float) -> None:
        """Takes note of the gradient of an accepted step."""
        if not math.isfinite(length):
            return
        usual = length if self._length is None else self._length
        # An outlier that was not let through for all its length shall not become usual for all of it either.
        counted = length if self.outlier is None else min(length, self.outlier * usual)
        self._length = self.memory * usual + (1.0 - self.memory) * counted

    def _rise(self, trial: Trial, safety: float) -> None:
        """After a rejected trial: to what its own curvature asks for, but by 10 % at least and twofold at most."""
        own = trial.curvature
        target = math.inf if own is None else safety * own / 2.0
        self.epsilon = min(max(target, 1.1 * self.epsilon), 2.0 * self.epsilon)

    def _approach(self, distance: float) -> None:
        """Covers a part of a distance in ln ε."""
        self.epsilon *= math.exp(min(max(self.smoothing * distance, -self.fall), self.rise))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "settled": self._settled, "length": self._length}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._settled = bool(state.get("settled", True))
        self._length = state.get("length")


class Curvature(TargetRule):
    """Drives ε towards ``safety`` · Λ̄/2, Λ̄ the curvature along the steps that the trials show (method §4).

    Λ̄ = 2 Σ(L_B(û) − L_B(w) + ⟨G, û−w⟩) / Σ‖û−w‖²_D, both sums exponential averages over the batches: a
    ratio of averages, so that small steps, whose curvature is mostly noise, count little and negative
    curvature on one batch does no harm. ln ε covers the share ``smoothing`` of its distance to the target
    per accepted trial, and no more than ``fall`` or ``rise``. Trials from a point that violates a just
    tightened constraint are left out: there û − w is mostly thresholding. A rejected trial raises ε to its
    own target at once, by 10 % at least and a factor of two at most.

    A start may be far off. One below the floor is raised to it: the test accepts now and then a step that
    is far too long, and what such a step destroys no later ε brings back. One that is too large is halved
    by every accepted trial until it has come within a factor e of the target for the first time.

    The gradient of single batches may be many times as long as usual, where normalisation divides by a variance that
    has become small, say; D follows slowly, and the step G/(2εD) lowers the batch's loss and destroys the network. So
    where Σ G²/(4D), which is ε²τ of the step without a regulariser, exceeds ``outlier`` times its running average, ε is
    raised for this iteration until the step is no longer than that.

    Args:
        epsilon: Start ε⁰ > 0; the floor if that is higher. None takes the metric's.
        safety: Factor s in (0.5, ∞): the step is 1/s times the minimiser of the quadratic model along
            û − w. At s = 0.5 the model predicts no decrease any more.
        memory: Decay in [0, 1) of the averages per batch.
        floor: Neither start nor target lies below it, so that the rule does not take steps too long for any
            network however flat the loss looks along them. None takes the metric's, 0 has none.
        smoothing: Share β in (0, 1] of the distance that one accepted trial covers.
        fall: Largest decrease of ln ε by one accepted trial, > 0.
        rise: Largest increase of ln ε by one accepted trial, > 0.
        outlier: How many times as long as usual, in Σ G²/(4D), a gradient may be, > 1; None sets no limit.
        epsilon_min: Lower bound, > 0.
        epsilon_max: Upper bound.
        schedule: Whether to raise ε towards the end of training.
    """

    def __init__(
        self,
        epsilon: float | None = None,
        safety: float = 0.55,
        memory: float = 0.9,
        floor: float | None = None,
        smoothing: float = 0.05,
        fall: float = 0.05,
        rise: float = 0.1,
        outlier: float | None = 10.0,
        epsilon_min: float = 1e-8,
        epsilon_max: float = 1e12,
        schedule: bool = True,
    ) -> None:
        super().__init__(epsilon, memory, smoothing, fall, rise, outlier, epsilon_min, epsilon_max, schedule)
        self.safety = number("safety", safety, low=0.5, open_low=True)
        self.floor = None if floor is None else number("floor", floor, low=0.0)
        self._second_order = 0.0
        self._tau = 0.0

    @override
    def prepare(self, default_epsilon: float, default_floor: float) -> None:
        super().prepare(default_epsilon, default_floor)
        if self.floor is None:
            self.floor = default_floor
        self.epsilon = max(self.epsilon, self.floor)

    @override
    def observe(self, trial: Trial) -> None:
        if trial.accepted:
            self._average_length(trial.length)
        if not trial.accepted:
            self._rise(trial, self.safety)
        elif not trial.tightened:
            if trial.curvature is not None:
                self._average(trial)
                self._follow(max(self.safety * self._second_order / self._tau, self.floor or 0.0))
            elif not self._settled and math.isfinite(trial.loss_change) and trial.tau > 0.0:
                # So short a step that its second order drowns in rounding, of which it is no more than once.
                self._follow(max(self.safety * trial.resolution / trial.tau, self.floor or 0.0), only_bound=True)

    @override
    def on_device(self, device: torch.device, dtype: torch.dtype) -> DeviceRule | None:
        return CurvatureOnDevice(self, device, dtype) if decides_as(self, Curvature) else None

    def _follow(self, target: float, only_bound: bool = False) -> None:
        """Moves ε towards a target, or halves it if it is far above the target's bound."""
        distance = math.log(target / self.epsilon) if target > 0.0 else -math.inf
        if not self._settled and -math.inf < distance < -1.0:
            self.epsilon *= max(target / self.epsilon, 0.5)
        elif not only_bound:
            self._settled = self._settled or distance >= -1.0
            self._approach(distance)

    def _average(self, trial: Trial) -> None:
        # The bias of the start is the same in both averages and cancels in their ratio.
        second_order = trial.loss_change + trial.slope
        self._second_order = self.memory * self._second_order + (1.0 - self.memory) * second_order
        self._tau = self.memory * self._tau + (1.0 - self.memory) * trial.tau

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "second_order": self._second_order, "tau": self._tau}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._second_order = float(state.get("second_order", 0.0))
        self._tau = float(state.get("tau", 0.0))
