"""Full-batch mode in the Trainer's ordinary loop: an epoch is a pass, its batches are the micro-batches (method §5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.namespace import is_overridden, pl, rank_zero_warn
from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.module_state import Memory
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.tree import detached, leaves, mapped, same, versions
from lightning_bsqh.network.uninterrupted import within_all
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.strategy.log import Log, say_again
from lightning_bsqh.strategy.sweeps import LightningSweeps, loss_of
from lightning_bsqh.sweeps.base import AdjointPass, check_loss
from lightning_bsqh.sweeps.full_batch import FullBatchSweeps
from lightning_bsqh.sweeps.full_batch_options import FullBatch
from lightning_bsqh.sweeps.micro_batch import ForwardResult, MicroBatch, with_metrics_of


class LightningFullBatch(FullBatchSweeps["LightningMicroBatch"]):
    """Sweeps of training_step over the batches of an epoch.

    Lightning's closure does the forward and adjoint sweep of every batch when it comes. Trials, when the last one is
    in, run over all of them. So the batches of one epoch are held, on the host if there are several.

    Args:
        module: The module that is trained.
        context: Gives the precision's context for a training_step.
        parameters: Gives the parameters that are trained.
        options: Those of full-batch mode.
        reduced_precision: dtype of the forward under autocast, None if the loss's own dtype tells.
    """

    def __init__(
        self,
        module: pl.LightningModule,
        context: Callable[[], AbstractContextManager[Any]],
        parameters: Callable[[], list[Tensor]],
        options: FullBatch,
        reduced_precision: torch.dtype | None = None,
    ) -> None:
        # With trial_loss a module says that its training_step has to run every time, and a backward of its own might
        # do anything.
        plain = not callable(getattr(module, "trial_loss", None)) and not is_overridden("backward", module)
        super().__init__((p.device for p in module.parameters()), parameters, module, options.reuse and plain)
        self._module = module
        self._memory = Memory(module, parameters)
        self._context = context
        self._options = options
        self._reduced_precision = reduced_precision
        # Whether the pass has had all batches so far; not if it was resumed in the middle. None before the first.
        self._is_whole: bool | None = None
        self._is_last = False
        self._added = 0
        #: Whether training_step had a loss that never came with the closure.
        self.closure_was_withheld = False

    # ------------------------------------------------------------------ forward and adjoint sweep

    def forward_sweep(self, batch: tuple[Any, ...], place: int, is_last: bool, step: Callable[[], Any]) -> Any:
        """The forward sweep of one batch, or what is known of it.

        Args:
            batch: The arguments of training_step.
            place: The number of the batch in its epoch, from 0.
            is_last: Whether it is the last one of the epoch.
            step: Runs training_step.

        Returns:
            What training_step returned, now or when it was run before.
        """
        self._is_last = is_last
        self._enter(place)
        if not self._is_whole:
            return step()
        part = self.next_part(lambda: LightningMicroBatch(self._module, self._context, self._memory))
        part.take(batch, place, self._options.samples(batch[0]), compare=self.repeats_so_far)
        outcome = self.begin_part()
        if outcome is not None:
            gradients = self.known_gradients()
            self.end_part(outcome)
            return part.replay(outcome, gradients, self._parameters())
        with recording(self.boundaries, fresh=place == 0):
            output, outcome = part.forward(batch, step, alone=place == 0 and is_last)
        if self.boundaries is not None:
            self.boundaries.context = part.outside_training_step
        self.end_part(outcome)
        return output

    def _enter(self, place: int) -> None:
        """Begins a pass, or goes on with it if this is its next batch."""
        if place == 0 and not (self._is_whole and len(self._outcomes) == 1 and not self._added):
            self.begin_pass()
            self._is_whole = True
            self._added = 0
        elif len(self._outcomes) == place + 1 and self._added == place:
            # The closure is called again for the same batch, by an optimizer_step of the module's own.
            self._outcomes.pop()
            if self.known_gradients() is None:
                self._known = None
        elif len(self._outcomes) != place:
            if self._is_whole is not False:
                rank_zero_warn(
                    f"A pass over the data began with batch {place} (a run resumed within an epoch?): it is used for"
                    " no iteration, the next one will be."
                )
            self._is_whole = self.complete = False

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        self.boundaries = boundaries
        loss = self._forward_adjoint(closure)
        if not self.complete:
            return AdjointPass(loss, self.trial, is_complete=False)
        return AdjointPass(loss, self.trial, 0.0 if loss is None else self.resolution(loss), self.undo)

    def _forward_adjoint(self, closure: Callable[..., Any]) -> Tensor | None:
        with torch.enable_grad(), self.pooling():
            loss: Tensor | None = closure()
        if not self._is_whole or not self._outcomes:
            return loss
        part = self._parts[len(self._outcomes) - 1]
        self.closure_was_withheld = loss is None and part.has_loss
        self.add_part(None if loss is None else float(loss))
        self._added += 1
        if not self._is_last:
            return loss
        total = self.end_pass()
        # Without all its data an iteration has no trials; happens once, and only if they were left alone before.
        return None if any(part.is_lost for part in self._parts) else total

    @override
    def resolution(self, loss: Tensor) -> float:
        if self._reduced_precision is not None:
            return torch.finfo(self._reduced_precision).eps
        return super().resolution(loss)

    @property
    def is_within_pass(self) -> bool:
        """Whether some batches have come for which there has been no iteration yet."""
        return bool(self._outcomes) and not self.complete


class LightningMicroBatch(LightningSweeps, MicroBatch):
    """One batch of an epoch.

    Args:
        module: The module that is trained.
        context: Gives the precision's context for a training_step.
        memory: Takes the module's state; shared by all batches.
    """

    def __init__(
        self, module: pl.LightningModule, context: Callable[[], AbstractContextManager[Any]], memory: Memory
    ) -> None:
        super().__init__(module, context, memory=memory)
        self._place = 0
        self._kept_versions: list[int] = []

    @property
    def has_loss(self) -> bool:
        """Whether training_step returned a loss."""
        return self._has_loss

    @property
    def is_lost(self) -> bool:
        """Whether training_step has written into the batch, and there is no copy of it."""
        return self._batch_is_lost

    def take(self, batch: tuple[Any, ...], place: int, samples: int, compare: bool) -> None:
        """The data of the next pass, before their forward.

        Args:
            batch: The arguments of training_step.
            place: The number of the batch in its epoch.
            samples: Its number of samples.
            compare: Whether it is worth knowing if this is the same as in the last pass.
        """
        before, held = self._before, self._batch
        unchanged = before is not None and compare and not self._batch_is_lost and self._holds(batch)
        self.begin(batch)
        if unchanged:
            # The same in the place where it has to wait; a forward replaces it.
            self._batch = held
        assert self._before is not None
        if before is not None:
            self.note(unchanged and self._before.same_as(before, metrics=False))
        self._place, self.samples = place, samples

    def forward(self, batch: tuple[Any, ...], step: Callable[[], Any], alone: bool) -> tuple[Any, ForwardResult | None]:
        """The forward of the forward sweep itself.

        Args:
            batch: The arguments of training_step.
            step: Runs training_step.
            alone: Whether this is the only batch, so that it may stay on the device.

        Returns:
            What training_step returned, and its outcome; None if there was no loss.
        """
        assert self._start is not None
        assert self._before is not None
        log = Log()
        with log.listening(self._before.modules):
            output = step()
        loss = loss_of(output)
        self.end(batch, has_loss=loss is not None)
        self._hold(alone)
        if loss is None:
            return output, None
        check_loss(loss, "training_step")
        drew_nothing = self._start.same_as(RandomState.capture(self._devices))
        return output, ForwardResult(
            loss, drew_nothing, self._before, self._before.again(), detached(output), log.calls
        )

    def replay(
        self, outcome: ForwardResult, gradients: Sequence[Tensor | None] | None, parameters: Sequence[Tensor]
    ) -> Any:
        """Does all that training_step would do again.

        Args:
            outcome: What is known.
            gradients: The gradient of the whole data where a backward is to give that; None if the outcome has a
                graph of its own.
            parameters: The parameters that are trained.

        Returns:
            What training_step would return.
        """
        assert outcome.after is not None
        self._has_loss = True
        # What is held in the batch's place has nothing in it that could change.
        self._came = self._left = None
        outcome.after.restore()
        say_again(outcome.calls)
        loss = outcome.loss
        if gradients is not None:
            loss = _KnownGradient.apply(loss.detach().requires_grad_(), gradients, parameters)
        return {**outcome.output, "loss": loss} if isinstance(outcome.output, Mapping) else loss

    @override
    def loss(self) -> float:
        return float(self._again(keep=False).loss)

    @override
    def outcome(self, last: ForwardResult | None = None) -> ForwardResult:
        return self._again(keep=True, last=last)

    @override
    def starts_like(self, outcome: ForwardResult) -> bool:
        return self._before is not None and outcome.before is not None and self._before.same_as(outcome.before)

    def _again(self, keep: bool, last: ForwardResult | None = None) -> ForwardResult:
        """One more forward without a trace."""
        assert self._start is not None, "training_step comes first"
        assert self._before is not None
        log = Log()
        quiet = without_trace(self._module, self._start, self._before, self._devices)
        with within_all(quiet, self._batch_as_it_came()):
            batch = mapped(self._on_device(), lambda t: t.clone() if self._writes_batch and not t.requires_grad else t)
            before = with_metrics_of(last, self._before)
            with within_all(log.instead(self._module, self._before.modules, self._metrics), self._context()):
                trial_loss = getattr(self._module, "trial_loss", None)
                if callable(trial_loss):
                    return ForwardResult(
                        check_loss(trial_loss(batch[0], self._place), "trial_loss", adjoint=False), False
                    )
                output = self._module.training_step(*batch)
            self.is_repeatable &= not log.went_outside
            loss = loss_of(output)
            if loss is None:
                return ForwardResult(torch.tensor(float("nan")), False)
            loss = check_loss(loss, "training_step", adjoint=keep)
            if not keep:
                return ForwardResult(loss, False)
            pure = self.is_repeatable and self._start.same_as(RandomState.capture(self._devices))
            return ForwardResult(loss, pure, before, self._before.again(), output, log.calls)

    def _on_device(self) -> tuple[Any, ...]:
        back: tuple[Any, ...] = mapped(self._batch, lambda tensor: tensor.on_device(), _OnHost)
        return back

    def _hold(self, alone: bool) -> None:
        """Keeps the batch as it came until the next pass, on the host unless it is the only one."""

        def keep(tensor: Tensor) -> Any:
            kept = tensor if alone else _to_host(tensor)
            return kept.clone() if kept is tensor and self._writes_batch and not tensor.requires_grad else kept

        with self._batch_as_it_came():
            self._batch = mapped(self._batch, keep)
        self._kept_versions = versions(self._batch)
        if all(isinstance(leaf, (Tensor, _OnHost, *_PLAIN)) for leaf in leaves(self._batch)):
            # Nothing is in it that is not in the copy.
            self._came = self._left = None

    def _holds(self, batch: tuple[Any, ...]) -> bool:
        """Whether this is the batch that is held, and nobody has written into that since."""
        return versions(self._batch) == self._kept_versions and same(batch, self._on_device())


class _OnHost:
    """A tensor that has to go back to its device before it is used."""

    def __init__(self, values: Tensor, device: torch.device) -> None:
        self._values = values
        self._device = device

    def on_device(self) -> Tensor:
        return self._values.to(self._device)


_PLAIN = (int, float, str, bytes, type(None))


def _to_host(tensor: Tensor) -> Tensor | _OnHost:
    return tensor if tensor.device.type == "cpu" else _OnHost(tensor.cpu(), tensor.device)


class _KnownGradient(torch.autograd.Function):
    """A loss whose backward leaves gradients that are known in the parameters.

    Put there directly, since they have been through the parameters' own hooks already.
    """

    @staticmethod
    def forward(ctx: Any, loss: Tensor, gradients: Sequence[Tensor | None], parameters: Sequence[Tensor]) -> Tensor:
        ctx.known = list(zip(parameters, gradients, strict=True))
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *gradient: Tensor) -> tuple[Tensor, None, None]:
        for parameter, known in ctx.known:
            if known is not None:
                known = known * gradient[0]
                parameter.grad = known if parameter.grad is None else parameter.grad + known
        return gradient[0], None, None
