"""BSQHStrategy: Lightning on one side, one bSQH iteration per batch on the other (method §7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.namespace import (
    NAME,
    OTHER,
    Accelerator,
    CheckpointIO,
    ModelSummary,
    Precision,
    TrainerFn,
    is_overridden,
    pl,
    rank_zero_info,
)
from lightning_bsqh.network.layers import LayerChoice, find_layers
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.options import BSQHOptions
from lightning_bsqh.regularizers import Regularizer
from lightning_bsqh.strategy.averaging import keep_zeros
from lightning_bsqh.strategy.checkpoints import Resumption, extra_state, with_whole_files
from lightning_bsqh.strategy.configured import choose_optimizer, parameters_of, read_configured
from lightning_bsqh.strategy.devices import DevicesStrategy
from lightning_bsqh.strategy.length import TrainingLength
from lightning_bsqh.strategy.notices import Notices
from lightning_bsqh.strategy.one_rate import hide_one_rate, show_one_rate, stand_in
from lightning_bsqh.strategy.passes import Passes
from lightning_bsqh.strategy.process_options import ProcessOptions
from lightning_bsqh.strategy.progress import ProgressMetrics, layer_summary
from lightning_bsqh.strategy.refusals import put_clipping_aside, refuse_callbacks, refuse_module, refuse_sharded
from lightning_bsqh.strategy.registration import WAY_OUT, register
from lightning_bsqh.strategy.uses import counting_uses
from lightning_bsqh.trainer_access import callbacks_of, is_within_batch, trainer_of


class BSQHStrategy(DevicesStrategy):
    """Trains any LightningModule that returns a loss by the bSQH method instead of by its own optimizer.

    ``Trainer(strategy=BSQHStrategy())`` or ``Trainer(strategy="bsqh")``, on the device or the devices that the
    Trainer chooses, with a process for each as DDPStrategy has it. The training step is ours: one forward and adjoint
    sweep through Lightning's closure, then trial sweeps that leave no trace. Around it Lightning's loop of automatic
    optimization stays in charge, so that hooks, logging, checkpoints and counters are those of an ordinary training.

    Args:
        regularizer: R with its factor, such as ``L0(rho=1e-5)``; or several by name patterns, see
            :class:`~lightning_bsqh.BSQHOptimizer`. None takes ``Cardinality()``.
        augmentation: The rule for ε. None takes ``Curvature()``.
        epsilon: Start of the default rule; not together with ``augmentation``.
        metric: ``"rms"`` or ``"euclidean"``.
        averaging: The share of recent batches in the gradient of a step; None takes 0.8 with ``"rms"``, else 0.
        eta: η ≥ 0 of the acceptance test.
        max_trials: Largest number of trial sweeps per batch.
        trial_every: 1 tests every step by a trial sweep; ``"auto"`` or a larger integer tests more rarely in calm.
        decide: ``"device"`` decides on the device, with one trial per batch, so that the host does not wait.
        regularize: Name patterns of what R acts on; None takes all weights. Not with a ``regularizer`` by patterns.
        total_steps: Length of the training in iterations. None asks the Trainer.
        layers: Which modules are the layers: ``"leaf"``, every module with parameters of its own; name patterns
            such as ``["network.block*"]``; or a predicate of name and module.
        sweep: ``"jacobi"`` or ``"gauss-seidel"``.
        batch_mode: ``"mini"``, one iteration per batch, or ``"full"``, one iteration per epoch on the whole data,
            whose batches are micro-batches then (method §5). The batches of one epoch are held in memory.
        kappa: Full-batch mode: stop when an accepted τ is less than this κ ≥ 0.
        max_iterations: Full-batch mode: stop after so many iterations; also ``total_steps``, if that is None. None
            leaves it to the Trainer's ``max_epochs``.
        count_samples: Full-batch mode: a function that tells the number of samples in a batch, by which its loss is
            weighted. None takes the first dimension of its first tensor.
        reuse: Full-batch mode: whether a sweep that is known is used again where data and module are the same. Turn
            it off if training_step depends on something that neither shows, such as ``self.current_epoch``.
        on_stall: What happens when 20 batches in a row were skipped or rejected: ``"warn"`` or ``"raise"``.
        find_unused_parameters: Several processes: as for DDPStrategy.
        static_graph: As for DDPStrategy.
        broadcast_buffers: Whether all processes take the buffers (BatchNorm statistics) of the first after a step.
        process_group_backend: As for DDPStrategy. None takes ``"nccl"`` on CUDA and ``"gloo"`` on a CPU.
        timeout: How long a process waits for the others. None takes torch's half an hour.
        start_method: How the Trainer starts processes. None takes ``"fork"`` in a notebook and ``"popen"`` elsewhere.
        weigh_batch: Several processes: a function that tells the number of samples in a batch, by which the loss of a
            process is weighted. None takes the first dimension of its first tensor; ``"full"`` asks ``count_samples``.
        shard: ``"fsdp"`` for parameters of which every process holds some rows, as ``fully_shard`` cuts them in
            ``configure_model``; the strategy is a ModelParallelStrategy then. None for whole ones.
        save_distributed_checkpoint: With ``shard``: whether a checkpoint is a folder with every process's own rows, or
            one file, as without ``shard``.
        accelerator: As for any strategy.
        checkpoint_io: As for any strategy.
        precision_plugin: As for any strategy.

    Raises:
        TypeError: If an option has the wrong type.
        ValueError: If an option is out of its range.
    """

    strategy_name = "bsqh"

    def __init__(
        self,
        regularizer: Regularizer | Mapping[str, Regularizer] | None = None,
        augmentation: Augmentation | None = None,
        epsilon: float | None = None,
        metric: str = "rms",
        averaging: float | None = None,
        eta: float = 1e-4,
        max_trials: int = 6,
        trial_every: int | str = 1,
        decide: str = "host",
        regularize: Sequence[str] | None = None,
        total_steps: int | None = None,
        layers: LayerChoice = "leaf",
        sweep: str = "jacobi",
        batch_mode: str = "mini",
        kappa: float = 1e-9,
        max_iterations: int | None = None,
        count_samples: Callable[[Any], int] | None = None,
        reuse: bool = True,
        on_stall: str = "warn",
        find_unused_parameters: bool = False,
        static_graph: bool = False,
        broadcast_buffers: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = None,
        start_method: str | None = None,
        weigh_batch: Callable[[Any], int] | None = None,
        shard: str | None = None,
        save_distributed_checkpoint: bool = True,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)
        self._options = BSQHOptions.among(locals())
        self._process_options = ProcessOptions.among(locals())
        self._always_several = shard is not None
        self._passes: Passes | None = None
        self._has_own_configure_optimizers = True
        self._clipping: int | float | None = None
        self._resumption = Resumption()
        self._length: TrainingLength | None = None
        self._notices: Notices | None = None
        self._progress: ProgressMetrics | None = None

    # ------------------------------------------------------------------ before the training

    @override
    def connect(self, model: pl.LightningModule) -> None:
        super().connect(model)
        # Only now: with one of ours from the start a Trainer would refuse one of the user's.
        self.checkpoint_io = with_whole_files(self.checkpoint_io)
        trainer = trainer_of(model)
        if trainer is None or trainer.state.fn != TrainerFn.FITTING:
            return
        refuse_module(model, str(self.precision_plugin.precision), self._options.batch_mode)
        self._has_own_configure_optimizers = is_overridden("configure_optimizers", model)
        if not self._has_own_configure_optimizers:
            # The Trainer refuses a module without one before the strategy is set up; taken back in teardown.
            model.configure_optimizers = _no_optimizer  # type: ignore[method-assign]
        self._clipping = put_clipping_aside(trainer)

    @override
    def setup_environment(self) -> None:
        # Only now are those of the module's configure_callbacks among the Trainer's; nothing is set up yet.
        trainer = self._trainer
        if trainer.state.fn == TrainerFn.FITTING:
            refuse_callbacks(trainer)
        super().setup_environment()

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        module = self.lightning_module
        assert module is not None
        configured = read_configured(module.configure_optimizers(), type(module).__name__)
        optimizer = choose_optimizer(
            configured, type(module).__name__, partial(self._make_optimizer, module), not self._options.are_default
        )
        refuse_sharded(optimizer.is_sharded, self._process_options.shard)
        self.optimizers = [optimizer]
        rate = show_one_rate(optimizer)
        self.lr_scheduler_configs = [stand_in(scheduler, rate) for scheduler in configured.schedulers]
        self._length = TrainingLength(trainer, optimizer)
        self._notices = Notices(trainer, module, optimizer)
        self._detach_progress()
        self._progress = ProgressMetrics(trainer, optimizer)
        if any(isinstance(c, ModelSummary) for c in callbacks_of(trainer)):
            if optimizer.total_steps is None:
                # Number of batches and length are asked for later, but the summary should tell what will be used.
                optimizer.expect_length(trainer.max_steps != -1 or trainer.max_epochs not in (None, -1))
            rank_zero_info("\n" + layer_summary(optimizer))
        self._passes = Passes(module, optimizer, self.precision_plugin)

    def _make_optimizer(self, module: pl.LightningModule, given: torch.optim.Optimizer | None) -> BSQHOptimizer:
        layers = find_layers(module, self._options.regularize, self._options.layers)
        if given is not None:
            # A module that hands only part of its parameters to its optimizer wants only these trained.
            wanted = {id(p) for p in parameters_of(given)}
            for layer in layers:
                layer.waiting = {name for name, p in layer.parameters.items() if id(p) not in wanted}
        return BSQHOptimizer(layers, **self._options.for_found_layers())

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        assert self._length is not None
        assert self.lightning_module is not None
        self._resumption.at_start(self.lightning_module, self._optimizer, callbacks_of(self._trainer))
        # Asked only now: the Trainer would otherwise start the data loader, which draws random numbers, before a
        # checkpoint's generators are restored.
        self._length.begin()
        keep_zeros(self._trainer, self.lightning_module, self._optimizer)
        if self._notices is not None:
            self._notices.at_start()
        # A training that had finished is resumed.
        self._trainer.should_stop = self._trainer.should_stop or self._optimizer.finished

    @override
    def on_train_end(self) -> None:
        super().on_train_end()
        if self._notices is not None:
            self._notices.at_end()
        if self._passes is not None:
            self._passes.at_end()

    # ------------------------------------------------------------------ one batch

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The forward sweep: the user's training_step, once, as Lightning's closure calls it."""
        assert self._passes is not None
        assert self._length is not None
        self._length.follow()
        self._resumption.before_batch(self._trainer.fit_loop.batch_idx)
        step: Callable[[], Any] = partial(super().training_step, *args, **kwargs)
        if self._optimizer.regularizer.needs_costs:
            step = counting_uses(step, self._trainer.lightning_module, self._optimizer, self.broadcast)
        return self._passes.forward((*args, *kwargs.values()), step)

    @override
    def optimizer_step(
        self,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Any],
        model: pl.LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Tensor | None:
        """The iteration: Lightning's closure does the forward and adjoint sweep, once, with all hooks."""
        assert self._passes is not None
        assert self._notices is not None
        self._notices.before_step()
        again = self._resumption.has_done_batch(self._optimizer.iterations, self._trainer.global_step)
        step = partial(super().optimizer_step, optimizer, model=model, **kwargs)
        loss: Tensor | None = self._passes.step(step, closure, is_done=again)
        self._notices.after_step(self._trainer.is_last_batch)
        if self._optimizer.finished:
            self._trainer.should_stop = True
        return loss

    @override
    def backward(
        self, closure_loss: Tensor, optimizer: torch.optim.Optimizer | None, *args: Any, **kwargs: Any
    ) -> Tensor:
        """As in any strategy; the gradients are looked at before a hook can change them."""
        assert self.lightning_module is not None
        assert self._passes is not None
        closure_loss = self._passes.before_backward(closure_loss)
        self.pre_backward(closure_loss)
        closure_loss = self.precision_plugin.pre_backward(closure_loss, self.lightning_module)
        self.precision_plugin.backward(closure_loss, self.lightning_module, optimizer, *args, **kwargs)
        self._passes.after_backward()
        if self._notices is not None and self._passes.shows_gradients:
            self._notices.after_backward()
        closure_loss = self.precision_plugin.post_backward(closure_loss, self.lightning_module)
        self.post_backward(closure_loss)
        return closure_loss

    # ------------------------------------------------------------------ checkpoints

    @property
    def _trainer(self) -> pl.Trainer:
        module = self.lightning_module
        assert module is not None
        return module.trainer

    @property
    def _optimizer(self) -> BSQHOptimizer:
        optimizer = self.optimizers[0]
        assert isinstance(optimizer, BSQHOptimizer)
        return optimizer

    @override
    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The optimizer's state, and that of the generators, so that a resumed run draws the same dropout masks."""
        extra = extra_state(self.root_device, self._optimizer, is_within_batch(self._trainer))
        return {**super().optimizer_state(optimizer), **extra}

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": self._resumption.take(checkpoint)})
        self._resumption.loaded()

    # ------------------------------------------------------------------ afterward

    @override
    def teardown(self) -> None:
        self.put_back()
        super().teardown()

    def put_back(self) -> None:
        """Leaves module, Trainer and optimizer as they were before the training."""
        module = self.lightning_module
        if module is not None and not self._has_own_configure_optimizers:
            vars(module).pop("configure_optimizers", None)
            self._has_own_configure_optimizers = True
        if self._clipping is not None:
            self._trainer.gradient_clip_val, self._clipping = self._clipping, None
        for optimizer in self.optimizers:
            hide_one_rate(optimizer)
        self._passes, self._length = None, None
        self._notices = None
        self._resumption = Resumption()
        self._detach_progress()

    def _detach_progress(self) -> None:
        if self._progress is not None:
            self._progress.detach()
        self._progress = None

    def __repr__(self) -> str:
        # A Trainer of the other name refuses it with nothing but this in its message.
        return f"<{type(self).__name__} for a Trainer of {NAME}; for one of {OTHER}: {WAY_OUT}>"

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        strategy_registry.register(cls.strategy_name, cls, description="Batch sequential quadratic Hamiltonian method")


def _no_optimizer() -> None:
    """Stands in for a missing configure_optimizers."""
    return None


register(BSQHStrategy, BSQHStrategy.strategy_name)
