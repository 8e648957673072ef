"""How the monitors hand on what they measure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from lightning_bsqh.namespace import pl
from lightning_bsqh.trainer_access import log_every_n_steps_of


def show(pl_module: pl.LightningModule, values: Mapping[str, float], in_bar: str | None) -> None:
    """Gives values to other callbacks, and the one under the key ``in_bar`` to the progress bar.

    Few of them: Lightning takes longer to note a value than the monitors to find it.

    Not to the loggers: what ``self.log`` takes for them is repeated under every later step of the
    epoch, although it was measured only once.
    """
    for key, value in values.items():
        pl_module.log(key, value, prog_bar=key == in_bar, logger=False)


def layer_keys(prefix: str, layers: Iterable[str]) -> dict[str, str]:
    """The key of each layer, ``<prefix>/<layer>``; a layer called total leaves that key to the whole network."""
    return {name: f"{prefix}/{name}" if name != "total" else f"{prefix}/total (layer)" for name in layers}


def is_due(every: int | None, trainer: pl.Trainer, done: int) -> bool:
    """Whether loggers get what is measured after ``done`` steps.

    Args:
        every: How many steps lie between two readings; None follows the Trainer's ``log_every_n_steps``.
        trainer: Whose setting it is.
        done: Number of steps done, this one included.
    """
    every = log_every_n_steps_of(trainer) if every is None else every
    return every > 0 and done > 0 and done % every == 0


def write(trainer: pl.Trainer, values: Mapping[str, float]) -> None:
    """Gives values of the step just done to all loggers, which count steps from 0."""
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=max(trainer.global_step - 1, 0))
