"""BSQHStrategy with sharded parameters: Lightning's ModelParallelStrategy, whose step is an iteration of ours (§5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_bsqh.namespace import (
    _PATH,
    BaseFinetuning,
    MisconfigurationException,
    ModelCheckpoint,
    ModelParallelStrategy,
    ParallelStrategy,
    TrainerFn,
    pl,
)
from lightning_bsqh.network.sharding import Sharding
from lightning_bsqh.processes.agreement import Agreement, Place
from lightning_bsqh.processes.reduction import ProcessReduction
from lightning_bsqh.processes.shard_reduction import ShardReduction
from lightning_bsqh.processes.shard_sweeps import ShardSweeps, reshard
from lightning_bsqh.processes.sweeps import SharedSweeps
from lightning_bsqh.strategy.configured import parameters_of
from lightning_bsqh.strategy.shard_checkpoints import (
    is_folder,
    load_folder,
    load_weights,
    save_folder,
    with_whole_tensors,
)
from lightning_bsqh.strategy.sweeps import loss_of
from lightning_bsqh.strategy.together import NoBatch, Together
from lightning_bsqh.sweeps.full_batch import FullBatchSweeps
from lightning_bsqh.trainer_access import averages_weights, callbacks_of


class _WithoutItsOptimizers(ModelParallelStrategy):
    """Lightning's strategy, but states of optimizers are saved and loaded as those of any strategy.

    Its own way would make a state that is still empty by a step with gradients of zero.
    """

    @property
    @override
    def lightning_restore_optimizer(self) -> bool:
        return True

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        return super(ModelParallelStrategy, self).optimizer_state(optimizer)

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super(ModelParallelStrategy, self).load_optimizer_state_dict(checkpoint)


class Sharded(Together, _WithoutItsOptimizers):
    """A process for each device, each with some rows of every parameter, as ``fully_shard`` cuts them."""

    _num_nodes = 1
    _layer_sync: Any
    _save_distributed_checkpoint: bool
    _trained: Sequence[bool] = ()
    # Within a step the others may wait for this process's rows, where nobody can be told anything.
    _is_stepping = False

    @property
    def num_nodes(self) -> int:
        """Number of machines."""
        return self._num_nodes

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        # ModelParallelStrategy has a plain attribute, what comes after it a property.
        self._num_nodes = num_nodes

    # ------------------------------------------------------------------ before the training

    @override
    def setup_environment(self) -> None:
        module = self.lightning_module
        assert module is not None
        if module.trainer.state.fn == TrainerFn.FITTING:
            # Before a callback copies the module.
            self._refuse(module.trainer)
        super().setup_environment()

    @override
    def _share(self, optimizer: Any) -> ProcessReduction:
        reduction = ShardReduction(Agreement(self.root_device))
        self._refuse_optimizer(optimizer)
        sharding = Sharding(optimizer.named_parameters())
        weights = [p for layer in optimizer.layers for n, p in layer.parameters.items() if n in layer.regularized]
        # Says now if it cannot.
        optimizer.regularizer.on_shards(sharding.shards(weights))
        optimizer.share(reduction, sharding)
        assert self.lightning_module is not None
        self._trained = [p.requires_grad for p in self.lightning_module.parameters()]
        return reduction

    @override
    def _joined(self, *args: Any, **kwargs: Any) -> SharedSweeps:
        assert self.lightning_module is not None
        return ShardSweeps(self.lightning_module, *args, **kwargs)

    @override
    def _reason_to_refuse(self, trainer: pl.Trainer) -> str | None:
        callbacks = callbacks_of(trainer)
        if any(map(averages_weights, callbacks)):
            return "shard='fsdp' and WeightAveraging, which copies the module: leave one of them out"
        files = [c for c in callbacks if isinstance(c, ModelCheckpoint) and c.FILE_EXTENSION != ".ckpt"]
        if files and self._save_distributed_checkpoint:
            return f"shard='fsdp' and {files[0].FILE_EXTENSION} files: add save_distributed_checkpoint=False"
        if any(isinstance(c, BaseFinetuning) for c in callbacks):
            return "shard='fsdp' and a callback that unfreezes later: freeze in configure_model, or leave shard out"
        if self._layer_sync is not None:
            return "shard='fsdp' and sync_batchnorm: call SyncBatchNorm.convert_sync_batchnorm in configure_model"
        return super()._reason_to_refuse(trainer)

    def _refuse_optimizer(self, optimizer: Any) -> None:
        """What an iteration on some rows cannot do."""
        reason = None
        bent = [layer.name for layer in optimizer.layers if layer.can_be_run and not layer.is_affine]
        if optimizer.sweep == "gauss-seidel":
            reason = "sweep='gauss-seidel': use sweep='jacobi'"
        elif bent:
            reason = (
                f"layers that may not be affine in their parameters and would have to be run alone ({', '.join(bent)}):"
                " put torch.nn's own layers in their place, freeze them"
            )
        if reason is not None:
            raise MisconfigurationException(f"shard='fsdp' does not go with {reason}, or leave shard out.")

    # ------------------------------------------------------------------ one batch

    @override
    def _runs(self, batch: Any) -> bool:
        assert self._reduction is not None
        # A forward gathers parameters, so all run it or none.
        return not self._reduction.agreement.sums(Place.PART, [float(isinstance(batch, NoBatch))])[0]

    @override
    def _sweeps_now(self) -> Any:
        sweeps = super()._sweeps_now()
        if isinstance(sweeps, FullBatchSweeps):
            sweeps.go_along()
        return sweeps

    @override
    def _part(self, sweeps: Any, *args: Any, **kwargs: Any) -> Any:
        assert self._reduction is not None
        # Whoever has failed before the forward says so here.
        self._runs(next(iter((*args, *kwargs.values()))))
        output = self._own_step(*args, **kwargs)
        reduction = self._reduction
        # A backward gathers parameters, so every micro-batch has one in all processes or in none.
        reduction.begin(loss_of(output), max(sweeps.part_samples, 1))
        sweeps.share_part(None if reduction.is_left_out else (reduction.loss, reduction.samples), reduction.factor)
        return None if reduction.is_left_out else output

    @override
    def _factor(self) -> float:
        assert self._reduction is not None
        return self._reduction.factor

    @override
    def _own_step(self, *args: Any, **kwargs: Any) -> Any:
        module = self.lightning_module
        assert module is not None
        # After a validation, or a batch that was left out.
        reshard(module)
        if self._trained != [p.requires_grad for p in module.parameters()]:
            raise MisconfigurationException(
                "A parameter was frozen or unfrozen within the training, of which fully_shard takes no notice: freeze"
                " in configure_model, or leave shard='fsdp' out."
            )
        before, self._is_stepping = self._is_stepping, True
        output = super()._own_step(*args, **kwargs)
        self._is_stepping = before
        return output

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> Any:
        self._is_stepping = True
        loss = super().optimizer_step(*args, **kwargs)
        self._is_stepping = False
        return loss

    @override
    def _let_others_know(self, error: BaseException) -> BaseException:
        return error if self._is_stepping else super()._let_others_know(error)

    # ------------------------------------------------------------------ checkpoints

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        state = super().optimizer_state(optimizer)
        return state if self._save_distributed_checkpoint else with_whole_tensors(state)

    @override
    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: _PATH, storage_options: Any | None = None) -> None:
        path = Path(self.broadcast(filepath))
        if not self._save_distributed_checkpoint:
            # One file, by the first process.
            super(ParallelStrategy, self).save_checkpoint(checkpoint, path, storage_options)
        elif storage_options is None:
            save_folder(checkpoint, path)
        else:
            raise TypeError("storage_options cannot be used with save_distributed_checkpoint=True: set it to False.")

    @override
    def load_checkpoint(self, checkpoint_path: _PATH, *args: Any, **kwargs: Any) -> dict[str, Any]:
        path = Path(self.broadcast(checkpoint_path))
        assert self.lightning_module is not None
        if not is_folder(path):
            found: dict[str, Any] = super(ParallelStrategy, self).load_checkpoint(path, *args, **kwargs)
            return found
        parameters: list[list[Tensor]] = [parameters_of(optimizer) for optimizer in self.optimizers]
        # Since Lightning 2.6.
        weights_only = args[0] if args else kwargs.get("weights_only")
        loaded: dict[str, Any] = load_folder(path, self.lightning_module, parameters, weights_only)
        return loaded

    @override
    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        load_weights(self.lightning_module, dict(checkpoint["state_dict"]), strict)

    # ------------------------------------------------------------------ afterward

    @override
    def teardown(self) -> None:
        self._is_stepping = False
        # ModelParallelStrategy leaves out what comes after it.
        put_back: Any = self
        put_back.put_back()
        super().teardown()
