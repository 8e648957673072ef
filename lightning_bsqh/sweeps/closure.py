"""The sweeps of a closure that returns the loss (method §2, §5)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import recording
from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.sweeps.base import Sweeps, check_loss


class ClosureSweeps(Sweeps):
    """Sweeps of a closure that returns the loss and does not call backward.

    Args:
        parameters: The parameters that are trained.
        module: The network, so that trials leave its buffers and metrics alone; None if unknown.
    """

    def __init__(self, parameters: Sequence[Tensor], module: nn.Module | None) -> None:
        super().__init__(p.device for p in parameters)
        self._parameters = parameters
        self._module = module
        self._memory = None if module is None else Memory(module, lambda: parameters)
        self._start: RandomState | None = None
        self._before: ModuleState | None = None

    @override
    def forward_adjoint(self) -> Tensor:
        assert self._closure is not None, "on_batch comes first"
        self._start = RandomState.capture(self._devices)
        self._before = None if self._memory is None else self._memory.take()
        for parameter in self._parameters:
            parameter.grad = None
        with torch.enable_grad():
            with self._pooling(), recording(self.boundaries):
                loss = check_loss(self._closure(), "closure")
            loss.backward()
        return loss.detach()

    @override
    def trial(self) -> float:
        return self._run_trial(self._evaluate)

    def undo_batch(self) -> None:
        """Puts back what the closure has changed in the module: for a batch that is skipped."""
        if self._before is not None:
            self._before.restore()

    def _evaluate(self) -> float:
        assert self._closure is not None
        assert self._start is not None, "the forward sweep comes first"
        with without_trace(self._module, self._start, self._before, self._devices):
            return float(check_loss(self._closure(), "closure", adjoint=False))
