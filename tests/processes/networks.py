"""Modules that do in one process what others do not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.utils.checkpoint import checkpoint
from typing_extensions import override

from tests.problems import cross_entropy
from tests.processes.training import Classes


def rank() -> int:
    """This process's number."""
    return int(os.environ.get("RANK", "0"))


class Bent(nn.Module):
    """x ↦ x + tanh(xW): not affine in its parameters, so that its true K has to be looked at."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, dtype=torch.float64))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(x @ self.weight)


class Unfamiliar(nn.Module):
    """Affine in its parameters, but nobody knows that beforehand."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size, dtype=torch.float64))

    @override
    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def bent_network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Bent(6), Unfamiliar(6), nn.Tanh(), Bent(6), nn.Linear(6, 3).double())


class NormalizedTogether(nn.BatchNorm1d):
    """Normalizes by the samples of all processes, as SyncBatchNorm does, which torch has for accelerators only."""

    @override
    def forward(self, input: Tensor) -> Tensor:
        if not dist.is_initialized() or not self.training:
            return super().forward(input)
        count = input.shape[0] * dist.get_world_size()
        mean = all_reduce(input.sum(0)) / count
        variance = all_reduce((input - mean).square().sum(0)) / count
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            self.running_mean.lerp_(mean, 0.1)
            self.running_var.lerp_(variance * count / (count - 1), 0.1)
            self.num_batches_tracked += 1
        return (input - mean) / (variance + self.eps).sqrt() * self.weight + self.bias


def together_network() -> nn.Sequential:
    torch.manual_seed(0)
    # No bias before a normalization: its gradient is nothing but rounding errors, by which the metric would divide.
    first = [nn.Linear(6, 12, bias=False), NormalizedTogether(12), nn.Tanh()]
    return nn.Sequential(*first, nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def normalized_network() -> nn.Sequential:
    """With running statistics, and dropout."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.3), nn.Linear(12, 3)]
    return nn.Sequential(*layers).double()


class Checkpointed(Classes):
    """Computes its states again in the adjoint sweep."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        states = checkpoint(self.net[:2], x, use_reentrant=False)
        return nn.functional.cross_entropy(self.net[2:](states), y)


class Thawing(Classes):
    """Its first layer is frozen for eight steps."""

    def __init__(self) -> None:
        super().__init__()
        self.net[0].requires_grad_(False)

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.net[0].requires_grad_(self.trainer.global_step >= 8)


class Manual(Classes):
    """Steps by itself, in manual optimization.

    Args:
        network: What is trained.
        steps: How often, on every batch.
    """

    def __init__(self, network: nn.Module | None = None, steps: int = 1) -> None:
        super().__init__(network)
        self.automatic_optimization = False
        self.steps = steps

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        for _ in range(self.steps):
            self.optimizers().step(lambda: cross_entropy(self.net, *batch))


class ManualAtBatch(Manual):
    """The second process does something at its fourth batch.

    Args:
        what: What it does there, before the step.
        steps: How often it steps there.
    """

    def __init__(self, what: Callable[[Any], Any] | None = None, steps: int = 1) -> None:
        super().__init__()
        self.what, self.other_steps = what, steps

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        is_there = batch_idx == 3 and rank() == 1
        if is_there and self.what is not None:
            self.what(self)
        self.steps = self.other_steps if is_there else 1
        super().training_step(batch, batch_idx)


class ManualFailsInClosure(Manual):
    """Its second process raises where the loss is computed."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> None:
        fails = batch_idx == 3 and rank() == 1
        self.optimizers().step(lambda: fail(self) if fails else cross_entropy(self.net, *batch))


class InFull(Classes):
    """Leaves autocast, so that under a scaler nothing but the scaler is different."""

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        with torch.autocast("cpu", enabled=False):
            return super().training_step(batch, batch_idx)


class AtBatch(Classes):
    """Something happens at one batch of one process.

    Args:
        what: Called instead of the loss there.
        batch_idx: The batch.
        of_rank: The process.
        in_trial: Whether it happens in the trials instead of in the forward sweep.
    """

    def __init__(self, what: Callable[[Any], Any], batch_idx: int, of_rank: int, in_trial: bool = False) -> None:
        super().__init__()
        self.what, self.batch_idx, self.of_rank, self.in_trial = what, batch_idx, of_rank, in_trial

    @override
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if batch_idx == self.batch_idx and rank() == self.of_rank and torch.is_grad_enabled() != self.in_trial:
            return self.what(self)
        return cross_entropy(self.net, *batch)


def nothing(module: Any) -> None:
    """Leaves the batch out."""


def not_a_number(module: Any) -> Tensor:
    """A loss that is not finite."""
    return sum(p.sum() for p in module.parameters()) * float("nan")


def fail(module: Any) -> None:
    """As a bug would."""
    raise KeyError("only in one process")
