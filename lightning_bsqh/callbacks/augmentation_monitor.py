"""Logs what the last iteration did: ε, the objective, the trials."""

from __future__ import annotations

from typing import Any

from typing_extensions import override

from lightning_bsqh._validation import integer
from lightning_bsqh.callbacks._logging import is_due, show, write
from lightning_bsqh.callbacks._training import bsqh_optimizer
from lightning_bsqh.method.report import StepReport
from lightning_bsqh.namespace import pl
from lightning_bsqh.optimizer import BSQHOptimizer


class AugmentationMonitor(pl.Callback):
    """Logs what each iteration did, and counts accepted and rejected trials.

    The keys are ``bsqh/epsilon``, ``bsqh/objective``, ``bsqh/loss_decrease``, ``bsqh/tau``,
    ``bsqh/trials``, ``bsqh/accepted`` (1 or 0) and ``bsqh/skipped`` (the number of batches skipped so
    far). The values are those of :class:`~lightning_bsqh.optimizer.StepReport`; objective (after the
    step) and decrease are in the units of the loss; where a step was not tested by a trial, they are those of the last
    one that was. Beside them ``bsqh/rejected_share``, the share of all trials so
    far that were rejected, and ``bsqh/promised_decrease``, the ητ that the acceptance test promises.

    Args:
        every_n_steps: Log every so many batches (in full-batch mode: iterations), at least 1. None follows the
            Trainer's ``log_every_n_steps``; in full-batch mode, where an epoch is one iteration, it takes every one.
        prog_bar: Whether the progress bar shows ε.

    Attributes:
        accepted_trials: Number of trials accepted since the start of the training, resumed or not.
        rejected_trials: Number of trials rejected.

    Raises:
        ValueError: If ``every_n_steps`` is less than 1.
        TypeError: At the start of the fit, if it is not bSQH that trains.
    """

    def __init__(self, every_n_steps: int | None = None, prog_bar: bool = True) -> None:
        self.every_n_steps = None if every_n_steps is None else integer("every_n_steps", every_n_steps, low=1)
        self.prog_bar = prog_bar
        self.accepted_trials = 0
        self.rejected_trials = 0
        self._counted: StepReport | None = None
        self._tested: StepReport | None = None
        self._is_resumed = False
        # Those of the optimizer that have been counted.
        self._trials = (0, 0)

    @override
    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not self._is_resumed:
            self.accepted_trials = self.rejected_trials = 0
        self._is_resumed, self._counted, self._tested = False, None, None
        self._trials = bsqh_optimizer(trainer, type(self).__name__).arrived_trials

    @override
    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        optimizer = bsqh_optimizer(trainer, type(self).__name__)
        full_batch = optimizer.full_batch is not None
        every = 1 if full_batch and self.every_n_steps is None else self.every_n_steps
        due = is_due(every, trainer, optimizer.iterations if full_batch else trainer.global_step)
        # With decide="device" the host waits only for what is written.
        report = optimizer.last_step if due else optimizer.arrived_step
        if report is None:
            return
        # Of all batches of a full-batch iteration only the last one brings a new report.
        is_new = report is not self._counted
        self._counted = report
        if report.trials or self._tested is None:
            self._tested = report
        self._count(optimizer)
        if due or full_batch or self.every_n_steps is None:
            values = self._values(report, optimizer)
            # For every batch, as the Trainer forgets at the end of an epoch what the bar shows.
            show(pl_module, values, in_bar="bsqh/epsilon" if self.prog_bar else None)
            if due and is_new:
                write(trainer, values)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizer = bsqh_optimizer(trainer, type(self).__name__)
        if optimizer.last_step is not None:
            self._count(optimizer)

    def _count(self, optimizer: BSQHOptimizer) -> None:
        accepted, rejected = optimizer.arrived_trials
        self.accepted_trials += accepted - self._trials[0]
        self.rejected_trials += rejected - self._trials[1]
        self._trials = (accepted, rejected)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"accepted_trials": self.accepted_trials, "rejected_trials": self.rejected_trials}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.accepted_trials = state_dict["accepted_trials"]
        self.rejected_trials = state_dict["rejected_trials"]
        self._is_resumed = True

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # What was loaded for a validation, or for a search of a batch size, is not what the next fit goes on from.
        self._is_resumed = False

    def _values(self, report: StepReport, optimizer: BSQHOptimizer) -> dict[str, float]:
        tested = self._tested or report
        return {
            "bsqh/epsilon": report.epsilon,
            "bsqh/objective": tested.objective_after,
            "bsqh/loss_decrease": tested.loss_decrease,
            "bsqh/promised_decrease": optimizer.eta * report.tau,
            "bsqh/tau": report.tau,
            "bsqh/trials": float(report.trials),
            "bsqh/accepted": float(report.accepted),
            "bsqh/rejected_share": self.rejected_trials / max(self.rejected_trials + self.accepted_trials, 1),
            "bsqh/skipped": float(optimizer.arrived_skipped),
        }
