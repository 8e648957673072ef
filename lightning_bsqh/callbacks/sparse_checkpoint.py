"""Keeps the best checkpoint among those that are sparse enough."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from typing_extensions import override

from lightning_bsqh._validation import number
from lightning_bsqh.callbacks._weights import count_zeros, layer_weights
from lightning_bsqh.optimizer import BSQHOptimizer


class SparseCheckpoint(ModelCheckpoint):
    """A ModelCheckpoint that passes over a network that is not yet as sparse as it shall be.

    While the sparsity rises, networks are denser than the target and usually better than it allows, so
    the best of all checkpoints would not be the one wanted.

    Args:
        sparsity: Share of exact zeros that a checkpoint must have, in [0, 1]. None takes the target
            of the regularizer (its constraint in its last form), or 0 where that has none.
        **options: The arguments of ModelCheckpoint.

    Raises:
        ValueError: If ``sparsity`` is out of its range.
    """

    def __init__(self, sparsity: float | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._triggered_by_batches = bool(options.get("every_n_train_steps") or options.get("train_time_interval"))
        self.sparsity = None if sparsity is None else number("sparsity", sparsity, low=0.0, high=1.0)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        if self._triggered_by_batches and self.is_sparse_enough(trainer, pl_module):
            super().on_train_batch_end(trainer, pl_module, *args, **kwargs)

    @override
    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_sparse_enough(trainer, pl_module):
            super().on_train_epoch_end(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.is_sparse_enough(trainer, pl_module):
            super().on_validation_end(trainer, pl_module)

    def is_sparse_enough(self, trainer: L.Trainer, pl_module: L.LightningModule) -> bool:
        """Whether the network may be saved now."""
        if self.sparsity is None:
            if not (trainer.optimizers and isinstance(trainer.optimizers[0], BSQHOptimizer)):
                return True
            optimizer = trainer.optimizers[0]
            weights = [w for layer in optimizer.regularized_weights().values() for w in layer]
            return bool(optimizer.regularizer.admits(weights))
        counts = count_zeros(layer_weights(trainer, pl_module))
        zeros, total = (sum(column) for column in zip(*counts.values(), strict=True)) if counts else (0, 0)
        # Counted as Cardinality counts, to the weight.
        return zeros >= round(self.sparsity * total)
