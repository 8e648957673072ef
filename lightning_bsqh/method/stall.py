"""Notices when a training stands still: many batches in a row that were skipped or rejected."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from lightning_bsqh.method.report import StepReport

#: So many batches in a row that change nothing are no accident.
PATIENCE = 20


class Stalled(RuntimeError):
    """A training stands still, and was asked to end then; the weights are the last good ones."""


class StallWatch:
    """Looks at every iteration.

    Args:
        patience: Number of iterations in a row without a step that make a stall.
    """

    def __init__(self, patience: int = PATIENCE) -> None:
        self._patience = patience
        self._without_step = 0
        self._recent: deque[StepReport] = deque(maxlen=5)

    def observe(self, report: StepReport) -> str | None:
        """Takes note of an iteration.

        Returns:
            What to say when a stall has just become one; None otherwise.
        """
        if report.accepted:
            self._without_step = 0
            self._recent.clear()
            return None
        self._without_step += 1
        self._recent.append(report)
        return self.message() if self._without_step == self._patience else None

    def message(self) -> str:
        """What was seen in the last iterations, and what to try."""
        skipped = sum(report.skipped for report in self._recent)
        kinds = f"{skipped} of the last {len(self._recent)} were skipped, as loss or gradient were not finite"
        losses = ", ".join(f"{report.loss:.4g}" for report in self._recent)
        epsilons = ", ".join(f"{report.epsilon:.3g}" for report in self._recent)
        advice = (
            "Look for divisions by zero, logarithms of zero and infinite values in the data."
            if skipped
            else "All trials were rejected: look whether the loss of a batch changes between two calls with the same"
            " weights, and whether eta is very large; a larger start, epsilon=..., shortens the steps."
        )
        return (
            f"{self._without_step} batches in a row changed nothing: {kinds}, the others rejected. Losses: {losses};"
            f" epsilon: {epsilons}. {advice} on_stall='raise' ends a training then."
        )

    @property
    def is_stalled(self) -> bool:
        """Whether so many iterations in a row have changed nothing."""
        return self._without_step >= self._patience


def summary(iterations: int, accepted: int, skipped: int) -> str:
    """One line about a whole training.

    Args:
        iterations: Number of iterations.
        accepted: How many of them took a step.
        skipped: How many were skipped.
    """
    rejected = iterations - accepted - skipped
    return f"bSQH: {iterations} iterations, {accepted} steps, {rejected} rejected, {skipped} skipped."


def nothing_moved(iterations: int, accepted: int, last: StepReport | None) -> str | None:
    """What to say of a training none of whose iterations took a step; None if there is nothing to say."""
    if accepted or not iterations or last is None:
        return None
    reason = "skipped, as loss or gradient were not finite" if last.skipped else "rejected: no trial was accepted"
    loss: Any = "not finite" if not math.isfinite(last.loss) else f"{last.loss:.4g}"
    return (
        f"None of the {iterations} iterations has changed a weight; the last one was {reason} (loss {loss}, epsilon"
        f" {last.epsilon:.3g})."
    )
