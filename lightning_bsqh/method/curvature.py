"""The default rule for ε: curvature along the steps, within lengths that suit the weights (method §4)."""

from __future__ import annotations

import math
from typing import Any

import torch
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.method.augmentation import Augmentation, RuleDefaults
from lightning_bsqh.method.device_rule import CurvatureOnDevice, DeviceRule, decides_as
from lightning_bsqh.method.trial import Trial


class Curvature(Augmentation):
    """Drives ε towards ``safety`` · Λ̄/2, Λ̄ the curvature along the steps that the trials show (method §4).

    Λ̄ = 2 Σ(L_B(û) − L_B(w) + ⟨G, û−w⟩) / Σ‖û−w‖²_D, both sums exponential averages over the batches: a
    ratio of averages, so that small steps, whose curvature is mostly noise, count little and negative
    curvature on one batch does no harm. ln ε covers the share ``smoothing`` of its distance to the target
    per accepted trial, and no more than ``fall`` or ``rise``. Trials from a point that violates a just
    tightened constraint are left out: there û − w is mostly thresholding. A rejected trial raises ε to its
    own target at once, by 10 % at least and a factor of two at most.

    Curvature alone misleads: it forbids long steps where the loss is only curved close by, as in recurrent networks at
    the start, and permits any step where the loss looks flat. So the target is also such that the step without a
    regularizer, ‖G/D‖/(2ε) with a running average of ‖G/D‖/‖w‖, is between two shares of ‖w‖. Only weights that are not
    zero count: where w is zero most of that step is thresholded away. ``longest`` holds always. ``shortest`` grows from
    its fourth part over the first fifth of the training, or 200 steps where its length is not known. It loses a fifth
    with every rejected trial, as then it is longer than the loss permits; about 110 accepted ones give that back.

    The default start is large, so that no network is shaken before D has seen some batches. An ε that is too large is
    halved by every accepted trial until it has come within a factor e of the target for the first time. A start that is
    too small is raised for the first step until that is no longer than ``longest``.

    The gradient of single batches may be many times as long as usual, where normalization divides by a variance that
    has become small, say; D follows slowly, and the step G/(2εD) lowers the batch's loss and destroys the network. So
    where Σ G²/(4D), which is ε²τ of the step without a regularizer, exceeds ``outlier`` times its running average, ε is
    raised for this iteration until the step is no longer than that.

    Args:
        epsilon: Start ε⁰ > 0. None takes the metric's.
        safety: Factor s in (0.5, ∞): the step is 1/s times the minimizer of the quadratic model along
            û − w. At s = 0.5 the model predicts no decrease any more.
        memory: Decay in [0, 1) of the averages per batch.
        longest: Largest share of ‖w‖, > 0; infinite for none. None takes the metric's.
        shortest: Smallest share of ‖w‖ that is aimed at, in [0, ``longest``]. None takes the metric's, or ``longest``
            if that is less; in full-batch mode 0, as there the curvature is exact and the steps have to come to an end.
        floor: Neither start nor target lies below it.
        smoothing: Share β in (0, 1] of the distance that one accepted trial covers.
        fall: Largest decrease of ln ε by one accepted trial, > 0.
        rise: Largest increase of ln ε by one accepted trial, > 0.
        outlier: How many times as long as usual, in Σ G²/(4D), a gradient may be, > 1; None sets no limit.
        epsilon_min: Lower bound, > 0.
        epsilon_max: Upper bound.
        schedule: Whether to raise ε towards the end of training.
    """

    #: Share of the training, or steps, over which the shortest step grows.
    WARM_UP = 0.2
    WARM_UP_STEPS = 200
    #: What the shortest step is at the start, and what a rejected trial leaves of it.
    FIRST = 0.25
    EASED = 0.8
    #: How much of that every accepted one gives back, as a factor.
    REGAINED = 1.002

    def __init__(
        self,
        epsilon: float | None = None,
        safety: float = 0.55,
        memory: float = 0.9,
        longest: float | None = None,
        shortest: float | None = None,
        floor: float = 0.0,
        smoothing: float = 0.05,
        fall: float = 0.05,
        rise: float = 0.1,
        outlier: float | None = 10.0,
        epsilon_min: float = 1e-8,
        epsilon_max: float = 1e12,
        schedule: bool = True,
    ) -> None:
        super().__init__(epsilon, epsilon_min, epsilon_max, schedule)
        self.safety = number("safety", safety, low=0.5, open_low=True)
        self.memory = number("memory", memory, low=0.0, high=1.0, open_high=True)
        self.longest = None if longest is None else number("longest", longest, low=0.0, open_low=True, infinite=True)
        largest = math.inf if self.longest is None else self.longest
        self.shortest = None if shortest is None else number("shortest", shortest, low=0.0, high=largest)
        self.floor = number("floor", floor, low=0.0)
        self.smoothing = number("smoothing", smoothing, low=0.0, high=1.0, open_low=True)
        self.fall = number("fall", fall, low=0.0, open_low=True)
        self.rise = number("rise", rise, low=0.0, open_low=True)
        self.outlier = None if outlier is None else number("outlier", outlier, low=1.0, open_low=True)
        self.looks_at_weights = self._limits_lengths()
        self._second_order = 0.0
        self._tau = 0.0
        # Whether ε has been near its target once: from then on it falls slowly.
        self._settled = False
        # The running averages of Σ G²/(4D) and of ‖G/D‖/‖w‖; None before the first step.
        self._length: float | None = None
        self._relative: float | None = None
        # How many steps there were, and what rejections have left of the shortest step.
        self._steps = 0
        self._eased = 1.0

    @override
    def prepare(self, defaults: RuleDefaults) -> None:
        super().prepare(defaults)
        self.longest = defaults.longest if self.longest is None else self.longest
        self.shortest = min(defaults.shortest, self.longest) if self.shortest is None else self.shortest
        self.looks_at_weights = self._limits_lengths()
        self.epsilon = max(self.epsilon, self.floor)

    def _limits_lengths(self) -> bool:
        return self.longest != math.inf or self.shortest != 0.0

    @override
    def epsilon_for(self, epsilon: float, length: float, relative: float = math.nan) -> float:
        found = epsilon
        if self._length and self.outlier is not None and math.isfinite(length):
            found = max(found, math.sqrt(length / (self.outlier * self._length)) * epsilon)
        longest = self.longest or math.inf
        if self._relative is None and relative > 2.0 * longest * epsilon:
            found = max(found, relative / (2.0 * longest))
        return max(epsilon, min(found, self.epsilon_max))

    @override
    def observe(self, trial: Trial) -> None:
        if not trial.accepted:
            self._eased *= self.EASED
            self._rise(trial)
            return
        self._average_gradient(trial)
        self._steps += 1
        shortest = self._eased * (self.shortest or 0.0) * self._grown(trial.progress)
        if trial.tightened:
            # Its curvature tells nothing, its length does.
            if self._settled:
                self._approach(math.log(self._within(self.epsilon, shortest) / self.epsilon))
        elif trial.curvature is not None:
            self._average(trial)
            self._follow(self._within(self.safety * self._second_order / self._tau, shortest))
        elif not self._settled and math.isfinite(trial.loss_change) and trial.tau > 0.0:
            # So short a step that its second order drowns in rounding, of which it is no more than once.
            self._follow(self._within(self.safety * trial.resolution / trial.tau, shortest), only_bound=True)
        self._eased = min(self._eased * self.REGAINED, 1.0)

    @override
    def on_device(self, device: torch.device, dtype: torch.dtype) -> DeviceRule | None:
        return CurvatureOnDevice(self, device, dtype) if decides_as(self, Curvature) else None

    def _rise(self, trial: Trial) -> None:
        """After a rejected trial: to what its own curvature asks for, but by 10 % at least and twofold at most."""
        own = trial.curvature
        target = math.inf if own is None else self.safety * own / 2.0
        self.epsilon = min(max(target, 1.1 * self.epsilon), 2.0 * self.epsilon)

    def _within(self, target: float, shortest: float) -> float:
        """The target, moved to where the step is neither too short nor too long."""
        if self._relative is not None:
            wanted = 0.5 * self._relative
            target = min(target, wanted / shortest) if shortest else target
            target = max(target, wanted / (self.longest or math.inf))
        return max(target, self.floor)

    def _follow(self, target: float, only_bound: bool = False) -> None:
        """Moves ε towards a target, or halves it if it is far above the target's bound."""
        distance = math.log(target / self.epsilon) if target > 0.0 else -math.inf
        if not self._settled and -math.inf < distance < -1.0:
            self.epsilon *= max(target / self.epsilon, 0.5)
        elif not only_bound:
            self._settled = self._settled or distance >= -1.0
            self._approach(distance)

    def _approach(self, distance: float) -> None:
        """Covers a part of a distance in ln ε."""
        self.epsilon *= math.exp(min(max(self.smoothing * distance, -self.fall), self.rise))

    def _grown(self, progress: float | None) -> float:
        """What part of the shortest step is aimed at now."""
        return self.grown_at(self._steps / self.WARM_UP_STEPS if progress is None else progress / self.WARM_UP)

    def grown_at(self, warmed: float) -> float:
        """What part of the shortest step is aimed at, after a share of the time that it takes to grow."""
        return min(self.FIRST + (1.0 - self.FIRST) * warmed, 1.0)

    def _average(self, trial: Trial) -> None:
        # The bias of the start is the same in both averages and cancels in their ratio.
        second_order = trial.loss_change + trial.slope
        self._second_order = self.memory * self._second_order + (1.0 - self.memory) * second_order
        self._tau = self.memory * self._tau + (1.0 - self.memory) * trial.tau

    def _average_gradient(self, trial: Trial) -> None:
        """Takes note of the gradient of an accepted step."""
        if math.isfinite(trial.length):
            usual = trial.length if self._length is None else self._length
            # An outlier that was not let through for all its length shall not become usual for all of it either.
            counted = trial.length if self.outlier is None else min(trial.length, self.outlier * usual)
            self._length = self.memory * usual + (1.0 - self.memory) * counted
        # Without gradient, or with all weights zero, there is nothing to go by.
        if 0.0 < trial.relative < math.inf:
            if self._relative is None:
                # The start may have been raised.
                self.epsilon = max(self.epsilon, trial.relative / (2.0 * (self.longest or math.inf)))
                self._relative = trial.relative
            self._relative = self.memory * self._relative + (1.0 - self.memory) * trial.relative

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            **super().state_dict(),
            "second_order": self._second_order,
            "tau": self._tau,
            "settled": self._settled,
            "length": self._length,
            "relative": self._relative,
            "steps": self._steps,
            "eased": self._eased,
        }

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._second_order = float(state.get("second_order", 0.0))
        self._tau = float(state.get("tau", 0.0))
        self._settled = bool(state.get("settled", True))
        self._length = state.get("length")
        self._relative = state.get("relative")
        self._steps = int(state.get("steps", 0))
        self._eased = float(state.get("eased", 1.0))
