"""Public attributes that Lightning's Trainer sets without declaring them, in one place for the type checker."""

from __future__ import annotations

import lightning.pytorch as pl


def callbacks_of(trainer: pl.Trainer) -> list[pl.Callback]:
    """All callbacks, those of the module included once it is attached."""
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return callbacks


def trainer_of(module: pl.LightningModule) -> pl.Trainer | None:
    """The Trainer that a module is attached to, None if there is none."""
    try:
        return module.trainer
    except RuntimeError:  # What the property raises then.
        return None


def log_every_n_steps_of(trainer: pl.Trainer) -> int:
    """The option of the same name."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every


def batches_of_all_epochs(trainer: pl.Trainer) -> float:
    """Number of batches until ``max_epochs`` whatever ``max_steps`` is, infinite if that is not known."""
    if trainer.max_epochs in (None, -1):
        return float("inf")
    return trainer.num_training_batches * float(trainer.max_epochs or 0)
