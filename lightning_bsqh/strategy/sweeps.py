"""The sweeps of a LightningModule's own training_step (method §6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.namespace import pl
from lightning_bsqh.network.batch_state import BatchState
from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.uninterrupted import within_all
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.strategy.log import Log
from lightning_bsqh.sweeps.base import AdjointPass, Start, Sweeps, check_loss
from lightning_bsqh.trainer_access import Metrics, metrics_of


class LightningSweeps(Sweeps):
    """Runs the forward and adjoint sweep through Lightning's closure, and trials beside it, without a trace.

    Args:
        module: The module that is trained.
        context: Gives the precision's context for a training_step.
        reduced_precision: dtype of the forward under autocast, None if the loss's own dtype tells.
        trained: Gives the parameters that are trained; None for all that require a gradient. All others are put back
            after a trial.
        memory: Takes the module's state; None makes one.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        context: Callable[[], AbstractContextManager[Any]],
        reduced_precision: torch.dtype | None = None,
        trained: Callable[[], Iterable[Tensor]] | None = None,
        memory: Memory | None = None,
    ) -> None:
        super().__init__(p.device for p in module.parameters())
        #: Records states and adjoints during the forward sweep; None if nobody needs them.
        self.boundaries: Boundaries | None = None
        self._module = module
        self._context = context
        self._reduced_precision = reduced_precision
        self._memory = memory or Memory(module, trained)
        self._batch: tuple[Any, ...] = ()
        # The batch as it came, and as training_step has left it.
        self._came: BatchState | None = None
        self._left: BatchState | None = None
        # Whether training_step has been seen to write into its batch: None before the first one, which is copied.
        self._writes_batch: bool | None = None
        self._batch_is_lost = False
        self._has_loss = False
        #: Whether training_step had a loss that never came with the closure.
        self.closure_was_withheld = False
        self._start: RandomState | None = None
        self._before: ModuleState | None = None
        self._metrics: Metrics | None = None

    def begin(self, batch: tuple[Any, ...]) -> None:
        """Called when Lightning is about to run training_step: remembers what the trials have to repeat.

        Args:
            batch: The arguments of training_step.
        """
        self._batch = batch
        self._came = BatchState(batch, tensors=self._writes_batch is not False)
        self._left = None
        self._start = RandomState.capture(self._devices)
        self._metrics = metrics_of(self._module.trainer)
        self._before = self._memory.take()
        if self.boundaries is not None:
            self.boundaries.context = self.outside_training_step
            self.boundaries.start()

    def end(self, batch: tuple[Any, ...], has_loss: bool) -> None:
        """Called when training_step is through: notices whether it has written into its batch.

        Args:
            batch: The arguments that training_step was run with.
            has_loss: Whether it returned a loss.
        """
        assert self._came is not None
        if self.boundaries is not None:
            self.boundaries.stop()
        self._has_loss = has_loss
        changed = self._came.was_written_into()
        # A copy costs memory, so it is made only for the first batch and for those who need it.
        self._batch_is_lost = changed and self._writes_batch is False
        self._writes_batch = bool(self._writes_batch) or changed
        if not changed:
            self._came.drop_copies()
        self._left = self._came.again()

    @property
    def can_step(self) -> bool:
        """Whether the last training_step has left a loss, and its batch for the trials."""
        return self._has_loss and not self._batch_is_lost

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        self.boundaries = boundaries
        with torch.enable_grad():
            loss = closure()
        self.closure_was_withheld = loss is None and self._has_loss
        if loss is None or self._batch_is_lost:
            # Without its batch an iteration has no trials; happens once, and only if the first batch was left alone.
            return AdjointPass(None, self.trial)
        return AdjointPass(loss.detach(), self.trial, self.resolution(loss), self.undo, self.undo_unless)

    @override
    def trial(self) -> Tensor | float:
        return self._run_trial(self._evaluate)

    @override
    def undo(self) -> None:
        if self._before is not None:
            self._before.restore()

    @override
    def undo_unless(self, keep: Tensor) -> None:
        if self._before is not None:
            self._before.restore_unless(keep)

    @override
    def starts(self) -> list[Start]:
        return [(self._before, self._start)]

    @override
    def resolution(self, loss: Tensor) -> float:
        if self._reduced_precision is not None:
            return torch.finfo(self._reduced_precision).eps
        return super().resolution(loss)

    def release(self) -> None:
        """Forgets the batch, so that its memory is free between steps."""
        self._batch, self._start, self._before = (), None, None
        self._came = self._left = self._metrics = None
        if self.boundaries is not None:
            # Of a training_step that raised.
            self.boundaries.stop()
        self._has_loss = False

    @contextmanager
    def outside_training_step(self) -> Iterator[None]:
        """What a layer has to run in by itself."""
        assert self._before is not None
        with Log().instead(self._module, self._before.modules, self._metrics), self._context():
            yield

    def _evaluate(self) -> Tensor | float:
        with self._trial_context():
            trial_loss = getattr(self._module, "trial_loss", None)
            if callable(trial_loss):
                batch = self._batch
                batch_idx = batch[1] if len(batch) > 1 else self._module.trainer.fit_loop.batch_idx
                return check_loss(trial_loss(batch[0], batch_idx), "trial_loss", adjoint=False)
            loss = loss_of(self._module.training_step(*self._batch))
            return float("nan") if loss is None else check_loss(loss, "training_step", adjoint=False)

    def _trial_context(self) -> AbstractContextManager[None]:
        """What a trial runs in."""
        assert self._start is not None, "training_step comes first"
        return within_all(
            without_trace(self._module, self._start, self._before, self._devices),
            self._batch_as_it_came(),
            self.outside_training_step(),
            self.pooling(),
        )

    @contextmanager
    def _batch_as_it_came(self) -> Iterator[None]:
        """Within, everything in the batch is as it was before training_step; afterward as that has left it."""
        if self._came is not None:
            self._came.restore()
        try:
            yield
        finally:
            if self._left is not None:
                self._left.restore()


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
