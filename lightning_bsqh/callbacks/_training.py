"""What a callback may ask about who trains."""

from __future__ import annotations

from lightning_bsqh.namespace import pl
from lightning_bsqh.optimizer import BSQHOptimizer


def bsqh_optimizer(trainer: pl.Trainer, callback: str) -> BSQHOptimizer:
    """The optimizer of a Trainer that trains by bSQH.

    Args:
        trainer: Whose optimizer to give.
        callback: Name of the callback that needs it.

    Raises:
        TypeError: If the Trainer uses another one.
    """
    if not trainer.optimizers or not isinstance(trainer.optimizers[0], BSQHOptimizer):
        raise TypeError(
            f"{callback} shows what a BSQHOptimizer does, but the Trainer uses"
            f" {[type(optimizer).__name__ for optimizer in trainer.optimizers]}: pass strategy=BSQHStrategy() to"
            " the Trainer, or leave the callback out."
        )
    return trainer.optimizers[0]
