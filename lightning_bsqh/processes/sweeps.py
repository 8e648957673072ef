"""Sweeps of which every process does its own samples' part (method §5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.processes.reduction import ProcessReduction
from lightning_bsqh.sweeps.base import AdjointPass, Start, Sweeps
from lightning_bsqh.sweeps.full_batch import FullBatchSweeps


class SharedSweeps(Sweeps):
    """Turns the sweeps of one process's samples into those of all.

    Of a batch, whoever runs training_step has told the reduction and the gradients are means already, by
    DistributedDataParallel. Of a pass over the data every process has gone through its own micro-batches; here its
    gradients join those of the others.

    Args:
        own: The sweeps of the process's own samples.
        reduction: Knows the samples of all.
        parameters: Gives the parameters that are trained.
    """

    def __init__(self, own: Sweeps, reduction: ProcessReduction, parameters: Callable[[], Sequence[Tensor]]) -> None:
        super().__init__(p.device for p in parameters())
        self._own = own
        self._reduction = reduction
        self._parameters = parameters

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        adjoint = self._own.forward_adjoint(closure, boundaries)
        if not adjoint.is_complete:
            return adjoint
        if isinstance(self._own, FullBatchSweeps):
            self._end_pass(self._own, adjoint, boundaries)
        if adjoint.loss is None or self._reduction.is_left_out:
            return dataclasses.replace(adjoint, loss=None)
        return dataclasses.replace(adjoint, loss=torch.tensor(self._reduction.loss, dtype=torch.float64))

    def _end_pass(self, own: FullBatchSweeps[Any], adjoint: AdjointPass, boundaries: Boundaries | None) -> None:
        self._reduction.begin(adjoint.loss, max(own.samples, 1))
        if not self._reduction.is_left_out:
            self._join_gradients(boundaries)

    def _join_gradients(self, boundaries: Boundaries | None) -> None:
        parameters, factor = self._parameters(), self._reduction.factor
        if boundaries is not None:
            boundaries.scale(factor)
        reached = self._reduction.most([float(p.grad is not None) for p in parameters])
        for p, is_reached in zip(parameters, reached, strict=True):
            if is_reached:
                # Whoever does not depend on it counts with a gradient of zero.
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.mul_(factor)
        self._reduction.mean_([p.grad for p in parameters if p.grad is not None])

    @override
    def trial(self) -> Tensor | float:
        return self._own.trial()

    @override
    def starts(self) -> list[Start]:
        return self._own.starts()

    @override
    def undo(self) -> None:
        self._own.undo()
