"""Full-batch mode without Lightning: a closure of one micro-batch, and the micro-batches (method §5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.tree import same, versions
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.sweeps.base import AdjointPass, check_loss
from lightning_bsqh.sweeps.full_batch import FullBatchSweeps
from lightning_bsqh.sweeps.full_batch_options import FullBatch
from lightning_bsqh.sweeps.micro_batch import ForwardResult, MicroBatch, with_metrics_of


class ClosureMicroBatch(MicroBatch):
    """A micro-batch of a closure.

    Args:
        memory: Takes the state of the network, None if that is unknown.
        devices: Where it lives.
    """

    def __init__(self, memory: Memory | None, devices: Sequence[torch.device]) -> None:
        self._memory = memory
        self._module = None if memory is None else memory.module
        self._devices = devices
        self._evaluate: Callable[[], Any] | None = None
        self._batch: Any = None
        self._versions: list[int] = []
        self._start: RandomState | None = None
        self._before: ModuleState | None = None

    def take(self, batch: Any, evaluate: Callable[[], Any], samples: int, compare: bool) -> None:
        """The data of the next pass, before its forward.

        Args:
            batch: The micro-batch.
            evaluate: Computes its loss.
            samples: Its number of samples.
            compare: Whether it is worth knowing if this is the same as in the last pass.
        """
        before = None if self._memory is None else self._memory.take()
        if self._start is not None:
            unchanged = compare and versions(self._batch) == self._versions and same(batch, self._batch)
            self.note(
                unchanged and (before is None or self._before is None or before.same_as(self._before, metrics=False))
            )
        self._batch, self._versions = batch, versions(batch)
        self._evaluate, self.samples, self._before = evaluate, samples, before
        self._start = RandomState.capture(self._devices)

    def forward(self) -> ForwardResult:
        """The forward of the forward sweep itself."""
        return self._forward(self._before)

    def _forward(self, before: ModuleState | None) -> ForwardResult:
        assert self._evaluate is not None
        loss = check_loss(self._evaluate(), "closure")
        return ForwardResult(loss, self._drew_nothing(), before, None if before is None else before.again())

    def replay(self, outcome: ForwardResult) -> None:
        """Leaves the module as the forward would have."""
        if outcome.after is not None:
            outcome.after.restore()

    @override
    def loss(self) -> float:
        assert self._evaluate is not None
        assert self._start is not None
        with without_trace(self._module, self._start, self._before, self._devices):
            return float(check_loss(self._evaluate(), "closure", adjoint=False))

    @override
    def outcome(self, last: ForwardResult | None = None) -> ForwardResult:
        assert self._start is not None
        with without_trace(self._module, self._start, self._before, self._devices):
            return self._forward(with_metrics_of(last, self._before))

    @override
    def starts_like(self, outcome: ForwardResult) -> bool:
        return self._before is None or (outcome.before is not None and self._before.same_as(outcome.before))

    @override
    def undo(self) -> None:
        if self._before is not None:
            self._before.restore()

    def _drew_nothing(self) -> bool:
        assert self._start is not None
        return self._start.same_as(RandomState.capture(self._devices))


class ClosureFullBatch(FullBatchSweeps[ClosureMicroBatch]):
    """Sweeps of a closure over micro-batches; the closure is taken to be the same function in every iteration.

    Args:
        parameters: Gives the parameters that are trained.
        module: The network, None if unknown.
        options: Those of full-batch mode.
    """

    def __init__(self, parameters: Callable[[], list[Tensor]], module: nn.Module | None, options: FullBatch) -> None:
        super().__init__((p.device for p in parameters()), parameters, module, options.reuse)
        self._memory = None if module is None else Memory(module, parameters)
        self._options = options
        self._batches: Iterable[Any] | None = None

    def hand_over(self, batches: Iterable[Any] | None) -> None:
        """Takes the micro-batches of the next iteration; None if the closure itself is the whole data.

        Raises:
            TypeError: If they have no length.
            ValueError: If there are none.
        """
        if batches is not None:
            if not isinstance(batches, Sized):
                raise TypeError(
                    f"batches must have a length, such as a list or a DataLoader, got {type(batches).__name__}: an"
                    " iteration of batch_mode='full' needs to know where the data end."
                )
            if not len(batches):
                raise ValueError("batches must hold at least one micro-batch, got none.")
        self._batches = batches

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        self._closure, self.boundaries = closure, boundaries
        self.begin_pass()
        for batch in (None,) if self._batches is None else self._batches:
            self._forward_adjoint_of(batch)
        loss = self.end_pass()
        return AdjointPass(loss, self.trial, 0.0 if loss is None else self.resolution(loss), self.undo)

    def _forward_adjoint_of(self, batch: Any) -> None:
        part = self.next_part(lambda: ClosureMicroBatch(self._memory, self._devices))
        closure: Any = self._closure
        whole = self._batches is None
        evaluate = closure if whole else lambda: closure(batch)
        part.take(batch, evaluate, 1 if whole else self._options.samples(batch), compare=self.repeats_so_far)
        for p in self._parameters():
            p.grad = None
        outcome = self.begin_part()
        gradients = self.known_gradients()
        if outcome is None:
            fresh = not self._outcomes
            with torch.enable_grad(), self.pooling(), recording(self.boundaries, fresh):
                outcome = part.forward()
        else:
            part.replay(outcome)
        self.end_part(outcome)
        if gradients is None:
            with torch.enable_grad():
                outcome.loss.backward()
        else:
            for p, gradient in zip(self._parameters(), gradients, strict=True):
                p.grad = gradient
        self.add_part(float(outcome.loss.detach()))
