"""How the monitors hand on what they measure."""

from __future__ import annotations

from collections.abc import Mapping

import lightning as L


def show(pl_module: L.LightningModule, values: Mapping[str, float], in_bar: str | None) -> None:
    """Gives values to other callbacks, and the one under the key ``in_bar`` to the progress bar.

    Not to the loggers: what ``self.log`` takes for them is repeated under every later step of the
    epoch, although it was measured only once.
    """
    for key, value in values.items():
        pl_module.log(key, value, prog_bar=key == in_bar, logger=False)


def loggers_are_due(trainer: L.Trainer) -> bool:
    """Whether the Trainer's ``log_every_n_steps`` falls on this step."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]  # an attribute that the Trainer sets unannounced
    return every > 0 and trainer.global_step % every == 0


def write(trainer: L.Trainer, values: Mapping[str, float]) -> None:
    """Gives values of the step just done to all loggers, which count steps from 0."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=max(trainer.global_step - 1, 0))
