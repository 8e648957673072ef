"""Rules for the augmentation parameter ε (method §4)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from typing_extensions import override

from lightning_bsqh._validation import flag, number
from lightning_bsqh.method.device_rule import BacktrackingOnDevice, DeviceRule, decides_as

# Under this name, too, as rules of users import it from here.
from lightning_bsqh.method.trial import Trial as Trial


@dataclass(frozen=True)
class RuleDefaults:
    """What suits a metric; lengths are those of the step without a regularizer, as shares of ‖w‖.

    Attributes:
        epsilon: Start ε⁰.
        longest: No step is to be longer; infinite if the metric knows no such length.
        shortest: No step needs to be shorter, but after a rejection; 0 if the metric knows no such length.
    """

    epsilon: float
    longest: float = math.inf
    shortest: float = 0.0


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
        schedule: Whether ε is raised toward the end of a training of known length by
            :class:`CosineRaise`.
    """

    #: Whether :meth:`epsilon_for` and :meth:`observe` are to be told ‖G/D‖/‖w‖ of the weights that are not zero.
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

    def prepare(self, defaults: RuleDefaults) -> None:
        """Fills in what the user left open; called once, by the optimizer.

        Args:
            defaults: What suits the metric.
        """
        if self._epsilon is None:
            self.start(min(max(defaults.epsilon, self.epsilon_min), self.epsilon_max))

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
            length: Σ G²/(4D), which is ε²τ of the step without a regularizer, whatever ε is.
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
        schedule: Whether to raise ε toward the end of training.
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
