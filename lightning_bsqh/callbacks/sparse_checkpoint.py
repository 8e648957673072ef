"""Keeps the best checkpoint among those that are sparse enough."""

from __future__ import annotations

import importlib.util
from typing import Any

from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.callbacks._sparse_files import EXTENSION, SparseFileIO
from lightning_bsqh.callbacks._target import is_as_sparse_as, is_at_target
from lightning_bsqh.namespace import ModelCheckpoint, pl, rank_zero_warn
from lightning_bsqh.network.sharding import is_sharded


class SparseCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that passes over a network that is not yet as sparse as it shall be.

    While the sparsity rises, networks are denser than the target and usually better than it allows, so
    the best of all checkpoints would not be the one wanted. That holds for whatever it saves: the best ones, the last
    one and those after an exception. If it has saved nothing at all by the end, a warning says so.

    Args:
        sparsity: Share of exact zeros that a checkpoint must have, in [0, 1]. None takes the target
            of the regularizer (its constraint in its last form) or of a MagnitudePruning, or 0 where there is none.
        sparse_file: Whether it keeps the weights alone, without the optimizer and without their zeros, in files for
            ``lightning_bsqh.export.load_sparse`` that end with ``.safetensors``. ``Trainer.test(ckpt_path="best")``
            reads them; a training cannot be resumed from them. ``save_weights_only`` does not matter then.
        **options: The arguments of ModelCheckpoint.

    Raises:
        ValueError: If ``sparsity`` is out of its range.
        ModuleNotFoundError: If ``sparse_file`` is asked for and safetensors is not installed.
    """

    def __init__(self, sparsity: float | None = None, sparse_file: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.sparse_file = sparse_file
        if sparse_file:
            self._keep_weights_alone()
        self._triggered_by_batches = bool(options.get("every_n_train_steps") or options.get("train_time_interval"))
        self.sparsity = None if sparsity is None else number("sparsity", sparsity, low=0.0, high=1.0)

    def _keep_weights_alone(self) -> None:
        # Before the training, not at the first checkpoint.
        if importlib.util.find_spec("safetensors") is None:
            raise ModuleNotFoundError('sparse_file=True needs safetensors: pip install "lightning-bsqh[export]"')
        self.save_weights_only = True
        self.FILE_EXTENSION = EXTENSION

    @override
    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if self.sparse_file and not isinstance(trainer.strategy.checkpoint_io, SparseFileIO):
            trainer.strategy.checkpoint_io = SparseFileIO(trainer.strategy.checkpoint_io)

    @override
    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        io = trainer.strategy.checkpoint_io
        if self.sparse_file and isinstance(io, SparseFileIO):
            trainer.strategy.checkpoint_io = io.others
        super().teardown(trainer, pl_module, stage)

    @override
    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._triggered_by_batches and self.is_sparse_enough(trainer, pl_module):
            super().on_train_batch_end(trainer, pl_module, *args, **kwargs)

    @override
    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_sparse_enough(trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_sparse_enough(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.is_sparse_enough(trainer, pl_module):
            super().on_train_end(trainer, pl_module)
        elif not self.best_model_path and not self.last_model_path:
            demand = "its target" if self.sparsity is None else f"sparsity={self.sparsity:g}"
            rank_zero_warn(
                f"SparseCheckpoint has saved nothing: whenever it was asked to, the network was denser than {demand}."
            )

    @override
    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        # Of sharded weights all processes would have to count, and the others may be gone.
        is_whole = not any(map(is_sharded, pl_module.parameters()))
        if is_whole and self.is_sparse_enough(trainer, pl_module):
            super().on_exception(trainer, pl_module, exception)

    def is_sparse_enough(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
        """Whether the network may be saved now."""
        if self.sparsity is None:
            return is_at_target(trainer)
        return is_as_sparse_as(self.sparsity, trainer, pl_module)
