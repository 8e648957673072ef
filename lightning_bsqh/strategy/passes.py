"""How Lightning's calls for one batch reach the sweeps, in each way that a Trainer can train."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lightning_bsqh.method.device_refusals import refusal
from lightning_bsqh.namespace import MisconfigurationException, Precision, pl
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.strategy.configured import parameters_of
from lightning_bsqh.strategy.full_batch import LightningFullBatch
from lightning_bsqh.strategy.manual import ManualSweeps, say_if_never_stepped
from lightning_bsqh.strategy.notices import say_how_it_ended
from lightning_bsqh.strategy.scaling import scaled_step, scaler_of
from lightning_bsqh.strategy.sweeps import LightningSweeps, loss_of
from lightning_bsqh.strategy.window import WINDOW, AccumulationWindow, check_window
from lightning_bsqh.sweeps.base import Sweeps, check_loss

#: dtypes of the forward under autocast, by the Trainer's precision.
_REDUCED = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class Passes:
    """The sweeps of one training: of single batches, of a window of batches, of an epoch, or of the user's closures.

    Args:
        module: The module that is trained, attached to its Trainer.
        optimizer: What trains it.
        precision: The Trainer's precision.

    Raises:
        MisconfigurationException: If the optimizer's options and the Trainer's do not go together.
    """

    def __init__(self, module: pl.LightningModule, optimizer: BSQHOptimizer, precision: Precision) -> None:
        self._module = module
        self._optimizer = optimizer
        self._scaler = scaler_of(precision)
        self._is_stepping = False
        if self._scaler is not None and optimizer.options.decide == "device":
            what = "precision='16-mixed', whose scaler looks at every gradient"
            raise MisconfigurationException(refusal(what, "use 'bf16-mixed' or '32-true'"))
        #: Makes of the sweeps of this process's samples those of all processes; None with one process.
        self.joined: Callable[[Sweeps], Sweeps] | None = None
        parts = (module, precision.train_step_context)
        parameters, reduced = partial(parameters_of, optimizer), _REDUCED.get(str(precision.precision))
        self._make_window = partial(AccumulationWindow, *parts, parameters, WINDOW, reduced)
        self.sweeps: LightningSweeps | LightningFullBatch
        if not module.automatic_optimization:
            self.sweeps = ManualSweeps(*parts, reduced, parameters)
        elif check_window(module.trainer, optimizer):
            self.sweeps = self._make_window()
        elif optimizer.full_batch is None:
            self.sweeps = LightningSweeps(*parts, reduced, parameters)
        elif self._scaler is None:
            self.sweeps = LightningFullBatch(*parts, parameters, optimizer.full_batch, reduced)
        else:
            raise MisconfigurationException(
                "precision='16-mixed' cannot be used with batch_mode='full', where the scale changes within a pass: use"
                " 'bf16-mixed' or '32-true'."
            )

    @property
    def shows_gradients(self) -> bool:
        """Whether gradients stay as they are between backward and step, unless a hook changes them."""
        return self._scaler is None

    def at_end(self) -> None:
        """Called when the training ends; says what it lacked."""
        sweeps = self.sweeps
        if isinstance(sweeps, ManualSweeps):
            say_if_never_stepped(self._optimizer.iterations)
        # A window that is not full at the end is no loss: Lightning steps at the end of every epoch.
        within = (
            isinstance(sweeps, LightningFullBatch)
            and not isinstance(sweeps, AccumulationWindow)
            and sweeps.is_within_pass
        )
        say_how_it_ended(self._optimizer, within)

    def forward(self, batch: tuple[Any, ...], step: Callable[[], Any]) -> Any:
        """The forward sweep.

        Args:
            batch: The arguments of training_step.
            step: Runs training_step.

        Returns:
            What training_step returned.
        """
        trainer, sweeps = self._module.trainer, self.sweeps_now()
        place = trainer.fit_loop.batch_idx
        if isinstance(sweeps, AccumulationWindow):
            return sweeps.forward_sweep(batch, place, self._is_stepping, step)
        if isinstance(sweeps, LightningFullBatch):
            return sweeps.forward_sweep(batch, place, trainer.is_last_batch, step)
        if isinstance(sweeps, ManualSweeps):
            sweeps.enter(batch)
            return step()
        sweeps.begin(batch)
        with sweeps.pooling():
            output = step()
        loss = loss_of(output)
        sweeps.end(batch, has_loss=loss is not None)
        if loss is not None:
            check_loss(loss, "training_step")
        return output

    def sweeps_now(self) -> LightningSweeps | LightningFullBatch:
        """The sweeps; for a window from when the Trainer is told to accumulate, by a callback of the user's say."""
        if type(self.sweeps) is LightningSweeps and check_window(self._module.trainer, self._optimizer):
            self.sweeps = self._make_window()
        if isinstance(self.sweeps, AccumulationWindow):
            # Lightning calls its closure for all batches but the last without the optimizer.
            self.sweeps.boundaries = self._optimizer.boundaries
        return self.sweeps

    def before_backward(self, loss: Tensor) -> Tensor:
        """The loss that the adjoint sweep is to start from, in place of what Lightning has divided."""
        return self.sweeps.before_backward(loss) if isinstance(self.sweeps, AccumulationWindow) else loss

    def after_backward(self) -> None:
        """Called when a batch's gradients are there."""
        if isinstance(self.sweeps, AccumulationWindow):
            self.sweeps.after_backward()

    def step(self, step: Callable[..., Any], closure: Callable[[], Any], is_done: bool = False) -> Any:
        """The iteration.

        Args:
            step: The precision's own step, which takes a closure and ``sweeps``.
            closure: Lightning's closure, or the user's in manual optimization.
            is_done: Whether the step of this batch has been done before the run was resumed.

        Raises:
            MisconfigurationException: If there was a loss that never came with the closure.
        """
        self._is_stepping = True
        done, stale = self._optimizer.iterations, self.sweeps.starts()
        try:
            if is_done and type(self.sweeps) is LightningSweeps:
                # The Trainer wants its closure to be run; what that changes is undone.
                closure()
                self.sweeps.take_back(stale)
                return None
            loss = self._step(step, closure)
            self._check_closure()
            return loss
        except BaseException:
            if self._optimizer.iterations == done:
                # It may have come from outside the optimizer's own step, from a hook for instance.
                self.sweeps.take_back(stale)
            raise
        finally:
            self._is_stepping = False
            self.sweeps.release()

    def _step(self, step: Callable[..., Any], closure: Callable[[], Any]) -> Any:
        sweeps = self.sweeps
        joined = sweeps if self.joined is None else self.joined(sweeps)
        if isinstance(sweeps, ManualSweeps):
            return step(partial(sweeps.run, closure), sweeps=joined)
        if self._scaler is None:
            return step(closure, sweeps=joined)
        return scaled_step(step, self._optimizer, closure, joined, self._scaler)

    def _check_closure(self) -> None:
        if self.sweeps.closure_was_withheld:
            raise MisconfigurationException(
                "optimizer_step of the LightningModule has called its closure itself and then optimizer.step()"
                " without it, so there was nothing to step by: call optimizer.step(closure=optimizer_closure)."
            )
