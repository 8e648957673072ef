"""BSQHStrategy: Lightning on one side, one bSQH iteration per batch on the other (method §7)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    ModelSummary,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins import CheckpointIO, Precision
from lightning.pytorch.strategies import SingleDeviceStrategy, StrategyRegistry
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from lightning_bsqh.method.augmentation import Augmentation
from lightning_bsqh.network.layers import find_layers
from lightning_bsqh.network.random_state import RandomState
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.options import BSQHOptions
from lightning_bsqh.regularizers import Regularizer
from lightning_bsqh.strategy.full_batch import LightningFullBatch
from lightning_bsqh.strategy.progress import ProgressMetrics, layer_summary
from lightning_bsqh.strategy.sweeps import LightningSweeps, loss_of
from lightning_bsqh.sweeps.base import check_loss
from lightning_bsqh.trainer_access import callbacks_of


class BSQHStrategy(SingleDeviceStrategy):
    """Trains any LightningModule that returns a loss by the bSQH method instead of by its own optimizer.

    ``Trainer(strategy=BSQHStrategy())`` or ``Trainer(strategy="bsqh")``, on the one device that the
    Trainer chooses. The training step is ours: one forward and adjoint sweep through Lightning's closure,
    then trial sweeps that leave no trace. Around it Lightning's loop of automatic optimisation stays in
    charge and not the manual one, which counts steps elsewhere (``global_step`` would read 0 once the
    module is put back) and saves checkpoints by other rules; so hooks, logging, checkpoints and counters
    are those of an ordinary training, and the module is left as it is.

    Args:
        regularizer: R with its factor, such as ``L0(rho=1e-5)``; or several by name patterns, see
            :class:`~lightning_bsqh.BSQHOptimizer`. None takes ``Cardinality()``.
        augmentation: The rule for ε. None takes ``Curvature()``.
        epsilon: Start of the default rule; not together with ``augmentation``.
        metric: ``"rms"`` or ``"euclidean"``.
        eta: η ≥ 0 of the acceptance test.
        max_trials: Largest number of trial sweeps per batch.
        regularize: Name patterns of the layers and parameters that R acts on; None takes all weights. Not together
            with a ``regularizer`` by patterns.
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
        eta: float = 1e-4,
        max_trials: int = 6,
        regularize: Sequence[str] | None = None,
        total_steps: int | None = None,
        layers: str | Sequence[str] | Callable[[str, nn.Module], bool] = "leaf",
        sweep: str = "jacobi",
        batch_mode: str = "mini",
        kappa: float = 1e-9,
        max_iterations: int | None = None,
        count_samples: Callable[[Any], int] | None = None,
        reuse: bool = True,
        accelerator: Accelerator | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
    ) -> None:
        super().__init__(accelerator=accelerator, checkpoint_io=checkpoint_io, precision_plugin=precision_plugin)
        self._options = BSQHOptions(
            regularizer=regularizer,
            augmentation=augmentation,
            epsilon=epsilon,
            metric=metric,
            eta=eta,
            max_trials=max_trials,
            regularize=regularize,
            total_steps=total_steps,
            layers=layers,
            sweep=sweep,
            batch_mode=batch_mode,
            kappa=kappa,
            max_iterations=max_iterations,
            count_samples=count_samples,
            reuse=reuse,
        )
        self._sweeps: LightningSweeps | LightningFullBatch | None = None
        self._has_own_configure_optimizers = True
        self._resumed_random: RandomState | None = None
        self._progress: ProgressMetrics | None = None

    # ------------------------------------------------------------------ devices

    @property
    def parallel_devices(self) -> list[torch.device]:
        """Empty, so that every Trainer hands over its own device; Lightning sets it."""
        return []

    @parallel_devices.setter
    def parallel_devices(self, devices: Sequence[torch.device] | None) -> None:
        devices = list(devices or [])
        if len(devices) > 1:
            raise MisconfigurationException(
                f"BSQHStrategy runs on one device in this version, the Trainer was given {len(devices)}:"
                " pass Trainer(devices=1)."
            )
        if devices:
            self._root_device = torch.device(devices[0])

    @property
    def num_nodes(self) -> int:
        """Number of machines, always 1 in this version."""
        return 1

    @num_nodes.setter
    def num_nodes(self, num_nodes: int) -> None:
        if num_nodes != 1:
            raise MisconfigurationException(
                f"BSQHStrategy runs on one machine in this version, got num_nodes={num_nodes}:"
                " pass Trainer(num_nodes=1)."
            )

    # ------------------------------------------------------------------ before the training

    @override
    def connect(self, model: pl.LightningModule) -> None:
        super().connect(model)
        if model.trainer.state.fn != TrainerFn.FITTING:
            return
        self._refuse_what_cannot_work(model)
        self._has_own_configure_optimizers = is_overridden("configure_optimizers", model)
        if not self._has_own_configure_optimizers:
            # The Trainer refuses a module without one before the strategy is set up; taken back in teardown.
            model.configure_optimizers = _no_optimizer  # type: ignore[method-assign]

    def _refuse_what_cannot_work(self, model: pl.LightningModule) -> None:
        trainer = model.trainer
        if not model.automatic_optimization:
            raise MisconfigurationException(
                f"{type(model).__name__} uses manual optimization (automatic_optimization=False), where the module"
                " itself steps its optimizers; BSQHStrategy needs a training_step that returns the loss."
            )
        if trainer.gradient_clip_val:
            raise MisconfigurationException(
                f"gradient_clip_val={trainer.gradient_clip_val} cannot be used with BSQHStrategy: a clipped gradient is"
                " not the adjoint state's, and ε already bounds the step. Remove it from the Trainer."
            )
        if trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"accumulate_grad_batches={trainer.accumulate_grad_batches} cannot be used with BSQHStrategy: an"
                " iteration needs forward, adjoint and trials on the same batch. Use larger batches instead."
            )
        if is_overridden("configure_gradient_clipping", model):
            raise MisconfigurationException(
                f"{type(model).__name__} overrides configure_gradient_clipping, which cannot be used with BSQHStrategy:"
                " a clipped gradient is not the adjoint state's, and ε already bounds the step. Remove it."
            )
        if self.precision_plugin.precision in ("16-mixed", "16-true", "bf16-true"):
            raise MisconfigurationException(
                f"precision={self.precision_plugin.precision!r} cannot be used with BSQHStrategy: in half precision the"
                " weights or the change of the loss over a step are rounded away."
                " Use 'bf16-mixed', '32-true' or '64-true'."
            )
        if "dataloader_iter" in inspect.signature(model.training_step).parameters:
            raise MisconfigurationException(
                "A training_step that takes dataloader_iter cannot be used with BSQHStrategy: a trial must see the same"
                " batch again. Take (batch, batch_idx) instead."
            )

    def _refuse_callbacks(self, trainer: pl.Trainer) -> None:
        refused = {
            StochasticWeightAveraging: "averaged weights have no exact zeros",
            WeightAveraging: "averaged weights have no exact zeros",
            GradientAccumulationScheduler: "an iteration needs forward, adjoint and trials on the same batch",
        }
        for callback in callbacks_of(trainer):
            for kind, reason in refused.items():
                if isinstance(callback, kind):
                    raise MisconfigurationException(
                        f"The callback {type(callback).__name__} cannot be used with BSQHStrategy: {reason}. Remove it."
                    )

    @override
    def setup_optimizers(self, trainer: pl.Trainer) -> None:
        # Only now are those of the module's configure_callbacks among the Trainer's.
        self._refuse_callbacks(trainer)
        module = self.lightning_module
        assert module is not None
        configured = module.configure_optimizers()
        optimizers, schedulers = _members(configured)
        if len(optimizers) > 1:
            raise MisconfigurationException(
                f"configure_optimizers of {type(module).__name__} returned {len(optimizers)} optimizers"
                f" ({', '.join(type(o).__name__ for o in optimizers)}); BSQHStrategy trains all parameters with one"
                " loss. Return one of them, or None."
            )
        if optimizers and isinstance(optimizers[0], BSQHOptimizer):
            optimizer = optimizers[0]
            if schedulers:
                rank_zero_warn(f"{_names(schedulers)} from configure_optimizers is ignored: ε has its own schedule.")
            if not self._options.are_default:
                rank_zero_warn(
                    "The options of BSQHStrategy are ignored: configure_optimizers returned a BSQHOptimizer with its"
                    " own."
                )
        else:
            optimizer = self._make_optimizer(module, optimizers)
            if optimizers:
                rank_zero_warn(
                    f"{_names([*optimizers, *schedulers])} from configure_optimizers is ignored:"
                    " BSQHStrategy trains the same parameters by the bSQH method."
                )
        self.optimizers = [optimizer]
        self.lr_scheduler_configs = []
        self._detach_progress()
        self._progress = ProgressMetrics(trainer, optimizer)
        if any(isinstance(c, ModelSummary) for c in callbacks_of(trainer)):
            if optimizer.total_steps is None:
                # Number of batches and length are asked for later, but the summary should tell what will be used.
                optimizer.expect_length(trainer.max_steps != -1 or trainer.max_epochs not in (None, -1))
            rank_zero_info("\n" + layer_summary(optimizer))
        reduced = {"bf16-mixed": torch.bfloat16}.get(str(self.precision_plugin.precision))
        context = self.precision_plugin.train_step_context

        def parameters() -> list[Tensor]:
            return [p for group in optimizer.param_groups for p in group["params"]]

        if optimizer.full_batch is not None:
            self._sweeps = LightningFullBatch(module, context, parameters, optimizer.full_batch, reduced)
        else:
            self._sweeps = LightningSweeps(module, context, reduced, parameters)

    def _make_optimizer(self, module: pl.LightningModule, given: Sequence[torch.optim.Optimizer]) -> BSQHOptimizer:
        layers = find_layers(module, self._options.regularize, self._options.layers)
        if given:
            # A module that hands only part of its parameters to its optimizer wants only these trained.
            wanted = {id(p) for group in given[0].param_groups for p in group["params"]}
            for layer in layers:
                layer.waiting = {name for name, p in layer.parameters.items() if id(p) not in wanted}
        return BSQHOptimizer(layers, **self._options.for_found_layers())

    @override
    def on_train_start(self) -> None:
        super().on_train_start()
        # Asked only now: the Trainer would otherwise start the data loader, which draws random numbers, before a
        # checkpoint's generators are restored.
        optimizer = self._optimizer
        trainer = self._trainer
        batches_per_iteration = self._batches_per_iteration(trainer)
        if optimizer.total_steps is None:
            steps = trainer.estimated_stepping_batches
            if 0 < steps < float("inf"):
                # Of a training that goes on, a new optimizer sees only what is left.
                done = trainer.global_step // batches_per_iteration - optimizer.iterations
                optimizer.set_total_steps(max(int(steps) // batches_per_iteration - done, 1))
            elif optimizer.has_default_regularizer:
                optimizer.expect_length(False)
                rank_zero_warn(
                    "The length of the training is not known, so BSQHStrategy uses L0(rho=1e-5) and no schedule for ε"
                    " instead of a ramp of the sparsity; give max_steps to the Trainer or total_steps to BSQHStrategy."
                )
        optimizer.check_ready()
        # A training that had finished is resumed.
        trainer.should_stop = trainer.should_stop or optimizer.finished

    def _batches_per_iteration(self, trainer: pl.Trainer) -> int:
        if self._optimizer.full_batch is None:
            return 1
        batches = trainer.num_training_batches
        if batches == float("inf"):
            raise MisconfigurationException(
                "batch_mode='full' needs training data of known length, but the data loader has none"
                f" ({type(trainer.train_dataloader).__name__}): an iteration is one pass over all batches. Give the"
                " data set a __len__, or the Trainer limit_train_batches=N, or use batch_mode='mini'."
            )
        return max(int(batches), 1)

    @override
    def on_train_end(self) -> None:
        super().on_train_end()
        if isinstance(self._sweeps, LightningFullBatch) and self._sweeps.is_within_pass:
            rank_zero_warn(
                "The training ended within a pass over the data, which batch_mode='full' does not use: give max_epochs"
                " to the Trainer or max_iterations to BSQHStrategy instead of max_steps."
            )
        if not self._optimizer.meets_constraint():
            report = self._optimizer.last_step
            rank_zero_warn(
                f"The training ended before {self._optimizer.regularizer!r} was met:"
                f" {100 * self._optimizer.sparsity():.2f} % of the weights are zero. "
                + (
                    "The last trials were rejected: with so many zeros the loss is not finite, or rises too far."
                    if report is not None and report.tightened and not report.accepted
                    else "It was stopped within the ramp."
                )
            )

    # ------------------------------------------------------------------ one batch

    @override
    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """The forward sweep: the user's training_step, once, as Lightning's closure calls it."""
        assert self._sweeps is not None
        if self._resumed_random is not None:
            if self._trainer.fit_loop.batch_idx > 0:
                # Resumed within an epoch: starting the data loader again has drawn numbers that the
                # uninterrupted run did not draw.
                self._resumed_random.restore()
            self._resumed_random = None
        if isinstance(self._sweeps, LightningFullBatch):
            trainer, step = self._trainer, super().training_step
            return self._sweeps.forward_sweep(
                (*args, *kwargs.values()),
                trainer.fit_loop.batch_idx,
                trainer.is_last_batch,
                lambda: step(*args, **kwargs),
            )
        self._sweeps.begin((*args, *kwargs.values()))
        output = super().training_step(*args, **kwargs)
        loss = loss_of(output)
        self._sweeps.end((*args, *kwargs.values()), has_loss=loss is not None)
        if loss is not None:
            check_loss(loss, "training_step")
        return output

    @override
    def optimizer_step(
        self,
        optimizer: torch.optim.Optimizer,
        closure: Callable[[], Any],
        model: pl.LightningModule | nn.Module | None = None,
        **kwargs: Any,
    ) -> Tensor | None:
        """The iteration: Lightning's closure does the forward and adjoint sweep, once, with all hooks."""
        assert self._sweeps is not None
        try:
            loss = super().optimizer_step(optimizer, closure, model, sweeps=self._sweeps, **kwargs)
            if self._sweeps.closure_was_withheld:
                raise MisconfigurationException(
                    "optimizer_step of the LightningModule has called its closure itself and then optimizer.step()"
                    " without it, so there was nothing to step by: call optimizer.step(closure=optimizer_closure)."
                )
            if self._optimizer.finished:
                self._trainer.should_stop = True
            return loss
        finally:
            self._sweeps.release()

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
        state: dict[str, Any] = dict(super().optimizer_state(optimizer))
        state["random"] = RandomState.capture([self.root_device]).state_dict()
        return state

    @override
    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        states = [dict(state) for state in checkpoint["optimizer_states"]]
        random = states[0].pop("random", None) if states else None
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": states})
        if random is not None:
            self._resumed_random = RandomState.from_state_dict(random)
            self._resumed_random.restore()

    # ------------------------------------------------------------------ afterwards

    @override
    def teardown(self) -> None:
        module = self.lightning_module
        if module is not None and not self._has_own_configure_optimizers:
            vars(module).pop("configure_optimizers", None)
            self._has_own_configure_optimizers = True
        self._sweeps = None
        self._resumed_random = None
        self._detach_progress()
        super().teardown()

    def _detach_progress(self) -> None:
        if self._progress is not None:
            self._progress.detach()
        self._progress = None

    @classmethod
    @override
    def register_strategies(cls, strategy_registry: Any) -> None:
        strategy_registry.register(cls.strategy_name, cls, description="Batch sequential quadratic Hamiltonian method")


def _no_optimizer() -> None:
    """Stands in for a missing configure_optimizers."""
    return None


def _members(configured: Any) -> tuple[list[torch.optim.Optimizer], list[Any]]:
    """All optimizers and schedulers in what configure_optimizers returned, whatever its form."""
    optimizers: list[torch.optim.Optimizer] = []
    schedulers: list[Any] = []
    if isinstance(configured, torch.optim.Optimizer):
        optimizers.append(configured)
    elif isinstance(configured, LRScheduler):
        schedulers.append(configured)
    elif isinstance(configured, (Mapping, list, tuple)):
        for member in configured.values() if isinstance(configured, Mapping) else configured:
            found = _members(member)
            optimizers += found[0]
            schedulers += found[1]
    return optimizers, schedulers


def _names(objects: Sequence[Any]) -> str:
    names = []
    for member in objects:
        rate = f"(lr={member.defaults['lr']})" if isinstance(member, torch.optim.Optimizer) else ""
        names.append(type(member).__name__ + (rate if rate and "lr" in member.defaults else ""))
    return " and ".join(names)


if BSQHStrategy.strategy_name not in StrategyRegistry.available_strategies():
    BSQHStrategy.register_strategies(StrategyRegistry)
