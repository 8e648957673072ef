"""Sweeps through a module whose parameters are gathered for a forward and have to be let go after it (method §5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.network.layer_calls import Boundaries
from lightning_bsqh.processes.sweeps import SharedSweeps
from lightning_bsqh.sweeps.base import AdjointPass
from lightning_bsqh.sweeps.full_batch import FullBatchSweeps

try:
    from torch.distributed.fsdp import FSDPModule
except ImportError:  # Before torch 2.6.
    from torch.distributed._composable.fsdp import FSDPModule


def reshard(module: nn.Module) -> None:
    """Lets go of all gathered parameters, so that the next forward gathers what the pieces hold then.

    After a forward without a backward the outermost ``fully_shard`` keeps its own.
    """
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


class ShardSweeps(SharedSweeps):
    """Sweeps of several processes, of which each holds some rows of the parameters.

    Args:
        module: What they go through.
        args: Those of :class:`~lightning_bsqh.processes.sweeps.SharedSweeps`.
        kwargs: The same.
    """

    def __init__(self, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._module = module

    @override
    def forward_adjoint(self, closure: Callable[..., Any], boundaries: Boundaries | None = None) -> AdjointPass:
        adjoint = super().forward_adjoint(closure, boundaries)
        reshard(self._module)
        return dataclasses.replace(adjoint, trial=self.trial)

    @override
    def _end_pass(self, own: FullBatchSweeps[Any], adjoint: AdjointPass, boundaries: Boundaries | None) -> None:
        # Loss and gradients are those of all processes already; for the trials, how many of the samples are here.
        self._reduction.begin(adjoint.loss, max(own.samples, 1))

    @override
    def trial(self) -> Tensor | float:
        try:
            return super().trial()
        finally:
            reshard(self._module)
