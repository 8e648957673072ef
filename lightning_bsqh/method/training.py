"""A training, iteration by iteration: each is done whole, or skipped, or has not happened (method §2)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from lightning_bsqh.method.augmentation import Augmentation, Trial
from lightning_bsqh.method.history import History
from lightning_bsqh.method.metric import Metric
from lightning_bsqh.method.regularization import Regularization
from lightning_bsqh.method.report import LayerReport
from lightning_bsqh.method.search import Found, NoStep, SearchOptions, WentAstray
from lightning_bsqh.method.stepper import Stepper
from lightning_bsqh.method.trained import Trained
from lightning_bsqh.method.trial_schedule import TrialSchedule
from lightning_bsqh.network.uninterrupted import uninterrupted
from lightning_bsqh.sweeps.base import AdjointPass


@dataclass(frozen=True)
class Inputs:
    """What one iteration is given.

    Attributes:
        adjoint: The forward and adjoint sweep at w.
        trained: What moves.
        eta: η of the acceptance test.
        max_trials: Largest number of candidates that are compared.
        record_layers: Whether to report on every layer.
        held: From where the iteration cannot be taken back any more until this is closed, interrupts wait.
    """

    adjoint: AdjointPass
    trained: Trained
    eta: float
    max_trials: int
    record_layers: bool
    held: ExitStack


class Training:
    """Takes the gradients of one batch after the other.

    Args:
        stepper: Does one iteration.
        metric: D.
        regularization: R over the training.
        augmentation: The rule for ε.
        schedule: Tells which iterations are tested by a trial.
    """

    def __init__(
        self,
        stepper: Stepper,
        metric: Metric,
        regularization: Regularization,
        augmentation: Augmentation,
        schedule: TrialSchedule,
    ) -> None:
        self.stepper = stepper
        self.metric = metric
        self.regularization = regularization
        self.augmentation = augmentation
        self.schedule = schedule
        self.history = History()
        #: What the last iteration did to each layer, by name; None unless it was recorded, or if it was skipped.
        self.last_layers: dict[str, LayerReport] | None = None

    @property
    def iterations(self) -> int:
        """Number of iterations done, skipped ones included."""
        return self.history.iterations

    @property
    def progress(self) -> float | None:
        """The share of the training that is done, None if its length is unknown."""
        total = self.regularization.total_steps
        return None if total is None else min(self.iterations / total, 1.0)

    def settle(self) -> None:
        """Brings all that is told of the iterations so far to the host, if it is not there."""
        return

    def take_epsilon(self) -> float | None:
        """The ε of the last iteration of which the host has heard only since the last call; None if there is none."""
        return None

    def iterate(self, inputs: Inputs) -> tuple[Found | None, str | None]:
        """One iteration.

        Args:
            inputs: What it is given.

        Returns:
            How the search ended, None if the batch was skipped; and what to say if the training stands still now.

        Raises:
            ValueError: If the very first loss is not finite.
        """
        self.last_layers = None
        if inputs.adjoint.loss is None:
            return None, self._skip(math.nan, counted=False)
        trained, marks = inputs.trained, self.regularization.marks()
        epsilon = self.augmentation.epsilon
        try:
            regularizer = self.regularization.begin(trained.regularized_names, self.history.iterations)
            if trained.shards is not None:
                regularizer = regularizer.on_shards(trained.shards)
            found, self.last_layers = self.stepper.step(
                inputs.adjoint,
                trained,
                regularizer,
                self.augmentation,
                self._options(inputs),
                inputs.record_layers,
                inputs.held,
            )
        except BaseException as error:
            return None, self._leave_out(trained, self._no_step(error, inputs, marks))
        moved = math.log(self.augmentation.epsilon / epsilon)
        self.schedule.observe(found, self.history.iterations, moved)
        return found, self.history.record(found)

    def _options(self, inputs: Inputs) -> SearchOptions:
        largest, tests = self.metric.largest_gradient(inputs.trained.dtype), self.schedule
        return SearchOptions(
            inputs.eta,
            inputs.max_trials,
            self.progress,
            largest,
            tests.is_due,
            tests.stands_for,
            tests.loss_limit,
        )

    def _no_step(self, error: BaseException, inputs: Inputs, marks: Mapping[str, Any]) -> NoStep:
        """Takes an iteration back that has raised, and raises its error unless the batch is only to be left out."""
        inputs.held.enter_context(uninterrupted())
        self.regularization.go_back_to(marks)
        if not isinstance(error, NoStep):
            raise error
        self._check_first(error.loss)
        inputs.adjoint.undo()
        return error

    def _leave_out(self, trained: Trained, error: NoStep) -> str | None:
        """A batch that there is no step on; the step before it is taken back if it was not tested."""
        if self.stepper.take_back(trained):
            self.history.take_back()
            # As a rejected trial, of which no curvature is known.
            epsilon = self.augmentation.epsilon_at(self.progress)
            self.augmentation.observe(Trial(epsilon, math.inf, 0.0, 0.0, False, False, 0.0))
        self.schedule.start_anew()
        return self._skip(error.loss, counted=not isinstance(error, WentAstray))

    def _check_first(self, loss: float) -> None:
        if not self.history.has_begun and not math.isfinite(loss):
            raise ValueError(
                f"The loss is {loss} at the first batch, before any update: check the data and the initial weights."
            ) from None

    def _skip(self, loss: float, counted: bool) -> str | None:
        return self.history.skip(loss, self.augmentation.epsilon_at(self.progress), counted)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {
            "rule": type(self.augmentation).__name__,
            **self.history.state_dict(),
            "augmentation": self.augmentation.state_dict(),
            "trial_schedule": self.schedule.state_dict(),
            **self.regularization.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], rule: Augmentation) -> None:
        """Takes back what :meth:`state_dict` gave.

        Args:
            state: It, checked.
            rule: The rule for ε in its saved state.
        """
        self.stepper.forget()
        self.history.load_state_dict(state)
        self.augmentation = rule
        self.schedule.load_state_dict(state.get("trial_schedule", {}))
        self.regularization.load_state_dict(state, self.history.iterations)
