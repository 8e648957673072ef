"""How a constraint is tightened in the course of a training."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_bsqh._validation import integer, number, shown


class Ramp:
    """A share that rises from 0 to 1 along a cubic between two shares of the training (method §3).

    Args:
        ends: Start and end of the ramp as shares of the training, 0 ≤ start ≤ end ≤ 1; (0, 0) is 1 at once.
        interval: Number of iterations from one tightening to the next. None takes a 200th of the
            training, at least 2 and at most 100.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If ``ends`` is no such pair or ``interval`` is below 1.
    """

    def __init__(self, ends: tuple[float, float], interval: int | None = None) -> None:
        if not isinstance(ends, Sequence) or len(ends) != 2:
            raise ValueError(f"ramp must be a pair (start, end) of shares of the training, got {shown(ends)}.")
        start = number("ramp[0]", ends[0], low=0.0, high=1.0)
        self.ends = (start, number("ramp[1]", ends[1], low=start, high=1.0))
        self.interval = None if interval is None else integer("interval", interval, low=1)

    @property
    def needs_total_steps(self) -> bool:
        """Whether the share depends on the length of the training."""
        return self.ends[1] > 0.0

    def share_at(self, step: int, total_steps: int | None) -> float:
        """The share reached in iteration ``step`` (from 0) of ``total_steps``."""
        if not self.needs_total_steps:
            return 1.0
        if total_steps is None:
            raise ValueError("A constraint with a ramp needs total_steps.")
        start, end = self.ends
        # In whole iterations: with the last one at the latest the target holds, however short the training.
        first = min(int(start * total_steps), total_steps - 1)
        last = min(max(int(end * total_steps), first), total_steps - 1)
        if step >= last:
            return 1.0
        if step < first:
            return 0.0
        interval = self.interval or min(max(total_steps // 200, 2), 100)
        reached = (step - first) // interval * interval
        return 1.0 - (1.0 - reached / (last - first)) ** 3
