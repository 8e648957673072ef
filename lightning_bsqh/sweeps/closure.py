"""The sweeps of a closure that returns the loss (method §2, §5)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries, recording
from lightning_bsqh.network.module_state import Memory, ModuleState
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.network.uninterrupted import within_all
from lightning_bsqh.network.without_trace import without_trace
from lightning_bsqh.sweeps.base import AdjointPass, Start, Sweeps, check_loss


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
        self._has_looked = False
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
            with self.pooling(), recording(boundaries):
                loss = check_loss(closure(), "closure")
            if any(parameter.grad is not None for parameter in self._parameters()):
                raise ValueError(
                    "closure has called backward (the parameters have gradients): return the loss without it, as in"
                    " optimizer.step(lambda: loss_function(net(x), y)). The adjoint sweep is the optimizer's own, and"
                    " trials need none."
                )
            self._warn_of_buffers(loss)
            loss.backward()
        return AdjointPass(loss.detach(), self.trial, self.resolution(loss), self.undo, self.undo_unless)

    def _warn_of_buffers(self, loss: Tensor) -> None:
        """Trials change the statistics of a BatchNorm that nobody can put back if the network is not known."""
        if self._module is not None or self._has_looked:
            return
        self._has_looked = True
        if any("BatchNorm" in name for name in graph_nodes(loss)):
            warnings.warn(
                "BSQHOptimizer was given parameters without their module, and there is a BatchNorm in the network:"
                " trials count in its running statistics (its buffers). Pass the module itself, BSQHOptimizer(net).",
                stacklevel=5,
            )

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

    def _evaluate(self) -> Tensor:
        assert self._closure is not None
        assert self._start is not None, "the forward sweep comes first"
        with within_all(without_trace(self._module, self._start, self._before, self._devices), self.pooling()):
            return check_loss(self._closure(), "closure", adjoint=False)


def graph_nodes(loss: Tensor) -> set[str]:
    """The names of the operations that a loss was computed by."""
    found: set[str] = set()
    seen: set[Any] = set()
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            found.add(node.name())
            waiting += [before for before, _ in node.next_functions]
    return found
