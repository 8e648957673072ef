"""Which iterations are tested by a trial sweep, and when an untested one is taken back (method §2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_bsqh._validation import integer, shown
from lightning_bsqh.method.search import Found

#: In calm every so many batches are tested under ``trial_every="auto"``.
AUTO = 8
#: So many batches at the start are tested in any case.
FIRST = 50
#: By more than this ln ε does not move per batch in calm.
_MOVES = 0.04
#: Decay of the loss's running mean and spread.
_MEMORY = 0.95
#: A loss so many mean deviations above its mean, and twice the mean besides, is far above it.
_FAR = 10.0


def longest_interval(trial_every: int | str) -> int:
    """The number of batches from one trial to the next, in calm.

    Raises:
        TypeError: If ``trial_every`` is no integer.
        ValueError: If it is less than 1, or another word than ``"auto"``.
    """
    if isinstance(trial_every, str):
        if trial_every == "auto":
            return AUTO
        raise ValueError(f"trial_every must be 'auto' or an integer of at least 1, got {shown(trial_every)}.")
    return integer("trial_every", trial_every, low=1)


class TrialSchedule:
    """Tests every batch at the start and in unrest, else more and more rarely.

    Unrest is a rejection, a gradient far longer than usual, a constraint that is being tightened, or an ε that moves
    fast. In calm the interval doubles from one trial to the next.

    Args:
        longest: The longest interval in batches; 1 tests all.
    """

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self._interval = 1
        # Steps since the last trial.
        self._untested = 0
        self._mean = 0.0
        self._spread = math.inf

    @property
    def is_due(self) -> bool:
        """Whether the next iteration is to be tested."""
        return self._untested + 1 >= self._interval

    @property
    def stands_for(self) -> int:
        """How many steps the next trial speaks for, its own included."""
        return self._untested + 1

    @property
    def loss_limit(self) -> float:
        """A loss above it says that the step before has gone astray, if that was not tested."""
        return self._mean + abs(self._mean) + _FAR * self._spread if self._untested else math.inf

    def observe(self, found: Found, iterations: int, moved: float) -> None:
        """Takes note of an iteration.

        Args:
            found: How its search ended.
            iterations: How many there were before it.
            moved: By how much it has moved ln ε, the schedule aside.
        """
        if self.longest == 1:
            return
        self._average(found.loss)
        if not found.is_tested:
            self._untested += 1
            return
        calm = found.accepted and found.trials == 1 and not found.tightened and iterations >= FIRST
        calm = calm and abs(moved) <= _MOVES * self.stands_for
        self._interval = min(2 * self._interval, self.longest) if calm else 1
        self._untested = 0

    def start_anew(self) -> None:
        """The next iteration is tested, and nothing is left of an interval."""
        self._interval, self._untested = 1, 0

    def _average(self, loss: float) -> None:
        if math.isinf(self._spread):
            self._mean, self._spread = loss, abs(loss)
        self._spread = _MEMORY * self._spread + (1.0 - _MEMORY) * abs(loss - self._mean)
        self._mean = _MEMORY * self._mean + (1.0 - _MEMORY) * loss

    def state_dict(self) -> dict[str, float | int]:
        """All that is needed to go on."""
        return {
            "interval": self._interval,
            "untested": self._untested,
            "mean_loss": self._mean,
            "loss_spread": self._spread,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave; of a training that tested every batch there is nothing."""
        self._interval = min(int(state.get("interval", 1)), self.longest)
        self._untested = min(int(state.get("untested", 0)), self.longest - 1)
        self._mean = float(state.get("mean_loss", 0.0))
        self._spread = float(state.get("loss_spread", math.inf))
