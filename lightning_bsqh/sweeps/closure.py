"""The sweeps of a closure that returns the loss (method §2, §5)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.sweeps.base import AdjointPass, Sweeps, check_loss


class ClosureSweeps(Sweeps):
    """Sweeps of a closure that returns the loss and does not call backward.

    Args:
        parameters: Gives the parameters that are trained, those that were added later too.
        module: The network, so that trials leave its buffers and metrics alone; None if unknown.
    """

    def __init__(self, parameters: Callable[[], Sequence[Tensor]], module: nn.Module | None) -> None:
        super().__init__(p.device for p in parameters())
        self._parameters = parameters
        self._module = module
        self._closure: Callable[..., Any] | None = None
        self._memory = None if module is None else Memory(module, parameters)
        self._start: RandomState | None = None
        self._before: ModuleState | None = None

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        self._closure = closure
        self._start = RandomState.capture(self._devices)
        self._before = None if self._memory is None else self._memory.take()
        for parameter in self._parameters():
            parameter.grad = None
        with torch.enable_grad():
            with self._pooling(), recording(boundaries):
                loss = check_loss(closure(), "closure")
            loss.backward()
        return AdjointPass(loss.detach(), self.trial, self.resolution(loss), self.undo)

    @override
    def trial(self) -> Tensor | float:
        return self._run_trial(self._evaluate)

    @override
    def undo(self) -> None:
        if self._before is not None:
            self._before.restore()

    def _evaluate(self) -> Tensor:
        assert self._closure is not None
        assert self._start is not None, "the forward sweep comes first"
        with without_trace(self._module, self._start, self._before, self._devices):
            return check_loss(self._closure(), "closure", adjoint=False)
