"""Whether a network is as sparse as its training demands."""

from __future__ import annotations

from lightning_bsqh.callbacks._weights import count_zeros, layer_weights
from lightning_bsqh.callbacks.magnitude_pruning import MagnitudePruning
from lightning_bsqh.namespace import pl
from lightning_bsqh.optimizer import BSQHOptimizer
from lightning_bsqh.trainer_access import callbacks_of


def is_at_target(trainer: pl.Trainer) -> bool:
    """Whether the constraint of the regularizer holds in full, or MagnitudePruning has done its share.

    True where nothing demands a sparsity.
    """
    if trainer.optimizers and isinstance(trainer.optimizers[0], BSQHOptimizer):
        return trainer.optimizers[0].meets_constraint()
    return all(callback.is_done for callback in callbacks_of(trainer) if isinstance(callback, MagnitudePruning))


def is_as_sparse_as(sparsity: float, trainer: pl.Trainer, pl_module: pl.LightningModule) -> bool:
    """Whether that share of the weights is zero, counted as Cardinality counts, to the weight."""
    counts = count_zeros(layer_weights(trainer, pl_module)).values()
    return sum(zeros for zeros, _ in counts) >= round(sparsity * sum(size for _, size in counts))
