"""What a training has done so far: counts, the last iteration, and whether it stands still (method §2, §7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning_bsqh.method.report import StepReport
from lightning_bsqh.method.search import Found
from lightning_bsqh.method.stall import StallWatch


class History:
    """Counts the iterations of a training and keeps the report of the last one."""

    def __init__(self) -> None:
        #: Number of iterations done, skipped ones included.
        self.iterations = 0
        #: Number of those that changed nothing because loss or gradient were not finite.
        self.skipped = 0
        #: Number of those that took a step.
        self.accepted = 0
        #: τ of the last accepted step, for the stopping test.
        self.accepted_tau = math.inf
        self.last: StepReport | None = None
        #: Numbers of accepted and rejected trials of this training, not of one that it goes on from.
        self.trials = (0, 0)
        #: Whether a loss has been seen.
        self.has_begun = False
        self._stall = StallWatch()

    def record(self, found: Found) -> str | None:
        """Takes note of an iteration that ran its search.

        Returns:
            What to say if the training stands still now; None otherwise.
        """
        tau = float(found.candidate.tau)
        self.last = StepReport(
            step=self.iterations,
            loss=found.loss,
            objective_before=found.objective_before,
            objective_after=found.objective_before - found.decrease,
            loss_decrease=found.decrease,
            epsilon=found.epsilon,
            tau=tau if found.accepted else 0.0,
            trials=found.trials,
            accepted=found.accepted,
            skipped=False,
            tightened=found.tightened,
            hamiltonian_gain=found.candidate.gain(found.epsilon),
        )
        self.has_begun = True
        rejected = self.last.rejected_trials
        self.trials = (self.trials[0] + found.trials - rejected, self.trials[1] + rejected)
        self.accepted += int(found.accepted)
        self.accepted_tau = tau if found.accepted else self.accepted_tau
        self.iterations += 1
        return self._stall.observe(self.last)

    def take_back(self) -> None:
        """The step before this iteration, which was not tested, has not been one."""
        self.accepted -= 1

    def skip(self, loss: float, epsilon: float, counted: bool) -> str | None:
        """Takes note of an iteration that took no step.

        Args:
            loss: L_B(w).
            epsilon: The rule's ε.
            counted: Whether loss or gradient were not finite; there was nothing to do otherwise.

        Returns:
            What to say if the training stands still now; None otherwise.
        """
        self.last = StepReport(self.iterations, loss, loss, loss, 0.0, epsilon, 0.0, 0, False, True, False, 0.0)
        self.skipped += int(counted)
        self.has_begun = self.has_begun or counted
        self.iterations += 1
        return self._stall.observe(self.last) if counted else None

    def state_dict(self) -> dict[str, Any]:
        """The counts, by the names that they have in a checkpoint."""
        return {
            "step": self.iterations,
            "skipped": self.skipped,
            "accepted": self.accepted,
            "accepted_tau": self.accepted_tau,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes back what :meth:`state_dict` gave."""
        self.iterations = int(state["step"])
        self.skipped = int(state["skipped"])
        self.accepted = int(state.get("accepted", 0))
        self.accepted_tau = float(state.get("accepted_tau", math.inf))
        self.has_begun = self.iterations > 0
