"""A rule for ε for networks whose curvature misleads: steps that are a share of the weights (method §4)."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.method.augmentation import TargetRule, Trial


class RelativeStep(TargetRule):
    """Chooses ε so that the step without a regularizer, ‖G/D‖/(2ε), is the share ``step`` of ‖w‖.

    Where the gradient is small and the loss hardly curved at a distance, as in recurrent networks at the start, the
    curvature along a short step forbids longer ones that would do well; here it counts after a rejection only, which
    raises ε by 10 % at least and a factor of two at most. No default: where many filters are nearly empty nothing slows
    it down in time. Noise makes weights grow, and longer steps more noise; so ε does not fall below the ``growth``-th
    part of what the first gradient asked for.

    The start is ten times larger, so that no network is shaken before D has seen some batches; every accepted trial
    halves ε until the share is reached. Then ln ε covers the part ``smoothing`` of its distance per accepted trial,
    within ``fall`` and ``rise``. Toward the end of a training of known length ε is raised by
    :class:`~lightning_bsqh.method.augmentation.CosineRaise`.

    The gradient of single batches may be many times as long as usual, where normalization divides by a variance that
    has become small, say. So where Σ G²/(4D) exceeds ``outlier`` times its running average, ε is raised for this
    iteration until the step is no longer than that; and a start with which the step would be more than twice the share
    is raised likewise.

    Args:
        epsilon: Start ε⁰ > 0. None takes ten times the ε that the first gradient asks for.
        step: The share of ‖w‖, > 0.
        growth: By what factor steps may become longer as the weights grow, at least 1.
        memory: Decay in [0, 1) of the running averages per batch.
        smoothing: Part in (0, 1] of the distance that one accepted trial covers.
        fall: Largest decrease of ln ε by one accepted trial, > 0.
        rise: Largest increase of ln ε by one accepted trial, > 0.
        outlier: How many times as long as usual, in Σ G²/(4D), a gradient may be, > 1; None sets no limit.
        epsilon_min: Lower bound, > 0.
        epsilon_max: Upper bound.
        schedule: Whether to raise ε toward the end of training.
    """

    #: By how much the start is larger than what the share asks for.
    _WARM_UP = 10.0
    _SAFETY = 0.55
    looks_at_weights = True

    def __init__(
        self,
        epsilon: float | None = None,
        step: float = 0.125,
        growth: float = 4.0,
        memory: float = 0.9,
        smoothing: float = 0.05,
        fall: float = 0.05,
        rise: float = 0.1,
        outlier: float | None = 10.0,
        epsilon_min: float = 1e-8,
        epsilon_max: float = 1e12,
        schedule: bool = True,
    ) -> None:
        super().__init__(epsilon, memory, smoothing, fall, rise, outlier, epsilon_min, epsilon_max, schedule)
        self.step = number("step", step, low=0.0, open_low=True)
        self.growth = number("growth", growth, low=1.0)
        # ‖G/D‖/‖w‖ of the first step and its running average; None before the first step.
        self._first: float | None = None
        self._relative: float | None = None
        # Whether the start is left to the first gradient.
        self._is_open = epsilon is None

    @override
    def epsilon_for(self, epsilon: float, length: float, relative: float = math.nan) -> float:
        found = super().epsilon_for(epsilon, length)
        wanted = relative / (2.0 * self.step)
        if math.isfinite(wanted):
            if self._relative is None and self._is_open:
                found = max(found, self._WARM_UP * wanted)
            elif wanted > 2.0 * epsilon:
                found = max(found, wanted)
        return max(epsilon, min(found, self.epsilon_max))

    @override
    def observe(self, trial: Trial) -> None:
        if self._relative is None:
            # The start, raised or not.
            self.epsilon = max(self.epsilon, trial.epsilon)
        if not trial.accepted:
            self._rise(trial, self._SAFETY)
            return
        self._average_length(trial.length)
        # Without gradient, or with all weights zero, there is nothing to go by.
        if 0.0 < trial.relative < math.inf:
            if self._first is None or self._relative is None:
                self._first = self._relative = trial.relative
            self._relative = self.memory * self._relative + (1.0 - self.memory) * trial.relative
            self._follow(max(self._relative, self._first / self.growth) / (2.0 * self.step))

    def _follow(self, target: float) -> None:
        if not self._settled:
            self._settled = target >= 0.5 * self.epsilon
            self.epsilon = max(target, 0.5 * self.epsilon)
            return
        self._approach(math.log(target / self.epsilon))

    @override
    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "first": self._first, "relative": self._relative}

    @override
    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._first, self._relative = state.get("first"), state.get("relative")
