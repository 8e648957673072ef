"""The sweeps of a LightningModule's own training_step (method §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.module_state import ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.tree import versions
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.sweeps.base import AdjointPass, Sweeps, check_loss


class LightningSweeps(Sweeps):
    """Runs the forward and adjoint sweep through Lightning's closure, and trials beside it, without a trace.

    Args:
        module: The module that is trained.
        context: Gives the precision's context for a training_step.
        reduced_precision: dtype of the forward under autocast, None if the loss's own dtype tells.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        context: Callable[[], AbstractContextManager[Any]],
        reduced_precision: torch.dtype | None = None,
    ) -> None:
        super().__init__(p.device for p in module.parameters())
        #: Records states and adjoints during the forward sweep; None if nobody needs them.
        self.boundaries: Boundaries | None = None
        self._module = module
        self._context = context
        self._reduced_precision = reduced_precision
        self._batch: tuple[Any, ...] = ()
        # Whether training_step has been seen to write into its batch: None before the first one, which is copied.
        self._writes_batch: bool | None = None
        self._versions: list[int] = []
        self._batch_is_lost = False
        self._has_loss = False
        #: Whether training_step had a loss that never came with the closure.
        self.closure_was_withheld = False
        self._start: RandomState | None = None
        self._before: ModuleState | None = None

    def begin(self, batch: tuple[Any, ...]) -> None:
        """Called when Lightning is about to run training_step: remembers what the trials have to repeat.

        Args:
            batch: The arguments of training_step.
        """
        self._batch = _copy(batch, tensors=self._writes_batch is not False)
        self._versions = versions(batch)
        self._start = RandomState.capture(self._devices)
        self._before = ModuleState(self._module)
        if self.boundaries is not None:
            self.boundaries.context = self.outside_training_step
            self.boundaries.start()

    def end(self, batch: tuple[Any, ...], has_loss: bool) -> None:
        """Called when training_step is through: notices whether it has written into its batch.

        Args:
            batch: The arguments that training_step was run with.
            has_loss: Whether it returned a loss.
        """
        if self.boundaries is not None:
            self.boundaries.stop()
        self._has_loss = has_loss
        changed = versions(batch) != self._versions
        # A copy costs memory, so it is made only for the first batch and for those who need it.
        self._batch_is_lost = changed and self._writes_batch is False
        self._writes_batch = bool(self._writes_batch) or changed
        if not changed:
            self._batch = _copy(batch, tensors=False)

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        self.boundaries = boundaries
        with torch.enable_grad(), self._pooling():
            loss = closure()
        self.closure_was_withheld = loss is None and self._has_loss
        if loss is None or self._batch_is_lost:
            # Without its batch an iteration has no trials; happens once, and only if the first batch was left alone.
            return AdjointPass(None, self.trial)
        return AdjointPass(loss.detach(), self.trial, self.resolution(loss), self.undo)

    @override
    def trial(self) -> Tensor | float:
        return self._run_trial(self._evaluate)

    @override
    def undo(self) -> None:
        if self._before is not None:
            self._before.restore()

    @override
    def resolution(self, loss: Tensor) -> float:
        if self._reduced_precision is not None:
            return torch.finfo(self._reduced_precision).eps
        return super().resolution(loss)

    def release(self) -> None:
        """Forgets the batch, so that its memory is free between steps."""
        self._batch, self._start, self._before = (), None, None
        if self.boundaries is not None:
            # Of a training_step that raised.
            self.boundaries.stop()
        self._has_loss = False

    @contextmanager
    def outside_training_step(self) -> Iterator[None]:
        """What a layer has to run in by itself."""
        assert self._before is not None
        with silence(self._module, self._before.modules), self._context():
            yield

    def _evaluate(self) -> Tensor | float:
        assert self._start is not None, "training_step comes first"
        assert self._before is not None
        batch = _copy(self._batch, tensors=bool(self._writes_batch))
        with (
            without_trace(self._module, self._start, self._before, self._devices),
            self.outside_training_step(),
        ):
            trial_loss = getattr(self._module, "trial_loss", None)
            if callable(trial_loss):
                batch_idx = batch[1] if len(batch) > 1 else self._module.trainer.fit_loop.batch_idx
                return check_loss(trial_loss(batch[0], batch_idx), "trial_loss", adjoint=False)
            loss = loss_of(self._module.training_step(*batch))
            return float("nan") if loss is None else check_loss(loss, "training_step", adjoint=False)


def loss_of(output: Any) -> Any:
    """The loss in what a training_step returned: the tensor itself, or the entry of a dict; None to skip.

    Raises:
        ValueError: If a dict has no entry ``"loss"``.
    """
    if isinstance(output, Mapping):
        if output.get("loss") is None:
            raise ValueError(
                "training_step returned a dict without the key 'loss'; add it, or return None to skip the batch."
                f" Keys: {sorted(map(str, output))}."
            )
        return output["loss"]
    return output


@contextmanager
def silence(module: pl.LightningModule, parts: Iterable[nn.Module]) -> Iterator[None]:
    """Turns log, log_dict and print of a module and its parts, and the Trainer's loggers, into no-operations."""
    modules = [child for child in parts if isinstance(child, pl.LightningModule)]
    names = ("log", "log_dict", "print")
    own = [(child, name, vars(child).get(name)) for child in modules for name in names]
    trainer = module.trainer
    loggers = trainer.loggers
    for child, name, _ in own:
        vars(child)[name] = _nothing
    if loggers:
        trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
        for child, name, previous in own:
            if previous is None:
                vars(child).pop(name, None)
            else:
                vars(child)[name] = previous


def _nothing(*args: Any, **kwargs: Any) -> None:
    return None


def _copy(value: Any, tensors: bool) -> Any:
    """The same nest with its containers made anew, so that a pop() is not seen by the next sweep.

    Args:
        value: The arguments of training_step.
        tensors: Whether to clone the tensors, too.
    """
    if isinstance(value, Tensor):
        return value.clone() if tensors and not value.requires_grad else value
    if type(value) in (list, tuple):
        # What most batches are; the general way takes its time.
        return type(value)([_copy(item, tensors) for item in value])
    if type(value) in (int, str, float):
        return value
    return apply_to_collection(value, Tensor, lambda t: _copy(t, tensors))
