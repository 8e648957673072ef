"""Manual optimization: ``loss = self.optimizers().step(closure)`` inside a training_step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from typing_extensions import override

from lightning_bsqh.namespace import MisconfigurationException, rank_zero_warn
from lightning_bsqh.strategy.sweeps import LightningSweeps
from lightning_bsqh.sweeps.base import check_loss

_SOURCE = "The closure of self.optimizers().step(closure)"


class ManualSweeps(LightningSweeps):
    """Sweeps of a closure that a training_step of manual optimization hands to the optimizer.

    The closure returns the loss and does not call backward; a trial calls it again, without a trace.
    """

    _closure: Callable[[], Any] | None = None
    _arguments: tuple[Any, ...] = ()
    #: Told the loss and the batch between the forward and the adjoint sweep of a step; by default nobody wants to know.
    tell: Callable[[Tensor, Any], object] | None = None

    def enter(self, arguments: tuple[Any, ...]) -> None:
        """Called when training_step is about to run, with its arguments."""
        self._arguments = arguments

    def run(self, closure: Callable[[], Any]) -> Tensor:
        """The forward and adjoint sweep, in place of Lightning's closure.

        Args:
            closure: The user's.

        Returns:
            The loss at w, detached.

        Raises:
            MisconfigurationException: If there is no closure, or it has called backward itself.
        """
        self._closure = closure
        for parameter in self._module.parameters():
            parameter.grad = None
        self.begin(self._arguments)
        with self.pooling():
            found = closure()
        self.end(self._arguments, has_loss=True)
        if found is None or any(p.grad is not None for p in self._module.parameters()):
            raise MisconfigurationException(
                "Manual optimization under BSQHStrategy: loss = self.optimizers().step(closure), with a closure that"
                " returns the loss and does not call backward or manual_backward, since trials need the loss alone."
            )
        loss = check_loss(found, _SOURCE)
        if self.tell is not None:
            self.tell(loss, self._arguments[0])
        self._module.manual_backward(loss)
        return loss.detach()

    @override
    def _evaluate(self) -> Tensor | float:
        assert self._closure is not None
        with self._trial_context():
            return check_loss(self._closure(), _SOURCE, adjoint=False)

    @override
    def release(self) -> None:
        super().release()
        self._closure = None


def refuse_manual(name: str, precision: str, batch_mode: str) -> None:
    """Raises MisconfigurationException for a module of manual optimization that cannot work.

    Args:
        name: Its class.
        precision: The Trainer's precision.
        batch_mode: That of the strategy.
    """
    if precision == "16-mixed" or batch_mode == "full":
        what = "precision='16-mixed'" if precision == "16-mixed" else "batch_mode='full'"
        raise MisconfigurationException(
            f"{name} uses manual optimization (automatic_optimization=False), which BSQHStrategy cannot do with {what}:"
            " return the loss from training_step instead."
        )


def say_if_never_stepped(iterations: int) -> None:
    """Warns at the end of a training by manual optimization in which nothing was stepped."""
    if not iterations:
        rank_zero_warn(
            "training_step uses manual optimization (automatic_optimization=False) and has never stepped: loss ="
            " self.optimizers().step(closure), with a closure that returns the loss; or leave automatic_optimization"
            " alone and return the loss."
        )
