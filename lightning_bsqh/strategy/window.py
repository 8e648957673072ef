"""``accumulate_grad_batches``: one iteration over the micro-batches of a window, as of one large batch (method §5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.method.device_refusals import refusal
from lightning_bsqh.namespace import GradientAccumulationScheduler, MisconfigurationException, pl, rank_zero_warn
from lightning_bsqh.network.tree import first_dimension
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.full_batch import LightningFullBatch
from lightning_bsqh.strategy.sweeps import loss_of
from lightning_bsqh.sweeps.full_batch_options import FullBatch
from lightning_bsqh.trainer_access import callbacks_of


class AccumulationWindow(LightningFullBatch):
    """Sweeps over the batches between two steps of the Trainer, which are held until the step.

    As full-batch mode does it over an epoch: J and G are the means over all samples, a trial runs over all batches.
    Lightning calls its closure alone for all batches but the last, and divides each loss by the number of batches; so
    gradients are taken in by :meth:`after_backward`, of the loss as it was. Its options are :data:`WINDOW`.
    """

    #: The loss of the batch, as training_step has returned it.
    raw_loss: Tensor | None = None
    # By what that is multiplied for its backward.
    _factor = 1.0
    # Epoch and batch of the last forward sweep, and its place in the window.
    _at: tuple[int, int] | None = None
    _place = 0

    @override
    def forward_sweep(self, batch: tuple[Any, ...], place: int, is_last: bool, step: Callable[[], Any]) -> Any:
        """The forward sweep of one batch.

        Args:
            batch: The arguments of training_step.
            place: The number of the batch in its epoch, from 0.
            is_last: Whether the Trainer is about to step.
            step: Runs training_step.
        """
        trainer = self._module.trainer
        at = (trainer.current_epoch, place)
        if at != self._at:
            self._end_part_without_loss()
            self._place = self._next_place(place, trainer.accumulate_grad_batches)
            self._at = at
        with self.pooling():
            output = super().forward_sweep(batch, self._place, is_last, step)
        self.raw_loss = loss_of(output)
        return output

    def _next_place(self, batch_idx: int, batches: int) -> int:
        within = batch_idx % batches
        if within and not self.complete:
            return self._place + 1
        if within:
            rank_zero_warn(
                f"accumulate_grad_batches: a window began with its batch {within} of {batches} (a run resumed within"
                " it?): its first iteration is on what is left of it."
            )
        return 0

    def _end_part_without_loss(self) -> None:
        """Notes that training_step has returned None for the last batch, where there was no backward."""
        if self._added < len(self._outcomes):
            self.add_part(None)
            self._added += 1

    @override
    def share_part(self, of_all: tuple[float, int] | None, factor: float) -> None:
        super().share_part(of_all, factor)
        self._factor = factor
        if of_all is None:
            self.raw_loss = None

    def before_backward(self, loss: Tensor) -> Tensor:
        """Sets aside the gradient so far, as the hooks of the batch before have left it.

        Args:
            loss: What Lightning has divided.

        Returns:
            The loss that the adjoint sweep is to start from.
        """
        if self.raw_loss is None:
            return loss
        self._take_over_gradients()
        for parameter in self._parameters():
            parameter.grad = None
        return self.raw_loss if self._factor == 1.0 else self.raw_loss * self._factor

    def after_backward(self) -> None:
        """Takes in the gradient of the batch; the parameters then hold the mean so far, for whoever looks."""
        if not self._outcomes or self._added == len(self._outcomes) or self.raw_loss is None:
            return
        self.add_part(float(self.raw_loss.detach()))
        self._added += 1
        for parameter, gradient in zip(self._parameters(), self._mean.gradients, strict=True):
            parameter.grad = gradient

    def _take_over_gradients(self) -> None:
        if self._mean.samples:
            self._mean.gradients[:] = [p.grad for p in self._parameters()]

    @override
    def _forward_adjoint(self, closure: Callable[..., Any]) -> Tensor | None:
        with torch.enable_grad():
            loss: Tensor | None = closure()
        if not self._is_last or not self._outcomes:
            self.closure_was_withheld = loss is None and bool(self._outcomes) and self._parts[-1].has_loss
            return loss
        self._end_part_without_loss()
        self._take_over_gradients()
        total = self.end_pass()
        return None if any(part.is_lost for part in self._parts) else total

    @override
    def end_pass(self) -> Tensor | None:
        gradients = [p.grad for p in self._parameters()]
        total = super().end_pass()
        # The same tensors and no copies, so that it can be told whether a hook has changed them.
        for parameter, gradient in zip(self._parameters(), gradients, strict=True):
            parameter.grad = gradient
        return total


def _rows(batch: Any) -> int:
    """The number of samples in a batch; all batches count alike where it cannot be told."""
    return first_dimension(batch) or 1


#: The options of full-batch mode for a window: the next one has other data, so that nothing is known of it.
WINDOW = FullBatch(kappa=0.0, max_iterations=None, count_samples=_rows, reuse=False)


def check_window(trainer: pl.Trainer, optimizer: BSQHOptimizer) -> bool:
    """Whether a Trainer may accumulate over batches.

    Raises:
        MisconfigurationException: If it does, and the optimizer's options leave no room for it.
    """
    schedulers = [c for c in callbacks_of(trainer) if isinstance(c, GradientAccumulationScheduler)]
    if trainer.accumulate_grad_batches == 1 and not any(c.going_to_accumulate_grad_batches() for c in schedulers):
        return False
    if optimizer.full_batch is not None:
        raise MisconfigurationException(
            "accumulate_grad_batches cannot be used with batch_mode='full', where an iteration is over all batches of"
            " an epoch as it is: remove one of the two."
        )
    if optimizer.sweep == "gauss-seidel":
        raise MisconfigurationException(
            "accumulate_grad_batches cannot be used with sweep='gauss-seidel', where a layer would be updated before"
            " the other batches have reached it: use sweep='jacobi', or larger batches instead."
        )
    if optimizer.options.decide == "device":
        what = "accumulate_grad_batches, where a trial is a pass over several batches"
        raise MisconfigurationException(refusal(what, "use larger batches"))
    return True


def stepping_batches(trainer: pl.Trainer) -> float:
    """How often the Trainer will step, infinite or not positive if that is not known.

    As its own ``estimated_stepping_batches``, but for a GradientAccumulationScheduler, of which that sees only the
    present epoch.
    """
    estimated: float = trainer.estimated_stepping_batches
    schedulers = [c for c in callbacks_of(trainer) if isinstance(c, GradientAccumulationScheduler)]
    batches = trainer.num_training_batches
    if not schedulers or trainer.max_epochs in (None, -1) or batches == float("inf"):
        return estimated
    factors = [schedulers[-1].get_accumulate_grad_batches(epoch) for epoch in range(trainer.max_epochs or 0)]
    steps = sum(math.ceil(batches / factor) for factor in factors)
    return steps if trainer.max_steps == -1 else min(steps, trainer.max_steps)
