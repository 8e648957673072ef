"""What BSQHStrategies with several processes have in common: these take the same iterations (method §5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.namespace import (
    MisconfigurationException,
    ParallelStrategy,
    SIGTERMException,
    pl,
    rank_zero_warn,
)
from lightning_bsqh.processes.agreement import Agreement, Place
from lightning_bsqh.processes.reduction import ProcessReduction
from lightning_bsqh.processes.sweeps import SharedSweeps
from lightning_bsqh.processes.tensors import of_first_
from lightning_bsqh.strategy.configured import parameters_of
from lightning_bsqh.strategy.manual import ManualSweeps
from lightning_bsqh.strategy.sweeps import LightningSweeps, loss_of
from lightning_bsqh.trainer_access import is_between_batches


class NoBatch:
    """Stands for the batch of a process whose data loader gave None, so that it goes on with the others."""

    def __repr__(self) -> str:
        return "NoBatch()"


class Together(ParallelStrategy):
    """What a strategy of Lightning's for several processes needs besides, to let them all take the same iterations.

    In front of that strategy, and that in front of a BSQHStrategy, see
    :func:`~lightning_bsqh.strategy.becoming.become_several`.
    """

    _process_options: Any
    _passes: Any
    _reduction: ProcessReduction | None = None
    _has_begun = False
    # Where the others wait in a collective of torch's, such as DistributedDataParallel's, nobody can be told anything.
    _cannot_tell = False

    # ------------------------------------------------------------------ before the training

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        self._refuse(trainer)
        super().setup_optimizers(trainer)
        self._reduction = self._share(self.optimizers[0])
        parameters = partial(parameters_of, self.optimizers[0])
        self._passes.joined = partial(self._joined, reduction=self._reduction, parameters=parameters)
        if isinstance(self._passes.sweeps, ManualSweeps):
            self._passes.sweeps.tell = self._begin

    def _share(self, optimizer: Any) -> ProcessReduction:
        """Lets an optimizer take its decisions together with those of the other processes."""
        reduction = ProcessReduction(Agreement(self.root_device))
        optimizer.share(reduction)
        return reduction

    def _joined(self, *args: Any, **kwargs: Any) -> SharedSweeps:
        """The sweeps of all processes, from this one's."""
        return SharedSweeps(*args, **kwargs)

    def _refuse(self, trainer: pl.Trainer) -> None:
        """What has no meaning yet for several processes, before anything is set up for it."""
        reason = self._reason_to_refuse(trainer)
        if reason is not None:
            raise MisconfigurationException(f"BSQHStrategy with several processes does not go with {reason}.")

    def _reason_to_refuse(self, trainer: pl.Trainer) -> str | None:
        return None

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        assert self.lightning_module is not None
        self._has_begun = True
        counts: list[Any] = [None] * self.world_size
        dist.all_gather_object(counts, self.lightning_module.trainer.num_training_batches)
        if len(set(counts)) > 1:
            raise MisconfigurationException(
                f"The processes have different numbers of batches, {counts}: the first to be through would leave the"
                " others waiting. Let Lightning distribute the data (use_distributed_sampler=True), give every process"
                " as many, or limit_train_batches=N."
            )

    # ------------------------------------------------------------------ one batch

    @override
    def batch_to_device(self, batch: Any, device: torch.device | None = None, dataloader_idx: int = 0) -> Any:
        moved = super().batch_to_device(batch, device, dataloader_idx)
        if batch is None and self._has_begun and _trains(self.lightning_module):
            if not isinstance(self._passes.sweeps, LightningSweeps):
                raise ValueError(
                    "The data loader of one process gave None within a pass, which batch_mode='full' needs whole."
                )
            # Lightning would leave this batch out in this process alone.
            return NoBatch()
        return moved

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        assert self._reduction is not None
        sweeps = self._sweeps_now()
        if isinstance(sweeps, ManualSweeps):
            return self._manual_step(*args, **kwargs)
        if not isinstance(sweeps, LightningSweeps):
            # All batches of a window but the last come without a step of the optimizer.
            with self._failing_together():
                output = self._part(sweeps, *args, **kwargs)
            return self._no_loss() if output is None else output
        batch = next(iter((*args, *kwargs.values())))
        output = self._own_step(*args, **kwargs) if self._runs(batch) else None
        self._begin(loss_of(output) if sweeps.can_step else None, batch)
        return self._no_loss() if self._reduction.is_left_out else output

    def _part(self, sweeps: Any, *args: Any, **kwargs: Any) -> Any:
        """The forward sweep of a micro-batch; None if there is no loss."""
        assert self._reduction is not None
        output = self._own_step(*args, **kwargs)
        # Lightning's own loop exchanges something before the next micro-batch, so failures have to be known by now.
        self._reduction.agreement.sums(Place.PART, [])
        return output

    def _sweeps_now(self) -> Any:
        """The sweeps that the next forward sweep belongs to."""
        return self._passes.sweeps_now()

    def _begin(self, loss: Tensor | None, batch: Any) -> None:
        """Says what this process has of a batch: a loss, or none."""
        assert self._reduction is not None
        self._reduction.begin(loss, 1 if loss is None else self._process_options.samples(batch))

    def _manual_step(self, *args: Any, **kwargs: Any) -> Any:
        """A training_step that steps by itself; nobody knows how often."""
        assert self._reduction is not None
        batch = next(iter((*args, *kwargs.values())))
        if self._reduction.agreement.sums(Place.PART, [float(isinstance(batch, NoBatch))])[0]:
            return None
        with self._failing_together():
            output = self._own_step(*args, **kwargs)
        # Whoever steps once more than the others finds them here.
        self._reduction.agreement.sums(Place.PART, [])
        return output

    def _runs(self, batch: Any) -> bool:
        """Whether this process runs the forward sweep of a batch."""
        return not isinstance(batch, NoBatch)

    def _own_step(self, *args: Any, **kwargs: Any) -> Any:
        """The forward sweep of this process's samples."""
        return super().training_step(*args, **kwargs)

    def _no_loss(self) -> Tensor:
        """Depends on nothing. Lightning refuses None where there are several processes, as they might not agree."""
        return torch.full((), float("nan"), device=self.root_device, requires_grad=True)

    @override
    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        factor = self._factor()
        self._cannot_tell = True
        # torch takes the mean of the gradients over processes, this makes it the mean over samples.
        loss = super().backward(closure_loss if factor == 1.0 else closure_loss * factor, *args, **kwargs)
        self._cannot_tell = False
        return loss

    def _factor(self) -> float:
        """By what this process multiplies its loss; a pass does so with its gradients, when it is through."""
        assert self._reduction is not None
        return self._reduction.factor if isinstance(self._passes.sweeps, LightningSweeps) else 1.0

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        with self._failing_together():
            loss = super().optimizer_step(*args, **kwargs)
        if self._process_options.broadcast_buffers:
            self._share_buffers()
        return loss

    def _share_buffers(self) -> None:
        assert self.lightning_module is not None
        of_first_([b for b in self.lightning_module.buffers() if b.numel()])

    @contextmanager
    def _failing_together(self) -> Iterator[None]:
        """Within, an error of this process ends the others, too."""
        try:
            yield
        except BaseException as error:
            first = self._let_others_know(error)
            if first is error:
                raise
            raise first from error

    def _let_others_know(self, error: BaseException) -> BaseException:
        """What to raise; afterward no other process waits for this one."""
        if self._reduction is None or self._reduction.agreement.is_over or self._cannot_tell:
            return error
        return self._reduction.agreement.fail(error)

    @override
    def on_exception(self, exception: BaseException) -> None:
        super().on_exception(exception)
        if self._has_begun and not isinstance(exception, SIGTERMException) and _fetches(self.lightning_module):
            # The others are on their way to the next sum.
            self._let_others_know(exception)

    # ------------------------------------------------------------------ checkpoints

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state = super().optimizer_state(optimizer)
        randoms: list[Any] = [None] * self.world_size
        dist.all_gather_object(randoms, state["random"])
        return {**state, "random": randoms[0], "random_of_processes": randoms}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [dict(state) for state in checkpoint["optimizer_states"]]
        if states and (own := states[0].get("random")) is not None:
            randoms = states[0].get("random_of_processes", [own])
            states[0]["random"] = randoms[self.global_rank] if self.global_rank < len(randoms) else None
            if len(randoms) != self.world_size:
                rank_zero_warn(
                    f"The checkpoint is of {len(randoms)} process(es), now there are {self.world_size}: what is drawn"
                    " at random (dropout masks, say) differs from what it would have been."
                )
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})

    # ------------------------------------------------------------------ afterward

    @override
    def teardown(self) -> None:
        self._reduction = None
        self._has_begun = self._cannot_tell = False
        super().teardown()


def _trains(module: pl.LightningModule | None) -> bool:
    return module is not None and module.trainer.training


def _fetches(module: pl.LightningModule | None) -> bool:
    """Whether the training is between two batches."""
    if not _trains(module):
        return False
    assert module is not None
    return is_between_batches(module.trainer)
